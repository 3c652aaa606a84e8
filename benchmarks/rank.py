"""Measure searching whole query sets, against FAISS index types at equal recall.

python -m benchmarks.rank [--rows 200000] [--dimension 512] [--lists 512] [--queries 10000]
                          [--nprobe 8 32 64] [--shards 2] [--runs 3] [--device cpu|cuda]
                          [--against flat sqfp16 rabitq pq hnsw big_batch] [--sklearn PYTHON]
python -m benchmarks.rank --curve   (ours only: one worker, by queries, nprobe and shards)

Clustered unit vectors, the same centroids for all sides, inner product, k = 10. Ours runs two
processes with one thread and one shard each, like tasks of a cluster; with `--shards 1` each
process answers some of the query blocks. The time covers choosing lists, searching and merging,
from the query vectors to ranked rows. FAISS runs one process with two threads; each of its index
types uses the cheapest setting that reaches our recall (`benchmarks/faiss_kinds.py`). `exact` reads
all lists.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks import faiss_kinds
from benchmarks.faiss_kinds import K, timed
from benchmarks.output import write_result
from benchmarks.sides import clustered, recall_of, run_side, spread
from retrieval.core.records import IndexPlan
from retrieval.core.schemas import SHARD_ROWS
from retrieval.index.build_shard import append_codes
from retrieval.index.faiss_io import make_empty_index
from retrieval.index.kmeans import StoredSlice, fit_kmeans, make_slice
from retrieval.index.shard import Shard
from retrieval.index.workers import InProcessWorkers
from retrieval.search.candidates import kth_best_keys, top_candidates
from retrieval.search.ivf_search import QueryBatch, ShardSearcher
from retrieval.vectors.int8_matmul import choose_search_product
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import nearest_centroids, top_k_positions

WORKERS = 2
_EXACT = 4000  # most queries that read all lists
_BATCH = 1 << 14  # queries per block, as `search/shard_search.py` has at dimension 512


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--lists", type=int, default=512)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--nprobe", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--shards", type=int, default=WORKERS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--against", nargs="+", choices=RIVALS, default=RIVALS)
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--sklearn", help="an interpreter that has it")
    parser.add_argument("--side")
    parser.add_argument("--place")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder, arguments)
        arguments.place = folder
        results = _curve(arguments) if arguments.curve else _compare(arguments)
    options = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("side", "place", "sklearn")
    }
    write_result("rank", **options, **results)


def prepare(folder: str, arguments: argparse.Namespace) -> None:
    """Write vectors, queries, centroids and exact neighbours into a folder."""
    vectors, queries = clustered(arguments.rows, arguments.dimension, arguments.queries)
    sample = vectors[np.random.default_rng(1).permutation(len(vectors))[: 64 * arguments.lists]]
    hashes = np.arange(len(sample), dtype=np.uint64)
    slices = [StoredSlice(make_slice(sample, hashes, "cosine"), hashes)]
    centroids = fit_kmeans(slices, arguments.lists, "cosine", InProcessWorkers())
    first_queries = queries[:1000].astype(np.float32)
    _, exact = faiss.knn(first_queries, vectors.astype(np.float32), K, faiss.METRIC_INNER_PRODUCT)
    arrays = {"rows": vectors, "queries": queries, "centroids": centroids, "exact": exact}
    for name, array in arrays.items():
        np.save(f"{folder}/{name}.npy", array)


def _side_options(arguments: argparse.Namespace, **changed: Any) -> list[Any]:
    values = {**vars(arguments), **changed}
    words: list[Any] = []
    for name in ("lists", "queries", "nprobe", "shards", "device", "place"):
        value = values[name]
        words += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return words


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the sides alternately, for each nprobe, then with all lists."""
    results: dict[str, Any] = {}
    for nprobe in arguments.nprobe:
        words = _side_options(arguments, nprobe=[nprobe])
        runs: dict[str, list[dict[str, Any]]] = {}
        for _ in range(arguments.runs):
            ours = run_side("benchmarks.rank", "ours", 1, *words)
            for side in arguments.against:
                theirs = run_side("benchmarks.rank", side, WORKERS, *words)
                runs.setdefault(side, []).append(theirs)
            runs.setdefault("ours", []).append(ours)
        results[f"nprobe {nprobe}"] = _figures(runs)
    exact: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.runs):
        for name, side, threads in (("ours", "ours", 1), ("product", "product", WORKERS)):
            words = _side_options(arguments, nprobe=[0], queries=min(arguments.queries, _EXACT))
            exact.setdefault(name, []).append(run_side("benchmarks.rank", side, threads, *words))
        if arguments.sklearn:
            baseline = ("benchmarks.by_sklearn", "sklearn", WORKERS, *words)
            exact.setdefault("sklearn", []).append(run_side(*baseline, python=arguments.sklearn))
    results["exact"] = _figures(exact)
    shares_of_peak = [
        our_run["flops"] / product_run["peak"]
        for our_run, product_run in zip(exact["ours"], exact["product"], strict=True)
    ]
    results["exact"]["share_of_float32_peak"] = spread(shares_of_peak)
    return results


