"""Candidates of queries, and the selection of the k best from those of many shards.

Steps pass on pairs of numbers. Image_ids, paths and labels stand beside them, once for each gallery
row; they are read where the image_id orders equal scores, and when matches are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.schemas import CANDIDATE_IMAGES_SCHEMA, CANDIDATES_SCHEMA

_MERGED_PARTS = 16  # parts merged at once; bounds the memory for many shards

ReadImages = Callable[[], pa.Table]
"""Returns a table CANDIDATE_IMAGES_SCHEMA."""


@dataclass(frozen=True)
class Candidates:
    """Pairs of queries and gallery rows, and how to read the images of these rows."""

    pairs: pa.Table  # CANDIDATES_SCHEMA
    read_images: ReadImages  # of all rows of the pairs, and maybe of further rows

    def filter_queries(self, rows: NDArray[np.int64], *, exclude: bool = False) -> Candidates:
        """Return the pairs of the queries with some `rows`, or with `exclude` of all others."""
        is_selected = np.isin(self.pairs["query"].to_numpy(), rows, invert=exclude)
        return replace(self, pairs=self.pairs.filter(pa.array(is_selected)))

    def images(self) -> pa.Table:
        """Return the images of the rows of the pairs, each once, ordered by row."""
        return _read_images_of([self.read_images], np.unique(self.pairs["row"].to_numpy()))

    def with_images(self) -> Candidates:
        """Return the candidates with their images in memory, and not what these are read from."""
        images = self.images()
        return replace(self, read_images=lambda: images)

    def table(self) -> pa.Table:
        """Return the pairs with the columns image_id, path and label of their rows."""
        images, rows = self.images(), self.pairs["row"].to_numpy()
        named = images.take(np.searchsorted(images["row"].to_numpy(), rows))
        table = self.pairs
        for name in named.column_names[1:]:
            table = table.append_column(name, named[name])
        return table


EMPTY = Candidates(CANDIDATES_SCHEMA.empty_table(), CANDIDATE_IMAGES_SCHEMA.empty_table)
"""No candidates."""


def make_candidates(
    metadata: pa.Table,
    keys: NDArray[np.float64],
    positions: NDArray[np.int64],
    lists: NDArray[np.integer],
    query_rows: NDArray[np.int64],
) -> Candidates:
    """Return the rows at `positions` of a shard as candidates; position -1 is skipped.

    `keys`, `positions` and `lists` are (q, k); `query_rows` (q,) are the rows of the queries.
    """
    is_filled = positions >= 0
    selected = positions[is_filled]
    columns = {
        "query": np.repeat(query_rows, is_filled.sum(1)),
        "key": keys[is_filled],
        "row": metadata["row"].to_numpy()[selected],
        "list": lists[is_filled].astype(np.int32),
    }

    def read_images() -> pa.Table:
        return metadata.select(CANDIDATE_IMAGES_SCHEMA.names).take(pa.array(np.unique(selected)))

    return Candidates(pa.table(columns).cast(CANDIDATES_SCHEMA), read_images)


def top_candidates(parts: Iterable[Candidates], k: int) -> tuple[Candidates, NDArray[np.int64]]:
    """Return the k best candidates of each query, and their ranks from 0.

    The order is by query, descending key, image_id, so it does not depend on how the gallery was
    cut into `parts`, whose pairs need not fit into memory together. Raise RuntimeError if a row is
    among the best of a query twice, which is an error of the search.
    """
    best, ranks = EMPTY, np.empty(0, np.int64)
    pending: list[Candidates] = []
    for part in parts:
        pending.append(part)
        if len(pending) == _MERGED_PARTS:
            best, ranks = _merge_best([best, *pending], k)
            pending = []
    if pending:
        best, ranks = _merge_best([best, *pending], k)
    _refuse_repeated(best)
    return best, ranks


def _refuse_repeated(best: Candidates) -> None:
    """Raise RuntimeError if a row is among the best of a query more than once."""
    query, row = best.pairs["query"].to_numpy(), best.pairs["row"].to_numpy()
    repeated = first_repeated_pair(query, row)
    if repeated is not None:
        image_id = best.table()["image_id"][repeated].as_py()
        raise RuntimeError(
            f"the search returned gallery row {row[repeated]} ({image_id}) more than once for query"
            f" row {query[repeated]}, so no matches were written: check the index with lookalike "
            "verify; if it is intact, please report a bug"
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


def _merge_best(parts: list[Candidates], k: int) -> tuple[Candidates, NDArray[np.int64]]:
    table = pa.concat_tables([part.pairs for part in parts])
    query, key = table["query"].to_numpy(), table["key"].to_numpy()
    readers, order = [part.read_images for part in parts], np.lexsort((-key, query))
    images = None
    if has_tied_keys(query[order], key[order]):
        row = table["row"].to_numpy()
        images = _read_images_of(readers, np.unique(row))
        name_ranks = np.empty(len(images), np.int64)
        name_ranks[pc.sort_indices(images["image_id"]).to_numpy()] = np.arange(len(images))
        ties = name_ranks[np.searchsorted(images["row"].to_numpy(), row)]
        order = np.lexsort((ties, -key, query))
    ordered = query[order]
    ranks = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    keep = np.flatnonzero(ranks < k)
    best = table.take(order[keep]).combine_chunks()
    rows = np.unique(best["row"].to_numpy())
    if images is None:
        return Candidates(best, partial(_read_images_of, readers, rows)), ranks[keep]
    images = images.filter(pa.array(np.isin(images["row"].to_numpy(), rows)))
    return Candidates(best, lambda: images), ranks[keep]


def _read_images_of(readers: Sequence[ReadImages], rows: NDArray[np.int64]) -> pa.Table:
    """Return the images of some ascending rows, each once, ordered by row.

    One table is in memory at a time, besides the result.
    """
    parts = [CANDIDATE_IMAGES_SCHEMA.empty_table()]
    for read_images in readers:
        images = read_images()
        parts.append(images.filter(pa.array(np.isin(images["row"].to_numpy(), rows))))
    table = pa.concat_tables(parts)
    _, first = np.unique(table["row"].to_numpy(), return_index=True)
    return table.take(pa.array(first)).combine_chunks()


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
