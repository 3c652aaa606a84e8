"""Baselines of `benchmarks.rank`: FAISS index types that read the same lists as ours.

All have the same centroids. The number of threads is that of the process.
"""

from __future__ import annotations

import argparse
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.sides import timed

K = 10


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
