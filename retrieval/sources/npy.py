"""Reading of rows from local or remote .npy files, without loading the array or unpickling."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from retrieval.core.errors import InputError
from retrieval.storage.input_files import open_uri

NPY = (".npy",)

_BUFFER = 1 << 20
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class Header:
    """Shape and dtype of an array, and the offset of its data in the file in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Return the shape of one row."""
        return self.shape[1:]

    @property
    def row_bytes(self) -> int:
        """Return the size of one row in bytes."""
        return int(self.dtype.itemsize * prod(self.row_shape))


def read_header(file: BinaryIO, name: str) -> Header:
    """Read the header of an array; raise ValueError if the array cannot be read row by row.

    `name` is the name of the file in messages.
    """
    try:
        version = npy.read_magic(file)
        shape, column_major, dtype = _READERS[version](file)
    except (ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{name} is not a readable .npy file ({error})") from error
    if dtype.hasobject:
        raise ValueError(
            f"{name} holds Python objects, and unpickling is disabled; save numbers or strings"
        )
    if not shape or (column_major and len(shape) > 1 and min(shape) > 1):
        raise ValueError(f"{name} is not stored row by row; save numpy.ascontiguousarray of it")
    header = Header(shape, dtype, file.tell())
    excess = file.seek(0, os.SEEK_END) - header.offset - shape[0] * header.row_bytes
    if excess < 0:
        raise ValueError(f"{name} ends before its last row does; copy or make it again")
    if excess > 0:  # a file of several arrays, of which only the first would be read
        raise ValueError(f"{name} continues after its last row; save each array to its own file")
    return header


class NpyArray:
    """An open .npy file, whose rows are read on demand."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self.header = read_header(file, name)

    def rows(self, first: int, count: int) -> NDArray[Any]:
        """Return the rows first <= row < first + count, (count, *row_shape).

        Raises ValueError if they do not exist.
        """
        header = self.header
        if not 0 <= first <= first + count <= header.shape[0]:
            raise ValueError(f"{self._name} has no row {first + count - 1}")
        self._file.seek(header.offset + first * header.row_bytes)
        data = self._file.read(count * header.row_bytes)
        if len(data) != count * header.row_bytes:
            raise ValueError(f"{self._name} ends before its row {first + count - 1} does")
        return np.frombuffer(data, header.dtype).reshape(count, *header.row_shape)


@contextmanager
def opened_array(path: str, options: Mapping[str, Any]) -> Iterator[NpyArray]:
    """Open a .npy file; raise InputError, naming it, if it cannot be read."""
    try:
        with open_uri(path, options, block=_BUFFER) as file:
            yield NpyArray(file, path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
