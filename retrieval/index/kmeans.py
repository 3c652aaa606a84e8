"""The centroids of an index: Lloyd's k-means, seeded, decided in float64.

Assignment goes through `scoring.py` and sums run in the order of the rows, so that the centroids
depend on the sample and the seed alone, not on blocks, threads or processes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.scoring import Block, block, nearest
from retrieval.tables import Metric, Vectors

ITERATIONS = 10
"""FAISS' own default for IVF."""

_SPLIT = 1.0 / 1024


def list_metric(metric: Metric) -> Metric:
    """Give the metric that decides which list a vector belongs to.

    For cosine and dot the centroids have unit length and the largest dot wins: a vector's own
    length changes nothing. It is also what a stock FAISS index of that metric does.
    """
    return "l2" if metric == "l2" else "ip"


def train_centroids(
    sample: Vectors, nlist: int, metric: Metric, *, seed: int
) -> NDArray[np.float32]:
    """Find `nlist` centroids of an (n, d) sample, n >= nlist; (nlist, d) float32.

    Spherical for cosine and ip. A list that loses all its rows takes half of the fullest one, as
    in FAISS; with fewer distinct rows than lists some lists stay empty, which harms nothing.
    """
    if metric == "cosine":
        sample = block(sample, "cosine").cheap
    rows = block(sample, list_metric(metric))
    start = np.random.default_rng(seed).choice(len(sample), nlist, replace=False)
    centroids = _finished(sample[np.sort(start)].astype(np.float64), metric)
    for _ in range(ITERATIONS):
        lists = nearest(rows, block(centroids, rows.metric))
        centroids = _finished(_means(rows, lists, centroids), metric)
    return centroids


def _means(
    rows: Block, lists: NDArray[np.int64], before: NDArray[np.float32]
) -> NDArray[np.float64]:
    nlist = len(before)
    order = np.argsort(lists, kind="stable")
    counts = np.bincount(lists, minlength=nlist)
    means = before.astype(np.float64)
    ends = np.cumsum(counts)
    for number in np.flatnonzero(counts):
        members = order[ends[number] - counts[number] : ends[number]]
        means[number] = rows.values[members].astype(np.float64).mean(0)
    for number in np.flatnonzero(counts == 0):
        fullest = int(np.argmax(counts))
        if counts[fullest] < 2:
            break
        signs = np.where(np.arange(means.shape[1]) % 2, 1 + _SPLIT, 1 - _SPLIT)
        means[number] = means[fullest] * signs
        means[fullest] *= 2 - signs
        counts[number] = counts[fullest] // 2
        counts[fullest] -= counts[number]
    return means


def _finished(centroids: NDArray[np.float64], metric: Metric) -> NDArray[np.float32]:
    if metric != "l2":
        lengths = np.sqrt((centroids**2).sum(-1, keepdims=True))
        centroids = centroids / np.where(lengths > 0, lengths, 1.0)
    largest = float(np.finfo(np.float32).max)  # the halves of a split may lie just beyond it
    return np.clip(centroids, -largest, largest).astype(np.float32)
