"""Expand queries by their nearest neighbours, so that they can be searched a second time.

Alpha query expansion of Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human
annotation", 2018: q' = q + sum of max(0, s_i)^alpha x_i over the N closest x_i with scores s_i.
With alpha = 0 all weights are equal: the average query expansion of Chum et al., 2007. A large
alpha gives weight to very close neighbours only, so a wrong one has little effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from retrieval.core.errors import UsageError
from retrieval.core.schemas import Metric, Vectors
from retrieval.vectors.float_conversions import to_float32, to_float64
from retrieval.vectors.normalize import normalize_rows
from retrieval.vectors.scoring import Float32, Float64


def check_expansion(alpha: float, metric: Metric) -> None:
    """Raise UsageError for alpha > 0 with l2, whose scores are distances and not similarities.

    With alpha = 0 the weights are equal, so l2 is as good as the other metrics.
    """
    if metric == "l2" and alpha > 0:
        raise UsageError(
            f"--rerank expand with alpha {alpha:g} weights neighbours by similarity, which l2 does "
            "not have: use alpha 0 (expand:N,0), or --metric cosine or ip"
        )


def expand_queries(
    queries: Vectors,
    neighbours: Vectors,
    scores: Float64,
    present: NDArray[np.bool_],
    alpha: float,
    metric: Metric,
) -> Float32:
    """Return (n, d) queries expanded by their (n, N, d) neighbours, (n, d) float32.

    `scores` (n, N) float64 are those of `metric`; where `present` (n, N) is false, a query has
    fewer than N neighbours, and the values there are ignored.

    cosine: vectors are normalized before and the sum after, as in the paper; a zero vector stays
    zero. ip: lengths matter, so the sum is divided by the sum of the weights, and a weight is
    (s_i / q.q)^alpha, 1 for the query itself; so scaling all vectors scales the result.
    l2: the plain average; UsageError where alpha is not 0 (`check_expansion`).

    The sum is made in float64, neighbour by neighbour, so the result of a query does not depend on
    the queries beside it.
    """
    check_expansion(alpha, metric)
    query_weights, weights = _weights(queries, np.where(present, scores, 0.0), alpha, metric)
    weights = np.where(present, weights, 0.0)
    total = query_weights[:, None] * _to_float64(queries, metric)
    weight_sum = query_weights.copy()
    for weight, is_present, vectors in _iterate_neighbours(weights, present, neighbours):
        total += weight[:, None] * _to_float64(np.where(is_present[:, None], vectors, 0), metric)
        weight_sum += weight
    if metric == "cosine":
        weight_sum = _lengths(total)
    return to_float32(total / np.where(weight_sum > 0, weight_sum, 1.0)[:, None])


def _iterate_neighbours(
    weights: Float64, present: NDArray[np.bool_], neighbours: Vectors
) -> Iterator[tuple[Float64, NDArray[np.bool_], Vectors]]:
    """Yield weights (n,), presence (n,) and vectors (n, d) of the i-th neighbours, for each i."""
    for rank in range(neighbours.shape[1]):
        yield weights[:, rank], present[:, rank], neighbours[:, rank]


def _to_float64(vectors: Vectors, metric: Metric) -> Float64:
    """Return (n, d) vectors as float64, normalized for cosine."""
    return normalize_rows(vectors) if metric == "cosine" else to_float64(vectors)


def _lengths(wide: Float64) -> Float64:
    lengths: Float64 = np.sqrt((wide * wide).sum(-1))  # summed like `scoring.compute_squared_norms`
    return lengths


def _weights(
    queries: Vectors, scores: Float64, alpha: float, metric: Metric
) -> tuple[Float64, Float64]:
    """Return the weight of each query itself, (n,), and of its neighbours, (n, N), at most 1.

    For ip, where a neighbour may be far longer than the query, all weights of a query are divided
    by the largest before the power is taken, which leaves the average as it is.
    """
    if metric == "cosine" or alpha == 0:
        similarity, largest = np.clip(scores, 0.0, 1.0), np.ones(len(queries))
    else:
        squares = _lengths(_to_float64(queries, metric)) ** 2
        similarity = np.maximum(scores, 0.0)
        largest = np.maximum(squares, similarity.max(axis=1, initial=0.0))
        largest = np.where(largest > 0, largest, 1.0)
        query_base = np.where(
            squares > 0, squares, largest
        )  # a zero query has no similarity to anything
        return _power(query_base / largest, alpha), _power(similarity / largest[:, None], alpha)
    return largest, _power(similarity, alpha)


def _power(base: Float64, alpha: float) -> Float64:
    """Return base ** alpha for numbers from 0 to 1; 0 to the power of 0 is 1.

    One by one, since the result of numpy's power may depend on the position in the array.
    """
    powers = [math.pow(number, alpha) for number in base.ravel().tolist()]
    return np.array(powers, np.float64).reshape(base.shape)
