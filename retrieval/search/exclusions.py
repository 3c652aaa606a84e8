"""Find pairs of a query and a gallery row that are the same image and so not a match."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

ExcludedPairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Two (p,) int64: positions of queries in their block, and of rows in a shard's metadata."""

SAME_ROW, SAME_BYTES = "row", "sha256"


def excluded_pairs(
    metadata: pa.Table, queries: pa.Table, exclude_by: str | None
) -> ExcludedPairs | None:
    """Return the pairs with equal values in the column `exclude_by`; null equals nothing.

    Use SAME_ROW where a store is ranked against itself, SAME_BYTES for other queries and for
    crops, which have the checksum of their photo. None where `exclude_by` is None.
    """
    if exclude_by is None:
        return None
    left = pa.table({"key": queries[exclude_by], "query": np.arange(len(queries))})
    right = pa.table({"key": metadata[exclude_by], "position": np.arange(len(metadata))})
    pairs = left.join(right, "key", join_type="inner", use_threads=False)
    return pairs["query"].to_numpy(), pairs["position"].to_numpy()


def max_excluded_per_query(pairs: ExcludedPairs | None) -> int:
    """Return the largest number of rows that are excluded for one query."""
    return 0 if pairs is None else int(np.bincount(pairs[0]).max(initial=0))


def is_excluded(
    pairs: ExcludedPairs, query: NDArray[np.int64], position: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which (query, place) pairs are among the excluded ones, (p,) bool."""
    stride = 1 + max(pairs[1].max(initial=0), position.max(initial=0))
    return np.isin(query * stride + position, pairs[0] * stride + pairs[1])
