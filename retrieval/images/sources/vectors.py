"""Vectors that were made elsewhere: a column of Parquet files, or an array in a .npy file.

They are listed as images are, each by an id and a path that opens it again; listing reads headers
and the small columns, never the vectors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import InputError, Mismatch, UsageError
from retrieval.images.containers import NpyRow
from retrieval.images.npy import NPY, opened_array
from retrieval.images.opening import holds_numbers, holds_vectors
from retrieval.images.sources.ids import id_column, read_ids
from retrieval.images.sources.metadata import require
from retrieval.images.sources.parquet import PARQUET, ParquetSource, opened_parquet
from retrieval.images.sources.source import Source
from retrieval.images.sources.walk import Found, files_at, is_file
from retrieval.records import Item

_FORMS = "a store that `embed` made, Parquet with a column of vectors, or a .npy file"
_LOOKED_AT = 1 << 10  # rows whose length tells that of the others, where a column has lists
_NONE: Any = object()  # stands where ids or vectors have ended


class VectorSource(Source):
    """Vectors to be listed; all that count have the same length."""

    unit = "vectors"

    @abstractmethod
    def dimension(self) -> int:
        """Give the length that vectors have here; those of another one go to the ledger."""

    def number_type(self) -> np.dtype[Any]:
        """Return the narrowest type that holds the numbers of all files."""
        return np.dtype(np.float32)


@dataclass
class ParquetVectors(ParquetSource, VectorSource):
    """Vectors in a column of a Parquet file, of a folder or of a glob of them."""

    embedding_column: str | None = None

    def dimension(self) -> int:
        """Give the length that the type tells, or else most of the first rows have."""
        files, _ = files_at(self.root, PARQUET, self.options)
        for file in files:
            with opened_parquet(file.path, self.options) as parquet:
                column = self._content_column(file, parquet.schema_arrow)
                if length := _usual_length(parquet, column):
                    return length
        raise InputError(f"{self.root} holds no vectors; name {_FORMS}")

    def number_type(self) -> np.dtype[Any]:
        """Return the narrowest type that holds the numbers of all files."""
        kinds = []
        for file in files_at(self.root, PARQUET, self.options)[0]:
            with opened_parquet(file.path, self.options) as parquet:
                schema = parquet.schema_arrow
                kind = schema.field(self._content_column(file, schema)).type
            kinds.append(kind.value_type.to_pandas_dtype())
        return np.result_type(*kinds)

    def _content_column(self, file: Found, schema: pa.Schema) -> str:
        require(file.path, "--embedding-column", self.embedding_column, schema.names)
        column = self.embedding_column or vector_column(schema)
        if column is None:
            raise InputError(
                f"{file.path} has no column that must be the vectors; name it with "
                f"--embedding-column (there are {', '.join(schema.names)})"
            )
        if not holds_numbers(schema.field(column).type):
            raise InputError(
                f"the column {column} of {file.path} holds no lists of numbers; name another "
                "--embedding-column"
            )
        return column

    def _id_column(self, file: Found, schema: pa.Schema) -> str | None:
        return id_column(file.path, self.id_column, schema.names)


@dataclass
class NpyVectors(VectorSource):
    """Vectors in an (n, d) array; ids are the rows' numbers, or those that `ids` holds."""

    root: str
    ids: str | None = None
    id_column: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def items(self) -> Iterator[Item]:
        """Give every row."""
        count, _ = self._shape()
        file = files_at(self.root, NPY, self.options)[0][0]
        for row, own in self._numbered(count):
            yield Item(
                image_id=own or str(row), path=str(NpyRow(row, file.path)), size=None,
                mtime_ns=file.mtime_ns, label=None, place=row,
            )  # fmt: skip

    def dimension(self) -> int:
        """Give the length of a row."""
        return self._shape()[1]

    def number_type(self) -> np.dtype[Any]:
        """Return the type of the array's numbers."""
        with opened_array(self.root, self.options) as array:
            return array.header.dtype

    def _shape(self) -> tuple[int, int]:
        if not is_file(self.root, self.options):
            raise InputError(f"{self.root} does not exist; name {_FORMS}")
        with opened_array(self.root, self.options) as array:
            shape, kind = array.header.shape, array.header.dtype
        if len(shape) != 2 or shape[1] == 0 or kind.kind not in "fiu" or kind.itemsize > 8:
            raise InputError(
                f"{self.root} holds {kind} of shape {shape}; save vectors as rows of float16, "
                "float32, float64 or integers"
            )
        return shape[0], shape[1]

    def _numbered(self, count: int) -> Iterator[tuple[int, str | None]]:
        if self.ids is None:
            yield from ((row, None) for row in range(count))
            return
        ids = read_ids(self.ids, self.id_column, self.options)
        pairs = zip_longest(range(count), ids, fillvalue=_NONE)
        for row, (number, own) in enumerate(pairs):
            if number is _NONE or own is _NONE:
                many = f"only {row}" if own is _NONE else "more"
                raise Mismatch(
                    f"--ids {self.ids} has {many} ids for the {count} vectors of {self.root}; name "
                    "the ids of these"
                )
            yield row, own


def open_vectors(
    root: str,
    *,
    embedding_column: str | None = None,
    id_column: str | None = None,
    ids: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> VectorSource:
    """Give the vectors at a path or URI; what is not there or holds none is refused."""
    plain = options or {}
    if is_npy(root):
        if embedding_column is not None:
            raise UsageError(f"--embedding-column is for Parquet, and {root} is an array; leave it")
        return NpyVectors(root, ids, id_column, plain)
    if ids is not None:
        raise UsageError(f"--ids is for .npy files; of {root} --id-column names a column")
    files, _ = files_at(root, PARQUET, plain)
    if not files or not files[0].path.lower().endswith(PARQUET):
        raise InputError(f"{root} holds no vectors; name {_FORMS}")
    found = ParquetVectors(
        root, id_column=id_column, options=plain, embedding_column=embedding_column
    )
    found.columns()  # refuses columns that are not there
    return found


def is_npy(path: str) -> bool:
    """Tell an array by its name."""
    return path.lower().endswith(NPY)


def hold_vectors(root: str, options: Mapping[str, Any] | None = None) -> bool:
    """Tell whether there are Parquet files at a path or URI whose first has a column of vectors."""
    files, _ = files_at(root, PARQUET, options or {})
    if not files or not files[0].path.lower().endswith(PARQUET):
        return False
    with opened_parquet(files[0].path, options or {}) as parquet:
        schema = parquet.schema_arrow
        return vector_column(schema) is not None or any(holds_vectors(one.type) for one in schema)


def vector_column(schema: pa.Schema) -> str | None:
    """Give the column named embedding if it holds vectors, or the only one that does.

    Lists of integers may be anything, as labels; only a name says that they are vectors.
    """
    if schema.names.count("embedding") == 1 and holds_numbers(schema.field("embedding").type):
        return "embedding"
    found = [one.name for one in schema if holds_vectors(one.type)]
    return found[0] if len(found) == 1 else None


def _usual_length(parquet: pq.ParquetFile, column: str) -> int | None:
    """Give the length that the type tells, or most of the first lists have; None without any."""
    kind = parquet.schema_arrow.field(column).type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for batch in parquet.iter_batches(_LOOKED_AT, columns=[column], use_threads=False):
        lengths = Counter(len(value) for value in batch[column] if value.is_valid and len(value))
        if lengths:
            return max(sorted(lengths), key=lengths.__getitem__)
    return None
