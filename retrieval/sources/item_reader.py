"""The bytes of one image, whichever form its path has: a file, a tar's member, a Parquet row.

Or of one vector that was made elsewhere: the numbers in a Parquet row, or in a row of an array.

A container is kept open for the next image of it. Rows of a Parquet file are decoded a few at a
time from the start of their row group, so that consecutive ones cost one pass and memory is a page
of the file (pyarrow's writer by itself puts up to 1024 rows into one; a row group of small pages
takes 8 MB where whole it took 200); what was decoded last is kept, since threads ask a little out
of order.
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
from retrieval.sources.container_paths import Inside, NpyRow, ParquetRow, TarMember, parse
from retrieval.sources.tar_members import DAMAGE, tar_members
from retrieval.storage.hosts import Hosts, within_time
from retrieval.storage.input_files import not_utf8, open_uri, read_range, read_uri
from retrieval.storage.local import operation
from retrieval.storage.retry import retrying

_BATCH = 16
_KEPT = 3
"""Rows decoded at a time and batches kept: 48 images, more than threads of a machine ask ahead."""

_VECTORS = 1 << 10  # rows decoded at a time where they hold vectors
_BUFFER = 1 << 20


class Opener:
    """Reads images one after the other; threads may share it.

    Errors that may pass are tried again and then raised as `StorageFailure`, of what a URL of a
    host names as `HostError` (`storage/hosts.py`); those that would come again are OSError or
    ValueError. Files are read side by side, containers one at a time.
    """

    def __init__(
        self, options: Mapping[str, Any] | None = None, hosts: Hosts | None = None
    ) -> None:
        self._options = options or {}
        self._hosts = hosts or Hosts()
        self._lock = Lock()
        self._open: _Rows | _Members | _Array | None = None

    def read(self, path: str, place: int | None = None, size: int | None = None) -> bytes:
        """Give an image's bytes; `place` and `size` are those of its listing, where it has them."""
        inside = parse(path)
        if inside is None:
            options = within_time(path, self._options)
            return self._hosts.read(
                path, lambda attempts: read_uri(path, options, only_files=True, attempts=attempts)
            )
        if isinstance(inside, TarMember) and place is not None and size is not None:
            return self._range(inside, place, size)
        with self._lock:
            found: bytes = retrying(lambda: self._inside(inside, path), path)
        return found

    def vector(self, path: str) -> NDArray[Any]:
        """Give a vector, (d,) numbers of the type that its container has."""
        inside = parse(path)
        if inside is None or isinstance(inside, TarMember):
            raise ValueError(f"{path} is no row of a Parquet file or of an array")
        with self._lock:
            found: NDArray[Any] = retrying(lambda: self._inside(inside, path, "vector"), path)
        return found

    def close(self) -> None:
        """Close the container that is open, if one is."""
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _range(self, inside: TarMember, place: int, size: int) -> bytes:
        data = read_range(inside.container, place, size, self._options)
        if len(data) != size:
            raise ValueError(f"{inside.container} ends before its member {inside.member} does")
        return data

    def _inside(self, inside: Inside, path: str, what: str = "read") -> Any:
        kind = _KINDS[type(inside)]
        try:
            if not isinstance(self._open, kind) or self._open.container != inside.container:
                self._drop()
                self._open = kind(inside.container, self._options)
            with operation("read", path):
                return getattr(self._open, what)(inside)
        except BaseException:
            self._drop()  # what failed once is opened afresh
            raise

    def _drop(self) -> None:
        held, self._open = self._open, None
        if held is not None:
            held.close()


class _Members:
    """A tar whose members are found by name, when only a path is known."""

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
        """Give the last member of that name, which is the one that counts."""
        member = self._member(inside.member)
        if not member.isreg() or member.issparse():
            raise ValueError(f"{inside.member} is no plain file in {self.container}")
        self._file.seek(member.offset_data)
        data: bytes = self._file.read(member.size)
        if len(data) != member.size:
            raise ValueError(f"{self.container} ends before its member {inside.member} does")
        return data

    def _member(self, name: str) -> tarfile.TarInfo:
        for written in (name, not_utf8(name)):
            if written in self._members:
                return self._members[written]
        raise FileNotFoundError(f"{self.container} has no member {name}")

    def close(self) -> None:
        """Close the tar."""
        self._stack.close()


