"""The centroids of an index: Lloyd's k-means, seeded, decided in float64.

The sample lies in slices, which come from the store's parts alone. Each worker assigns the rows of
a slice (`closest.py`), sums them list by list, and the sums of all slices are added in their order.
So the centroids depend on the sample and the seed alone, not on blocks, threads or workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import Metric, Vectors
from retrieval.index.sampling import Hashes
from retrieval.index.workers import Workers
from retrieval.vectors.float_conversions import to_float32, to_float64
from retrieval.vectors.matmul import product_for
from retrieval.vectors.scoring import Block, block, pair_scores
from retrieval.vectors.topk import nearest

ITERATIONS = 10
"""FAISS' own default for IVF."""

_SPLIT = 1.0 / 1024


def list_metric(metric: Metric) -> Metric:
    """Give the metric that decides which list a vector belongs to.

    For cosine and dot the centroids have unit length and the largest dot wins: a vector's own
    length changes nothing. It is also what a stock FAISS index of that metric does.
    """
    return "l2" if metric == "l2" else "ip"


@dataclass(frozen=True)
class Slice:
    """Some rows of the sample, ready to be assigned, and the hashes that order them."""

    rows: Block
    hashes: Hashes


@dataclass(frozen=True)
class Held:
    """A slice that the workers keep, and the hashes of its rows."""

    kept: Any
    hashes: Hashes


def slice_of(vectors: Vectors, hashes: Hashes, metric: Metric) -> Slice:
    """Make (n, d) sampled vectors ready; for cosine they count with unit length."""
    values = block(vectors, "cosine").cheap if metric == "cosine" else vectors
    return Slice(block(values, list_metric(metric)), hashes)


def lloyd(
    slices: Sequence[Held], nlist: int, metric: Metric, workers: Workers
) -> NDArray[np.float32]:
    """Find `nlist` centroids of a sample of at least as many rows; (nlist, d) float32.

    Spherical for cosine and ip. It starts with the rows of the smallest hashes. A list that loses
    all its rows takes half of the fullest one, as in FAISS; with fewer distinct rows than lists
    some lists stay empty, which harms nothing.
    """
    start = to_float64(first_rows(slices, nlist, workers))
    centroids = _finished(start, metric)
    work = float(sum(len(held.hashes) for held in slices)) * start.size * ITERATIONS
    for _ in range(ITERATIONS):
        shared = workers.keep(centroids)
        sums = np.zeros(centroids.shape)
        counts = np.zeros(nlist, np.int64)
        for part in workers.map(sums_of, [(held.kept, shared, work) for held in slices]):
            sums += part[0]
            counts += part[1]
        centroids = _finished(_means(sums, counts, centroids), metric)
    return centroids


def first_rows(slices: Sequence[Held], count: int, workers: Workers) -> NDArray[np.float32]:
    """Give the rows of the `count` smallest hashes, in the order of these."""
    order = np.sort(np.concatenate([held.hashes for held in slices]))
    last = order[count - 1]
    found = list(workers.map(below, [(held.kept, last) for held in slices]))
    hashes = np.concatenate([held.hashes[held.hashes <= last] for held in slices])
    return np.concatenate(found)[np.argsort(hashes, kind="stable")[:count]]


def below(part: Slice, last: np.uint64) -> NDArray[np.float32]:
    """Give a slice's rows up to a hash; what the workers do for `first_rows`."""
    return part.rows.cheap[part.hashes <= last]


def sums_of(
    part: Slice, centroids: NDArray[np.float32], work: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Add a slice's rows list by list: (nlist, d) sums and (nlist,) counts, one iteration.

    `work` are the multiplications of all of it, by which the product is chosen.
    """
    rows, nlist = part.rows, len(centroids)
    lists = nearest(rows, block(centroids, rows.metric), product_for("cpu", work))
    counts = np.bincount(lists, minlength=nlist)
    sums = np.zeros(centroids.shape)
    order = np.argsort(lists, kind="stable")
    ends = np.cumsum(counts)
    for number in np.flatnonzero(counts):
        members = order[ends[number] - counts[number] : ends[number]]
        to_float64(rows.cheap[members]).sum(0, out=sums[number])
    return sums, counts


def distances(rows: Block, centroids: Block, lists: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each row's distance to the centroid of its list, (n,): what k-means makes small.

    1 - cosine for cosine and ip, squared Euclidean for l2.
    """
    scores = pair_scores(rows, centroids, np.arange(len(rows)), lists)
    if rows.metric == "l2":
        return scores
    lengths = rows.norms * centroids.norms[lists]
    return 1 - scores / np.where(lengths > 0, lengths, 1.0)


def _means(
    sums: NDArray[np.float64], counts: NDArray[np.int64], before: NDArray[np.float32]
) -> NDArray[np.float64]:
    means = to_float64(before)
    full = counts > 0
    means[full] = sums[full] / counts[full, None]
    left = counts.copy()
    for number in np.flatnonzero(~full):
        fullest = int(np.argmax(left))
        if left[fullest] < 2:
            break
        signs = np.where(np.arange(means.shape[1]) % 2, 1 + _SPLIT, 1 - _SPLIT)
        means[number] = means[fullest] * signs
        means[fullest] *= 2 - signs
        left[number] = left[fullest] // 2
        left[fullest] -= left[number]
    return means


def _finished(centroids: NDArray[np.float64], metric: Metric) -> NDArray[np.float32]:
    if metric != "l2":
        lengths = np.sqrt((centroids**2).sum(-1, keepdims=True))
        centroids = centroids / np.where(lengths > 0, lengths, 1.0)
    largest = float(np.finfo(np.float32).max)  # the halves of a split may lie just beyond it
    return to_float32(np.clip(centroids, -largest, largest))
