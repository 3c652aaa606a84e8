"""Measure time and memory of assigning rows to lists and building one shard, by number of rows.

python -m benchmarks.shard [--rows 100000 300000 1000000] [--dimension 128]

Writes a store of random vectors, and the runs and one shard of it, each size in a separate process,
like the tasks of `lookalike index`. Memory is the peak above the initial memory of the process,
compared with the bytes that the index plan counts for these vectors.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.output import write_result
from retrieval.index.build_shard import plan_shards
from retrieval.index.generations import claim_generations
from retrieval.index.plan import Gallery, plan_index
from retrieval.index.runs import ShardBuildContext, write_run
from retrieval.index.sample_neighbors import build_measured_shard, make_recall_samples
from retrieval.index.sampling import draw_sample
from retrieval.index.train import train_index
from retrieval.index.workers import InProcessWorkers
from retrieval.storage import transaction
from retrieval.storage.local import open_folder
from retrieval.store.reader import open_store
from tests.retrieval.sample_vectors import make_store

_LISTS = 512  # the same for all sizes, so that the work per row is the same


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 3 * 10**5, 10**6])
    parser.add_argument("--dimension", type=int, default=128)
    arguments = parser.parse_args()
    results = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as scratch:
            work = (rows, arguments.dimension, scratch)
            # separate processes, so that memory is measured separately
            for step in (write_store, measure):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    result = pool.apply(step, work)
        results.append(result)
    write_result("shard", dimension=arguments.dimension, sizes=results)


def measure(rows: int, dimension: int, scratch: str) -> dict[str, Any]:
    """Build one shard of `rows` vectors in this process; return its time and memory."""
    store, folder = open_store(open_folder(f"{scratch}/store")), open_folder(f"{scratch}/index")
    gallery = Gallery(rows, dimension, store.dtype, "cosine")
    plan = plan_index(gallery, 1 << 40, factory=f"IVF{_LISTS},SQfp16")
    transaction.claim_output(folder, "index", {})
    trained = train_index(folder, store, plan, "cosine", 0, InProcessWorkers())
    (generation,) = claim_generations(folder, store)
    vectors, sample_rows = draw_sample(store, 500, 1, "curve")
    initial_bytes, started = psutil.Process().memory_info().rss, time.perf_counter()
    cpu = time.process_time()
    context = ShardBuildContext(folder, store, "cosine", trained.faiss, store.dtype, scratch)

    def assign(runs: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = np.sum(
            [write_run(context, generation, run) for run in runs], axis=0
        )
        return counts

    (planned_shard,) = plan_shards(folder, generation, plan, 1 << 40, 0, assign)
    build_measured_shard(
        context, make_recall_samples(vectors, sample_rows, store.rows, store.dtype), planned_shard
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - initial_bytes
    planned = rows * plan.bytes_per_vector
    return {
        "rows": rows,
        "seconds": round(time.perf_counter() - started, 2),
        "processor_seconds_a_million_rows": round((time.process_time() - cpu) / rows * 10**6, 1),
        "peak_bytes": peak,
        "planned_bytes": planned,
        "peak_of_planned": round(peak / planned, 3),
    }


def write_store(rows: int, dimension: int, scratch: str) -> None:
    """Write a store of clustered vectors."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(500, dimension)).astype(np.float32)
    vectors = np.empty((rows, dimension), np.float16)
    for first in range(0, rows, 1 << 16):
        part = centres[generator.integers(0, 500, min(1 << 16, rows - first))]
        part = part + 0.7 * generator.normal(size=part.shape).astype(np.float32)
        vectors[first : first + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    make_store(Path(scratch, "store"), vectors, chunk_rows=4096)


if __name__ == "__main__":
    main()
