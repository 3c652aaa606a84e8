"""Train and fill an IVF index: ours against a plain FAISS script, at the recall of each.

python -m benchmarks.index [--rows 200000] [--dimension 512] [--lists 512] [--runs 3]

Clustered vectors, the same for both, in memory; two threads each; runs alternate. FAISS trains as
its users do, on up to 256 vectors a list, and once more on the 64 that ours takes. A third figure
is the product bound: what the matrix products of assigning all rows take at the measured peak.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.closest import nearest
from retrieval.index.build_shard import add_codes
from retrieval.index.faiss_files import centroids_of, empty_index
from retrieval.index.kmeans import Held, lloyd, slice_of
from retrieval.index.sizing import SAMPLE_ROWS_PER_LIST
from retrieval.index.workers import Here
from retrieval.records import IndexPlan
from retrieval.scoring import block

_HINDERING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""They slow the products of FAISS and numpy, and are read when these are imported."""

_BLOCK = 4096  # rows of a part
_SLICE = 1 << 15


def main() -> None:
    """Measure and print one JSON object."""
    if any(name in os.environ for name in _HINDERING):
        rest = {name: value for name, value in os.environ.items() if name not in _HINDERING}
        words = [sys.executable, "-m", "benchmarks.index", *sys.argv[1:]]
        os.execve(sys.executable, words, rest)
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--lists", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    vectors, queries = clustered(asked.rows, asked.dimension, 1000)
    sides = {"ours": ours, "faiss": faiss_as_used, "faiss_64": faiss_on_64}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    made: dict[str, Any] = {}
    for _ in range(asked.runs):
        for name, side in sides.items():
            made[name], *spent = side(vectors, asked.lists)
            seconds[name].append((spent[0], spent[1]))
    found = {name: recalls(index, vectors, queries) for name, index in made.items()}
    total = {name: [sum(run) for run in runs] for name, runs in seconds.items()}
    bound = product_bound(vectors, asked.lists)
    add = statistics.median(run[1] for run in seconds["ours"])
    print(json.dumps({
        "benchmark": "index",
        **vars(asked),
        "train_and_add_seconds": {name: statistics.median(runs) for name, runs in total.items()},
        "train_seconds": {n: statistics.median(r[0] for r in runs) for n, runs in seconds.items()},
        "add_seconds": {n: statistics.median(r[1] for r in runs) for n, runs in seconds.items()},
        "times_faster_than_faiss": ratios(total["faiss"], total["ours"]),
        "times_faster_than_faiss_on_64": ratios(total["faiss_64"], total["ours"]),
        "add_of_product_bound": bound / add,
        "recall_at_10_by_nprobe": found,
    }, indent=1))  # fmt: skip


def clustered(rows: int, dimension: int, queries: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw unit vectors in clusters of very different sizes, and queries like them."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(2000, dimension)).astype(np.float32)
    weight = generator.pareto(1.5, 2000) + 0.1
    drawn = generator.choice(2000, rows + queries, p=weight / weight.sum())
    values = np.empty((rows + queries, dimension), np.float16)
    for first in range(0, len(values), 1 << 14):
        part = centres[drawn[first : first + (1 << 14)]]
        part = part + 0.7 * generator.normal(size=part.shape).astype(np.float32)
        values[first : first + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return values[:rows], values[rows:]


def ours(vectors: NDArray[np.float16], lists: int) -> tuple[Any, float, float]:
    """Train on a sample in slices, then place and add part by part, as `jobs/index.py` does."""
    started = time.perf_counter()
    count = SAMPLE_ROWS_PER_LIST * lists
    generator = np.random.default_rng(1)
    drawn = np.sort(generator.choice(len(vectors), count, replace=False))
    hashes = generator.permutation(count).astype(np.uint64)
    slices = [
        Held(slice_of(vectors[drawn[first:last]], hashes[first:last], "cosine"), hashes[first:last])
        for first, last in ((f, f + _SLICE) for f in range(0, count, _SLICE))
    ]
    centroids = lloyd(slices, lists, "cosine", Here())
    plan = IndexPlan(f"IVF{lists},SQfp16", lists, "float16", count, len(vectors), 0, False, ())
    index = empty_index(plan, centroids, "cosine")
    trained = time.perf_counter()
    ready = block(centroids_of(index), "ip")
    rows = np.arange(len(vectors), dtype=np.int64)
    for first in range(0, len(vectors), _BLOCK):
        part = block(vectors[first : first + _BLOCK], "ip")
        add_codes(index, part.values, rows[first : first + len(part)], nearest(part, ready))
    return index, trained - started, time.perf_counter() - trained


def faiss_as_used(vectors: NDArray[np.float16], lists: int) -> tuple[Any, float, float]:
    """Do what the documentation does: factory, train, add."""
    return _by_faiss(vectors, vectors, lists)


def faiss_on_64(vectors: NDArray[np.float16], lists: int) -> tuple[Any, float, float]:
    """Do the same, trained on a sample as large as ours."""
    count = SAMPLE_ROWS_PER_LIST * lists
    drawn = np.random.default_rng(1).choice(len(vectors), count, replace=False)
    return _by_faiss(vectors, vectors[drawn], lists)


def _by_faiss(
    vectors: NDArray[np.float16], sample: NDArray[np.float16], lists: int
) -> tuple[Any, float, float]:
    wide, sample = vectors.astype(np.float32), sample.astype(np.float32)
    started = time.perf_counter()
    index: Any = faiss.index_factory(
        vectors.shape[1], f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT
    )
    index.by_residual = False
    index.train(sample)
    trained = time.perf_counter()
    index.add(wide)
    return index, trained - started, time.perf_counter() - trained


def recalls(index: Any, vectors: NDArray[Any], queries: NDArray[Any]) -> dict[int, float]:
    """Measure recall@10 against exact search, at some nprobe."""
    wide, asked = vectors.astype(np.float32), queries.astype(np.float32)
    _, exact = faiss.knn(asked, wide, 10, faiss.METRIC_INNER_PRODUCT)
    found = {}
    for nprobe in (1, 2, 4, 8, 16, 32):
        index.nprobe = nprobe
        _, ids = index.search(asked, 10)
        hits = [len(set(a) & set(b)) for a, b in zip(ids.tolist(), exact.tolist(), strict=True)]
        found[nprobe] = round(sum(hits) / (10 * len(hits)), 4)
    return found


def product_bound(vectors: NDArray[Any], lists: int) -> float:
    """Give the seconds that the products of assigning all rows take, best of three."""
    wide = vectors[: 1 << 14].astype(np.float32)
    centroids = np.ascontiguousarray(wide[:lists].T)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for first in range(0, len(wide), 512):
            wide[first : first + 512] @ centroids
        best = min(best, time.perf_counter() - started)
    return best * len(vectors) / len(wide)


def ratios(theirs: list[float], mine: list[float]) -> list[float]:
    """Give the median ratio of the runs, the least and the greatest."""
    each = sorted(t / m for t, m in zip(theirs, mine, strict=True))
    return [round(value, 2) for value in (statistics.median(each), each[0], each[-1])]


if __name__ == "__main__":
    main()
