"""Inputs read with patience: what may pass is tried again, what comes again is raised."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar, cast

import fsspec

from retrieval.storage.files import is_remote, local_path, operation
from retrieval.storage.patience import ATTEMPTS, retrying
from retrieval.storage.remote import read_whole

Answer = TypeVar("Answer")


def read_uri(
    path: str,
    options: Mapping[str, Any] | None = None,
    *,
    only_files: bool = False,
    attempts: int = ATTEMPTS,
) -> bytes:
    """Give the bytes of one file, wherever it lies.

    A name that is not UTF-8 stands in listings with %XX for the bytes that are not; it is tried
    when no file has the name as written. With `only_files` a named pipe or a device is refused
    with ValueError: a shell hands over a pipe as a file of labels, never as an image.
    """
    opened = _open_file if only_files else _open_anything

    def read_all(name: str) -> bytes:
        with opened(name) as file:
            return file.read()

    def read() -> bytes:
        with operation("read", path):
            if is_remote(path):
                system, name = fsspec.core.url_to_fs(path, **(options or {}))
                return read_whole(system, name)
            return _as_written(read_all, local_path(path))

    return retrying(read, path, attempts=attempts)


def read_range(
    path: str, first: int, length: int, options: Mapping[str, Any] | None = None
) -> bytes:
    """Give `length` bytes of a file from byte `first` on; fewer where it ends before."""

    def cut(name: str) -> bytes:
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
            return _as_written(cut, local_path(path))

    return retrying(read, path)


def open_uri(path: str, options: Mapping[str, Any] | None = None, *, block: int = 0) -> BinaryIO:
    """Open a file for reading, seekable; of a remote one `block` bytes are fetched at a time."""

    def start() -> BinaryIO:
        with operation("read", path):
            if is_remote(path):
                system, name = fsspec.core.url_to_fs(path, **(options or {}))
                return cast(BinaryIO, system.open(name, "rb", block_size=block or None))
            return _as_written(_open_file, local_path(path))

    return retrying(start, path)


def _open_anything(name: str) -> BinaryIO:
    return open(name, "rb")


def _open_file(name: str) -> BinaryIO:
    """Open a file, but no named pipe, which may never answer, and no device (it may never end)."""
    if problem := not_a_file(os.stat(name).st_mode):
        raise ValueError(problem)
    return open(name, "rb")


_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


def not_a_file(mode: int) -> str | None:
    """Return what a path is by its mode, if it is neither file nor folder; else None."""
    kind = _KINDS.get(stat.S_IFMT(mode))
    return None if kind is None else f"it is {kind}, not a file"


def _as_written(action: Callable[[str], Answer], name: str) -> Answer:
    """Do it with a local file of this name, or else with one of the bytes that %XX stands for."""
    try:
        return action(name)
    except FileNotFoundError:
        if "%" not in name:
            raise
        return action(not_utf8(name))


def readable(path: str) -> str:
    """Write a name that is not UTF-8 with %XX for the bytes that are not."""
    return "".join(
        f"%{ord(char) - 0xDC00:02X}" if 0xDC80 <= ord(char) <= 0xDCFF else char for char in path
    )


def not_utf8(name: str) -> str:
    """Put bytes back for %80 … %FF, the only ones that are not UTF-8 by themselves."""
    plain = re.sub(
        rb"%([89A-F][0-9A-F])", lambda found: bytes([int(found[1], 16)]), os.fsencode(name)
    )
    return os.fsdecode(plain)
