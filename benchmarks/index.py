"""Measure training and filling an IVF index, against FAISS scripts, with the recall of each.

python -m benchmarks.index [--rows 200000] [--dimension 512] [--lists 512] [--runs 3]
                           [--autofaiss PYTHON]
python -m benchmarks.index --real [--photos DIR --weights FILE | --hdf5 FILE] [--rows 80000]
                           [--dimension 256]

Vectors are isotropic synthetic clusters, or with `--real` those of `benchmarks/vectors.py`, from
memory. All sides use two threads, in separate processes; runs alternate. Our two threads do the
work of two cluster tasks with one core each. FAISS trains with its default of up to 256 vectors per
list, and again with the 64 of ours, each by its own k-means and by its SuperKMeans
(`use_super_kmeans`). The objective is the mean inner product of a row with the centroid of its
list. The product bound is the time of the matrix products alone that assign all rows to lists, in
as many threads, in float32 and in the product that was used. Each bound is reported as a share of
the time to add, in wall time and in processor time, which other load hardly changes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.our_search import train_centroids
from benchmarks.output import write_result
from benchmarks.photo_crops import VectorsMissing
from benchmarks.sides import clustered, recall_of, run_side, spread
from benchmarks.vectors import add_source_options, describe_vectors, prepare_vectors
from retrieval.core.records import IndexPlan
from retrieval.index.build_shard import append_codes, reserve_list_space
from retrieval.index.faiss_io import make_empty_index, read_centroids
from retrieval.index.plan import SAMPLE_ROWS_PER_LIST
from retrieval.index.workers import InProcessWorkers
from retrieval.vectors.matmul import FLOAT32_PRODUCT, Product, choose_product
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import nearest_centroids

THREADS = 2
_BLOCK = 4096  # rows assigned at once, as in a part
_FILL = 1 << 14  # rows added at once


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--lists", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--autofaiss", help="an interpreter that has it")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--real", action="store_true", help="photos or a file, not synthetic")
    add_source_options(parser)
    parser.add_argument("--side")
    parser.add_argument("--place")
    arguments = parser.parse_args()
    if arguments.side:
        vectors, queries = (
            np.load(f"{arguments.place}/rows.npy"),
            np.load(f"{arguments.place}/queries.npy")[: arguments.queries],
        )
        print(json.dumps(SIDES[arguments.side](vectors, queries, arguments.lists)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = _place_vectors(arguments, Path(scratch))
        except VectorsMissing as error:
            print(f"skipped: {error}", file=sys.stderr)
            return
        results = _measure(arguments, folder)
    options = {
        name: getattr(arguments, name) for name in ("rows", "dimension", "lists", "runs", "real")
    }
    write_result("index", **options, **results)


def _place_vectors(arguments: argparse.Namespace, scratch: Path) -> Path:
    if arguments.real:
        return prepare_vectors(arguments)
    vectors, queries = clustered(arguments.rows, arguments.dimension, arguments.queries)
    np.save(scratch / "rows.npy", vectors)
    np.save(scratch / "queries.npy", queries)
    return scratch


def _measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    words = ("--lists", arguments.lists, "--queries", arguments.queries, "--place", folder)
    runs_by_side: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for _ in range(arguments.runs):
        for name, runs in runs_by_side.items():
            threads = 1 if name == "ours" else THREADS  # ours starts two threads itself
            runs.append(run_side("benchmarks.index", name, threads, *words))
    results = _summary(runs_by_side)
    if arguments.real:
        results["vectors"] = describe_vectors(arguments, folder)
    if arguments.autofaiss:
        side = ("benchmarks.by_autofaiss", "autofaiss", THREADS, *words)
        results["autofaiss"] = run_side(*side, python=arguments.autofaiss)
    return results


def _summary(runs_by_side: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    ours = runs_by_side["ours"][0]
    total = {
        name: [run["train"] + run["add"] for run in runs] for name, runs in runs_by_side.items()
    }
    return {
        "train_seconds": {
            name: spread([run["train"] for run in runs]) for name, runs in runs_by_side.items()
        },
        "add_seconds": {
            name: spread([run["add"] for run in runs]) for name, runs in runs_by_side.items()
        },
        **{
            f"times_faster_than_{name}": spread(
                [
                    their_seconds / our_seconds
                    for their_seconds, our_seconds in zip(total[name], total["ours"], strict=True)
                ]
            )
            for name in total
            if name != "ours"
        },
        "product": ours["product"],
        "placed_gflops_a_core": spread(
            [run["placed"] / run["add"] for run in runs_by_side["ours"]]
        ),
        **{
            f"add_of_{name}_bound{by}": spread(
                [run[f"bound{by}"][name] / run[f"add{by}"] for run in runs_by_side["ours"]]
            )
            for name in ours["bound"]
            for by in ("", "_cpu")
        },
        "objective": {name: runs[0]["objective"] for name, runs in runs_by_side.items()},
        "recall_at_10_by_nprobe": {name: runs[0]["recalls"] for name, runs in runs_by_side.items()},
    }


class Threads(InProcessWorkers):
    """Runs functions in two threads of this process, like two tasks of a cluster."""

    def map(self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Call the function in threads; yield results in the order of the items."""
        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(lambda item: function(*item), items)