class _Array:
    """A .npy file, whose rows are vectors."""

    def __init__(self, container: str, options: Mapping[str, Any]) -> None:
        self.container = container
        with ExitStack() as stack:
            file = stack.enter_context(open_uri(container, options, block=_BUFFER))
            self._rows = npy.Rows(file, container)
            self._stack = stack.pop_all()

    def read(self, inside: NpyRow) -> bytes:
        """Give the bytes of one row."""
        return self.vector(inside).tobytes()

    def vector(self, inside: NpyRow) -> NDArray[Any]:
        """Give the numbers of one row."""
        found: NDArray[Any] = self._rows.rows(inside.row, 1)[0]
        return found

    def close(self) -> None:
        """Close the file."""
        self._stack.close()


class _Rows:
    """A Parquet file whose images or vectors are read forwards."""

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
                raise _settled(error, container) from error
            self._stack = stack.pop_all()
        self._column: str | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._next = 0  # row that the next batch starts with
        self._last = 0  # row after those of the row group that is being read
        self._kept: deque[tuple[int, pa.RecordBatch]] = deque(maxlen=_KEPT)

    def read(self, inside: ParquetRow) -> bytes:
        """Give the bytes in one row, going forwards from where the last one was, if it can."""
        value = self._valid(inside)
        if holds_numbers(value.type):
            return self.vector(inside).tobytes()
        found = value.as_py()
        if isinstance(found, dict):
            found = found.get("bytes")
        if found is None:
            raise self._empty(inside, value.type)
        if isinstance(found, bytes):
            return found
        raise ValueError("the column holds no bytes")

    def vector(self, inside: ParquetRow) -> NDArray[Any]:
        """Give the numbers in one row; nulls among them are NaN."""
        value = self._valid(inside)
        if not holds_numbers(value.type):
            raise ValueError("the column holds no vectors")
        found: NDArray[Any] = value.values.to_numpy(zero_copy_only=False)
        return found

    def _valid(self, inside: ParquetRow) -> Any:
        try:
            value = self._value(inside)
        except (OSError, pa.ArrowException) as error:
            raise _settled(error, self.container) from error
        if not value.is_valid:
            raise self._empty(inside, value.type)
        return value

    def _empty(self, inside: ParquetRow, kind: pa.DataType) -> ValueError:
        what = "vector" if holds_numbers(kind) else "image"
        return ValueError(f"row {inside.row} of {self.container} holds no {what} (null)")

    def _value(self, inside: ParquetRow) -> Any:
        column, row = inside.column, inside.row
        if column != self._column or not self._reachable(row):
            self._start(column, row)
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

    def _reachable(self, row: int) -> bool:
        oldest = self._kept[0][0] if self._kept else self._next
        return oldest <= row < self._last

    def _start(self, column: str, row: int) -> None:
        """Begin with the row group that a row lies in."""
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
    """Return whether a column that is named explicitly can be read as vectors.

    That is so for lists of floats or integers, and for tensors of them of one dimension.
    """
    types = pa.types
    if isinstance(kind, pa.FixedShapeTensorType):
        return sum(size != 1 for size in kind.shape) <= 1 and holds_numbers(kind.storage_type)
    lists = types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)
    return bool(lists and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)))


def _settled(error: Exception, container: str) -> Exception:
    """Tell damage in a Parquet file from a store that fails: Arrow's own errors have no number."""
    if type(error) is OSError and error.errno is None:
        return ValueError(f"{container} is damaged ({error})")
    return error


_KINDS: dict[type, Any] = {TarMember: _Members, ParquetRow: _Rows, NpyRow: _Array}
