"""Local folders with atomic writes, and opening of local paths and fsspec URIs.

`put` replaces a file atomically and `put_new` writes it only if it does not exist. Locally both
write a temporary file in the same folder, fsync it, replace or link the target (`exclusive.py`
where there are no hard links), and fsync the folder; on object stores they are one put
(`object_store.py`). A full or failing disk stops the job with `StorageFailure`, and the temporary
file is removed.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from retrieval.core.errors import AccessRefused, StorageFailure
from retrieval.storage.exclusive import rename_if_absent
from retrieval.storage.folder import Entry, Folder, operation
from retrieval.storage.ignored_files import is_system_name
from retrieval.storage.object_store import RemoteFolder
from retrieval.storage.temporary import TEMPORARY_PREFIX, is_abandoned, temporary_name

__all__ = [
    "Entry",
    "Folder",
    "LocalFolder",
    "RemoteFolder",
    "find_write_problem",
    "is_remote",
    "local_path",
    "open_folder",
    "operation",
    "sha256_of_file",
    "split_file_url",
]  # fmt: skip


@dataclass(frozen=True)
class LocalFolder(Folder):
    """A folder of this machine, or of a file system that all machines mount."""

    root: str

    def uri(self, path: str = "") -> str:
        return os.path.join(self.root, path) if path else self.root

    def child(self, path: str) -> Folder:
        return LocalFolder(self.uri(path))

    def open(self, path: str) -> BinaryIO:
        with operation("read", self.uri(path)):
            return open(self.uri(path), "rb")

    def entries(self, below: str = "") -> Iterator[Entry]:
        for folder, folders, names in os.walk(self.uri(below)):
            folders[:] = [name for name in folders if not is_system_name(name)]
            for name in names:
                if is_system_name(name):
                    continue
                full = os.path.join(folder, name)
                relative = os.path.relpath(full, self.root).replace(os.sep, "/")
                try:
                    yield Entry(relative, _size(full))
                except FileNotFoundError:  # another run removed its temporary file meanwhile
                    continue

    def put(self, path: str, data: bytes) -> None:
        self._write_and_move(path, lambda name: _write(name, data), "replace", os.replace)

    def put_new(self, path: str, data: bytes) -> bool:
        return self.put_new_file(path, lambda name: _write(name, data))

    def put_new_file(self, path: str, write: Callable[[str], None]) -> bool:
        def fill(name: str) -> None:
            write(name)
            _sync(name)

        return not os.path.exists(self.uri(path)) and self._write_and_move(
            path, fill, "link", rename_if_absent
        )

    def _write_and_move(
        self, path: str, fill: Callable[[str], None], name: str, move: Callable[[str, str], None]
    ) -> bool:
        """Fill a temporary file and move it to `path`; return False if `move` finds a file there.

        `name` is the name of the operation in the fault hook. Retried if another process removed
        the temporary file as abandoned: containers may share the name of a host but not its
        process ids.
        """
        for attempts_left in reversed(range(_MAX_ATTEMPTS)):
            with self._temporary(path) as temporary:
                try:
                    fill(temporary)
                    with operation(name, self.uri(path)):
                        move(temporary, self.uri(path))
                    return True
                except FileExistsError:
                    return False
                except FileNotFoundError:
                    if not attempts_left or os.path.exists(temporary):
                        raise
        raise AssertionError("unreachable")

    def put_file(self, path: str, write: Callable[[str], None]) -> None:
        """Call `write` with the path of a file to fill, then write that as `put` does."""
        with self._temporary(path) as name:
            write(name)
            _sync(name)
            with operation("replace", self.uri(path)):
                os.replace(name, self.uri(path))

    def delete(self, path: str) -> None:
        with operation("delete", self.uri(path)):
            Path(self.uri(path)).unlink(missing_ok=True)
            for folder in Path(self.uri(path)).parents:  # object stores have no empty folders
                if str(folder) == self.root or not _remove_empty(folder):
                    break

    def sweep(self) -> None:
        for entry in self.entries():
            name = entry.path.rsplit("/", 1)[-1]
            if name.startswith(TEMPORARY_PREFIX) and is_abandoned(self.uri(entry.path)):
                self.delete(entry.path)

    @contextmanager
    def _temporary(self, path: str) -> Iterator[str]:
        """Yield the path of an empty temporary file in the folder of `path`, then remove it."""
        folder = os.path.dirname(self.uri(path))
        with _translate_disk_errors(self.uri(path)):
            name = os.path.join(folder, temporary_name())
            try:
                with operation("make folder", folder):
                    _create_empty(name)
                yield name
            finally:
                with suppress(OSError):  # may fail on a failing disk; a later sweep removes it
                    unlink(name)
            with suppress(FileNotFoundError):  # the folder has been removed since
                _sync_folder(folder)


_MAX_ATTEMPTS = 3  # to write a file whose temporary file other processes remove

unlink = os.unlink
"""Removes a temporary file; tests that simulate a killed process replace it."""


def _create_empty(name: str) -> None:
    """Create an empty file and its folder; retry if another run removes the still empty folder."""
    for _ in range(100):
        with suppress(FileNotFoundError):
            os.makedirs(os.path.dirname(name), exist_ok=True)
            open(name, "xb").close()
            return


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE)
"""Error numbers of a full or failing disk; the same write may succeed once it is repaired."""


@contextmanager
def _translate_disk_errors(path: str) -> Iterator[None]:
    """Raise StorageFailure in place of the errors of a full or failing disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise StorageFailure(
            f"{path} could not be written ({error.strerror}); finished work is kept: make room "
            "or repair the disk, and run the same command again"
        ) from error


