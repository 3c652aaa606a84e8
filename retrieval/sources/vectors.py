"""Sources of precomputed vectors: a column of Parquet files, or arrays in .npy files.

They are listed like images, each with an id and a path that opens it again; listing reads headers
and the small columns, never the vectors.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.core.errors import InputError, Mismatch, UsageError
from retrieval.core.records import Item
from retrieval.sources.base import Source
from retrieval.sources.container_paths import CONTAINER_SUFFIXES, PARQUET, NpyRow
from retrieval.sources.id_files import id_column, read_ids
from retrieval.sources.image_names import is_image
from retrieval.sources.item_reader import holds_numbers, holds_vectors
from retrieval.sources.metadata_columns import require_column
from retrieval.sources.npy import NPY, opened_array
from retrieval.sources.parquet import ParquetSource, opened_parquet
from retrieval.sources.walk import (
    ListedFile,
    find_files,
    find_readable_files,
    is_folder,
    walk_files,
)

_SUPPORTED_INPUTS = "a store written by `embed`, Parquet with a column of vectors, or .npy files"
_SAMPLE_ROWS = 1 << 10  # rows from which the length of variable-size lists is inferred
_MISSING: Any = object()  # fill value where there are fewer ids than vectors, or the reverse


class VectorSource(Source):
    """Source of vectors, which all have the same length."""

    unit = "vectors"

    @abstractmethod
    def dimension(self) -> int:
        """Return the length of the vectors; those of another length are recorded in the ledger.

        Raises InputError if there are no vectors.
        """

    def number_type(self) -> np.dtype[Any]:
        """Return the narrowest dtype that holds the vectors of all files."""
        return np.dtype(np.float32)


@dataclass
class ParquetVectors(ParquetSource, VectorSource):
    """Vectors in a column of a Parquet file, or of the files in a folder or matching a glob."""

    embedding_column: str | None = None

    def dimension(self) -> int:
        """Return the fixed list size of the column type, else the most common of the first rows."""
        files = find_readable_files(self.root, PARQUET, self.options)
        for file in files:
            with opened_parquet(file.path, self.options) as parquet:
                column = self._content_column(file, parquet.schema_arrow)
                if length := _usual_length(parquet, column):
                    return length
        raise InputError(f"{self.root} contains no vectors; specify {_SUPPORTED_INPUTS}")

    def number_type(self) -> np.dtype[Any]:
        """Return the narrowest dtype that holds the vectors of all files."""
        kinds = []
        for file in find_readable_files(self.root, PARQUET, self.options):
            with opened_parquet(file.path, self.options) as parquet:
                schema = parquet.schema_arrow
                kind = schema.field(self._content_column(file, schema)).type
            kinds.append(kind.value_type.to_pandas_dtype())
        return np.result_type(*kinds)

    def _content_column(self, file: ListedFile, schema: pa.Schema) -> str:
        require_column(file.path, "--embedding-column", self.embedding_column, schema.names)
        column = self.embedding_column or vector_column(schema)
        if column is None:
            raise InputError(
                f"it is unclear which column of {file.path} holds vectors; specify it with "
                f"--embedding-column (columns: {', '.join(schema.names)})"
            )
        if not holds_numbers(schema.field(column).type):
            raise InputError(
                f"the column {column} of {file.path} contains no lists of numbers; specify another "
                "--embedding-column"
            )
        return column

    def _id_column(self, file: ListedFile, schema: pa.Schema) -> str | None:
        return id_column(file.path, self.id_column, schema.names)


@dataclass
class NpyVectors(VectorSource):
    """Vectors in an (n, d) array; ids are row numbers, or those in the file `ids`.

    Several arrays, in a folder or matching a glob, are parts of one array, ordered by the numbers
    in their names: `e-2.npy` comes before `e-10.npy`.
    """

    root: str
    ids: str | None = None
    id_column: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def items(self) -> Iterator[Item]:
        """Iterate over all rows of all parts; raise Mismatch if the number of ids differs."""
        parts = self._parts()
        numbered_ids = self._numbered_ids(sum(rows for _, rows, _ in parts))
        for file, rows, _ in parts:
            for row, (number, image_id) in zip(range(rows), numbered_ids, strict=False):
                yield Item(
                    image_id=image_id or str(number), path=str(NpyRow(row, file.path)), size=None,
                    mtime_ns=file.mtime_ns, label=None, place=row,
                )  # fmt: skip
        next(numbered_ids, None)  # raises if there are more ids than rows

    def dimension(self) -> int:
        """Return the length of the vectors."""
        return self._parts()[0][2]

    def number_type(self) -> np.dtype[Any]:
        """Return the narrowest dtype that holds the vectors of all parts."""
        kinds = []
        for file, _, _ in self._parts():
            with opened_array(file.path, self.options) as array:
                kinds.append(array.header.dtype)
        return np.result_type(*kinds)

    def _parts(self) -> list[tuple[ListedFile, int, int]]:
        """Return (file, number of rows, dimension) of each part; all have one dimension."""
        files, _ = find_files(self.root, NPY, self.options)
        parts = [
            (file, *self._shape(file))
            for file in sorted(files, key=lambda file: _natural_order(file.name))
        ]
        if not parts:
            raise InputError(f"{self.root} contains no vectors; specify {_SUPPORTED_INPUTS}")
        first, _, dimension = parts[0]
        for file, _, other in parts:
            if other != dimension:
                raise InputError(
                    f"{file.path} has vectors of dimension {other}, and {first.path} of "
                    f"{dimension}; parts of one array must have the same"
                )
        return parts

    def _shape(self, file: ListedFile) -> tuple[int, int]:
        if file.problem is not None:  # the ids of later files depend on its rows
            raise InputError(f"{file.path} cannot be read: {file.problem}; repair or remove it")
        with opened_array(file.path, self.options) as array:
            shape, kind = array.header.shape, array.header.dtype
        if len(shape) != 2 or shape[1] == 0 or kind.kind not in "fiu" or kind.itemsize > 8:
            raise InputError(
                f"{file.path} holds {kind} of shape {shape}; save vectors as rows of float16, "
                "float32, float64 or integers"
            )
        return shape[0], shape[1]

    def _numbered_ids(self, count: int) -> Iterator[tuple[int, str | None]]:
        """Iterate over (row number, id); raise Mismatch if there are more or fewer ids."""
        if self.ids is None:
            yield from ((row, None) for row in range(count))
            return
        ids = read_ids(self.ids, self.id_column, self.options)
        pairs = zip_longest(range(count), ids, fillvalue=_MISSING)
        for row, (number, image_id) in enumerate(pairs):
            if number is _MISSING or image_id is _MISSING:
                available = f"only {row}" if image_id is _MISSING else "more"
                raise Mismatch(
                    f"--ids {self.ids} has {available} ids for the {count} vectors of {self.root}; "
                    "specify a file with one id per vector"
                )
            yield row, image_id


def open_vectors(
    root: str,
    *,
    embedding_column: str | None = None,
    id_column: str | None = None,
    ids: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> VectorSource:
    """Open the vectors at a path or URI.

    Args:
        root: A file, a folder or a glob.
        embedding_column: Column with vectors, for Parquet only.
        id_column: Column with ids, of Parquet or of the file `ids`.
        ids: File with the ids of the vectors, for .npy files only.
        options: Arguments of the fsspec file system.

    Raises:
        InputError: If there are no vectors.
        UsageError: If an option does not apply to the type of file.
    """
    fs_options = options or {}
    if is_npy(root, fs_options):
        if embedding_column is not None:
            raise UsageError(f"--embedding-column is for Parquet, and {root} is an array; omit it")
        return NpyVectors(root, ids, id_column, fs_options)
    if ids is not None:
        raise UsageError(f"--ids is for .npy files; for {root} specify a column with --id-column")
    files = find_readable_files(root, PARQUET, fs_options)
    if not files or not files[0].path.lower().endswith(PARQUET):
        raise InputError(f"{root} contains no vectors; specify {_SUPPORTED_INPUTS}")
    source = ParquetVectors(
        root, id_column=id_column, options=fs_options, embedding_column=embedding_column
    )
    source.check_columns()
    return source


def is_npy(root: str, options: Mapping[str, Any] | None = None) -> bool:
    """Return whether a path names a .npy file, or a folder of them without other inputs.

    Other inputs are images, tars and Parquet files.
    """
    fs_options = options or {}
    if root.lower().endswith(NPY) or not is_folder(root, fs_options):
        return root.lower().endswith(NPY)
    arrays = False
    for file in walk_files(root, fs_options):
        name = file.name.lower()
        if is_image(name) or name.endswith(CONTAINER_SUFFIXES):
            return False
        arrays = arrays or name.endswith(NPY)
    return arrays


def _natural_order(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts names by the numbers in them: alternating text and numbers."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], name


def contains_vectors(root: str, options: Mapping[str, Any] | None = None) -> bool:
    """Return whether the first Parquet file at a path or URI has a column of vectors."""
    files = find_readable_files(root, PARQUET, options or {})
    if not files or not files[0].path.lower().endswith(PARQUET):
        return False
    with opened_parquet(files[0].path, options or {}) as parquet:
        schema = parquet.schema_arrow
        return vector_column(schema) is not None or any(
            holds_vectors(field.type) for field in schema
        )


def vector_column(schema: pa.Schema) -> str | None:
    """Return the column embedding if it holds vectors, else the only column that does, or None.

    Lists of integers, which may be labels, count as vectors only in a column named embedding.
    """
    if schema.names.count("embedding") == 1 and holds_numbers(schema.field("embedding").type):
        return "embedding"
    names = [field.name for field in schema if holds_vectors(field.type)]
    return names[0] if len(names) == 1 else None


def _usual_length(parquet: pq.ParquetFile, column: str) -> int | None:
    """Return the fixed list size of a column, else the most common of its first lists, or None."""
    kind = parquet.schema_arrow.field(column).type
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for batch in parquet.iter_batches(_SAMPLE_ROWS, columns=[column], use_threads=False):
        lengths = Counter(len(value) for value in batch[column] if value.is_valid and len(value))
        if lengths:
            return max(sorted(lengths), key=lengths.__getitem__)
    return None
