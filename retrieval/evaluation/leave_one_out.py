"""Leave-one-out evaluation: rank all other vectors of a store for each query vector.

Rankings are complete and ordered by score, ties by position. Matrix products in float64 propose an
order; where two adjacent rows differ by less than the error of such a product, the exact scores
decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.evaluation.labels import DISTRACTOR
from retrieval.evaluation.relevance import SCORED_MATCHES, RankingRelevance
from retrieval.vectors.float_conversions import to_float64
from retrieval.vectors.scoring import (
    Float64,
    Int64,
    VectorBlock,
    score_pairs,
    scores_to_keys,
    split_range,
)

_CELLS = 1 << 22
"""Pairs ranked at once, which bounds temporary arrays to about 200 MB."""
_ROWS = 1 << 12  # vectors converted to float64 at once
_FLOAT64_ROUNDOFF = 2.0**-53  # unit roundoff of float64
NO_CLASS = -1


def class_numbers(labels: pa.Array) -> Int64:
    """Return (n,) int64 class numbers; `NO_CLASS` for missing labels and distractors."""
    without_class = pa.array(["", DISTRACTOR])
    class_labels = pc.if_else(
        pc.is_in(labels, value_set=without_class), pa.scalar(None, pa.string()), labels
    )
    codes = class_labels.dictionary_encode().indices
    numbers: Int64 = pc.fill_null(codes, NO_CLASS).to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def eligible_queries(classes: Int64) -> Int64:
    """Return the positions of images that can be queries: another image has the same class."""
    counts = np.bincount(classes[classes != NO_CLASS], minlength=1)
    return np.flatnonzero((classes != NO_CLASS) & (counts[np.maximum(classes, 0)] > 1))


def leave_one_out(
    vectors: VectorBlock,
    image_ids: pa.Array,
    labels: pa.Array,
    queries: Int64,
    heartbeat: Callable[[], None] = lambda: None,
) -> Iterator[RankingRelevance]:
    """Yield the relevance of complete rankings of the other n - 1 images for each query.

    `queries` are positions among the n vectors; the other images of a query's class are relevant.
    Memory use is one block of rankings beside the vectors; `heartbeat` is called after each block.
    """
    classes, count = class_numbers(labels), len(vectors)
    sizes = np.bincount(classes[classes != NO_CLASS], minlength=1)
    for part in split_range(len(queries), max(1, _CELLS // count)):
        block_queries = queries[part]
        order = _rank_others(vectors, block_queries)
        grades = (classes[order] == classes[block_queries][:, None]).astype(np.int16)
        query_positions = pa.array(block_queries)
        yield RankingRelevance(
            image_ids.take(query_positions), labels.take(query_positions), grades,
            np.full(len(block_queries), count - 1, np.int64), np.ones(1, np.int16),
            (sizes[classes[block_queries]] - 1)[:, None], SCORED_MATCHES.empty_table(), 0, 0,
        )  # fmt: skip
        heartbeat()


def _rank_others(vectors: VectorBlock, query_positions: Int64) -> Int64:
    """Return the positions of all other rows for each query, (q, n - 1) int64, closest first."""
    queries = vectors.take(query_positions)
    keys, slack = _propose_keys(queries, vectors)
    keys[np.arange(len(query_positions)), query_positions] = -np.inf  # sort the query itself last
    order = np.argsort(-keys, axis=1)[:, :-1]
    sorted_keys = np.take_along_axis(keys, order, 1)
    is_near_tie = sorted_keys[:, :-1] - sorted_keys[:, 1:] <= 2 * slack[:, None]
    if is_near_tie.any():
        _rank_near_ties_by_score(queries, vectors, order, is_near_tie)
    return order


def _propose_keys(queries: VectorBlock, rows: VectorBlock) -> tuple[Float64, Float64]:
    """Return float64 sort keys, (q, n), and their largest error against exact scores, (q,).

    |fl(x.y) - x.y| <= d u |x||y| to first order, for any order of summation (`matmul.py`), and
    the same holds for the score itself; the bound allows for some further roundings.
    """
    keys = np.empty((len(queries), len(rows)))
    left = to_float64(queries.float32_values)
    for part in split_range(len(rows), _ROWS):
        keys[:, part] = left @ to_float64(rows.float32_values[part]).T
    longest = float(rows.norms.max(initial=0.0))
    relative_error = 2 * (rows.values.shape[1] + 16) * _FLOAT64_ROUNDOFF
    if rows.metric == "cosine":
        lengths = queries.norms[:, None] * rows.norms
        keys /= np.where(lengths > 0, lengths, 1.0)
        return keys, np.full(len(queries), relative_error)
    if rows.metric == "ip":
        return keys, relative_error * queries.norms * longest
    keys *= 2
    keys -= rows.norms**2
    keys -= (queries.norms**2)[:, None]
    return keys, 2 * relative_error * (queries.norms + longest) ** 2


def _rank_near_ties_by_score(
    queries: VectorBlock, rows: VectorBlock, order: Int64, is_near_tie: NDArray[np.bool_]
) -> None:
    """Reorder, in place, the runs of rows in `order` that are too close to tell apart by key.

    `is_near_tie` marks rows within the error of the next one. Rows of different runs cannot swap.
    """
    in_run = np.zeros(order.shape, np.bool_)
    in_run[:, :-1] |= is_near_tie
    in_run[:, 1:] |= is_near_tie
    run_starts = np.ones(order.shape, np.bool_)
    run_starts[:, 1:] = ~is_near_tie
    run = run_starts.ravel().cumsum()[in_run.ravel()]
    q, x = np.nonzero(in_run)[0], order[in_run]
    keys = scores_to_keys(score_pairs(queries, rows, q, x), rows.metric)
    order[in_run] = x[np.lexsort((x, -keys, run))]
