"""Reading of input files, local or remote, with retries after transient errors."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar, cast

import fsspec

from retrieval.storage.local import is_remote, local_path, operation
from retrieval.storage.object_store import read_whole
from retrieval.storage.retry import ATTEMPTS, call_with_retries

Answer = TypeVar("Answer")


def read_uri(
    path: str,
    options: Mapping[str, Any] | None = None,
    *,
    only_files: bool = False,
    attempts: int = ATTEMPTS,
) -> bytes:
    """Return the bytes of a local or remote file.

    In listings the bytes of a name that are not UTF-8 are written as %XX; they are decoded if no
    file has the name as written.

    Args:
        path: A path or URI.
        options: Arguments of the fsspec file system.
        only_files: Whether named pipes and devices are rejected with ValueError: a shell may pass a
            pipe as a labels file, but not as an image.
        attempts: Number of attempts in case of transient errors.
    """
    open_local = _open_file if only_files else _open_any

    def read_local(name: str) -> bytes:
        with open_local(name) as file:
            return file.read()

    def read() -> bytes:
        with operation("read", path):
            if is_remote(path):
                system, name = fsspec.core.url_to_fs(path, **(options or {}))
                return read_whole(system, name)
            return _with_decoded_name(read_local, local_path(path))

    return call_with_retries(read, path, attempts=attempts)


def read_range(
    path: str, first: int, length: int, options: Mapping[str, Any] | None = None
) -> bytes:
    """Return `length` bytes of a file from offset `first` on; fewer if the file ends before."""

    def read_local(name: str) -> bytes:
        with _open_file(name) as file:
            file.seek(first)
            return file.read(length)

    def read() -> bytes:
        with operation("read", path):
            if length == 0:
                return b""
            if is_remote(path):
                system, name = fsspec.core.url_to_fs(path, **(options or {}))
                return cast(bytes, system.cat_file(name, start=first, end=first + length))
            return _with_decoded_name(read_local, local_path(path))

    return call_with_retries(read, path)


def open_uri(path: str, options: Mapping[str, Any] | None = None, *, block: int = 0) -> BinaryIO:
    """Open a file as a seekable stream; a remote file is fetched in blocks of `block` bytes."""

    def open_once() -> BinaryIO:
        with operation("read", path):
            if is_remote(path):
                system, name = fsspec.core.url_to_fs(path, **(options or {}))
                return cast(BinaryIO, system.open(name, "rb", block_size=block or None))
            return _with_decoded_name(_open_file, local_path(path))

    return call_with_retries(open_once, path)


def _open_any(name: str) -> BinaryIO:
    return open(name, "rb")


def _open_file(name: str) -> BinaryIO:
    """Open a regular file; raise ValueError for pipes and devices, where reads may never end."""
    if problem := describe_special_file(os.stat(name).st_mode):
        raise ValueError(problem)
    return open(name, "rb")


_SPECIAL_FILES = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


def describe_special_file(mode: int) -> str | None:
    """Describe a pipe, socket or device by its mode; return None for files and folders."""
    kind = _SPECIAL_FILES.get(stat.S_IFMT(mode))
    return None if kind is None else f"it is {kind}, not a file"


def _with_decoded_name(action: Callable[[str], Answer], name: str) -> Answer:
    """Call `action` with a name, or with its %XX decoded if no file has the name."""
    try:
        return action(name)
    except FileNotFoundError:
        if "%" not in name:
            raise
        return action(unescape_non_utf8(name))


def escape_non_utf8(path: str) -> str:
    """Replace the bytes of a name that are not UTF-8 by %XX."""
    return "".join(
        f"%{ord(char) - 0xDC00:02X}" if 0xDC80 <= ord(char) <= 0xDCFF else char for char in path
    )


def unescape_non_utf8(name: str) -> str:
    """Replace %80 to %FF by the bytes they stand for: the reverse of `escape_non_utf8`."""
    decoded = re.sub(
        rb"%([89A-F][0-9A-F])", lambda match: bytes([int(match[1], 16)]), os.fsencode(name)
    )
    return os.fsdecode(decoded)
