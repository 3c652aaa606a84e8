"""Folders on object stores, through fsspec, with retries after transient errors (`retry.py`).

A put is atomic, but its response may be lost after the file was stored. The retry is then rejected
since the file exists; so a rejected conditional put counts as written if the content is equal.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeVar, cast

import fsspec

from retrieval.storage.folder import Entry, Folder, operation
from retrieval.storage.ignored_files import has_system_part
from retrieval.storage.retry import call_with_retries, s3_error_code

_BLOCK = 1 << 22  # bytes of one request where a file is streamed
_PRECONDITION_FAILED = ("PreconditionFailed", "412")

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RemoteFolder(Folder):
    """A folder of an object store; `options` go to its fsspec file system."""

    root: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold secrets

    def uri(self, path: str = "") -> str:
        return f"{self.root}/{path}" if path else self.root

    def child(self, path: str) -> Folder:
        return RemoteFolder(self.uri(path), self.options)

    def open(self, path: str) -> BinaryIO:
        size = self._size(path)
        return cast(BinaryIO, io.BufferedReader(_RemoteStream(self, path, size), 1 << 16))

    def read(self, path: str) -> bytes:
        return self._call("read", path, read_whole)

    def read_range(self, path: str, first: int, last: int) -> bytes:
        """Return the bytes at offsets first <= offset < last of a file."""

        def read(system: Any, name: str) -> bytes:
            return cast(bytes, system.cat_file(name, start=first, end=last))

        return self._call("read", path, read)

    def exists(self, path: str) -> bool:
        try:
            self._size(path)
        except FileNotFoundError:
            return False
        return True

    def entries(self, below: str = "") -> Iterator[Entry]:
        # one flat listing, which is not cached (`_locate`)
        infos = self._call("list", below, lambda system, name: system.find(name, detail=True))
        root = self._locate("")[1].rstrip("/") + "/"
        for name, info in infos.items():
            path = name.removeprefix(root)
            # some stores list folders that became empty
            if info["type"] == "file" and not has_system_part(path):
                yield Entry(path, info["size"])

    def put(self, path: str, data: bytes) -> None:
        self._call("put", path, lambda system, name: system.pipe_file(name, data))

    def put_new(self, path: str, data: bytes) -> bool:
        def put(system: Any, name: str) -> bool:
            return _try_create(lambda: system.pipe_file(name, data, mode="create"))

        while not self._call("put new", path, put):
            with suppress(FileNotFoundError):  # another run has removed it since
                return self.read(path) == data
        return True

    def put_new_file(self, path: str, write: Callable[[str], None]) -> bool:
        def put(system: Any, target: str) -> bool:
            return _try_create(lambda: system.put_file(name, target, mode="create"))

        with tempfile.TemporaryDirectory() as scratch:
            name = os.path.join(scratch, "file")
            write(name)
            while not self._call("put new", path, put):
                with suppress(FileNotFoundError):  # another run has removed it since
                    return self._equals(path, name)
        return True

    def delete(self, path: str) -> None:
        try:
            self._call("delete", path, lambda system, name: system.rm_file(name))
        except FileNotFoundError:
            return

    def _locate(self, path: str) -> tuple[Any, str]:
        """Return the fsspec file system of a file and its name there; listings are not cached.

        A cached listing would grow with the output, and hide files that other processes add.
        """
        options = {"use_listings_cache": False, **self.options}
        return fsspec.core.url_to_fs(self.uri(path), **options)  # type: ignore[no-any-return]

    def _call(self, name: str, path: str, action: Callable[[Any, str], Answer]) -> Answer:
        """Call `action(file system, path in it)` with retries, as the operation `name`."""

        def attempt() -> Answer:
            with operation(name, self.uri(path)):
                return action(*self._locate(path))

        return call_with_retries(attempt, self.uri(path), _PARTICIPLES[name])

    def _size(self, path: str) -> int:
        info = self._call("look", path, lambda system, name: system.info(name))
        if info["type"] != "file":
            raise FileNotFoundError(self.uri(path))
        return int(info["size"])

    def _equals(self, path: str, local: str) -> bool:
        """Return whether a remote file equals a local one; both are streamed."""
        size = os.path.getsize(local)
        if self._size(path) != size:
            return False
        local_digest, remote_digest = hashlib.sha256(), hashlib.sha256()
        with open(local, "rb") as file:
            for first in range(0, size, _BLOCK):
                local_digest.update(file.read(_BLOCK))
                remote_digest.update(self.read_range(path, first, min(first + _BLOCK, size)))
        return local_digest.digest() == remote_digest.digest()


_PARTICIPLES = {
    "read": "read", "look": "read", "list": "listed", "put": "written", "put new": "written",
    "delete": "deleted",
}  # fmt: skip


def read_whole(system: Any, name: str) -> bytes:
    """Return the bytes of a remote file.

    s3fs first requests the size by HEAD, whose error response has no body and so does not state
    whether the file or the credentials are rejected. After such an error one byte is requested by
    GET, which raises the complete error.
    """
    try:
        return bytes(system.cat_file(name))
    except PermissionError:
        system.cat_file(name, start=0, end=1)
        raise


def _try_create(put: Callable[[], Any]) -> bool:
    """Execute a conditional put; return False if it was rejected because the file exists.

    s3fs translates the error of AWS only; those of other stores do not name the condition
    (SeaweedFS: OSError 22).
    """
    try:
        put()
    except FileExistsError:
        return False
    except OSError as error:
        if s3_error_code(error) not in _PRECONDITION_FAILED:
            raise
        return False
    return True


class _RemoteStream(io.RawIOBase):
    """A remote file as a seekable stream; each range is one request with its own retries."""

    def __init__(self, folder: RemoteFolder, path: str, size: int) -> None:
        self._folder, self._path, self._size = folder, path, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        last = min(self._position + len(buffer), self._size)
        if last <= self._position:
            return 0
        data = self._folder.read_range(self._path, self._position, last)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