def _figures(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    rates = {name: [run["rate"] for run in side_runs] for name, side_runs in runs.items()}
    return {
        "queries_a_second": {name: spread(side_runs) for name, side_runs in rates.items()},
        "recall": {name: side_runs[0]["recall"] for name, side_runs in runs.items()},
        "settings": {
            name: side_runs[0]["setting"]
            for name, side_runs in runs.items()
            if "setting" in side_runs[0]
        },
        "times_faster": {
            name: spread(
                [
                    our_rate / their_rate
                    for our_rate, their_rate in zip(rates["ours"], side_runs, strict=True)
                ]
            )
            for name, side_runs in rates.items()
            if name != "ours"
        },
    }


def _curve(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one worker over the number of queries, nprobe and shards."""

    def rate(**changed: Any) -> float:
        result = run_side("benchmarks.rank", "one_worker", 1, *_side_options(arguments, **changed))
        return round(float(result["rate"]), 1)

    counts = [10**n for n in range(6) if 10**n <= arguments.queries]
    query_count = min(arguments.queries, 10_000)
    return {
        "by_queries": {n: rate(queries=n, nprobe=[32], shards=1) for n in counts},
        "by_nprobe": {
            n: rate(queries=query_count, nprobe=[n], shards=1) for n in (1, 4, 16, 64, 256)
        },
        "by_shards": {
            n: rate(queries=query_count, nprobe=[32], shards=n) for n in (1, 2, 4, 8, 16)
        },
    }


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Search with two processes; nprobe 0 means all lists."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(WORKERS)
    with context.Pool(WORKERS, _start_worker, (barrier,)) as pool:
        answers = pool.map(
            _run_worker, [(arguments, worker, WORKERS) for worker in range(WORKERS)], 1
        )
    return _summarize(arguments, answers)


def one_worker(arguments: argparse.Namespace) -> dict[str, Any]:
    """Search in this process."""
    _start_worker(None)
    return _summarize(arguments, [_run_worker((arguments, 0, 1))])


def _summarize(arguments: argparse.Namespace, answers: list[Any]) -> dict[str, Any]:
    started = time.perf_counter()
    table, ranks = top_candidates([table for _, table, _ in answers], K)
    seconds = time.perf_counter() - started + max(seconds for seconds, _, _ in answers)
    rows = np.full((arguments.queries, K), -1)
    rows[table["query"].to_numpy(), ranks] = table["row"].to_numpy()
    exact = np.load(f"{arguments.place}/exact.npy")[: arguments.queries]
    rate = arguments.queries / seconds
    work = sum(work for _, _, work in answers) / seconds
    return {"rate": rate, "recall": recall_of(rows[: len(exact)], exact), "flops": work}


_barrier: list[Any] = []


def _start_worker(barrier: Any) -> None:
    import torch  # noqa: F401 - imported already in a worker that has run a task

    _barrier[:] = [barrier]
    faiss.omp_set_num_threads(1)


def _run_worker(task: tuple[argparse.Namespace, int, int]) -> tuple[float, pa.Table, float]:
    """Build the shards of a worker, wait for the other workers, and search them; best of two runs.

    If there are fewer shards than workers, workers share a shard and search some of the blocks.
    Returns seconds, the table of candidates and the number of operations of an exact search.
    """
    arguments, worker, workers = task
    shares = workers if arguments.shards < workers else 1
    shard_numbers = (
        range(arguments.shards) if shares > 1 else range(worker, arguments.shards, workers)
    )
    shards = [_shard(arguments, number) for number in shard_numbers]
    queries = np.load(f"{arguments.place}/queries.npy")[: arguments.queries]
    centroids = block(np.load(f"{arguments.place}/centroids.npy"), "ip")
    nprobe = arguments.nprobe[0]
    rows = sum(len(shard.rows) for shard in shards)
    work = 2.0 * queries.size * rows / shares
    queries_per_list = len(queries) * (nprobe / arguments.lists if nprobe else 1)
    product = choose_search_product(
        arguments.device, queries_per_list, len(shards[0].rows), queries.shape[1], arguments.lists
    )
    searchers = [ShardSearcher(shard, product) for shard in shards]
    probed = top_k_positions(block(queries, "ip"), centroids, nprobe) if nprobe else None
    firsts = range(0, len(queries), _BATCH)[worker if shares > 1 else 0 :: shares]
    # this worker chooses the lists of these queries
    own_queries = np.array_split(queries, workers)[worker]
    best, table = float("inf"), None
    for _ in range(2):
        if _barrier[0]:
            _barrier[0].wait()
        started = time.perf_counter()
        if nprobe:
            top_k_positions(block(own_queries, "ip"), centroids, nprobe)
        answers = []
        for first in firsts:
            part = queries[first : first + _BATCH]
            numbers = np.arange(first, first + len(part))
            lists = None if probed is None else probed[first : first + _BATCH]
            tables: list[pa.Table] = []
            for shard in searchers:
                batch = QueryBatch(block(part, "ip"), numbers, kth_best_keys(tables, K, numbers))
                tables.append(shard.search(batch, lists, K))
            answers += tables
        table, _ = top_candidates(answers, K)
        best = min(best, time.perf_counter() - started)
    assert table is not None
    return best, table, work


def _shard(arguments: argparse.Namespace, number: int) -> Shard:
    vectors = np.load(f"{arguments.place}/rows.npy", mmap_mode="r")
    centroids = np.load(f"{arguments.place}/centroids.npy")
    rows = np.array_split(np.arange(len(vectors)), arguments.shards)[number]
    shard_vectors = np.ascontiguousarray(vectors[rows])
    vector_block = block(shard_vectors, "ip")
    plan = IndexPlan(f"IVF{len(centroids)},SQfp16", len(centroids), "float16", 1, len(rows), 0,
                     False, ())  # fmt: skip
    index = make_empty_index(plan, centroids, "ip")
    append_codes(
        index, shard_vectors, rows, nearest_centroids(vector_block, block(centroids, "ip"))
    )
    names = [f"{row:09d}.jpg" for row in rows]
    values = {
        "row": rows,
        "image_id": names,
        "path": names,
        "squared_norm": vector_block.squared_norms,
    }
    columns = [values.get(f.name, pa.nulls(len(rows), f.type)) for f in SHARD_ROWS.schema]
    metadata = pa.table(columns, schema=SHARD_ROWS.schema)
    return Shard(index, metadata, "ip", "float16", np.empty(0, np.int64))


def product(arguments: argparse.Namespace) -> dict[str, Any]:
    """Search all pairs in float32 with torch; measure the peak rate of a product as well."""
    import torch

    rows = torch.from_numpy(np.load(f"{arguments.place}/rows.npy").astype(np.float32))
    queries = np.load(f"{arguments.place}/queries.npy").astype(np.float32)[: arguments.queries]
    exact = np.load(f"{arguments.place}/exact.npy")

    def search(batch: NDArray[Any]) -> NDArray[Any]:
        parts = [(torch.from_numpy(batch[f : f + 256]) @ rows.T).topk(K).indices.numpy()
                 for f in range(0, len(batch), 256)]  # fmt: skip
        return np.concatenate(parts)

    left, right = queries[:2048], rows.numpy()[:4096].T
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return {
        **timed(search, queries, exact),
        "peak": 2.0 * left.size * right.shape[1] / min(seconds),
    }


RIVALS = ("flat", "sqfp16", "rabitq", "pq", "hnsw", "big_batch")
SIDES = {
    "ours": ours,
    "one_worker": one_worker,
    "product": product,
    **{name: getattr(faiss_kinds, name) for name in RIVALS},
}


if __name__ == "__main__":
    main()
