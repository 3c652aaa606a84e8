"""Shared test data for vectors: hypothesis strategies for edge cases, stores and indexes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.core.records import Chunk, IndexPlan, ShardResult
from retrieval.core.schemas import FAILURES, LISTING, Metric, Vectors, part_table
from retrieval.index import finalize, recall_curve, shard
from retrieval.index.build_shard import PlannedShard, plan_shards
from retrieval.index.faiss_io import deserialize_index, read_centroids
from retrieval.index.generations import Generation, claim_generations
from retrieval.index.runs import ShardBuildContext, write_run
from retrieval.index.sample_neighbors import build_measured_shard, make_recall_samples
from retrieval.index.sampling import draw_sample
from retrieval.index.train import train_index
from retrieval.index.workers import InProcessWorkers
from retrieval.models.bundle import Bundle, serialize_state, write_bundle
from retrieval.models.registry import SCRATCH, default_transform
from retrieval.storage import transaction
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder
from retrieval.store import reader as stores
from retrieval.store.finalize import finish_store
from retrieval.store.part_writer import put_part
from retrieval.store.reader import Store
from retrieval.store.segment import Segment, claim_segment
from retrieval.vectors.float_conversions import flushes_subnormals

NEIGHBOUR_COUNT = max(recall_curve.CURVE_K) + 1
METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")

quick = settings(max_examples=150, deadline=None)
slow = settings(max_examples=25, deadline=None)  # each example writes a store
nightly = settings(max_examples=3000, deadline=None)

metrics = st.sampled_from(METRICS)
dtypes = st.sampled_from(["float16", "float32"])
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread, since parallel test processes compete for cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Result = TypeVar("Result")


def call_with_flushed_subnormals(call: Callable[[], Result]) -> Result:
    """Return `call()` run in a thread that flushes subnormal numbers to zero."""

    def flushed() -> Result:
        assert torch.set_flush_denormal(True)
        assert flushes_subnormals()
        return call()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(flushed).result()


# --- the oracle ---------------------------------------------------------------------------------


def exact_keys(queries: Vectors, rows: Vectors, metric: Metric) -> NDArray[np.float64]:
    """Return (q, n) float64 keys of all pairs by the definition of the metric; larger is closer."""
    left, right = queries.astype(np.float64)[:, None], rows.astype(np.float64)[None]
    if metric == "l2":
        return -((left - right) ** 2).sum(-1)
    dots = (left * right).sum(-1)
    if metric == "ip":
        return dots
    squares = (left**2).sum(-1) * (right**2).sum(-1)
    return np.clip(dots / np.sqrt(np.where(squares > 0, squares, 1)), -1, 1)


def brute_force(
    keys: NDArray[np.float64], ties: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return keys and positions of the k closest rows of each query, (q, k) each.

    `keys` is (q, n). Rows with key -inf are never returned; equal keys are ordered by `ties`.
    Missing entries have key -inf and position -1.
    """
    best, positions = np.full((len(keys), k), -np.inf), np.full((len(keys), k), -1)
    for query, row in enumerate(keys):
        order = sorted(np.flatnonzero(row > -np.inf), key=lambda x: (-row[x], ties[x]))[:k]
        best[query, : len(order)], positions[query, : len(order)] = row[order], order
    return best, positions


# --- edge cases ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Queries and rows of one dtype and dimension."""

    queries: Vectors
    rows: Vectors


dimensions = st.sampled_from([1, 2, 3, 7, 8, 9, 16, 31, 64, 129, 513])


@st.composite
def cases(draw: st.DrawFn, max_rows: int = 40, dims: st.SearchStrategy[int] = dimensions) -> Case:
    """Draw vectors with planted duplicates, near-ties, zeros, scales, signs and offsets."""
    dtype = draw(dtypes)
    d, n, q = draw(dims), draw(st.integers(1, max_rows)), draw(st.integers(1, 6))
    generator = np.random.default_rng(draw(seeds))
    values = generator.normal(size=(n + q, d))
    if draw(st.booleans()):  # few distinct numbers: many exact ties
        values = values.round()
    if draw(st.booleans()):  # far from the origin: l2 distances lose digits by cancellation
        values += draw(st.sampled_from([1.0, 100.0, 1e4]))
    for _ in range(draw(st.integers(0, 6))):
        plant_special_vector(draw(st.sampled_from(SPECIAL_VECTORS)), values, generator)
    values *= 10.0 ** draw(st.sampled_from([0, 0, 0, -38, -18, -6, 4, 18]))
    if draw(st.booleans()):  # a different scale for each row
        values *= 10.0 ** generator.integers(-18, 19, (n + q, 1))
    bound = float(np.finfo(dtype).max)
    stored = np.clip(values, -bound, bound).astype(dtype)
    return Case(stored[:q], stored[q:])


