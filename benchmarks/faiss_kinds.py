"""Baselines of `benchmarks.rank`: FAISS index types, each at the required recall.

All IVF types have the same centroids. Types with lossy codes are refined with the float16 vectors
and searched with the cheapest of some settings whose recall is at most 0.002 below that of
IVF,Flat; the graph with the smallest such efSearch. The number of threads is that of the process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.sides import recall_of

K = 10
_RECALL_TOLERANCE = 0.002  # recall below the target that is accepted
_SETTINGS = ((1, 4), (1, 10), (1, 20), (1.5, 20), (2, 20), (2, 40), (4, 40), (4, 80))
"""Settings tried for lossy codes: factor of our nprobe, and candidates per match."""
_REFINED = {"rabitq": "RaBitQfs", "pq": "PQ{half}x4fs"}
_GRAPH_FACTORY = "HNSW32,SQfp16"
_GRAPH_QUERIES = 2000  # queries of the graph, which is slow


def flat(arguments: argparse.Namespace) -> dict[str, Any]:
    """Search IVF,Flat."""
    return _plain(arguments, "Flat")


def sqfp16(arguments: argparse.Namespace) -> dict[str, Any]:
    """Search IVF,SQfp16, whose codes are float16 like those of our shards."""
    return _plain(arguments, "SQfp16")


def _plain(arguments: argparse.Namespace, kind: str) -> dict[str, Any]:
    index, queries, exact = _inverted(arguments, kind)
    index.nprobe = arguments.nprobe[0]
    return timed(lambda batch: index.search(batch, K)[1], queries, exact)


def rabitq(arguments: argparse.Namespace) -> dict[str, Any]:
    """Search RaBitQ codes, refined with the float16 vectors."""
    return _refined(arguments, "rabitq")


def pq(arguments: argparse.Namespace) -> dict[str, Any]:
    """Search 4-bit product-quantizer codes, refined with the float16 vectors."""
    return _refined(arguments, "pq")


def _refined(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    target_recall = _target_recall(arguments)
    dimension = np.load(f"{arguments.place}/centroids.npy").shape[1]
    kind = _REFINED[name].format(half=dimension // 2)
    index, queries, exact = _inverted(arguments, f"{kind},Refine(SQfp16)")

    def settings() -> Iterable[Any]:
        for times, candidates in _SETTINGS:
            nprobe = min(arguments.lists, int(times * arguments.nprobe[0]))
            faiss.extract_index_ivf(index).nprobe = nprobe
            index.k_factor = candidates
            yield [nprobe, candidates]

    return _cheapest(index, queries, exact, target_recall, settings())


def hnsw(arguments: argparse.Namespace) -> dict[str, Any]:
    """Search an HNSW graph, which is built at the first call; return the build time as well."""
    path, target_recall = Path(arguments.place, "hnsw.faiss"), _target_recall(arguments)
    vectors, queries, exact = _load_arrays(arguments)
    started = time.perf_counter()
    if not path.exists():
        graph: Any = faiss.index_factory(
            vectors.shape[1], _GRAPH_FACTORY, faiss.METRIC_INNER_PRODUCT
        )
        graph.train(vectors[: 1 << 14])
        graph.add(vectors)
        faiss.write_index(graph, str(path))
    build_seconds = time.perf_counter() - started
    index: Any = faiss.read_index(str(path))

    def settings() -> Iterable[Any]:
        for power in range(5, 13):
            index.hnsw.efSearch = 1 << power
            yield 1 << power

    subset = queries[:_GRAPH_QUERIES]  # the time per query does not depend on their number
    result = _cheapest(index, subset, exact[:_GRAPH_QUERIES], target_recall, settings())
    return {**result, "build_seconds": build_seconds}


def big_batch(arguments: argparse.Namespace) -> dict[str, Any]:
    """Search list by list with `faiss.contrib.big_batch_search`."""
    from faiss.contrib.big_batch_search import big_batch_search

    index, queries, exact = _inverted(arguments, "Flat")
    index.nprobe = arguments.nprobe[0]
    threads = faiss.omp_get_max_threads()
    return timed(
        lambda batch: big_batch_search(index, batch, K, method="knn_function", threaded=threads)[1],
        queries,
        exact,
    )


def _target_recall(arguments: argparse.Namespace) -> float:
    """Return the recall of IVF,Flat."""
    index, queries, exact = _inverted(arguments, "Flat")
    index.nprobe = arguments.nprobe[0]
    return recall_of(index.search(queries[: len(exact)], K)[1], exact)


def _cheapest(
    index: Any,
    queries: NDArray[Any],
    exact: NDArray[Any],
    target_recall: float,
    settings: Iterable[Any],
) -> dict[str, Any]:
    """Return rate and recall of the first setting that reaches the target, or of the last one."""
    used_setting = None
    for setting in settings:
        used_setting = setting
        if (
            recall_of(index.search(queries[: len(exact)], K)[1], exact)
            >= target_recall - _RECALL_TOLERANCE
        ):
            break
    return {
        **timed(lambda batch: index.search(batch, K)[1], queries, exact),
        "setting": used_setting,
    }


def _load_arrays(arguments: argparse.Namespace) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    vectors = np.load(f"{arguments.place}/rows.npy").astype(np.float32)
    queries = np.load(f"{arguments.place}/queries.npy").astype(np.float32)[: arguments.queries]
    return vectors, queries, np.load(f"{arguments.place}/exact.npy")[: arguments.queries]


def _inverted(arguments: argparse.Namespace, kind: str) -> tuple[Any, NDArray[Any], NDArray[Any]]:
    vectors, queries, exact = _load_arrays(arguments)
    factory = f"IVF{arguments.lists},{kind}"
    index: Any = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    inverted = faiss.extract_index_ivf(index)
    inverted.quantizer.add(np.load(f"{arguments.place}/centroids.npy"))
    if kind == "SQfp16":
        index.by_residual = False
    index.train(vectors[: 1 << 16])
    index.add(vectors)
    return index, queries, exact


def timed(
    search: Callable[[NDArray[Any]], NDArray[Any]], queries: NDArray[Any], exact: NDArray[Any]
) -> dict[str, Any]:
    """Search twice; return the better rate, and the recall on the first queries, given `exact`."""
    best, neighbours = float("inf"), exact
    for _ in range(2):
        started = time.perf_counter()
        neighbours = search(queries)
        best = min(best, time.perf_counter() - started)
    return {"rate": len(queries) / best, "recall": recall_of(neighbours[: len(exact)], exact)}
