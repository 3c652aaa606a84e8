"""Files of the candidates of one shard for the queries of a block.

A file has three sections: the pairs, the images of their rows, and for each query a limit, which
the k-th best key among all shards reaches. Each step reads those that it needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.search.candidates import Candidates
from retrieval.search.read_counts import ReadCounts
from retrieval.storage.folder import Folder
from retrieval.storage.sections import join_sections, open_sections, serialize_table

_PAIRS, _IMAGES, _LIMITS = range(3)
_NO_READ_COUNTS = ReadCounts(0, 0, 0, 0)


def write_candidates(
    folder: Folder,
    path: str,
    candidates: Candidates,
    limits: pa.Table | None = None,
    read: ReadCounts = _NO_READ_COUNTS,
) -> None:
    """Write candidates, unless the file exists.

    `limits` is a table made by `make_limits`; `read` counts what the queries read.
    """
    if limits is None:
        limits = make_limits(np.empty(0, np.int64), np.empty(0))
    sections = (
        serialize_table(candidates.pairs),
        serialize_table(candidates.images(), compression="zstd"),
        serialize_table(limits),
    )
    folder.put_new(path, join_sections(sections, read=asdict(read)))


def read_candidates(folder: Folder, path: str) -> Candidates:
    """Return candidates whose images are read when they are needed.

    Raises Damaged where the file was altered.
    """

    def read_images() -> pa.Table:
        with open_sections(folder, path) as file:
            return file.read_table(_IMAGES)

    with open_sections(folder, path) as file:
        return Candidates(file.read_table(_PAIRS), read_images)


def make_limits(queries: NDArray[np.int64], keys: NDArray[np.float64]) -> pa.Table:
    """Return the keys that the k-th best ones of queries reach, (q,) each, without -inf."""
    is_known = keys > -np.inf
    return pa.table({"query": queries[is_known], "key": keys[is_known]})


def read_limits(
    folder: Folder, paths: Iterable[str], queries: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the largest limit of each query in some files, (q,); -inf where there is none.

    `queries` (q,) are rows of the query store, ascending.
    """
    limits = np.full(len(queries), -np.inf)
    if len(queries) == 0:
        return limits
    for path in paths:
        with open_sections(folder, path) as file:
            table = file.read_table(_LIMITS)
        rows, keys = table["query"].to_numpy(), table["key"].to_numpy()
        positions = np.minimum(np.searchsorted(queries, rows), len(queries) - 1)
        is_same = queries[positions] == rows
        positions, keys = positions[is_same], keys[is_same]
        limits[positions] = np.maximum(limits[positions], keys)
    return limits
