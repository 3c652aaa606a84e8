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
    query, row = table["query"].to_numpy(), table["row"].to_numpy()
    key, order = table["key"].to_numpy(), _order_by_query(query)
    starts = np.append(np.flatnonzero(np.diff(query[order], prepend=-1)), len(order))
    best, ranks, is_tied = _select_best(order, starts, key, row, k)
    readers, images = [part.read_images for part in parts], None
    if is_tied.any():
        images = _read_images_of(readers, np.unique(row))
        tied_pairs = order[np.repeat(is_tied, np.diff(starts))]
        ties = np.zeros(len(row), np.int64)
        ties[tied_pairs] = _image_id_ranks(images, row[tied_pairs])
        best, ranks, _ = _select_best(order, starts, key, ties, k)
    pairs = table.take(best).combine_chunks()
    rows = np.unique(pairs["row"].to_numpy())
    if images is None:
        return Candidates(pairs, partial(_read_images_of, readers, rows)), ranks
    images = images.filter(pa.array(np.isin(images["row"].to_numpy(), rows)))
    return Candidates(pairs, lambda: images), ranks


def _order_by_query(query: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the stable order of pairs by query."""
    numbers = query - query.min() if len(query) else query
    narrow = numbers.astype(np.uint16) if numbers.max(initial=0) < 1 << 16 else numbers
    return np.argsort(narrow, kind="stable")  # a radix sort of 16 bits


def _select_best(
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    key: NDArray[np.float64],
    ties: NDArray[np.int64],
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the k best pairs of each query, their ranks from 0, and which queries have equal keys.

    The pairs of query i are order[starts[i] : starts[i + 1]]; of equal keys the smaller of `ties`
    (p,) is better.
    """
    from retrieval.vectors.merge_kernel import select_best_pairs

    sizes = np.diff(starts)
    k = min(k, int(sizes.max(initial=0)))
    best, counts = np.empty((len(sizes), k), np.int64), np.empty(len(sizes), np.int64)
    is_tied = np.zeros(len(sizes), np.bool_)
    if k:
        select_best_pairs(order, starts, key, ties, k, best, counts, is_tied)
    ranks = np.broadcast_to(np.arange(k), best.shape)
    is_filled = ranks < counts[:, None]
    return best[is_filled], ranks[is_filled], is_tied


def _image_id_ranks(images: pa.Table, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ranks of the image_ids of `rows` among each other; `images` ascend by row."""
    distinct, inverse = np.unique(rows, return_inverse=True)
    image_ids = images["image_id"].take(np.searchsorted(images["row"].to_numpy(), distinct))
    ranks = np.empty(len(distinct), np.int64)
    ranks[pc.sort_indices(image_ids).to_numpy()] = np.arange(len(distinct))
    return ranks[inverse]


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
