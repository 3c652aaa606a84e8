"""Reading of single images and vectors: files, members of tars, rows of Parquet or .npy files.

A container is kept open for the next item in it. Rows of a Parquet file are decoded a few at a time
from the start of their row group, so that consecutive ones cost one pass and memory is one page of
the file (8 MB for a row group of small pages, where the whole takes 200). The last decoded batches
are kept, since threads read slightly out of order.
"""

from __future__ import annotations

import tarfile
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from threading import Lock
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.sources import npy
from retrieval.sources.container_paths import (
    ContainerPath,
    NpyRow,
    ParquetRow,
    TarMember,
    parse_container_path,
)
from retrieval.sources.tar_members import DAMAGE, tar_members
from retrieval.storage.hosts import HostHealth, with_timeouts
from retrieval.storage.input_files import open_uri, read_range, read_uri, unescape_non_utf8
from retrieval.storage.local import operation
from retrieval.storage.retry import call_with_retries

_BATCH = 16
_KEPT = 3
"""Rows decoded at a time and batches kept: 48 images, more than the threads read ahead."""

_VECTORS = 1 << 10  # rows decoded at a time where they hold vectors
_BUFFER = 1 << 20


class ItemReader:
    """Read the bytes of images and the numbers of vectors by their paths; thread-safe.

    Transient errors are retried and then raised as `StorageFailure`, or as `HostError` for URLs of
    web hosts (`storage/hosts.py`); permanent ones are OSError or ValueError. Files are read
    concurrently, containers one at a time.
    """

    def __init__(
        self, options: Mapping[str, Any] | None = None, hosts: HostHealth | None = None
    ) -> None:
        self._options = options or {}
        self._hosts = hosts or HostHealth()
        self._lock = Lock()
        self._open: _Rows | _Members | _Array | None = None

    def read(self, path: str, place: int | None = None, size: int | None = None) -> bytes:
        """Return the bytes of an image; `place` and `size` are those of its listing, if known."""
        inside = parse_container_path(path)
        if inside is None:
            options = with_timeouts(path, self._options)
            return self._hosts.read(
                path, lambda attempts: read_uri(path, options, only_files=True, attempts=attempts)
            )
        if isinstance(inside, TarMember) and place is not None and size is not None:
            return self._read_member(inside, place, size)
        with self._lock:
            data: bytes = call_with_retries(lambda: self._read_inside(inside, path), path)
        return data

    def vector(self, path: str) -> NDArray[Any]:
        """Return a (d,) vector in the dtype of its container."""
        inside = parse_container_path(path)
        if inside is None or isinstance(inside, TarMember):
            raise ValueError(f"{path} is no row of a Parquet file or of an array")
        with self._lock:
            vector: NDArray[Any] = call_with_retries(
                lambda: self._read_inside(inside, path, "vector"), path
            )
        return vector

    def close(self) -> None:
        """Close the open container, if there is one."""
        with self._lock:
            self._close_container()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read_member(self, inside: TarMember, place: int, size: int) -> bytes:
        data = read_range(inside.container, place, size, self._options)
        if len(data) != size:
            raise ValueError(f"{inside.container} ends before its member {inside.member} does")
        return data

    def _read_inside(self, inside: ContainerPath, path: str, method: str = "read") -> Any:
        """Open the container unless it is open, and call a method of it."""
        reader = _CONTAINER_READERS[type(inside)]
        try:
            if not isinstance(self._open, reader) or self._open.container != inside.container:
                self._close_container()
                self._open = reader(inside.container, self._options)
            with operation("read", path):
                return getattr(self._open, method)(inside)
        except BaseException:
            self._close_container()  # reopened at the next attempt
            raise

    def _close_container(self) -> None:
        container, self._open = self._open, None
        if container is not None:
            container.close()


class _Members:
    """An open tar, whose members are looked up by name."""

    def __init__(self, container: str, options: Mapping[str, Any]) -> None:
        self.container = container
        with ExitStack() as stack:
            self._file: Any = stack.enter_context(open_uri(container, options, block=1 << 16))
            self._members: dict[str, tarfile.TarInfo] = {}
            try:
                for member in tar_members(self._file):  # of one name the last counts
                    self._members[member.name] = member
            except DAMAGE as error:
                if not self._members:
                    raise ValueError(f"{container} is no tar ({error})") from error
            self._stack = stack.pop_all()

    def read(self, inside: TarMember) -> bytes:
        """Return the bytes of the last member of a name, which is the one that counts."""
        member = self._member(inside.member)
        if not member.isreg() or member.issparse():
            raise ValueError(f"{inside.member} is no plain file in {self.container}")
        self._file.seek(member.offset_data)
        data: bytes = self._file.read(member.size)
        if len(data) != member.size:
            raise ValueError(f"{self.container} ends before its member {inside.member} does")
        return data

    def _member(self, name: str) -> tarfile.TarInfo:
        for written in (name, unescape_non_utf8(name)):
            if written in self._members:
                return self._members[written]
        raise FileNotFoundError(f"{self.container} has no member {name}")

    def close(self) -> None:
        """Close the tar."""
        self._stack.close()


