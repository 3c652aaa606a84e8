"""Measure searching whole query sets of synthetic vectors, against FAISS at the same lists.

python -m benchmarks.rank [--rows 200000] [--dimension 512] [--lists 512] [--queries 10000]
                          [--nprobe 8 32 64] [--shards 2] [--runs 3] [--device cpu|cuda]
                          [--against flat sqfp16 big_batch] [--sklearn PYTHON]
python -m benchmarks.rank --curve   (ours only: one worker, by queries, nprobe and shards)

Isotropic synthetic clusters of unit vectors, the same centroids for all sides, inner product,
k = 10. All sides read the same lists, so this compares the cost of reading lists; methods that use
the structure of vectors are compared on real ones by `benchmarks/search.py`. Ours runs two
processes with one thread and one shard each, like tasks of a cluster; with `--shards 1` each
process answers some of the query blocks. The time covers choosing lists, searching and merging,
from the query vectors to ranked rows, with lists that an earlier search has prepared. FAISS runs
one process with two threads. `exact` reads all lists.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks import faiss_kinds
from benchmarks.faiss_kinds import K
from benchmarks.our_search import SearchSetup, open_index, train_centroids
from benchmarks.output import write_result
from benchmarks.sides import clustered, recall_of, run_side, spread, timed
from retrieval.index.probing import Probing
from retrieval.index.workers import InProcessWorkers

WORKERS = 2
_EXACT = 4000  # most queries that read all lists


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
    centroids = train_centroids(vectors, arguments.lists, InProcessWorkers())
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
    return _search(arguments, WORKERS)


def one_worker(arguments: argparse.Namespace) -> dict[str, Any]:
    """Search with one process."""
    return _search(arguments, 1)


def _search(arguments: argparse.Namespace, workers: int) -> dict[str, Any]:
    setup = SearchSetup(
        arguments.place, np.load(f"{arguments.place}/centroids.npy"), arguments.queries, K,
        arguments.shards, workers, arguments.device, prepared=True,
    )  # fmt: skip
    with open_index(setup) as index:
        nprobe = arguments.nprobe[0]
        result = index.search(Probing(nprobe) if nprobe else None)
    exact = np.load(f"{arguments.place}/exact.npy")[: arguments.queries]
    return {
        "rate": arguments.queries / result.seconds,
        "recall": recall_of(result.rows[: len(exact)], exact),
        "flops": result.operations / result.seconds,
    }


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


RIVALS = ("flat", "sqfp16", "big_batch")
SIDES = {
    "ours": ours,
    "one_worker": one_worker,
    "product": product,
    **{name: getattr(faiss_kinds, name) for name in RIVALS},
}


if __name__ == "__main__":
    main()
