"""The folder and the processes of a Ray that is started on this machine for one command.

Ray leaves its session folder behind. So each Ray of ours gets a folder of its own, which is removed
with it. As long as the command lives it holds a lock on a file there; folders whose lock is free
are what killed commands left, and the next one removes them.
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

from retrieval.errors import InputError

_PREFIX = "lookalike-"
_LOCK = "in-use"
_LONGEST = 107 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""Characters that the path of such a folder may have: the kernel cuts a socket's path there."""

_PATIENCE = 5.0  # seconds for killed processes to be gone


@dataclass(frozen=True)
class Session:
    """A Ray that was started here: its folder, and the descriptor that holds the lock."""

    folder: str
    lock: int

    def end(self, shut_down: Callable[[], None] | None = None) -> None:
        """End Ray's processes, by `shut_down` and then by force, and remove the folder."""
        import psutil

        processes = self._processes()
        if shut_down:
            shut_down()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=_PATIENCE)
        _remove(self.folder)
        os.close(self.lock)
        _started.remove(self)

    def _processes(self) -> list[Any]:
        """List the processes of this Ray: children that were given its folder, and theirs."""
        import psutil

        found = []
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if any(self.folder in word for word in child.cmdline()):
                    found += [child, *child.children(recursive=True)]
        return found


_started: list[Session] = []


def running() -> Session | None:
    """Return the Ray that this process has started and not ended."""
    return _started[-1] if _started else None


def start() -> Session:
    """Make a folder for a Ray to be started in, after removing those of killed commands."""
    for parent in _parents():
        _sweep(parent)
        with suppress(OSError):
            folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
            _started.append(Session(folder, _locked(folder)))
            return _started[-1]
    raise InputError(
        "Ray cannot be started: it wants a folder for temporary files with a path of at most "
        f"{_LONGEST - len(_PREFIX) - 9} characters, and none that is known can be written "
        f"({', '.join(_parents())}); set TMPDIR to one that can"
    )


def _parents() -> list[str]:
    """List folders for temporary files whose paths are short enough, the best first."""
    named = []
    with suppress(FileNotFoundError):  # no folder that Python knows can be written
        named.append(os.path.abspath(tempfile.gettempdir()))
    named += ["/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR", "/run"), "/dev/shm"]  # noqa: S108
    return [name for name in dict.fromkeys(named) if len(f"{name}/{_PREFIX}12345678") <= _LONGEST]


def _locked(folder: str) -> int:
    """Make the lock file of a folder; no name of it is ever seen without the lock being held."""
    made = os.path.join(folder, f"{_LOCK}.new")
    lock = os.open(made, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(made, os.path.join(folder, _LOCK))
    return lock


def _sweep(parent: str) -> None:
    """Remove the folders of this user's commands that are no more."""
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            with suppress(OSError):  # it goes meanwhile, or is in use
                ours = entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False)
                if ours and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                    _sweep_one(entry.path)


def _sweep_one(folder: str) -> None:
    lock = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_named(folder):
            _remove(folder)
    finally:
        os.close(lock)


def _is_named(folder: str) -> bool:
    """Return whether the command line of a living process names a folder."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(folder in word for word in process.cmdline()):
                return True
    return False


def _remove(folder: str) -> None:
    """Remove a folder in which a process that is about to end may still write."""
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.1)
