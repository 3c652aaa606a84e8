"""The members of a tar, from its headers alone, also of tars that were concatenated.

`cat a.tar b.tar` is read as `tar --ignore-zeros` reads it: what follows an end mark is another
archive. Anything else that follows is damage, and never passed over in silence.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

DAMAGE = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, LookupError)
"""What `tarfile` raises on headers that are not what they should be."""

_ZEROS = 1 << 16
"""Bytes read at a time where zeros follow an end mark; writers pad an archive to 10 kB."""


def tar_members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield every member whose data are all in the file, in order; offsets are those of the file.

    Raises one of `DAMAGE` where a header is damaged, the last end mark is missing, or something
    follows it that is no tar. Members are yielded before that, as far as they are whole.
    """
    start: int | None = 0
    while start is not None:
        file.seek(start)
        with tarfile.open(
            fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as archive:
            yield from _of_archive(archive)
            start = _next_archive(file, archive.offset)


def _of_archive(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members up to an end mark.

    `tarfile` keeps each member it has read, and takes a broken header for the end; neither here.
    """
    last: tarfile.TarInfo | None = None
    at = -1
    while True:
        member = archive.next()  # checks that the data of the one before is in the file
        if last is not None:
            yield last
        if member is None:
            break
        if member.size < 0 or archive.offset <= at:
            raise tarfile.ReadError("a header leads backwards")
        at = archive.offset
        archive.members = []  # type: ignore[attr-defined]
        last = member
    file: Any = archive.fileobj
    file.seek(archive.offset)
    end = file.read(tarfile.BLOCKSIZE)
    if end != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("a header is damaged" if end else "its end is missing")


def _next_archive(file: BinaryIO, end_mark: int) -> int | None:
    """Return where another archive begins after an end mark, or None where only zeros follow."""
    file.seek(end_mark)
    position = end_mark
    while block := file.read(_ZEROS):
        if block.count(0) < len(block):
            zeros = len(block) - len(block.lstrip(b"\0"))
            start = position + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            file.seek(start)
            header = file.read(tarfile.BLOCKSIZE)
            try:
                tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.TarError as error:
                raise tarfile.ReadError(
                    f"at byte {start} something follows its end mark that is no tar"
                ) from error
            return start
        position += len(block)
    return None
