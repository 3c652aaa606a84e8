"""Stores of vectors as arrays, Arrow tables and data frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.html_view import properties
from lookalike.table_conversion import to_pandas, to_polars
from retrieval.core.schemas import Vectors, part_table
from retrieval.storage.local import open_folder
from retrieval.store import reader
from retrieval.store.reader import read_vectors


@dataclass(frozen=True)
class Store:
    """A finished store, with a row for each image, in the order of the number `row`.

    The columns are row, image_id, path, width, height, sha256, label, those of the source, and
    embedding.

    Attributes:
        store: The store of the library, which streams the rows and verifies each part.
    """

    store: reader.Store

    def __len__(self) -> int:
        """Return the number of images that have a vector."""
        return self.store.rows

    @property
    def dimension(self) -> int:
        """Return the dimension of the vectors."""
        return self.store.dimension

    @property
    def dtype(self) -> str:
        """Return the number type of the vectors: float16 or float32."""
        return self.store.dtype

    def batches(self) -> Iterator[pa.Table]:
        """Iterate over Arrow tables of some thousand rows, of which one is in memory at a time."""
        yield from (table for table in self.store.blocks() if len(table))

    def __iter__(self) -> Iterator[pa.Table]:
        return self.batches()

    def embeddings(self, file: str | os.PathLike[str] | None = None) -> Vectors:
        """Return the vectors, (n, d) float16 or float32 as stored, in the order of `to_arrow`.

        By default the array is in memory, n · d numbers. With `file` the vectors are streamed into
        this .npy file, and the array is mapped from it, read only, so that it may exceed memory.
        """
        shape = len(self), self.dimension
        if file is None:
            vectors: Any = np.empty(shape, self.dtype)
        else:
            vectors = np.lib.format.open_memmap(file, "w+", np.dtype(self.dtype), shape)
        first = 0
        for table in self.batches():
            vectors[first : first + len(table)] = read_vectors(table)
            first += len(table)
        if file is None:
            return vectors  # type: ignore[no-any-return]
        vectors.flush()
        return np.lib.format.open_memmap(file, "r")

    def to_arrow(self) -> pa.Table:
        """Return all rows as one Arrow table."""
        if tables := list(self.batches()):
            return pa.concat_tables(tables, promote_options="permissive")
        return part_table(
            self.dimension, self.dtype, self.store.metadata_columns
        ).schema.empty_table()

    def to_pandas(self) -> Any:
        """Return all rows as a pandas DataFrame; raise ImportError without pandas."""
        return to_pandas(self.to_arrow())

    def to_polars(self) -> Any:
        """Return all rows as a polars DataFrame; raise ImportError without polars."""
        return to_polars(self.to_arrow())

    def __fspath__(self) -> str:
        return self.store.folder.uri()

    def __repr__(self) -> str:
        return f"Store({self.__fspath__()}: {len(self)} vectors of {self.dimension} {self.dtype})"

    def _repr_html_(self) -> str:
        return properties(self.__fspath__(), {
            "vectors": len(self), "dimension": self.dimension, "number type": self.dtype,
            "failed images": self.store.manifest.counts["failures"],
        })  # fmt: skip


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a finished store, written by `embed` or in the folders gallery/ and queries/ of `run`.

    Each part is verified by its checksum when it is read.

    Raises:
        InputError: If there is no finished store.
        Mismatch: If it is another kind of output.
        Damaged: If a file is missing or altered.
    """
    return Store(reader.open_store(open_folder(os.fspath(path))))
