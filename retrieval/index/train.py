"""Training of the quantizer of an index on a sample of the store, written once.

trained.json holds the plan with its reasons and the checksum of trained.faiss.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.core.errors import Damaged, UsageError
from retrieval.core.records import Chunk, IndexPlan
from retrieval.core.schemas import Metric, Vectors
from retrieval.index.faiss_io import make_empty_index, serialize_index
from retrieval.index.index_kind import MIN_CODE_SAMPLE, parse_index_kind
from retrieval.index.kmeans import SampleSlice, StoredSlice, fit_kmeans, make_slice
from retrieval.index.list_order import order_lists
from retrieval.index.quantized_codes import to_faiss_vectors
from retrieval.index.sampling import Hashes, below_fraction, sample_table, sampling_fraction
from retrieval.index.two_level_kmeans import COARSE_ROWS, fit_two_level_kmeans, write_sample_slice
from retrieval.index.workers import InProcessWorkers, Workers
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.local import Folder
from retrieval.store.reader import Store, read_vectors

TRAINED, TRAINED_JSON = "trained.faiss", "trained.json"

FLAT_LISTS = 10_000
"""Maximum lists for one-level k-means: 640,000 sample rows, a minute or two on two cores."""

CODE_ROWS = 1 << 15
"""Rows that train lossy codes: for the range of each number (SQ8) or its distribution (PQ)."""

_SLICE = (
    1 << 13
)  # sample rows per slice, small enough that many workers share even a small training


@dataclass(frozen=True)
class TrainedIndex:
    """A trained quantizer and the plan it was trained by."""

    faiss: bytes  # an index without rows
    plan: IndexPlan


def read_trained_index(folder: Folder) -> TrainedIndex:
    """Read the trained index of an earlier run, checked against its checksum.

    Raises FileNotFoundError if it does not exist, Damaged if it was altered.
    """
    record, trained = folder.read(TRAINED_JSON), folder.read(TRAINED)
    values = parse_checksummed_json(record)
    digest = hashlib.sha256(trained).hexdigest()
    if values is None or values["files"] != {TRAINED: digest}:
        raise Damaged(f"{folder.uri(TRAINED)} was altered; remove it and run again")
    plan = {**values["plan"], "reasons": tuple(values["plan"]["reasons"])}
    return TrainedIndex(trained, IndexPlan(**plan))


def train_index(
    folder: Folder, store: Store, plan: IndexPlan, metric: Metric, seed: int, workers: Workers
) -> TrainedIndex:
    """Train and write an index without rows, or return the one that an earlier run wrote."""
    try:
        return read_trained_index(folder)
    except FileNotFoundError:
        pass
    index = _train(folder, store, plan, metric, seed, workers)
    trained = serialize_index(index)
    folder.delete(TRAINED)  # left by a run interrupted before it wrote trained.json
    folder.put_new(TRAINED, trained)
    values = {**dataclasses.asdict(plan), "reasons": list(plan.reasons)}
    files = {TRAINED: hashlib.sha256(trained).hexdigest()}
    folder.put_new(TRAINED_JSON, checksummed_json({"plan": values, "files": files}))
    return TrainedIndex(trained, plan)


def _train(
    folder: Folder, store: Store, plan: IndexPlan, metric: Metric, seed: int, workers: Workers
) -> Any:
    """Return a FAISS index of the planned kind without rows; FAISS trains only lossy codes."""
    centroids = _centroids(folder, store, plan, metric, seed, workers)
    if plan.codes:
        return make_empty_index(plan, centroids, metric)
    fraction = sampling_fraction(CODE_ROWS, store.rows)
    groups = list(_groups(store, fraction))
    if len(groups) == 1:  # cheaper than distributing it
        workers = InProcessWorkers()
    shared_store = workers.broadcast(store)
    draw = [(shared_store, group, fraction, seed) for group in groups]
    sample = np.concatenate([vectors for vectors, _ in workers.map(_draw, draw)])
    if parse_index_kind(plan.factory).parts and len(sample) < MIN_CODE_SAMPLE:
        raise UsageError(
            f"--index-factory {plan.factory} cannot be trained on {len(sample)} vectors, at least "
            f"{MIN_CODE_SAMPLE} are needed; specify IVFn,Flat"
        )
    return make_empty_index(plan, centroids, metric, to_faiss_vectors(sample, metric))


def _centroids(
    folder: Folder, store: Store, plan: IndexPlan, metric: Metric, seed: int, workers: Workers
) -> NDArray[np.float32]:
    """Return the trained (nlist, d) centroids, ordered so that neighbouring lists are close."""
    centroids = _fit_centroids(folder, store, plan, metric, seed, workers)
    return _padded(centroids[order_lists(centroids)], plan.nlist)


def _fit_centroids(
    folder: Folder, store: Store, plan: IndexPlan, metric: Metric, seed: int, workers: Workers
) -> NDArray[np.float32]:
    fraction = sampling_fraction(plan.sample_rows, store.rows)
    groups = list(_groups(store, fraction))
    if len(groups) == 1:  # cheaper than distributing it
        workers = InProcessWorkers()
    shared_store = workers.broadcast(store)
    if plan.nlist <= FLAT_LISTS:
        draw = [(shared_store, group, fraction, seed, metric) for group in groups]
        slices = [StoredSlice(*stored) for stored in workers.map_stored(_slice, draw)]
        count = min(plan.nlist, sum(len(stored.hashes) for stored in slices))
        return fit_kmeans(slices, count, metric, workers)
    coarse = sampling_fraction(COARSE_ROWS * int(plan.nlist**0.5), store.rows)
    put = [
        (folder, number, shared_store, group, fraction, coarse, seed, metric)
        for number, group in enumerate(groups)
    ]
    slices = [StoredSlice(*stored) for stored in workers.map_stored(_put_slice, put)]
    shape = (store.dtype, store.dimension, len(groups))
    return fit_two_level_kmeans(folder, slices, plan.nlist, shape, metric, workers)


def _padded(centroids: NDArray[np.float32], nlist: int) -> NDArray[np.float32]:
    """Repeat centroids if the sample had fewer rows than lists; repeated lists stay empty."""
    return np.resize(centroids, (nlist, centroids.shape[1]))


def _groups(store: Store, fraction: float) -> Iterator[list[Chunk]]:
    """Iterate over groups of consecutive chunks that yield about one sample slice each."""
    group: list[Chunk] = []
    images = 0
    for chunk in store.chunks:
        group.append(chunk)
        images += chunk.last - chunk.first
        if images * fraction >= _SLICE:
            yield group
            group, images = [], 0
    if group:
        yield group


def _draw(
    store: Store, chunks: Sequence[Chunk], fraction: float, seed: int
) -> tuple[Vectors, Hashes]:
    """Return the sampled vectors of some chunks and their hashes, read part by part."""
    vectors: list[Any] = [np.empty((0, store.dimension), store.dtype)]
    hashes = [np.empty(0, np.uint64)]
    for chunk in chunks:
        table, table_hashes = sample_table(store.chunk_rows(chunk), fraction, seed, "training")
        vectors.append(read_vectors(table))
        hashes.append(table_hashes)
    return np.concatenate(vectors), np.concatenate(hashes)


def _slice(
    store: Store, chunks: Sequence[Chunk], fraction: float, seed: int, metric: Metric
) -> tuple[SampleSlice, Hashes]:
    vectors, hashes = _draw(store, chunks, fraction, seed)
    return make_slice(vectors, hashes, metric), hashes


def _put_slice(
    folder: Folder, number: int, store: Store, chunks: Sequence[Chunk], fraction: float,
    coarse: float, seed: int, metric: Metric,
) -> tuple[SampleSlice, Hashes]:  # fmt: skip
    """Write a slice of the sample; return the part of it that trains the coarse centroids."""
    vectors, hashes = _draw(store, chunks, fraction, seed)
    write_sample_slice(folder, number, vectors)
    coarse_positions = np.flatnonzero(below_fraction(hashes, coarse))
    return make_slice(vectors[coarse_positions], hashes[coarse_positions], metric), hashes[
        coarse_positions
    ]
