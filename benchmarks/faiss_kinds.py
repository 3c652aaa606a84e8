"""Baselines of `benchmarks.rank`: FAISS index types, each at the required recall.

All have the same centroids. A kind that loses something is refined by the float16 vectors, and
searched at the cheapest of some settings that has the recall of the plain one (0.002 below it at
most); a graph at the least efSearch that has. Threads are those of the process.
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
_SHORT = 0.002  # of recall, at most
_SETTINGS = ((1, 4), (1, 10), (1, 20), (1.5, 20), (2, 20), (2, 40), (4, 40), (4, 80))
"""What is tried for a kind that loses something: times our nprobe, and candidates a match."""
_REFINED = {"rabitq": "RaBitQfs", "pq": "PQ{half}x4fs"}
_GRAPH = "HNSW32,SQfp16"
_WALKED = 2000  # queries


def flat(asked: argparse.Namespace) -> dict[str, Any]:
    """Search the plain kind."""
    return _plain(asked, "Flat")


def sqfp16(asked: argparse.Namespace) -> dict[str, Any]:
    """Search the kind that holds float16, as our shards do."""
    return _plain(asked, "SQfp16")


def _plain(asked: argparse.Namespace, kind: str) -> dict[str, Any]:
    index, queries, exact = _inverted(asked, kind)
    index.nprobe = asked.nprobe[0]
    return timed(lambda some: index.search(some, K)[1], queries, exact)


def rabitq(asked: argparse.Namespace) -> dict[str, Any]:
    """Search bits that are refined."""
    return _refined(asked, "rabitq")


def pq(asked: argparse.Namespace) -> dict[str, Any]:
    """Search product codes of 4 bits that are refined."""
    return _refined(asked, "pq")


def _refined(asked: argparse.Namespace, name: str) -> dict[str, Any]:
    wanted = _wanted(asked)
    dimension = np.load(f"{asked.place}/centroids.npy").shape[1]
    kind = _REFINED[name].format(half=dimension // 2)
    index, queries, exact = _inverted(asked, f"{kind},Refine(SQfp16)")

    def settings() -> Iterable[Any]:
        for times, candidates in _SETTINGS:
            nprobe = min(asked.lists, int(times * asked.nprobe[0]))
            faiss.extract_index_ivf(index).nprobe = nprobe
            index.k_factor = candidates
            yield [nprobe, candidates]

    return _cheapest(index, queries, exact, wanted, settings())


def hnsw(asked: argparse.Namespace) -> dict[str, Any]:
    """Search a graph; it is built once, and its time of building told."""
    path, wanted = Path(asked.place, "hnsw.faiss"), _wanted(asked)
    vectors, queries, exact = _given(asked)
    began = time.perf_counter()
    if not path.exists():
        built: Any = faiss.index_factory(vectors.shape[1], _GRAPH, faiss.METRIC_INNER_PRODUCT)
        built.train(vectors[: 1 << 14])
        built.add(vectors)
        faiss.write_index(built, str(path))
    building = time.perf_counter() - began
    index: Any = faiss.read_index(str(path))

    def settings() -> Iterable[Any]:
        for power in range(5, 13):
            index.hnsw.efSearch = 1 << power
            yield 1 << power

    some = queries[:_WALKED]  # a graph takes the same for each query, however many there are
    found = _cheapest(index, some, exact[:_WALKED], wanted, settings())
    return {**found, "build_seconds": building}


def big_batch(asked: argparse.Namespace) -> dict[str, Any]:
    """Search list by list as FAISS' own contribution does."""
    from faiss.contrib.big_batch_search import big_batch_search

    index, queries, exact = _inverted(asked, "Flat")
    index.nprobe = asked.nprobe[0]
    threads = faiss.omp_get_max_threads()
    return timed(
        lambda some: big_batch_search(index, some, K, method="knn_function", threaded=threads)[1],
        queries,
        exact,
    )


def _wanted(asked: argparse.Namespace) -> float:
    """Give the recall that the plain kind has."""
    index, queries, exact = _inverted(asked, "Flat")
    index.nprobe = asked.nprobe[0]
    return recall_of(index.search(queries[: len(exact)], K)[1], exact)


def _cheapest(
    index: Any, queries: NDArray[Any], exact: NDArray[Any], wanted: float, settings: Iterable[Any]
) -> dict[str, Any]:
    """Search with the first setting that has the recall, or with the last."""
    tried = None
    for setting in settings:
        tried = setting
        if recall_of(index.search(queries[: len(exact)], K)[1], exact) >= wanted - _SHORT:
            break
    return {**timed(lambda some: index.search(some, K)[1], queries, exact), "setting": tried}


def _given(asked: argparse.Namespace) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    vectors = np.load(f"{asked.place}/rows.npy").astype(np.float32)
    queries = np.load(f"{asked.place}/asked.npy").astype(np.float32)[: asked.queries]
    return vectors, queries, np.load(f"{asked.place}/exact.npy")[: asked.queries]


def _inverted(asked: argparse.Namespace, kind: str) -> tuple[Any, NDArray[Any], NDArray[Any]]:
    vectors, queries, exact = _given(asked)
    factory = f"IVF{asked.lists},{kind}"
    index: Any = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    inverted = faiss.extract_index_ivf(index)
    inverted.quantizer.add(np.load(f"{asked.place}/centroids.npy"))
    if kind == "SQfp16":
        index.by_residual = False
    index.train(vectors[: 1 << 16])
    index.add(vectors)
    return index, queries, exact


def timed(
    search: Callable[[NDArray[Any]], NDArray[Any]], queries: NDArray[Any], exact: NDArray[Any]
) -> dict[str, Any]:
    """Search twice; the better rate, and the recall of the queries whose neighbours are known."""
    best, found = float("inf"), exact
    for _ in range(2):
        started = time.perf_counter()
        found = search(queries)
        best = min(best, time.perf_counter() - started)
    return {"rate": len(queries) / best, "recall": recall_of(found[: len(exact)], exact)}
