"""Select the k best candidates of each query from the tables of many shards."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.schemas import CANDIDATES_SCHEMA

_MERGED_TABLES = 16  # tables merged at once; bounds the memory for many shards


def top_candidates(parts: Iterable[pa.Table], k: int) -> tuple[pa.Table, NDArray[np.int64]]:
    """Return the k best candidates of each query as a table CANDIDATES, and their ranks from 0.

    The order is by query, descending key, image_id, so it does not depend on how the gallery was
    cut into `parts`, tables CANDIDATES that need not fit into memory together. Raise RuntimeError
    if a row is among the best of a query twice, which is an error of the search.
    """
    best, ranks = CANDIDATES_SCHEMA.empty_table(), np.empty(0, np.int64)
    pending: list[pa.Table] = []
    for part in parts:
        pending.append(part)
        if len(pending) == _MERGED_TABLES:
            best, ranks = _merge_best([best, *pending], k)
            pending = []
    if pending:
        best, ranks = _merge_best([best, *pending], k)
    _refuse_repeated(best)
    return best, ranks


def _refuse_repeated(best: pa.Table) -> None:
    """Raise RuntimeError if a row is among the best of a query more than once."""
    query, row = best["query"].to_numpy(), best["row"].to_numpy()
    repeated = first_repeated_pair(query, row)
    if repeated is not None:
        raise RuntimeError(
            f"the search returned gallery row {row[repeated]} "
            f"({best['image_id'][repeated].as_py()}) more than once for query row "
            f"{query[repeated]}, so no matches were written: check the index with lookalike verify;"
            " if it is intact, please report a bug"
        )


def first_repeated_pair(query: NDArray[np.integer], image: NDArray[np.integer]) -> int | None:
    """Return the position of the first (query, image) pair that came before, None without one."""
    keys = query.astype(np.uint64) * np.uint64(image.max(initial=0) + 1) + image.astype(np.uint64)
    keys.sort()  # a tenth of the time of an order by two columns
    if (keys[1:] != keys[:-1]).all():  # equal pairs have equal keys, even where these wrap around
        return None
    order = np.lexsort((image, query))  # stable, so of equal pairs the first one comes first
    query, image = query[order], image[order]
    repeated = order[1:][(query[1:] == query[:-1]) & (image[1:] == image[:-1])]
    return int(repeated.min()) if len(repeated) else None


def repeated_match(matches: pa.Table) -> tuple[str, str] | None:
    """Return the first (query_id, image_id) that a table MATCHES holds more than once, or None."""
    pairs = [
        matches[name].combine_chunks().dictionary_encode().indices.to_numpy()
        for name in ("query_id", "image_id")
    ]
    position = first_repeated_pair(*pairs)
    if position is None:
        return None
    return matches["query_id"][position].as_py(), matches["image_id"][position].as_py()


def check_no_repeated_matches(matches: pa.Table, source: str) -> None:
    """Raise Damaged where a query of a table MATCHES has an image twice; `source` is its path."""
    if repeated := repeated_match(matches):
        query_id, image_id = repeated
        raise Damaged(
            f"{source}: the matches of {query_id} hold {image_id} more than once; rank again with "
            "--overwrite"
        )


def _merge_best(tables: list[pa.Table], k: int) -> tuple[pa.Table, NDArray[np.int64]]:
    table = pa.concat_tables(tables)
    query, key = table["query"].to_numpy(), table["key"].to_numpy()
    order = np.lexsort((-key, query))
    if has_tied_keys(query[order], key[order]):  # sorting by name takes longer than everything else
        name_ranks = np.empty(len(order), np.int64)
        name_ranks[pc.sort_indices(table["image_id"]).to_numpy()] = np.arange(len(order))
        order = np.lexsort((name_ranks, -key, query))
    ordered = query[order]
    ranks = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    keep = np.flatnonzero(ranks < k)
    return table.take(order[keep]).combine_chunks(), ranks[keep]


def has_tied_keys(query: NDArray[np.integer], key: NDArray[np.float64]) -> bool:
    """Return whether two neighbouring candidates of a sorted list have the same query and key."""
    return bool(((query[1:] == query[:-1]) & (key[1:] == key[:-1])).any())


def kth_best_keys(
    parts: Iterable[pa.Table], k: int, queries: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the k-th best key of each query among some parts, (q,); -inf where there are fewer.

    `queries` (q,) ascend, and contain all queries of the parts.
    """
    kth_keys = np.full(len(queries), -np.inf)
    tables = [part.select(["query", "key"]) for part in parts]
    if not tables:
        return kth_keys
    table = pa.concat_tables(tables)
    owner, key = np.searchsorted(queries, table["query"].to_numpy()), table["key"].to_numpy()
    counts = np.bincount(owner, minlength=len(queries))
    if (width := counts.max(initial=0)) < k:
        return kth_keys
    order = np.argsort(owner, kind="stable")
    owner = owner[order]
    rank = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
    keys = np.full((len(queries), width), -np.inf)
    keys[owner, rank] = key[order]
    keys.partition(width - k, axis=1)
    return keys[:, width - k]
