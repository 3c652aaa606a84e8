"""Types of the arguments of the commands, and which options take data from memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from retrieval.models.own_model import Model


class ArrowTable(Protocol):
    """Table that Arrow can read: of pyarrow, pandas (2.2 or later), polars, DuckDB or datasets."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export the table as an Arrow C stream."""
        ...


Path: TypeAlias = "str | os.PathLike[str]"
"""Path or URI; a `Result` and what `open_store`, `open_index` and `open_matches` return are paths
as well, of the output that they stand for."""

Images: TypeAlias = "Path | Sequence[Path] | Sequence[Image] | ArrowTable"
"""Images: any input of the command line, a list of paths or of Pillow images, or a table with a
column of paths, or of the bytes of image files."""

Vectors: TypeAlias = "Path | NDArray[Any] | ArrowTable"
"""Vectors: a store, Parquet or .npy files, an array (n, d), or a table with a column of vectors."""

ImagesOrVectors: TypeAlias = "Images | Vectors"
"""Images, or vectors."""

Labels: TypeAlias = "Path | ArrowTable"
"""Labels: a file, or a table with the columns image_id and label, and optionally split."""

Ids: TypeAlias = "Path | Sequence[str]"
"""Ids of the rows of an array: a file, or one id per row."""

Backbone: TypeAlias = "str | Model"
"""Name of a network, or a torch module in memory as a `lookalike.Model`."""

DataKind = Literal["Images", "Vectors", "ImagesOrVectors", "Labels", "Ids"]

_KINDS: dict[str, DataKind] = {
    "gallery": "Images", "queries": "Images", "input": "Images", "data": "Images",
    "labels": "Labels", "ids": "Ids",
}  # fmt: skip
_KINDS_OF_VERBS: dict[tuple[str, str], DataKind] = {
    ("embed", "input"): "ImagesOrVectors",
    ("index", "embeddings"): "Vectors",
    ("rank", "queries"): "ImagesOrVectors",
}


def data_kind(verb: str, option: str) -> DataKind | None:
    """Return what an option of a verb takes from memory, by the name of its type; or None."""
    return _KINDS_OF_VERBS.get((verb, option), _KINDS.get(option))