class _Array:
    """An open .npy file, whose rows are vectors."""

    def __init__(self, container: str, options: Mapping[str, Any]) -> None:
        self.container = container
        with ExitStack() as stack:
            file = stack.enter_context(open_uri(container, options, block=_BUFFER))
            self._rows = npy.NpyArray(file, container)
            self._stack = stack.pop_all()

    def read(self, inside: NpyRow) -> bytes:
        """Return the bytes of one row."""
        return self.vector(inside).tobytes()

    def vector(self, inside: NpyRow) -> NDArray[Any]:
        """Return the numbers of one row."""
        vector: NDArray[Any] = self._rows.rows(inside.row, 1)[0]
        return vector

    def close(self) -> None:
        """Close the file."""
        self._stack.close()


class _Rows:
    """An open Parquet file, whose images or vectors are read in ascending order of rows."""

    def __init__(self, container: str, options: Mapping[str, Any]) -> None:
        self.container = container
        with ExitStack() as stack:
            file = stack.enter_context(open_uri(container, options, block=_BUFFER))
            try:
                self._parquet = stack.enter_context(
                    # buffered, or else it would read a row group's column as a whole
                    pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
                )
            except (OSError, pa.ArrowException) as error:
                raise _as_permanent(error, container) from error
            self._stack = stack.pop_all()
        self._column: str | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._next = 0  # row that the next batch starts with
        self._last = 0  # row after those of the row group that is being read
        self._kept: deque[tuple[int, pa.RecordBatch]] = deque(maxlen=_KEPT)

    def read(self, inside: ParquetRow) -> bytes:
        """Return the bytes in one row, continuing from the last row that was read if possible."""
        scalar = self._non_null(inside)
        if holds_numbers(scalar.type):
            return self.vector(inside).tobytes()
        value = scalar.as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            raise self._null_error(inside, scalar.type)
        if isinstance(value, bytes):
            return value
        raise ValueError("the column holds no bytes")

    def vector(self, inside: ParquetRow) -> NDArray[Any]:
        """Return the numbers in one row; nulls among them are NaN."""
        scalar = self._non_null(inside)
        if not holds_numbers(scalar.type):
            raise ValueError("the column holds no vectors")
        vector: NDArray[Any] = scalar.values.to_numpy(zero_copy_only=False)
        return vector

    def _non_null(self, inside: ParquetRow) -> Any:
        try:
            scalar = self._scalar(inside)
        except (OSError, pa.ArrowException) as error:
            raise _as_permanent(error, self.container) from error
        if not scalar.is_valid:
            raise self._null_error(inside, scalar.type)
        return scalar

    def _null_error(self, inside: ParquetRow, kind: pa.DataType) -> ValueError:
        what = "vector" if holds_numbers(kind) else "image"
        return ValueError(f"row {inside.row} of {self.container} holds no {what} (null)")

    def _scalar(self, inside: ParquetRow) -> Any:
        column, row = inside.column, inside.row
        if column != self._column or not self._is_ahead(row):
            self._seek(column, row)
        while True:
            for first, batch in self._kept:
                if first <= row < first + len(batch):
                    array = batch[column]
                    if isinstance(array, pa.ExtensionArray):  # tensors are lists in storage
                        array = array.storage
                    return array[row - first]
            batch = next(self._batches)
            self._kept.append((self._next, batch))
            self._next += len(batch)

    def _is_ahead(self, row: int) -> bool:
        """Return whether a row is in a kept batch, or ahead in the row group being read."""
        oldest = self._kept[0][0] if self._kept else self._next
        return oldest <= row < self._last

    def _seek(self, column: str, row: int) -> None:
        """Start reading at the row group that contains a row."""
        if column not in self._parquet.schema_arrow.names:
            raise ValueError(f"{self.container} has no column {column}")
        first = 0
        for group in range(self._parquet.num_row_groups):
            rows = self._parquet.metadata.row_group(group).num_rows
            if first <= row < first + rows:
                break
            first += rows
        else:
            raise ValueError(f"{self.container} has no row {row}")
        self._kept.clear()
        self._column, self._next, self._last = column, first, first + rows
        kind = self._parquet.schema_arrow.field(column).type
        self._batches = self._parquet.iter_batches(
            _VECTORS if holds_numbers(kind) else _BATCH,
            row_groups=[group],
            columns=[column],
            use_threads=False,
        )

    def close(self) -> None:
        """Close the file."""
        self._kept.clear()
        self._stack.close()


def holds_vectors(kind: pa.DataType) -> bool:
    """Return whether a column holds lists of floats, or tensors of floats of one dimension."""
    return holds_numbers(kind) and bool(pa.types.is_floating(kind.value_type))


def holds_numbers(kind: pa.DataType) -> bool:
    """Return whether a column holds lists, or tensors of one dimension, of floats or integers."""
    types = pa.types
    if isinstance(kind, pa.FixedShapeTensorType):
        return sum(size != 1 for size in kind.shape) <= 1 and holds_numbers(kind.storage_type)
    lists = types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)
    return bool(lists and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)))


def _as_permanent(error: Exception, container: str) -> Exception:
    """Return ValueError for Arrow's errors on a damaged file (no errno), and others unchanged."""
    if type(error) is OSError and error.errno is None:
        return ValueError(f"{container} is damaged ({error})")
    return error


_CONTAINER_READERS: dict[type, Any] = {TarMember: _Members, ParquetRow: _Rows, NpyRow: _Array}
