"""Every byte this project reads or writes passes here: local folders and any fsspec URI.

Two promises are kept by the names: `put` replaces a file as a whole, `put_new` writes it only if
nothing is there and says whether it did. A reader never sees half a file. Locally that is a
temporary file in the same folder, fsync, link or replace, fsync of the folder; on object stores it
is one conditional put.

`seam` is the ONE place where tests inject faults: it is called before and after every operation.
"""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import fsspec

from retrieval.storage.temporary import TEMPORARY, is_abandoned, temporary_name


def _nothing(when: Literal["before", "after"], operation: str, path: str) -> None:
    """Let every operation pass."""


seam: Callable[[Literal["before", "after"], str, str], None] = _nothing


@contextmanager
def operation(name: str, path: str) -> Iterator[None]:
    """Surround one operation on storage by the seam."""
    seam("before", name, path)
    yield
    seam("after", name, path)


@dataclass(frozen=True)
class Entry:
    """A file in a folder: its path below it ('/'-separated) and its size in bytes."""

    path: str
    size: int


class Folder(ABC):
    """A folder and what may be done in it; paths are relative to it, '/'-separated."""

    @abstractmethod
    def uri(self, path: str = "") -> str:
        """Give the absolute path or URI of a file in it."""

    @abstractmethod
    def child(self, path: str) -> Folder:
        """Give the folder at `path` below this one, there or not."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Open a file for reading, seekable; FileNotFoundError where there is none."""

    @abstractmethod
    def entries(self, below: str = "") -> Iterator[Entry]:
        """Give every file in it, at any depth, temporary ones included; none if it is absent."""

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Write a file as a whole, replacing what is there."""

    @abstractmethod
    def put_new(self, path: str, data: bytes) -> bool:
        """Write a file as a whole if nothing is there; False where something is."""

    @abstractmethod
    def put_new_file(self, path: str, write: Callable[[str], None]) -> bool:
        """Let `write` fill a local file of a given name, then put it as `put_new` does."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file; nothing happens where there is none."""

    def sweep(self) -> None:
        """Remove what dead processes of this host, or anyone a day ago, left half-written."""
        return

    def read(self, path: str) -> bytes:
        """Give a file's bytes."""
        with self.open(path) as file:
            return file.read()

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file."""
        try:
            self.open(path).close()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


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
        for folder, _, names in os.walk(self.uri(below)):
            for name in names:
                full = os.path.join(folder, name)
                relative = os.path.relpath(full, self.root).replace(os.sep, "/")
                try:
                    yield Entry(relative, _size(full))
                except FileNotFoundError:  # another run swept its temporary file meanwhile
                    continue

    def put(self, path: str, data: bytes) -> None:
        with self._temporary(path) as name:
            _write(name, data)
            with operation("replace", self.uri(path)):
                os.replace(name, self.uri(path))

    def put_new(self, path: str, data: bytes) -> bool:
        return self.put_new_file(path, lambda name: _write(name, data))

    def put_new_file(self, path: str, write: Callable[[str], None]) -> bool:
        if os.path.exists(self.uri(path)):
            return False
        with self._temporary(path) as name:
            write(name)
            _sync(name)
            with operation("link", self.uri(path)):
                try:
                    os.link(name, self.uri(path))
                except FileExistsError:
                    return False
        return True

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
        folder = os.path.dirname(self.uri(path))
        with operation("make folder", folder):
            os.makedirs(folder, exist_ok=True)
        name = os.path.join(folder, temporary_name())
        try:
            yield name
        finally:
            Path(name).unlink(missing_ok=True)
        _sync(folder)


@dataclass(frozen=True)
class RemoteFolder(Folder):
    """A folder of an object store, through fsspec; a put there is atomic by itself."""

    root: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold secrets

    def _at(self, path: str) -> tuple[Any, str]:
        return fsspec.core.url_to_fs(self.uri(path), **self.options)  # type: ignore[no-any-return]

    def uri(self, path: str = "") -> str:
        return f"{self.root}/{path}" if path else self.root

    def child(self, path: str) -> Folder:
        return RemoteFolder(self.uri(path), self.options)

    def open(self, path: str) -> BinaryIO:
        with operation("read", self.uri(path)):
            system, name = self._at(path)
            return cast(BinaryIO, system.open(name, "rb"))

    def entries(self, below: str = "") -> Iterator[Entry]:
        system, name = self._at(below)
        system.invalidate_cache()
        root = self._at("")[1].rstrip("/") + "/"
        for found, info in system.find(name, detail=True).items():
            yield Entry(found.removeprefix(root), info["size"])

    def put(self, path: str, data: bytes) -> None:
        with operation("put", self.uri(path)):
            system, name = self._at(path)
            system.pipe_file(name, data)

    def put_new(self, path: str, data: bytes) -> bool:
        with operation("put new", self.uri(path)):
            system, name = self._at(path)
            try:
                system.pipe_file(name, data, mode="create")
            except FileExistsError:
                # the answer of our own put may have been lost: equal content is ours
                return self.read(path) == data
        return True

    def put_new_file(self, path: str, write: Callable[[str], None]) -> bool:
        with tempfile.TemporaryDirectory() as scratch:
            name = os.path.join(scratch, "file")
            write(name)
            with operation("put new", self.uri(path)):
                system, target = self._at(path)
                try:
                    system.put_file(name, target, mode="create")
                except FileExistsError:
                    return False
        return True

    def delete(self, path: str) -> None:
        with operation("delete", self.uri(path)):
            system, name = self._at(path)
            try:
                system.rm_file(name)
            except FileNotFoundError:
                return


def open_folder(url: str, options: Mapping[str, Any] | None = None) -> Folder:
    """Give the folder at a local path (made absolute) or an fsspec URI."""
    if is_remote(url):
        return RemoteFolder(url.rstrip("/"), dict(options or {}))
    return LocalFolder(local_path(url))


def local_path(url: str) -> str:
    """Give the absolute path of a local path or file:// URI."""
    return os.path.abspath(os.path.expanduser(url.removeprefix("file://")))


def is_remote(url: str) -> bool:
    """Tell a URI of an object store from a local path."""
    return "://" in url and not url.startswith("file://")


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