def ours(vectors: NDArray[Any], queries: NDArray[Any], lists: int) -> dict[str, Any]:
    """Train on a sample in slices, then assign and add rows by parts, like `lookalike index`."""
    started = time.perf_counter()
    workers = Threads()
    centroids = train_centroids(vectors, lists, workers)
    trained = time.perf_counter()
    parts = np.array_split(np.arange(len(vectors)), THREADS)
    cpu_start = time.process_time()
    indexes = list(workers.map(_fill_index, [(vectors, rows, centroids) for rows in parts]))
    times = {"train": trained - started, "add": time.perf_counter() - trained}
    cpu = time.process_time() - cpu_start
    indexes[0].merge_from(indexes[1], 0)
    used_product = _product(vectors, lists)
    bounds = {
        product.name: product_bound(workers, vectors, lists, product)
        for product in (FLOAT32_PRODUCT, used_product)
    }
    return {
        **times, "add_cpu": cpu, "product": used_product.name,
        "placed": 2e-9 * vectors.size * lists / THREADS,
        "bound": {name: seconds for name, (seconds, _) in bounds.items()},
        "bound_cpu": {name: cpu_seconds for name, (_, cpu_seconds) in bounds.items()},
        "objective": objective(indexes[0], vectors),
        "recalls": recalls(indexes[0], vectors, queries),
    }  # fmt: skip


def _product(vectors: NDArray[Any], lists: int) -> Product:
    return choose_product("cpu", float(vectors.size) * lists)


def _fill_index(vectors: NDArray[Any], rows: NDArray[np.int64], centroids: NDArray[Any]) -> Any:
    lists = len(centroids)
    plan = IndexPlan(f"IVF{lists},SQfp16", lists, "float16", 1, len(vectors), 0, False, ())
    index = make_empty_index(plan, centroids, "cosine")
    centroid_block = block(read_centroids(index), "ip")
    product = _product(vectors, lists)
    assigned = []
    for first in range(0, len(rows), _BLOCK):
        block_rows = rows[first : first + _BLOCK]
        assigned.append(
            nearest_centroids(
                block(vectors[block_rows[0] : block_rows[-1] + 1], "ip"), centroid_block, product
            )
        )
    assigned_lists = np.concatenate(assigned)
    reserve_list_space(index, np.bincount(assigned_lists, minlength=lists))
    for first in range(0, len(rows), _FILL):
        part = slice(first, first + _FILL)
        append_codes(index, vectors[rows[0] :][part], rows[part], assigned_lists[part])
    return index


def by_faiss(
    vectors: NDArray[Any],
    queries: NDArray[Any],
    lists: int,
    *,
    small_sample: bool = False,
    super_kmeans: bool = False,
) -> dict[str, Any]:
    """Build the same index as in the documentation of FAISS: factory, train, add.

    `small_sample` trains on a sample as large as ours; else FAISS draws one from all vectors.
    """
    wide = vectors.astype(np.float32)
    sample = wide
    if small_sample:
        count = min(len(vectors), SAMPLE_ROWS_PER_LIST * lists)
        sample = wide[np.random.default_rng(1).choice(len(vectors), count, replace=False)]
    started = time.perf_counter()
    kind = f"IVF{lists},SQfp16"
    index: Any = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.by_residual = False
    index.cp.use_super_kmeans = super_kmeans
    index.train(sample)
    trained = time.perf_counter()
    index.add(wide)
    times = {"train": trained - started, "add": time.perf_counter() - trained}
    return {
        **times,
        "objective": objective(index, vectors),
        "recalls": recalls(index, vectors, queries),
    }


SIDES: dict[str, Callable[..., dict[str, Any]]] = {
    "ours": ours,
    "faiss": by_faiss,
    "faiss_64": partial(by_faiss, small_sample=True),
    "faiss_super": partial(by_faiss, super_kmeans=True),
    "faiss_super_64": partial(by_faiss, small_sample=True, super_kmeans=True),
}


def objective(index: Any, vectors: NDArray[Any]) -> float:
    """Return the mean inner product of the vectors with the centroid of their list."""
    scores, _ = index.quantizer.search(vectors.astype(np.float32), 1)
    return round(float(scores.mean(dtype=np.float64)), 5)


def recalls(index: Any, vectors: NDArray[Any], queries: NDArray[Any]) -> dict[int, float]:
    """Return recall@10 against exact search, by nprobe."""
    wide, wide_queries = vectors.astype(np.float32), queries.astype(np.float32)
    _, exact = faiss.knn(wide_queries, wide, 10, faiss.METRIC_INNER_PRODUCT)
    recall_by_nprobe = {}
    for nprobe in (1, 2, 4, 8, 16, 32):
        index.nprobe = nprobe
        recall_by_nprobe[nprobe] = recall_of(index.search(wide_queries, 10)[1], exact)
    return recall_by_nprobe


def product_bound(
    workers: Threads, vectors: NDArray[Any], lists: int, product: Product
) -> tuple[float, float]:
    """Return wall and processor seconds of the products that assign all rows, the best of three.

    All threads multiply at the same time, as when assigning; each multiplies the same rows.
    """
    rows = product.prepare(block(vectors[: 1 << 14], "ip")).matrix
    centroids = rows[:lists].T

    def multiply() -> None:
        for first in range(0, len(rows), 512):
            rows[first : first + 512] @ centroids

    times = []
    for _ in range(3):
        started, cpu_start = time.perf_counter(), time.process_time()
        list(workers.map(multiply, [()] * THREADS))
        times.append((time.perf_counter() - started, time.process_time() - cpu_start))
    share = len(vectors) / (len(rows) * THREADS)
    wall, cpu = (min(column) * share for column in zip(*times, strict=True))
    return wall, cpu


if __name__ == "__main__":
    main()