SPECIAL_VECTORS = ("same", "near", "opposite", "multiple", "zero", "huge", "small")


def plant_special_vector(
    kind: str, values: NDArray[np.float64], generator: np.random.Generator
) -> None:
    """Replace one random vector by a variant of another one, or by an extreme one."""
    target, other = generator.integers(0, len(values), 2)
    near = 1 + 1e-7 * generator.normal(size=values.shape[1])
    values[target] = {
        "same": values[other],
        "near": values[other] * near,
        "opposite": -values[other],
        "multiple": values[other] * 3,  # the same direction: cosines equal up to rounding
        "zero": values[other] * 0,
        "huge": values[other] * 1e19,  # its squares overflow float32
        "small": values[other] * 1e-22,
    }[kind]


# --- finished outputs ---------------------------------------------------------------------------


def image_ids(count: int) -> list[str]:
    """Return image_ids in byte order, with characters beyond ASCII and beyond the BMP."""
    return sorted((f"{'AÿZ￿z🐟'[n % 6]}/{n:04d}.jpg" for n in range(count)), key=str.encode)


def tiny_bundle(dimension: int) -> Bundle:
    """Return a complete bundle with a placeholder network that cannot embed."""
    transform = default_transform(SCRATCH, image_size=None)
    state = {"features.0.0.weight": torch.zeros(1)}
    return Bundle(SCRATCH, "avg", False, transform, dimension, serialize_state(state))


def make_store(
    root: Path | str,
    vectors: Vectors,
    *,
    rows: Sequence[int] | None = None,
    images: int | None = None,
    chunk_rows: int = 4,
    labels: Sequence[str | None] | None = None,
) -> Store:
    """Write a finished store of `vectors` as `jobs/embedding/embed.py` does, and open it.

    Vector i belongs to image `rows[i]` of `images` images (default: one image per vector); the
    other images are recorded as failures. `labels` has one entry per image.
    """
    vector_rows = np.arange(len(vectors)) if rows is None else np.asarray(rows, np.int64)
    count = images if images is not None else len(vectors)
    folder = open_folder(str(root))
    bundle = tiny_bundle(vectors.shape[1])
    transaction.claim_output(
        folder, "store", {"embedding_dtype": str(vectors.dtype), "bundle": bundle.digest}
    )
    write_bundle(folder, bundle)
    listing = _listing(count, labels)
    for chunk in _write_segment(folder, listing, chunk_rows).chunks():
        _write_chunk(folder, chunk, listing, vector_rows, vectors)
    finish_store(folder, vectors.shape[1], (), 1.0)
    return stores.open_store(folder)


def _listing(count: int, labels: Sequence[str | None] | None) -> pa.Table:
    ids = image_ids(count)
    columns = {
        "row": range(count),
        "image_id": ids,
        "path": [f"/photos/{name}" for name in ids],
        "size": [1000] * count,
        "mtime_ns": [None] * count,
        "label": labels if labels is not None else [None] * count,
    }
    arrays = [pa.array(columns.get(f.name, [None] * count), f.type) for f in LISTING.schema]
    return pa.table(arrays, schema=LISTING.schema)


def _write_segment(folder: Folder, listing: pa.Table, chunk_rows: int) -> Segment:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "listing.parquet")
        path.write_bytes(checksummed_parquet(listing))
        no_deleted_rows = np.empty(0, np.int64)
        return claim_segment(folder, 0, 0, path, chunk_rows, len(listing), no_deleted_rows)


