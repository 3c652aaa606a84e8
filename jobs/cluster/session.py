"""Folder and processes of a Ray that is started on this machine for one command.

Ray does not remove its session folder, so each session gets its own temporary folder, which is
removed at the end. The command holds a lock on a file in it while it runs; a folder whose lock is
free was left by a killed command, and the next command removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from retrieval.core.errors import InputError

_PREFIX = "lookalike-"
_LOCK = "in-use"
_MAX_PATH = 107 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""Longest path of a session folder in characters: the kernel limits the path of a socket."""

_KILL_TIMEOUT = 5.0  # seconds to wait for killed processes to end


@dataclass(frozen=True)
class Session:
    """A Ray started here: its folder, and the file descriptor that holds the lock."""

    folder: str
    lock: int

    def end(self, shut_down: Callable[[], None] | None = None) -> None:
        """Call `shut_down`, kill the remaining processes of Ray, and remove the folder."""
        import psutil

        processes = self._processes()
        if shut_down:
            shut_down()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=_KILL_TIMEOUT)
        _remove(self.folder)
        os.close(self.lock)
        _started.remove(self)

    def _processes(self) -> list[Any]:
        """Return the processes of this Ray: children started with its folder, and descendants."""
        import psutil

        processes = []
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if any(self.folder in argument for argument in child.cmdline()):
                    processes += [child, *child.children(recursive=True)]
        return processes


_started: list[Session] = []


def running_session() -> Session | None:
    """Return the session that this process has started and not ended, if any."""
    return _started[-1] if _started else None


def start_session() -> Session:
    """Create the folder of a new session, and remove the folders of killed commands.

    Raises InputError if no folder for temporary files is suitable.
    """
    for parent in _parents():
        _sweep(parent)
        with suppress(OSError):
            folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
            _started.append(Session(folder, _create_lock(folder)))
            return _started[-1]
    raise InputError(
        "Ray cannot be started: it needs a folder for temporary files with a path of at most "
        f"{_MAX_PATH - len(_PREFIX) - 9} characters, and none of them is writable "
        f"({', '.join(_parents())}); set TMPDIR to a writable folder"
    )


def _parents() -> list[str]:
    """Return folders for temporary files whose paths are short enough, the preferred one first."""
    folders = []
    with suppress(FileNotFoundError):  # Python found no writable folder
        folders.append(os.path.abspath(tempfile.gettempdir()))
    folders += ["/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR", "/run"), "/dev/shm"]  # noqa: S108
    return [
        name for name in dict.fromkeys(folders) if len(f"{name}/{_PREFIX}12345678") <= _MAX_PATH
    ]


def _create_lock(folder: str) -> int:
    """Create and lock the lock file of a folder; it is renamed when the lock is held."""
    new_path = os.path.join(folder, f"{_LOCK}.new")
    lock = os.open(new_path, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(new_path, os.path.join(folder, _LOCK))
    return lock


def _sweep(parent: str) -> None:
    """Remove the folders that killed commands of this user left."""
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            with suppress(OSError):  # removed meanwhile, or in use
                is_session = entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False)
                if is_session and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                    _remove_if_unused(entry.path)


def _remove_if_unused(folder: str) -> None:
    lock = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_in_use(folder):
            _remove(folder)
    finally:
        os.close(lock)


def _is_in_use(folder: str) -> bool:
    """Return whether a process that was started with the folder is still alive."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(folder in argument for argument in process.cmdline()):
                return True
    return False


def _remove(folder: str) -> None:
    """Remove a folder, retrying while an ending process still writes to it."""
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.1)
