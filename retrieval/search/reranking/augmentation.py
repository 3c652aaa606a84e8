"""Re-rank candidates after augmenting each image by its closest neighbours.

Database-side augmentation of Turcot and Lowe, 2009, and Arandjelovic and Zisserman, 2012:
each vector, also that of the query, is replaced by a sum of it and its neighbours. As in alpha
query expansion (`query_expansion.py`) the weights are powers of the cosine, here the first.
Neighbours are sought among the query and its candidates, instead of the whole gallery.
"""

from __future__ import annotations

import numpy as np

from retrieval.vectors.normalize import nonzero_lengths
from retrieval.vectors.scoring import Float64

_NEIGHBOURS = 9  # added to each image


def augmented_similarities(similarities: Float64) -> Float64:
    """Return the similarity of each of n candidates to the query, (n,) float64 from 0 to 1.

    `similarities` (n + 1, n + 1) are the cosines of the query, in row 0, and its candidates. Of the
    unit vectors, x_i is replaced by the sum of max(0, s_ij) x_j over itself and the 9 closest x_j
    with cosines s_ij. The result is (1 + cosine) / 2 of the sums, which follows from the cosines of
    the vectors alone.
    """
    keys = similarities.copy()
    np.fill_diagonal(keys, np.inf)  # an image comes before its copies
    closest = np.argsort(-keys, axis=1, kind="stable")[:, : _NEIGHBOURS + 1]
    weights = np.maximum(np.take_along_axis(similarities, closest, axis=1), 0.0)
    to_query = (weights[0][:, None] * similarities[closest[0]]).sum(axis=0)
    products = (to_query[closest] * weights).sum(axis=1)
    among = similarities[closest[:, :, None], closest[:, None, :]]
    squares = (among * weights[:, :, None] * weights[:, None]).reshape(len(closest), -1).sum(axis=1)
    lengths = nonzero_lengths(np.sqrt(np.maximum(squares, 0.0)))
    cosines = products / (lengths * lengths[0])
    result: Float64 = np.clip((1 + cosines[1:]) / 2, 0.0, 1.0)
    return result