def _write_chunk(
    folder: Folder,
    chunk: Chunk,
    listing: pa.Table,
    vector_rows: NDArray[np.int64],
    vectors: Vectors,
) -> None:
    stored = np.flatnonzero((vector_rows >= chunk.first) & (vector_rows < chunk.last))
    failed_rows = np.setdiff1d(np.arange(chunk.first, chunk.last), vector_rows)
    items = listing.take(vector_rows[stored])
    count = len(items)
    columns = {
        **{name: items[name] for name in ("row", "image_id", "path", "label")},
        "width": pa.array([640] * count, pa.int32()),
        "height": pa.array([480] * count, pa.int32()),
        "sha256": pa.array(["0" * 64] * count, pa.string()),
        "embedding": stores.embedding_column(vectors[stored]),
    }
    schema = part_table(vectors.shape[1], str(vectors.dtype)).schema
    part = pa.table(columns).select(schema.names).cast(schema)
    failure = {"stage": "decode", "error": "OSError", "message": "broken"}
    ledger = [{**item, **failure} for item in listing.take(failed_rows).to_pylist()]
    failures = (
        checksummed_parquet(pa.Table.from_pylist(ledger, FAILURES.schema))
        if len(failed_rows)
        else None
    )
    put_part(folder, chunk, checksummed_parquet(part), failures)


@dataclass(frozen=True)
class FinishedIndex:
    """A finished index with its store, metric and centroids."""

    folder: Folder
    manifest: Manifest
    store: Store
    metric: Metric
    centroids: NDArray[np.float32]

    @property
    def shards(self) -> list[shard.Shard]:
        """Open all shards."""
        codes = self.manifest.counts["codes"]
        return [
            shard.open_shard(self.folder, self.manifest, number, self.metric, codes)
            for number in range(int(self.manifest.counts["shards"]))
        ]


def make_plan(rows: int, dtype: str, nlist: int, rows_per_shard: int = 10**9) -> IndexPlan:
    """Return an index plan with the requested numbers, without planning."""
    kind = "SQfp16" if dtype == "float16" else "Flat"
    return IndexPlan(f"IVF{nlist},{kind}", nlist, dtype, rows, rows_per_shard, 0, False, ())


def plan_all_shards(
    context: ShardBuildContext, generations: Sequence[Generation], plan: IndexPlan, memory: int
) -> list[PlannedShard]:
    """Return the shards of all generations; write the runs of those that are incomplete."""
    work: list[PlannedShard] = []
    for generation in generations:
        snapshot = replace(context, store=generation.store_of(context.store))

        def assign(
            runs: Sequence[tuple[int, int]],
            snapshot: ShardBuildContext = snapshot,
            generation: Generation = generation,
        ) -> NDArray[np.int64]:
            return np.sum([write_run(snapshot, generation, run) for run in runs], axis=0)

        work += plan_shards(context.folder, generation, plan, memory, len(work), assign)
    return work


class IndexBuilder:
    """Build an index step by step, as the `index` command does."""

    def __init__(
        self,
        root: Path | str,
        store: Store,
        metric: Metric,
        *,
        nlist: int = 4,
        rows_per_shard: int = 10**9,
        seed: int = 0,
        memory: int = 1 << 40,
    ) -> None:
        self.folder = open_folder(str(root))
        self.store, self.metric, self.seed = store, metric, seed
        self.plan = make_plan(store.rows, store.dtype, min(nlist, store.rows), rows_per_shard)
        settings = {"embedding_dtype": store.dtype, "bundle": store.bundle}
        transaction.claim_output(self.folder, "index", settings)
        self.trained = train_index(self.folder, store, self.plan, metric, seed, InProcessWorkers())
        vectors, self.rows = draw_sample(store, recall_curve.SAMPLE_SIZE, seed, "curve")
        self.samples = make_recall_samples(vectors, self.rows, store.rows, store.dtype)
        self.sample = self.samples[0]
        self.context = ShardBuildContext(
            self.folder, store, metric, self.trained.faiss, store.dtype
        )
        self.generations = claim_generations(self.folder, store)
        self.work = plan_all_shards(self.context, self.generations, self.plan, memory)

    def shard(self, number: int) -> ShardResult:
        """Build one shard, or return the existing one."""
        return build_measured_shard(self.context, self.samples, self.work[number])

    def finish(self) -> FinishedIndex:
        """Build the missing shards and finish the index."""
        results = [self.shard(planned.number) for planned in self.work]
        manifest = finalize.finish_index(
            self.folder, self.store, self.trained, self.samples, results, len(self.generations),
            self.metric, self.seed,
        )  # fmt: skip
        centroids = read_centroids(deserialize_index(self.trained.faiss))
        return FinishedIndex(self.folder, manifest, self.store, self.metric, centroids)
