"""Reading of single images and vectors: files, members of tars, rows of Parquet or .npy files.

A container stays open for the next item in it. Rows of a Parquet file are decoded a few at a time
from the start of their row group, so that consecutive rows take one pass and memory holds one page
of the file (8 MB for a row group of small pages, which takes 200 MB as a whole). The last decoded
batches are kept, since threads read slightly out of order.
"""

from __future__ import annotations

import tarfile
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import Lock
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.images.box import split_box
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

_IMAGE_ROWS, _VECTOR_ROWS = 16, 1 << 10  # rows decoded at a time
_KEPT_BATCHES = 3
"""Decoded batches that are kept: 48 images, more than the threads read ahead."""

_BUFFER = 1 << 20


class ItemReader:
    """Read the bytes of images and the components of vectors by their paths; thread-safe.

    Transient errors are retried and then raised as `StorageFailure`, or as `HostError` for URLs of
    web hosts (`storage/hosts.py`); permanent errors are OSError or ValueError. Files are read
    concurrently, containers by one thread at a time.
    """

    def __init__(
        self, options: Mapping[str, Any] | None = None, hosts: HostHealth | None = None
    ) -> None:
        self._options = options or {}
        self._hosts = hosts or HostHealth()
        self._lock = Lock()
        self._open: _ParquetReader | _TarReader | _NpyReader | None = None

    def read(self, path: str, place: int | None = None, size: int | None = None) -> bytes:
        """Return the bytes of an image; `place` and `size` are those of its listing, if known.

        Of a crop they are the bytes of the whole image. With both, a member of a tar is read
        without looking it up.
        """
        path, _ = split_box(path)
        location = parse_container_path(path)
        if location is None:
            options = with_timeouts(path, self._options)
            return self._hosts.read(
                path, lambda attempts: read_uri(path, options, only_files=True, attempts=attempts)
            )
        if isinstance(location, TarMember) and place is not None and size is not None:
            return self._read_member(location, place, size)
        with self._lock:
            data: bytes = call_with_retries(lambda: self._read_inside(location, path), path)
        return data

    def vectors(self, path: str, count: int) -> NDArray[Any] | pa.Array:
        """Return the vectors in `count` consecutive rows of a container, from that of `path` on.

        Vectors of a .npy file are (count, d); those of Parquet are an Arrow array of lists, which
        may be null, contain nulls, and differ in length.
        """
        location = parse_container_path(path)
        if location is None or not location.holds_vectors:
            raise ValueError(f"{path} is not a row of a Parquet file or an array")
        with self._lock:
            return call_with_retries(
                lambda: self._read_inside(location, path, "vectors", count), path
            )

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

    def _read_member(self, location: TarMember, place: int, size: int) -> bytes:
        data = read_range(location.container, place, size, self._options)
        if len(data) != size:
            raise ValueError(f"{location.container} ends before its member {location.member} does")
        return data

    def _read_inside(
        self, location: ContainerPath, path: str, method: str = "read", *arguments: int
    ) -> Any:
        """Open the container unless it is open, and call a method of its reader."""
        reader = _CONTAINER_READERS[type(location)]
        try:
            if not isinstance(self._open, reader) or self._open.container != location.container:
                self._close_container()
                self._open = reader(location.container, self._options)
            with operation("read", path):
                return getattr(self._open, method)(location, *arguments)
        except BaseException:
            self._close_container()  # reopened at the next attempt
            raise

    def _close_container(self) -> None:
        container, self._open = self._open, None
        if container is not None:
            container.close()


class _TarReader:
    """Reader of an open tar, whose members are looked up by name."""

    def __init__(self, container: str, options: Mapping[str, Any]) -> None:
        self.container = container
        with ExitStack() as stack:
            self._file: Any = stack.enter_context(open_uri(container, options, block=1 << 16))
            self._members: dict[str, tarfile.TarInfo] = {}
            try:
                for member in tar_members(self._file):  # the last member of a name counts
                    self._members[member.name] = member
            except DAMAGE as error:
                if not self._members:
                    raise ValueError(f"{container} is not a tar file ({error})") from error
            self._stack = stack.pop_all()

    def read(self, location: TarMember) -> bytes:
        """Return the bytes of a member; of several with the same name, the last."""
        member = self._member(location.member)
        if not member.isreg() or member.issparse():
            raise ValueError(f"{location.member} is not a regular file in {self.container}")
        self._file.seek(member.offset_data)
        data: bytes = self._file.read(member.size)
        if len(data) != member.size:
            raise ValueError(f"{self.container} ends before its member {location.member} does")
        return data

    def _member(self, name: str) -> tarfile.TarInfo:
        for spelling in (name, unescape_non_utf8(name)):
            if spelling in self._members:
                return self._members[spelling]
        raise FileNotFoundError(f"{self.container} has no member {name}")

    def close(self) -> None:
        """Close the tar."""
        self._stack.close()


