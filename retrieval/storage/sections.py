"""Files of several sections, each of which is read and verified alone.

The sections come first. Their sizes and SHA-256 follow in a checksummed JSON object, which may hold
further values, and its length. So a reader of one section reads the end of the file and that
section only.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa

from retrieval.core.errors import Damaged
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.folder import Folder

_LENGTH = struct.Struct("<Q")
_REMEDY = "remove it and run again"


def join_sections(sections: Iterable[bytes | memoryview], **values: Any) -> bytes:
    """Return the bytes of a file of some sections; `values` are further JSON values."""
    parts = list(sections)
    contents = [[len(part), hashlib.sha256(part).hexdigest()] for part in parts]
    end = checksummed_json({**values, "sections": contents})
    return b"".join([*parts, end, _LENGTH.pack(len(end))])


class SectionFile:
    """A file of sections that is open for reading."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self._file, self._uri = file, uri
        end = file.seek(0, io.SEEK_END) - _LENGTH.size
        if end < 0:
            raise self._altered()
        file.seek(end)
        (size,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if size > end:
            raise self._altered()
        file.seek(end - size)
        values = parse_checksummed_json(file.read(size))
        if values is None:
            raise self._altered()
        self._sections = values.pop("sections")
        self._offsets = [0]
        for length, _ in self._sections:
            self._offsets.append(self._offsets[-1] + length)
        self.values: dict[str, Any] = values
        """The further JSON values of the file."""

    def read(self, numbers: Sequence[int]) -> list[memoryview]:
        """Return sections by their ascending numbers; neighbouring ones are read at once.

        Raises Damaged where a section was altered.
        """
        parts: list[memoryview] = []
        first = 0
        for position, number in enumerate(numbers):
            if position + 1 < len(numbers) and numbers[position + 1] == number + 1:
                continue
            parts += self._read_range(numbers[first], number + 1)
            first = position + 1
        return parts

    def _read_range(self, first: int, last: int) -> Iterator[memoryview]:
        """Yield the sections first <= number < last."""
        start = self._offsets[first]
        self._file.seek(start)
        data = memoryview(self._file.read(self._offsets[last] - start))
        for number in range(first, last):
            part = data[self._offsets[number] - start : self._offsets[number + 1] - start]
            if hashlib.sha256(part).hexdigest() != self._sections[number][1]:
                raise self._altered()
            yield part

    def read_table(self, number: int) -> pa.Table:
        """Return a section that `serialize_table` made."""
        return pa.ipc.open_stream(pa.py_buffer(self.read([number])[0])).read_all()

    def _altered(self) -> Damaged:
        return Damaged(f"{self._uri} was altered; {_REMEDY}")


@contextmanager
def open_sections(folder: Folder, path: str) -> Iterator[SectionFile]:
    """Open a file of sections; raise Damaged if its end was altered."""
    with folder.open(path) as file:
        yield SectionFile(file, folder.uri(path))


def serialize_table(table: pa.Table, compression: str | None = None) -> memoryview:
    """Return a table as an Arrow stream, which is read without a copy if it is not compressed."""
    sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks())
    return memoryview(sink.getvalue())
