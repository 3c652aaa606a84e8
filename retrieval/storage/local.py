"""Every byte this project reads or writes passes here: local folders and any fsspec URI.

Two promises are kept by the names: `put` replaces a file as a whole, `put_new` writes it only if
nothing is there and says whether it did. A reader never sees half a file. Locally that is a
temporary file in the same folder, fsync, link (or what `exclusive.py` does where there are no hard
links) or replace, fsync of the folder; on object stores it is one conditional put (`remote.py`).

A disk that is full or fails while a file is written stops the job with `StorageFailure`; what was
half-written is removed.
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
from retrieval.storage.exclusive import name_if_free
from retrieval.storage.folder import Entry, Folder, operation
from retrieval.storage.ignored_files import is_system_name
from retrieval.storage.object_store import RemoteFolder
from retrieval.storage.temporary import TEMPORARY, is_abandoned, temporary_name

__all__ = [
    "Entry", "Folder", "LocalFolder", "RemoteFolder", "digest_here", "file_at", "is_remote",
    "local_path", "open_folder", "operation", "unwritable",
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
                except FileNotFoundError:  # another run swept its temporary file meanwhile
                    continue

    def put(self, path: str, data: bytes) -> None:
        self._bring(path, lambda name: _write(name, data), "replace", os.replace)

    def put_new(self, path: str, data: bytes) -> bool:
        return self.put_new_file(path, lambda name: _write(name, data))

    def put_new_file(self, path: str, write: Callable[[str], None]) -> bool:
        def fill(name: str) -> None:
            write(name)
            _sync(name)

        return not os.path.exists(self.uri(path)) and self._bring(path, fill, "link", name_if_free)

    def _bring(
        self, path: str, fill: Callable[[str], None], what: str, move: Callable[[str, str], None]
    ) -> bool:
        """Fill a temporary file and bring it to its place; False where something is there.

        Done again where somebody swept it: containers may share a host's name, not its processes.
        """
        for left in reversed(range(_SWEPT)):
            with self._temporary(path) as name:
                try:
                    fill(name)
                    with operation(what, self.uri(path)):
                        move(name, self.uri(path))
                    return True
                except FileExistsError:
                    return False
                except FileNotFoundError:
                    if not left or os.path.exists(name):
                        raise
        raise AssertionError("unreachable")

    def put_file(self, path: str, write: Callable[[str], None]) -> None:
        """Let `write` fill a file of a given name, then put it as `put` does."""
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
            if name.startswith(TEMPORARY) and is_abandoned(self.uri(entry.path)):
                self.delete(entry.path)

    @contextmanager
    def _temporary(self, path: str) -> Iterator[str]:
        """Give a name to write to, beside the file it becomes; it is gone afterwards."""
        folder = os.path.dirname(self.uri(path))
        with _stopping(self.uri(path)):
            name = os.path.join(folder, temporary_name())
            try:
                with operation("make folder", folder):
                    _make(name)
                yield name
            finally:
                with suppress(OSError):  # a disk that fails may not even let go; a sweep will
                    unlink(name)
            with suppress(FileNotFoundError):  # removed since, with all that was in it
                _sync_folder(folder)


_SWEPT = 3  # times that a temporary file may be swept away before that is an error

unlink = os.unlink
"""Removes what is half-written; tests of a process that dies let it remove nothing."""


def _make(name: str) -> None:
    """Make an empty file and its folder, which another run may remove as long as it is empty."""
    for _ in range(100):
        with suppress(FileNotFoundError):
            os.makedirs(os.path.dirname(name), exist_ok=True)
            open(name, "xb").close()
            return


_FAILING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE)
"""What a disk says that is full or failing; the same write may succeed when it is mended."""


@contextmanager
def _stopping(path: str) -> Iterator[None]:
    """Turn what a failing disk says into the sentence that stops the job."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FAILING:
            raise
        raise StorageFailure(
            f"{path} could not be written ({error.strerror}); what is finished is kept: make room "
            "or mend the disk and run the same command again"
        ) from error


def open_folder(url: str, options: Mapping[str, Any] | None = None) -> Folder:
    """Give the folder at a local path (made absolute) or an fsspec URI."""
    if is_remote(url):
        return RemoteFolder(url.rstrip("/"), dict(options or {}))
    return LocalFolder(local_path(url))


def file_at(url: str) -> tuple[Folder, str]:
    """Give the folder that a file at a local path or an fsspec URI lies in, and its name there."""
    if url.startswith(_FILE) and not url.endswith("/"):
        url = local_path(url)
    head, _, name = url.rpartition("/")
    return open_folder(head or ("/" if url.startswith("/") else ".")), name


def unwritable(folder: Folder) -> str | None:
    """Say why nothing can be put into a folder, by trying; None where it can."""
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

    In a URI %20 is a blank, as the standard (RFC 8089) has it; where there is nothing of that name,
    but something of the name as written, the latter is meant. A plain path is taken as it is.
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
    return plain if plain != decoded and _is_only_there(plain, decoded) else decoded


def _is_only_there(path: str, other: str) -> bool:
    return os.path.lexists(path) and not os.path.lexists(other)


def is_remote(url: str) -> bool:
    """Tell a URI of an object store from a local path."""
    return "://" in url and not url.startswith(_FILE)


def digest_here(path: Path) -> str:
    """Give the SHA-256 of a local file, which may be larger than memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: str) -> int:
    """Give the size of a file; a link that leads nowhere has its own."""
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
    """Make the names in a folder durable, where its file system can (SMB and some FUSE cannot)."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