def open_folder(url: str, options: Mapping[str, Any] | None = None) -> Folder:
    """Return the folder at a local path (made absolute) or an fsspec URI."""
    if is_remote(url):
        return RemoteFolder(url.rstrip("/"), dict(options or {}))
    return LocalFolder(local_path(url))


def split_file_url(url: str) -> tuple[Folder, str]:
    """Return the folder that contains the file at a path or URI, and the file's name in it."""
    if url.startswith(_FILE) and not url.endswith("/"):
        url = local_path(url)
    head, _, name = url.rpartition("/")
    return open_folder(head or ("/" if url.startswith("/") else ".")), name


def find_write_problem(folder: Folder) -> str | None:
    """Return why a folder cannot be written, found by writing a file to it; None if it can."""
    probe = temporary_name()
    try:
        folder.put(probe, b"")
        folder.delete(probe)
    except (OSError, AccessRefused) as error:
        return str(getattr(error, "strerror", None) or error)
    return None


_FILE = "file://"


def local_path(url: str) -> str:
    """Return the absolute path of a local path or file:// URI.

    Percent-encoding in a URI is decoded (RFC 8089), unless only the name as written exists. A plain
    path is not decoded.
    """
    if not url.startswith(_FILE):
        return os.path.abspath(os.path.expanduser(url))
    written = url.removeprefix(_FILE)
    if written.startswith("localhost/"):
        written = written.removeprefix("localhost")
    plain, decoded = (
        os.path.abspath(os.path.expanduser(name))
        for name in (written, unquote(written, errors="surrogateescape"))
    )
    only_plain_exists = os.path.lexists(plain) and not os.path.lexists(decoded)
    return plain if only_plain_exists else decoded


def is_remote(url: str) -> bool:
    """Return whether a path is a URI other than file://."""
    return "://" in url and not url.startswith(_FILE)


def sha256_of_file(path: Path) -> str:
    """Return the hex SHA-256 of a local file, which may be larger than memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: str) -> int:
    """Return the size of a file in bytes; of a broken link, that of the link itself."""
    try:
        return os.stat(path).st_size
    except OSError:
        return os.lstat(path).st_size


def _remove_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _write(name: str, data: bytes) -> None:
    with operation("write", name), open(name, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: str) -> None:
    with operation("sync", path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_folder(folder: str) -> None:
    """Flush the entries of a folder to disk, if supported (not by SMB and some FUSE systems)."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
