"""Seeded Lloyd's k-means for the centroids of an index, with assignments decided in float64.

The sample is divided into slices that depend on the parts of the store alone. Each worker assigns
the rows of a slice (`vectors/topk.py`) and sums them by list; the sums are added in slice order.
So the centroids depend on the sample and the seed, not on blocks, threads or workers.
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
from retrieval.vectors.matmul import choose_product
from retrieval.vectors.normalize import nonzero_lengths, normalize_rows
from retrieval.vectors.scoring import VectorBlock, block, score_pairs
from retrieval.vectors.topk import nearest_centroids

ITERATIONS = 10
"""FAISS' own default for IVF."""

_SPLIT = 1.0 / 1024


def assignment_metric(metric: Metric) -> Metric:
    """Return the metric that assigns vectors to lists.

    For cosine and ip it is the dot product with centroids of unit length, as in a stock FAISS index
    of that metric; the length of the vector has no influence.
    """
    return "l2" if metric == "l2" else "ip"


@dataclass(frozen=True)
class SampleSlice:
    """Some rows of the sample, prepared for assignment, and the hashes that order them."""

    rows: VectorBlock
    hashes: Hashes


@dataclass(frozen=True)
class StoredSlice:
    """A reference to a slice that the workers store, and the hashes of its rows."""

    reference: Any
    hashes: Hashes


def make_slice(vectors: Vectors, hashes: Hashes, metric: Metric) -> SampleSlice:
    """Build a slice of (n, d) sampled vectors, normalised to unit length for cosine."""
    values = block(vectors, "cosine").matmul_input if metric == "cosine" else vectors
    return SampleSlice(block(values, assignment_metric(metric)), hashes)


def fit_kmeans(
    slices: Sequence[StoredSlice], nlist: int, metric: Metric, workers: Workers
) -> NDArray[np.float32]:
    """Return `nlist` centroids, (nlist, d) float32, of a sample of at least as many rows.

    K-means is spherical for cosine and ip and starts with the rows of the smallest hashes. A list
    that loses all its rows takes half of the fullest one, as in FAISS; with fewer distinct rows
    than lists some lists stay empty.
    """
    start = to_float64(initial_rows(slices, nlist, workers))
    centroids = _to_centroids(start, metric)
    work = float(sum(len(stored.hashes) for stored in slices)) * start.size * ITERATIONS
    for _ in range(ITERATIONS):
        shared = workers.broadcast(centroids)
        sums = np.zeros(centroids.shape)
        counts = np.zeros(nlist, np.int64)
        for partial in workers.map(
            sum_by_list, [(stored.reference, shared, work) for stored in slices]
        ):
            sums += partial[0]
            counts += partial[1]
        centroids = _to_centroids(_means(sums, counts, centroids), metric)
    return centroids


def initial_rows(
    slices: Sequence[StoredSlice], count: int, workers: Workers
) -> NDArray[np.float32]:
    """Return the rows of the `count` smallest hashes, ordered by hash, (count, d) float32."""
    order = np.sort(np.concatenate([stored.hashes for stored in slices]))
    last = order[count - 1]
    rows = list(workers.map(rows_up_to_hash, [(stored.reference, last) for stored in slices]))
    hashes = np.concatenate([stored.hashes[stored.hashes <= last] for stored in slices])
    return np.concatenate(rows)[np.argsort(hashes, kind="stable")[:count]]


def rows_up_to_hash(sample_slice: SampleSlice, last: np.uint64) -> NDArray[np.float32]:
    """Return a slice's rows whose hash is at most `last`; runs on workers for `initial_rows`."""
    return sample_slice.rows.matmul_input[sample_slice.hashes <= last]


def sum_by_list(
    sample_slice: SampleSlice, centroids: NDArray[np.float32], work: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Assign a slice's rows and return (nlist, d) sums and (nlist,) counts by list.

    `work` is the number of multiplications of the whole training, by which the product is chosen.
    """
    rows, nlist = sample_slice.rows, len(centroids)
    lists = nearest_centroids(rows, block(centroids, rows.metric), choose_product("cpu", work))
    counts = np.bincount(lists, minlength=nlist)
    sums = np.zeros(centroids.shape)
    order = np.argsort(lists, kind="stable")
    ends = np.cumsum(counts)
    for number in np.flatnonzero(counts):
        members = order[ends[number] - counts[number] : ends[number]]
        to_float64(rows.matmul_input[members]).sum(0, out=sums[number])
    return sums, counts


def distances_to_centroids(
    rows: VectorBlock, centroids: VectorBlock, lists: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return each row's distance to the centroid of its list, (n,): the k-means objective.

    1 - cosine for cosine and ip, squared Euclidean for l2.
    """
    scores = score_pairs(rows, centroids, np.arange(len(rows)), lists)
    if rows.metric == "l2":
        return scores
    lengths = rows.norms * centroids.norms[lists]
    return 1 - scores / nonzero_lengths(lengths)


def _means(
    sums: NDArray[np.float64], counts: NDArray[np.int64], previous: NDArray[np.float32]
) -> NDArray[np.float64]:
    means = to_float64(previous)
    nonempty = counts > 0
    means[nonempty] = sums[nonempty] / counts[nonempty, None]
    remaining = counts.copy()
    for number in np.flatnonzero(~nonempty):
        fullest = int(np.argmax(remaining))
        if remaining[fullest] < 2:
            break
        signs = np.where(np.arange(means.shape[1]) % 2, 1 + _SPLIT, 1 - _SPLIT)
        means[number] = means[fullest] * signs
        means[fullest] *= 2 - signs
        remaining[number] = remaining[fullest] // 2
        remaining[fullest] -= remaining[number]
    return means


def _to_centroids(centroids: NDArray[np.float64], metric: Metric) -> NDArray[np.float32]:
    if metric != "l2":
        centroids = normalize_rows(centroids)
    largest = float(np.finfo(np.float32).max)  # the halves of a split may lie just beyond it
    return to_float32(np.clip(centroids, -largest, largest))