class _NpyReader:
    """Reader of an open .npy file, whose rows are vectors."""

    def __init__(self, container: str, options: Mapping[str, Any]) -> None:
        self.container = container
        with ExitStack() as stack:
            file = stack.enter_context(open_uri(container, options, block=_BUFFER))
            self._rows = npy.NpyArray(file, container)
            self._stack = stack.pop_all()

    def read(self, location: NpyRow) -> bytes:
        """Return the bytes of one row."""
        return self.vectors(location, 1).tobytes()

    def vectors(self, location: NpyRow, count: int) -> NDArray[Any]:
        """Return the vectors in `count` rows, (count, d)."""
        return self._rows.rows(location.row, count)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()


class _ParquetReader:
    """Reader of an open Parquet file; fast where rows are read in ascending order."""

    def __init__(self, container: str, options: Mapping[str, Any]) -> None:
        self.container = container
        with ExitStack() as stack:
            file = stack.enter_context(open_uri(container, options, block=_BUFFER))
            try:
                self._parquet = stack.enter_context(
                    # buffered, since otherwise it reads the whole column of a row group
                    pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
                )
            except (OSError, pa.ArrowException) as error:
                raise _as_permanent(error, container) from error
            self._stack = stack.pop_all()
        self._column: str | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._next = 0  # first row of the next batch
        self._last = 0  # row after the end of the current row group
        self._kept: deque[tuple[int, pa.RecordBatch]] = deque(maxlen=_KEPT_BATCHES)

    def read(self, location: ParquetRow) -> bytes:
        """Return the bytes in one row, continuing from the last batch if possible."""
        with self._permanent_errors():
            array, position = self._locate(location.column, location.row)
        scalar = array[position]
        if not scalar.is_valid:
            noun = "vector" if holds_numbers(array.type) else "image"
            raise ValueError(null_message(noun, location.row, self.container))
        if holds_numbers(array.type):
            vector: NDArray[Any] = scalar.values.to_numpy(zero_copy_only=False)
            return vector.tobytes()
        value = scalar.as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            raise ValueError(null_message("image", location.row, self.container))
        if isinstance(value, bytes):
            return value
        raise ValueError("the column holds no bytes")

    def vectors(self, location: ParquetRow, count: int) -> pa.Array:
        """Return the lists in `count` rows, continuing from the last batch if possible."""
        arrays: list[pa.Array] = []
        row, end = location.row, location.row + count
        with self._permanent_errors():
            while row < end:
                array, position = self._locate(location.column, row)
                if not holds_numbers(array.type):
                    raise ValueError("the column holds no vectors")
                arrays.append(array.slice(position, end - row))
                row += len(arrays[-1])
            return pa.concat_arrays(arrays)

    @contextmanager
    def _permanent_errors(self) -> Iterator[None]:
        """Raise errors of Arrow on a damaged file as ValueError."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise _as_permanent(error, self.container) from error

    def _locate(self, column: str, row: int) -> tuple[pa.Array, int]:
        """Return the decoded batch that contains a row, and the position of the row in it."""
        if column != self._column or not self._is_ahead(row):
            self._seek(column, row)
        while True:
            for first, batch in self._kept:
                if first <= row < first + len(batch):
                    array = batch[column]
                    if isinstance(array, pa.ExtensionArray):  # tensors are lists in storage
                        array = array.storage
                    return array, row - first
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
            _VECTOR_ROWS if holds_numbers(kind) else _IMAGE_ROWS,
            row_groups=[group],
            columns=[column],
            use_threads=False,
        )

    def close(self) -> None:
        """Close the file."""
        self._kept.clear()
        self._stack.close()


def null_message(noun: str, row: int, container: str) -> str:
    """Return the message on a row without a value; `noun` is image or vector."""
    return f"row {row} of {container} holds no {noun} (null)"


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
    """Return ValueError for an error of Arrow on a damaged file (no errno), others unchanged."""
    if type(error) is OSError and error.errno is None:
        return ValueError(f"{container} is damaged ({error})")
    return error


_CONTAINER_READERS: dict[type, Any] = {
    TarMember: _TarReader,
    ParquetRow: _ParquetReader,
    NpyRow: _NpyReader,
}
