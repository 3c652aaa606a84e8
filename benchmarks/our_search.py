"""Build and search shards as tasks of `index` and `rank` do, in processes of one thread each.

The functions are those that the tasks call; only reading and writing files is left out. A search
covers choosing lists, searching shards with scores decided in float64, and merging: from the
vectors of the queries to ranked rows.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.records import IndexPlan
from retrieval.core.schemas import SHARD_ROWS
from retrieval.index.build_shard import append_codes
from retrieval.index.faiss_io import make_empty_index
from retrieval.index.generations import ShardLists, cut_lists
from retrieval.index.kmeans import StoredSlice, fit_kmeans, make_slice
from retrieval.index.list_order import order_lists
from retrieval.index.plan import SAMPLE_ROWS_PER_LIST
from retrieval.index.probing import Probing, choose_lists
from retrieval.index.shard import Shard
from retrieval.index.workers import Workers
from retrieval.search.candidates import kth_best_keys, top_candidates
from retrieval.search.ivf_search import QueryBatch, ShardSearcher
from retrieval.search.shard_search import local_lists
from retrieval.vectors.matmul import choose_search_product
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import nearest_centroids

_BATCH = 1 << 14  # queries per block, as `search/shard_search.py` has at dimension 512
_SLICE = 1 << 13  # rows of a slice of the sample, which one worker assigns


@dataclass(frozen=True)
class SearchSetup:
    """Vectors, centroids and how the work is cut."""

    place: str  # folder with rows.npy and queries.npy, float16
    centroids: NDArray[np.float32]
    queries: int  # the first of queries.npy
    k: int
    shards: int
    workers: int
    device: str = "cpu"
    prepared: bool = False
    """Whether lists are multiplied as an earlier search of the same process prepared them; the
    first search of a task prepares each list that it reads."""


@dataclass(frozen=True)
class Searched:
    """The result of a search by all workers."""

    seconds: float  # of the slowest worker, plus merging
    rows: NDArray[np.int64]  # (q, k) by rank, -1 where there are fewer
    operations: float  # of a search of all pairs


def train_centroids(vectors: NDArray[Any], lists: int, workers: Workers) -> NDArray[np.float32]:
    """Train on a sample in slices, like `lookalike index`."""
    count = min(len(vectors), SAMPLE_ROWS_PER_LIST * lists)
    generator = np.random.default_rng(1)
    sample_rows = np.sort(generator.choice(len(vectors), count, replace=False))
    hashes = generator.permutation(count).astype(np.uint64)
    cuts = [slice(first, first + _SLICE) for first in range(0, count, _SLICE)]
    made = workers.map(
        make_slice, [(vectors[sample_rows[cut]], hashes[cut], "cosine") for cut in cuts]
    )
    slices = [StoredSlice(part, hashes[cut]) for part, cut in zip(made, cuts, strict=True)]
    centroids = fit_kmeans(slices, lists, "cosine", workers)
    return centroids[order_lists(centroids)]


class OurIndex:
    """Shards in worker processes, which are reused by all searches.

    If there are fewer shards than workers, workers share a shard and search some of the blocks.
    """

    def __init__(self, setup: SearchSetup) -> None:
        self.setup = setup
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(setup.workers)
        self._pools = [
            ProcessPoolExecutor(
                1, context, initializer=_start_worker, initargs=(setup, worker, barrier)
            )
            for worker in range(setup.workers)
        ]
        self.add_seconds = max(self._run(_add_seconds))
        """Seconds to assign and add the rows, of the slowest worker."""

    def search(self, probing: Probing | None) -> Searched:
        """Search all queries in the lists of `probing`, or in all; the better of two runs."""
        answers = self._run(_search, probing)
        started = time.perf_counter()
        table, ranks = top_candidates([table for _, table, _ in answers], self.setup.k)
        seconds = time.perf_counter() - started + max(seconds for seconds, _, _ in answers)
        rows = np.full((self.setup.queries, self.setup.k), -1)
        rows[table["query"].to_numpy(), ranks] = table["row"].to_numpy()
        return Searched(seconds, rows, sum(operations for _, _, operations in answers))

    def _run(self, function: Any, *arguments: Any) -> list[Any]:
        futures = [pool.submit(function, *arguments) for pool in self._pools]
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the worker processes."""
        for pool in self._pools:
            pool.shutdown()


@contextmanager
def open_index(setup: SearchSetup) -> Iterator[OurIndex]:
    """Build the shards in worker processes, which end with the context."""
    index = OurIndex(setup)
    try:
        yield index
    finally:
        index.close()


_worker: list[_Worker] = []  # of this process


def _start_worker(setup: SearchSetup, worker: int, barrier: Any) -> None:
    import torch  # noqa: F401 - imported already in a worker that has run a task

    faiss.omp_set_num_threads(1)
    _worker[:] = [_Worker(setup, worker, barrier)]


def _add_seconds() -> float:
    return _worker[0].add_seconds


def _search(probing: Probing | None) -> tuple[float, pa.Table, float]:
    return _worker[0].search(probing)


