"""Helpers for k-means tests, run in this process on samples of one or more slices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import Metric, Vectors
from retrieval.index.kmeans import StoredSlice, fit_kmeans, make_slice
from retrieval.index.workers import InProcessWorkers


def make_slices(
    sample: Vectors, metric: Metric, seed: int, cuts: tuple[int, ...] = ()
) -> list[StoredSlice]:
    """Return a sample cut into slices at `cuts`, with seeded hashes of the row positions."""
    hashes = np.random.default_rng(seed).permutation(len(sample)).astype(np.uint64)
    parts = zip(np.split(sample, cuts), np.split(hashes, cuts), strict=True)
    return [
        StoredSlice(make_slice(rows, part_hashes, metric), part_hashes)
        for rows, part_hashes in parts
    ]


def train_centroids(
    sample: Vectors, nlist: int, metric: Metric, *, seed: int, cuts: tuple[int, ...] = ()
) -> NDArray[np.float32]:
    """Return k-means centroids of a sample."""
    return fit_kmeans(make_slices(sample, metric, seed, cuts), nlist, metric, InProcessWorkers())
