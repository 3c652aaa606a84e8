"""How well do vectors retrieve among themselves? Each query against all the other images.

The ranking is whole and the one that scores give, ties to the smaller place. Products in float64
propose it; where two neighbours in it lie within the error of such a product, scores decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.evaluation.labels import DISTRACTOR
from retrieval.evaluation.relevance import SCORED, Judged
from retrieval.vectors.float_conversions import to_float64
from retrieval.vectors.scoring import Block, Float64, Int64, keys_of, pair_scores, slices

_CELLS = 1 << 22
"""Pairs ranked at once: what is made of them stays within some 200 MB."""
_ROWS = 1 << 12  # vectors widened at once
_U = 2.0**-53  # unit roundoff of float64
NO_CLASS = -1


def classes_of(labels: pa.Array) -> Int64:
    """Give the numbers of the classes of (n,) labels; `NO_CLASS` where there is none."""
    plain = pa.array(["", DISTRACTOR])
    known = pc.if_else(pc.is_in(labels, value_set=plain), pa.scalar(None, pa.string()), labels)
    codes = known.dictionary_encode().indices
    found: Int64 = pc.fill_null(codes, NO_CLASS).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def askable(classes: Int64) -> Int64:
    """Give the places of the images that can be queries: another one is of their class."""
    counts = np.bincount(classes[classes != NO_CLASS], minlength=1)
    return np.flatnonzero((classes != NO_CLASS) & (counts[np.maximum(classes, 0)] > 1))


def leave_one_out(
    vectors: Block,
    image_ids: pa.Array,
    labels: pa.Array,
    queries: Int64,
    alive: Callable[[], None] = lambda: None,
) -> Iterator[Judged]:
    """Judge the queries, places among the n vectors, each against the n - 1 others.

    Relevant are the others of its class. Memory is a block of rankings beside the vectors; `alive`
    is called after each block.
    """
    classes, count = classes_of(labels), len(vectors)
    sizes = np.bincount(classes[classes != NO_CLASS], minlength=1)
    for part in slices(len(queries), max(1, _CELLS // count)):
        asked = queries[part]
        order = _ranking(vectors, asked)
        grades = (classes[order] == classes[asked][:, None]).astype(np.int16)
        which = pa.array(asked)
        yield Judged(
            image_ids.take(which), labels.take(which), grades,
            np.full(len(asked), count - 1, np.int64), np.ones(1, np.int16),
            (sizes[classes[asked]] - 1)[:, None], SCORED.empty_table(), 0, 0,
        )  # fmt: skip
        alive()


def _ranking(vectors: Block, asked: Int64) -> Int64:
    """Give all others of each query, (q, n - 1), closest first."""
    queries = vectors.take(asked)
    keys, slack = _proposed(queries, vectors)
    keys[np.arange(len(asked)), asked] = -np.inf  # itself: last
    order = np.argsort(-keys, axis=1)[:, :-1]
    sorted_keys = np.take_along_axis(keys, order, 1)
    near = sorted_keys[:, :-1] - sorted_keys[:, 1:] <= 2 * slack[:, None]
    if near.any():
        _decide(queries, vectors, order, near)
    return order


def _proposed(queries: Block, rows: Block) -> tuple[Float64, Float64]:
    """Give keys in float64, (q, n), and what each can differ by from the score's own, (q,).

    |fl(x.y) - x.y| <= d u |x||y| to first order, for any order of summation (`products.py`), and
    so is the score itself computed; some roundings more are allowed for.
    """
    keys = np.empty((len(queries), len(rows)))
    left = to_float64(queries.wide)
    for part in slices(len(rows), _ROWS):
        keys[:, part] = left @ to_float64(rows.wide[part]).T
    longest = float(rows.norms.max(initial=0.0))
    share = 2 * (rows.values.shape[1] + 16) * _U
    if rows.metric == "cosine":
        lengths = queries.norms[:, None] * rows.norms
        keys /= np.where(lengths > 0, lengths, 1.0)
        return keys, np.full(len(queries), share)
    if rows.metric == "ip":
        return keys, share * queries.norms * longest
    keys *= 2
    keys -= rows.norms**2
    keys -= (queries.norms**2)[:, None]
    return keys, 2 * share * (queries.norms + longest) ** 2


def _decide(queries: Block, rows: Block, order: Int64, near: NDArray[np.bool_]) -> None:
    """Order by their scores those that stand within the error of a neighbour, in place.

    They form runs; what stands before or after a run is clear of all of it.
    """
    member = np.zeros(order.shape, np.bool_)
    member[:, :-1] |= near
    member[:, 1:] |= near
    begins = np.ones(order.shape, np.bool_)
    begins[:, 1:] = ~near
    run = begins.ravel().cumsum()[member.ravel()]
    q, x = np.nonzero(member)[0], order[member]
    keys = keys_of(pair_scores(queries, rows, q, x), rows.metric)
    order[member] = x[np.lexsort((x, -keys, run))]
