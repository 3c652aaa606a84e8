"""Which pairs of a query and a gallery image are no match because they are the same image."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Places of queries in their block, and of rows in a shard's metadata."""

OWN_ROW, SAME_BYTES = "row", "sha256"


def barred_pairs(metadata: pa.Table, queries: pa.Table, bars: str | None) -> Pairs | None:
    """Find the pairs that share what `bars` names; null shares nothing, and no name is no pair.

    OWN_ROW is for a store that is ranked against itself, SAME_BYTES for any other queries.
    """
    if bars is None:
        return None
    left = pa.table({"key": queries[bars], "query": np.arange(len(queries))})
    right = pa.table({"key": metadata[bars], "place": np.arange(len(metadata))})
    pairs = left.join(right, "key", join_type="inner", use_threads=False)
    return pairs["query"].to_numpy(), pairs["place"].to_numpy()


def most_barred(pairs: Pairs | None) -> int:
    """Give the greatest number of rows that one query may not match."""
    return 0 if pairs is None else int(np.bincount(pairs[0]).max(initial=0))


def is_barred(
    pairs: Pairs, query: NDArray[np.int64], place: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Tell which pairs of a query and a place are among the barred ones."""
    most = 1 + max(pairs[1].max(initial=0), place.max(initial=0))
    return np.isin(query * most + place, pairs[0] * most + pairs[1])