class _Worker:
    """The shards and queries of one process."""

    def __init__(self, setup: SearchSetup, worker: int, barrier: Any) -> None:
        self._setup, self._worker, self._barrier = setup, worker, barrier
        self._shares = setup.workers if setup.shards < setup.workers else 1
        numbers = (
            range(setup.shards) if self._shares > 1 else range(worker, setup.shards, setup.workers)
        )
        vectors = np.load(f"{setup.place}/rows.npy", mmap_mode="r")
        parts = np.array_split(np.arange(len(vectors)), setup.workers)
        started = time.perf_counter()
        own_lists = _assign(setup, vectors, parts[worker])
        self.add_seconds = time.perf_counter() - started
        others = [_assign(setup, vectors, part) for part in parts if part is not parts[worker]]
        others.insert(worker, own_lists)
        lists = np.concatenate(others)
        counts = np.bincount(lists, minlength=len(setup.centroids))
        cut = cut_lists(counts, -(-len(vectors) // setup.shards), len(vectors))
        started = time.perf_counter()
        self._shards = [_make_shard(setup, vectors, lists, cut[number]) for number in numbers]
        self.add_seconds += time.perf_counter() - started
        self._queries = np.load(f"{setup.place}/queries.npy")[: setup.queries]
        self._centroids = block(setup.centroids, "ip")

    def search(self, probing: Probing | None) -> tuple[float, pa.Table, float]:
        """Search at the same time as the other workers; the better of two runs.

        Returns seconds, the table of candidates and the operations of a search of all pairs.
        """
        setup, queries = self._setup, self._queries
        rows = sum(len(shard.rows) for shard in self._shards)
        product = choose_search_product(setup.device)
        probed = None
        if probing is not None:
            probed = choose_lists(block(queries, "ip"), self._centroids, probing)
        own_queries = np.array_split(queries, setup.workers)[self._worker]
        searchers = [ShardSearcher(shard, product) for shard in self._shards]
        best, table = float("inf"), None
        for _ in range(2):
            if not setup.prepared:
                searchers = [ShardSearcher(shard, product) for shard in self._shards]
            self._barrier.wait()
            started = time.perf_counter()
            if probing is not None:  # this worker chooses the lists of these queries
                choose_lists(block(own_queries, "ip"), self._centroids, probing)
            table = pa.concat_tables(self._candidates(searchers, probed))
            best = min(best, time.perf_counter() - started)
        assert table is not None
        return best, table, 2.0 * queries.size * rows / self._shares

    def _candidates(
        self, searchers: list[ShardSearcher], probed: NDArray[np.int64] | None
    ) -> list[pa.Table]:
        """Return the candidates of each shard for the blocks of queries of this worker."""
        first_block = self._worker if self._shares > 1 else 0
        answers = []
        for first in range(0, len(self._queries), _BATCH)[first_block :: self._shares]:
            part = self._queries[first : first + _BATCH]
            numbers = np.arange(first, first + len(part))
            lists = None if probed is None else probed[first : first + _BATCH]
            tables: list[pa.Table] = []
            for searcher in searchers:
                known = kth_best_keys(tables, self._setup.k, numbers)
                shard = searcher.shard
                readers, local = np.arange(len(part)), None
                if lists is not None:
                    last = shard.first_list + shard.index.nlist
                    local = local_lists(lists, ShardLists(shard.first_list, last, 0, 0))
                    readers = np.flatnonzero((local >= 0).any(1))
                    local = local[readers]
                batch = QueryBatch(block(part[readers], "ip"), numbers[readers], known[readers])
                tables.append(searcher.search(batch, local, self._setup.k))
            answers += tables
        return answers


def _assign(setup: SearchSetup, vectors: Any, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the lists of consecutive rows."""
    values = np.ascontiguousarray(vectors[rows[0] : rows[-1] + 1])
    return nearest_centroids(block(values, "ip"), block(setup.centroids, "ip"))


def _make_shard(
    setup: SearchSetup, vectors: Any, row_lists: NDArray[np.int64], lists: ShardLists
) -> Shard:
    """Return the shard of the rows in some lists of all centroids."""
    rows = np.flatnonzero((row_lists >= lists.first_list) & (row_lists < lists.last_list))
    shard_vectors = np.ascontiguousarray(vectors[rows])
    vector_block = block(shard_vectors, "ip")
    centroids = setup.centroids[lists.first_list : lists.last_list]
    plan = IndexPlan(f"IVF{len(centroids)},SQfp16", len(centroids), "float16", 1, len(rows), 0,
                     False, ())  # fmt: skip
    index = make_empty_index(plan, centroids, "ip")
    append_codes(index, shard_vectors, rows, row_lists[rows] - lists.first_list)
    names = [f"{row:09d}.jpg" for row in rows]
    values = {
        "row": rows,
        "image_id": names,
        "path": names,
        "squared_norm": vector_block.squared_norms,
    }
    columns = [values.get(f.name, pa.nulls(len(rows), f.type)) for f in SHARD_ROWS.schema]
    metadata = pa.table(columns, schema=SHARD_ROWS.schema)
    deleted = np.empty(0, np.int64)
    return Shard(index, metadata, "ip", "float16", deleted, first_list=lists.first_list)
