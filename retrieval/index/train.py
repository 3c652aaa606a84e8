"""The trained quantizer of an index, put once: a sample of the store, and centroids of it.

trained.json holds the plan with its reasons, and vouches for trained.faiss.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.records import Chunk, IndexPlan
from retrieval.core.schemas import Metric, Vectors
from retrieval.index.faiss_io import empty_index, made_by_plan, to_bytes, train_by_faiss
from retrieval.index.kmeans import Held, Slice, lloyd, slice_of
from retrieval.index.quantized_codes import coarse_of, wide_of
from retrieval.index.sampling import Hashes, drawn, share_for, within
from retrieval.index.two_level_kmeans import COARSE_ROWS, put_sample, two_levels
from retrieval.index.workers import Here, Workers
from retrieval.storage.checksum import read_json, sealed_json
from retrieval.storage.local import Folder
from retrieval.store.reader import Store, vectors_of

TRAINED, TRAINED_JSON = "trained.faiss", "trained.json"

FLAT_LISTS = 10_000
"""Lists up to which k-means has one level: 640,000 rows of sample, a minute or two on two cores."""

CODE_ROWS = 1 << 15
"""Rows that train codes: half of what FAISS takes for the 256 words of a product quantizer."""

_SLICE = 1 << 13  # rows of the sample in a slice, so that few lists too are trained by many workers


@dataclass(frozen=True)
class Trained:
    """A quantizer and what is known of its making."""

    faiss: bytes  # an index without rows
    plan: IndexPlan


def read_trained(folder: Folder) -> Trained:
    """Read what an earlier run put, checked; FileNotFoundError where there is none."""
    note, trained = folder.read(TRAINED_JSON), folder.read(TRAINED)
    values = read_json(note)
    digest = hashlib.sha256(trained).hexdigest()
    if values is None or values["files"] != {TRAINED: digest}:
        raise Damaged(f"{folder.uri(TRAINED)} was altered; remove it and run again")
    plan = {**values["plan"], "reasons": tuple(values["plan"]["reasons"])}
    return Trained(trained, IndexPlan(**plan))


def train_index(
    folder: Folder, store: Store, plan: IndexPlan, metric: Metric, seed: int, workers: Workers
) -> Trained:
    """Put a trained index without rows, or give what an earlier run put."""
    try:
        return read_trained(folder)
    except FileNotFoundError:
        pass
    index = _trained(folder, store, plan, metric, seed, workers)
    trained = to_bytes(index)
    folder.delete(TRAINED)  # of a run that was killed before it put trained.json
    folder.put_new(TRAINED, trained)
    values = {**dataclasses.asdict(plan), "reasons": list(plan.reasons)}
    files = {TRAINED: hashlib.sha256(trained).hexdigest()}
    folder.put_new(TRAINED_JSON, sealed_json({"plan": values, "files": files}))
    return Trained(trained, plan)


def _trained(
    folder: Folder, store: Store, plan: IndexPlan, metric: Metric, seed: int, workers: Workers
) -> Any:
    """Train what the plan names; where codes are not the vectors FAISS trains them on a sample.

    Lists are of our own making where they are those of the nearest of plain centroids.
    """
    if plan.codes:
        centroids = _centroids(folder, store, plan, metric, seed, workers)
        return empty_index(plan, centroids, metric)
    index, rows = made_by_plan(plan, store.dimension, metric), CODE_ROWS
    coarse = coarse_of(index)
    if coarse.is_plain:
        coarse.ivf.quantizer.add(_centroids(folder, store, plan, metric, seed, workers))
    else:
        rows = max(rows, plan.sample_rows)
    share = share_for(rows, store.rows)
    groups = list(_groups(store, share))
    if len(groups) == 1:  # less work than giving it away
        workers = Here()
    kept = workers.keep(store)
    draw = [(kept, group, share, seed) for group in groups]
    sample = np.concatenate([vectors for vectors, _ in workers.map(_draw, draw)])
    train_by_faiss(plan, index, wide_of(sample, metric))
    return index


def _centroids(
    folder: Folder, store: Store, plan: IndexPlan, metric: Metric, seed: int, workers: Workers
) -> NDArray[np.float32]:
    share = share_for(plan.sample_rows, store.rows)
    groups = list(_groups(store, share))
    if len(groups) == 1:  # less work than giving it away
        workers = Here()
    kept = workers.keep(store)
    if plan.nlist <= FLAT_LISTS:
        draw = [(kept, group, share, seed, metric) for group in groups]
        slices = [Held(*held) for held in workers.hold(_slice, draw)]
        count = min(plan.nlist, sum(len(held.hashes) for held in slices))
        centroids = lloyd(slices, count, metric, workers)
        return _padded(centroids, plan.nlist)
    coarse = share_for(COARSE_ROWS * int(plan.nlist**0.5), store.rows)
    put = [
        (folder, number, kept, group, share, coarse, seed, metric)
        for number, group in enumerate(groups)
    ]
    slices = [Held(*held) for held in workers.hold(_put_slice, put)]
    shape = (store.dtype, store.dimension, len(groups))
    centroids = two_levels(folder, slices, plan.nlist, shape, metric, workers)
    return _padded(centroids, plan.nlist)


def _padded(centroids: NDArray[np.float32], nlist: int) -> NDArray[np.float32]:
    """Repeat centroids where rows were fewer than lists; the lists of the repeated stay empty."""
    return np.resize(centroids, (nlist, centroids.shape[1]))


def _groups(store: Store, share: float) -> Iterator[list[Chunk]]:
    """Group chunks, in their order, so that each group gives about a slice of the sample."""
    group: list[Chunk] = []
    images = 0
    for chunk in store.chunks:
        group.append(chunk)
        images += chunk.last - chunk.first
        if images * share >= _SLICE:
            yield group
            group, images = [], 0
    if group:
        yield group


def _draw(store: Store, chunks: Sequence[Chunk], share: float, seed: int) -> tuple[Vectors, Hashes]:
    """Read the sampled rows of some chunks; the parts pass one by one."""
    vectors: list[Any] = [np.empty((0, store.dimension), store.dtype)]
    hashes = [np.empty(0, np.uint64)]
    for chunk in chunks:
        table, own = drawn(store.chunk_rows(chunk), share, seed, "training")
        vectors.append(vectors_of(table))
        hashes.append(own)
    return np.concatenate(vectors), np.concatenate(hashes)


def _slice(
    store: Store, chunks: Sequence[Chunk], share: float, seed: int, metric: Metric
) -> tuple[Slice, Hashes]:
    vectors, hashes = _draw(store, chunks, share, seed)
    return slice_of(vectors, hashes, metric), hashes


def _put_slice(
    folder: Folder, number: int, store: Store, chunks: Sequence[Chunk], share: float,
    coarse: float, seed: int, metric: Metric,
) -> tuple[Slice, Hashes]:  # fmt: skip
    """Put a slice of the sample; gives its part that trains the coarse centroids."""
    vectors, hashes = _draw(store, chunks, share, seed)
    put_sample(folder, number, vectors)
    which = np.flatnonzero(within(hashes, coarse))
    return slice_of(vectors[which], hashes[which], metric), hashes[which]
