"""The k best candidates of each query, whichever shards they come from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.schemas import CANDIDATES

_PARTS = 16  # tables that are merged at once, so that many shards take no more memory


def best_of(parts: Iterable[pa.Table], k: int) -> tuple[pa.Table, NDArray[np.int64]]:
    """Give the k best of each query, by query, key, image_id, and their places, from 0.

    The order is total and does not depend on how the gallery was cut into parts. `parts` may be
    more than memory holds. A row that comes twice for a query is an error of what searched.
    """
    best, place = CANDIDATES.empty_table(), np.empty(0, np.int64)
    waiting: list[pa.Table] = []
    for part in parts:
        waiting.append(part)
        if len(waiting) == _PARTS:
            best, place = _best([best, *waiting], k)
            waiting = []
    if waiting:
        best, place = _best([best, *waiting], k)
    _refuse_repeated(best)
    return best, place


def _refuse_repeated(best: pa.Table) -> None:
    """Raise RuntimeError where a row is among the best of a query more than once."""
    query, row = best["query"].to_numpy(), best["row"].to_numpy()
    again = first_repeated(query, row)
    if again is not None:
        raise RuntimeError(
            f"the search returned gallery row {row[again]} ({best['image_id'][again].as_py()}) "
            f"more than once for query row {query[again]}, so no matches were written: check the "
            "index with lookalike verify; if it is whole, this is a bug to report"
        )


def first_repeated(query: NDArray[np.integer], image: NDArray[np.integer]) -> int | None:
    """Return the place of the first pair of query and image that came before, None without one."""
    keys = query.astype(np.uint64) * np.uint64(image.max(initial=0) + 1) + image.astype(np.uint64)
    keys.sort()  # a tenth of the time of an order by two columns
    if (keys[1:] != keys[:-1]).all():  # equal pairs have equal keys, even where these wrap around
        return None
    order = np.lexsort((image, query))  # stable, so of equal pairs the first one comes first
    query, image = query[order], image[order]
    again = order[1:][(query[1:] == query[:-1]) & (image[1:] == image[:-1])]
    return int(again.min()) if len(again) else None


def repeated_match(matches: pa.Table) -> tuple[str, str] | None:
    """Return the first (query_id, image_id) that a table MATCHES holds more than once, or None."""
    pairs = [
        matches[name].combine_chunks().dictionary_encode().indices.to_numpy()
        for name in ("query_id", "image_id")
    ]
    again = first_repeated(*pairs)
    if again is None:
        return None
    return matches["query_id"][again].as_py(), matches["image_id"][again].as_py()


def refuse_repeated_matches(matches: pa.Table, source: str) -> None:
    """Raise Damaged where a query of a table MATCHES has an image twice; `source` is its path."""
    if repeated := repeated_match(matches):
        query_id, image_id = repeated
        raise Damaged(
            f"{source}: the matches of {query_id} hold {image_id} more than once; rank again with "
            "--overwrite"
        )


def _best(tables: list[pa.Table], k: int) -> tuple[pa.Table, NDArray[np.int64]]:
    table = pa.concat_tables(tables)
    query, key = table["query"].to_numpy(), table["key"].to_numpy()
    order = np.lexsort((-key, query))
    if has_ties(
        query[order], key[order]
    ):  # names are compared only where it matters: it takes longer than all the rest
        names = np.empty(len(order), np.int64)
        names[pc.sort_indices(table["image_id"]).to_numpy()] = np.arange(len(order))
        order = np.lexsort((names, -key, query))
    ordered = query[order]
    place = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    keep = np.flatnonzero(place < k)
    return table.take(order[keep]).combine_chunks(), place[keep]


def has_ties(query: NDArray[np.integer], key: NDArray[np.float64]) -> bool:
    """Tell whether two neighbours in an order are of one query and have one key."""
    return bool(((query[1:] == query[:-1]) & (key[1:] == key[:-1])).any())


def kth_keys(parts: Iterable[pa.Table], k: int, queries: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give the k-th best key that some parts hold for each query, (q,); -inf if they hold fewer.

    `queries` ascend, and all that the parts speak of are among them.
    """
    found = np.full(len(queries), -np.inf)
    tables = [part.select(["query", "key"]) for part in parts]
    if not tables:
        return found
    table = pa.concat_tables(tables)
    own, key = np.searchsorted(queries, table["query"].to_numpy()), table["key"].to_numpy()
    counts = np.bincount(own, minlength=len(queries))
    if (width := counts.max(initial=0)) < k:
        return found
    order = np.argsort(own, kind="stable")
    own = own[order]
    rank = np.arange(len(own)) - (np.cumsum(counts) - counts)[own]
    keys = np.full((len(queries), width), -np.inf)
    keys[own, rank] = key[order]
    keys.partition(width - k, axis=1)
    return keys[:, width - k]
