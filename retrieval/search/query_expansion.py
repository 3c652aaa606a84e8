"""Expanded queries: what a query found first is added to it, and it is asked again.

Alpha query expansion of Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human
annotation", 2018: q' = q + sum of max(0, s_i)^alpha x_i over the N closest x_i with scores s_i.
With alpha = 0 all weigh the same, which is the average query expansion of Chum et al., 2007. A
large alpha trusts the very close alone, so a neighbour that is wrong does little harm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from retrieval.core.errors import UsageError
from retrieval.core.schemas import Metric, Vectors
from retrieval.vectors.float_conversions import to_float32, to_float64
from retrieval.vectors.scoring import Float32, Float64


def check_expansion(alpha: float, metric: Metric) -> None:
    """Refuse to weigh neighbours by a squared distance, of which more is less alike.

    With alpha = 0 nothing is weighed, and the average is as good for l2 as for the others.
    """
    if metric == "l2" and alpha > 0:
        raise UsageError(
            f"--expand-queries with alpha {alpha:g} weighs by likeness, which l2 has no measure "
            "of: write alpha 0 (N,0), or --metric cosine or ip"
        )


def expand(
    queries: Vectors,
    neighbours: Vectors,
    scores: Float64,
    there: NDArray[np.bool_],
    alpha: float,
    metric: Metric,
) -> Float32:
    """Expand (n, d) queries by their (n, N, d) neighbours: (n, d) float32.

    `scores` (n, N) float64 are those of `metric`; where `there` (n, N) is false a query has fewer
    than N neighbours, and what stands in its place is not looked at.

    cosine: all are brought to unit length before and the sum after, as the paper has it; a vector
    without length stays so and adds nothing. ip: lengths mean something, so the sum is divided by
    that of the weights, and a weight is (s_i / q.q)^alpha, the query's own being 1: else the same
    vectors in another unit would be expanded otherwise. l2: the plain average, see
    `check_expansion`; UsageError where alpha is not 0.

    The sum is made in float64, one neighbour after another, element by element: a query's result
    does not depend on which others it is expanded with.
    """
    check_expansion(alpha, metric)
    own, weights = _weights(queries, np.where(there, scores, 0.0), alpha, metric)
    weights = np.where(there, weights, 0.0)
    total = own[:, None] * _ready(queries, metric)
    mass = own.copy()
    for weight, present, vectors in _places(weights, there, neighbours):
        total += weight[:, None] * _ready(np.where(present[:, None], vectors, 0), metric)
        mass += weight
    if metric == "cosine":
        mass = _lengths(total)
    return to_float32(total / np.where(mass > 0, mass, 1.0)[:, None])


def _places(
    weights: Float64, there: NDArray[np.bool_], neighbours: Vectors
) -> Iterator[tuple[Float64, NDArray[np.bool_], Vectors]]:
    """Give weights, presence and vectors of all first neighbours, then of all second, and on."""
    for place in range(neighbours.shape[1]):
        yield weights[:, place], there[:, place], neighbours[:, place]


def _ready(vectors: Vectors, metric: Metric) -> Float64:
    """Give (n, d) vectors as float64, of unit length for cosine."""
    wide = to_float64(vectors)
    if metric == "cosine":
        lengths = _lengths(wide)
        wide /= np.where(lengths > 0, lengths, 1.0)[:, None]
    return wide


def _lengths(wide: Float64) -> Float64:
    lengths: Float64 = np.sqrt((wide * wide).sum(-1))  # as scoring.squared_norms_of sums
    return lengths


def _weights(
    queries: Vectors, scores: Float64, alpha: float, metric: Metric
) -> tuple[Float64, Float64]:
    """Give what each query weighs itself, (n,), and each of its neighbours, (n, N).

    None is above 1. For ip, where a neighbour may be far longer than the query, all weights of a
    query are divided by the largest before the power is taken; that changes no average.
    """
    if metric == "cosine" or alpha == 0:
        likeness, largest = np.clip(scores, 0.0, 1.0), np.ones(len(queries))
    else:
        squares = _lengths(_ready(queries, metric)) ** 2
        likeness = np.maximum(scores, 0.0)
        largest = np.maximum(squares, likeness.max(axis=1, initial=0.0))
        largest = np.where(largest > 0, largest, 1.0)
        own = np.where(squares > 0, squares, largest)  # such a query has no likeness to anything
        return _power(own / largest, alpha), _power(likeness / largest[:, None], alpha)
    return largest, _power(likeness, alpha)


def _power(base: Float64, alpha: float) -> Float64:
    """Raise numbers from 0 to 1; one by one, since numpy's own may depend on the place in an array.

    0 to the power of 0 is 1.
    """
    powers = [math.pow(number, alpha) for number in base.ravel().tolist()]
    return np.array(powers, np.float64).reshape(base.shape)
