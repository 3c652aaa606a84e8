"""Re-rank candidates by k-reciprocal encoding.

Zhong, Zheng, Cao and Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", 2017
(arXiv 1701.08398). Two images are neighbours if each is among the k closest of the other. The sets
of such neighbours of a query and of a candidate are compared by the Jaccard distance, so that an
image counts as close if the same images are close to it. Here the graph consists of the query and
its candidates instead of the whole gallery, and parameters are those of the paper.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors.scoring import Float64, Int64

_NEIGHBOURS = 20  # k1: closest images that may be reciprocal neighbours
_AVERAGED = 6  # k2: closest images whose encodings are averaged
_DISTANCE_SHARE = 0.3  # lambda: weight of the original distance in the final one


def k_reciprocal_similarities(similarities: Float64) -> Float64:
    """Return the similarity of each of n candidates to the query, (n,) float64 from 0 to 1.

    `similarities` (n + 1, n + 1) are the cosines of the query, in row 0, and its candidates. The
    result is 1 - d*, where d* of the paper is 0.7 times the Jaccard distance plus 0.3 times the
    original distance. The original distance of x and y is 1 - cosine, divided by the largest of x,
    as in the authors' program.
    """
    distances = _relative_distances(similarities)
    order = _closest_first(distances)
    neighbours = _extend(_reciprocal(order, _NEIGHBOURS), _reciprocal(order, _NEIGHBOURS // 2))
    encodings = np.where(neighbours, np.exp(-distances), 0.0)
    encodings /= encodings.sum(axis=1, keepdims=True)
    encodings = encodings[order[:, :_AVERAGED]].mean(axis=1)
    shared = np.minimum(encodings[0], encodings).sum(axis=1)
    jaccard = 1 - shared / (2 - shared)  # each encoding adds up to 1
    final = (1 - _DISTANCE_SHARE) * jaccard + _DISTANCE_SHARE * distances[0]
    result: Float64 = np.clip(1 - final[1:], 0.0, 1.0)
    return result


def _relative_distances(similarities: Float64) -> Float64:
    """Return 1 - cosine, divided by the largest of each row; 0 on the diagonal."""
    distances = np.maximum(1 - similarities, 0.0)
    np.fill_diagonal(distances, 0.0)
    largest = distances.max(axis=1, keepdims=True)
    distances /= np.where(largest > 0, largest, 1.0)
    return distances


def _closest_first(distances: Float64) -> Int64:
    """Return all images by distance from each, (n, n); an image comes before its copies."""
    keys = distances.copy()
    np.fill_diagonal(keys, -1.0)
    order: Int64 = np.argsort(keys, axis=1, kind="stable")
    return order


def _reciprocal(order: Int64, k: int) -> NDArray[np.bool_]:
    """Return which images are among the k closest of each other, (n, n) bool.

    `order` (n, n) holds the images by distance from each, itself first.
    """
    closest = np.zeros(order.shape, np.bool_)
    np.put_along_axis(closest, order[:, : k + 1], True, axis=1)
    return closest & closest.T


def _extend(neighbours: NDArray[np.bool_], narrow: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Add the `narrow` neighbours of those neighbours that share two thirds of theirs.

    Both are (n, n) bool. Counts are exact in float32, so the products do not depend on threads.
    """
    wide_counts, narrow_counts = neighbours.astype(np.float32), narrow.astype(np.float32)
    shared = wide_counts @ narrow_counts.T
    is_added = neighbours & (3 * shared >= 2 * narrow_counts.sum(axis=1))
    added: NDArray[np.bool_] = is_added.astype(np.float32) @ narrow_counts > 0
    return neighbours | added
