"""K-means as tests call it: a sample, in one slice or several, without workers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import Metric, Vectors
from retrieval.index.kmeans import Held, lloyd, slice_of
from retrieval.index.workers import Here


def slices_of(sample: Vectors, metric: Metric, seed: int, cuts: tuple[int, ...] = ()) -> list[Held]:
    """Cut a sample at some places; its rows are hashed by their place."""
    hashes = np.random.default_rng(seed).permutation(len(sample)).astype(np.uint64)
    parts = zip(np.split(sample, cuts), np.split(hashes, cuts), strict=True)
    return [Held(slice_of(rows, own, metric), own) for rows, own in parts]


def train_centroids(
    sample: Vectors, nlist: int, metric: Metric, *, seed: int, cuts: tuple[int, ...] = ()
) -> NDArray[np.float32]:
    """Train on a sample."""
    return lloyd(slices_of(sample, metric, seed, cuts), nlist, metric, Here())
