"""Listing of tar members by reading the headers only, concatenated tars included.

The output of `cat a.tar b.tar` is read as by `tar --ignore-zeros`: an end mark may be followed by
another archive. Anything else that follows is reported as damage.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

DAMAGE = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, LookupError)
"""Exceptions that `tarfile` raises on damaged headers."""

_BLOCK = 1 << 16
"""Bytes read at a time after an end mark; writers pad an archive with zeros to 10 kB."""


def tar_members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Iterate over all members whose data are complete, in order, with offsets in the file.

    Raises one of `DAMAGE` if a header is damaged, the last end mark is missing, or other data
    follow it; complete members before that are yielded first.
    """
    start: int | None = 0
    while start is not None:
        file.seek(start)
        with tarfile.open(
            fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as archive:
            yield from _archive_members(archive)
            start = _next_archive(file, archive.offset)


def _archive_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Iterate over the members up to an end mark.

    Unlike `tarfile`, do not keep the members in memory, and do not treat a damaged header as the
    end.
    """
    last: tarfile.TarInfo | None = None
    offset = -1
    while True:
        member = archive.next()  # checks that the data of the previous member are in the file
        if last is not None:
            yield last
        if member is None:
            break
        if member.size < 0 or archive.offset <= offset:
            raise tarfile.ReadError("a header points backwards")
        offset = archive.offset
        archive.members = []  # type: ignore[attr-defined]
        last = member
    file: Any = archive.fileobj
    file.seek(archive.offset)
    end = file.read(tarfile.BLOCKSIZE)
    if end != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("a header is damaged" if end else "its end mark is missing")


def _next_archive(file: BinaryIO, end_mark: int) -> int | None:
    """Return the offset of another archive after an end mark, or None if only zeros follow."""
    file.seek(end_mark)
    position = end_mark
    while block := file.read(_BLOCK):
        if block.count(0) < len(block):
            zeros = len(block) - len(block.lstrip(b"\0"))
            start = position + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            file.seek(start)
            header = file.read(tarfile.BLOCKSIZE)
            try:
                tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.TarError as error:
                raise tarfile.ReadError(
                    f"at byte {start} its end mark is followed by data that are not a tar"
                ) from error
            return start
        position += len(block)
    return None
