"""Measure training and filling an IVF index, against a FAISS script, with the recall of each.

python -m benchmarks.index [--rows 200000] [--dimension 512] [--lists 512] [--runs 3]
                           [--autofaiss PYTHON]

Clustered vectors, the same for both, in memory; two threads each, in processes of their own; runs
alternate. Ours does in two threads what a cluster does in two tasks of a core each. FAISS trains as
its users do, on up to 256 vectors a list, and once more on the 64 that ours takes. A third figure
is the product bound: what the matrix products of assigning all rows take by themselves in as many
threads, in float32 and in the product that was used. Each bound's share of the time to add is given
by the clock, and by processor time, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.output import write_result
from benchmarks.sides import clustered, recall_of, run_side, spread
from retrieval.core.records import IndexPlan
from retrieval.index.build_shard import append_codes, reserve_list_space
from retrieval.index.faiss_io import make_empty_index, read_centroids
from retrieval.index.kmeans import StoredSlice, fit_kmeans, make_slice
from retrieval.index.plan import SAMPLE_ROWS_PER_LIST
from retrieval.index.workers import InProcessWorkers
from retrieval.vectors.matmul import FLOAT32_PRODUCT, Product, choose_product
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import nearest_centroids

THREADS = 2
_BLOCK = 4096  # rows of a part
_FILL = 1 << 14  # rows added at once
_SLICE = 1 << 13


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--lists", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--autofaiss", help="an interpreter that has it")
    parser.add_argument("--side")
    parser.add_argument("--vectors")
    asked = parser.parse_args()
    if asked.side:
        vectors, queries = (
            np.load(f"{asked.vectors}/rows.npy"),
            np.load(f"{asked.vectors}/asked.npy"),
        )
        print(json.dumps(SIDES[asked.side](vectors, queries, asked.lists)))
        return
    summary: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        vectors, queries = clustered(asked.rows, asked.dimension, 1000)
        np.save(f"{place}/rows.npy", vectors)
        np.save(f"{place}/asked.npy", queries)
        words = ("--lists", asked.lists, "--vectors", place)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
        for _ in range(asked.runs):
            for name, runs in found.items():
                threads = 1 if name == "ours" else THREADS  # in each of ours two threads
                runs.append(run_side("benchmarks.index", name, threads, *words))
        if asked.autofaiss:
            rival = ("benchmarks.by_autofaiss", "autofaiss", THREADS, *words)
            summary = {"autofaiss": run_side(*rival, python=asked.autofaiss)}
    told = {name: getattr(asked, name) for name in ("rows", "dimension", "lists", "runs")}
    write_result("index", **told, **_summary(found), **summary)


def _summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    ours = found["ours"][0]
    total = {name: [run["train"] + run["add"] for run in runs] for name, runs in found.items()}
    return {
        "train_seconds": {n: spread([r["train"] for r in runs]) for n, runs in found.items()},
        "add_seconds": {n: spread([r["add"] for r in runs]) for n, runs in found.items()},
        **{
            f"times_faster_than_{name}": spread(
                [t / m for t, m in zip(total[name], total["ours"], strict=True)]
            )
            for name in ("faiss", "faiss_64")
        },
        "product": ours["product"],
        "placed_gflops_a_core": spread([run["placed"] / run["add"] for run in found["ours"]]),
        **{
            f"add_of_{name}_bound{by}": spread(
                [run[f"bound{by}"][name] / run[f"add{by}"] for run in found["ours"]]
            )
            for name in ours["bound"]
            for by in ("", "_cpu")
        },
        "recall_at_10_by_nprobe": {name: runs[0]["recalls"] for name, runs in found.items()},
    }


class Threads(InProcessWorkers):
    """Two threads of this process, as a cluster has tasks."""

    def map(self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Call in threads; answers in the items' order."""
        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(lambda item: function(*item), items)


def ours(vectors: NDArray[Any], queries: NDArray[Any], lists: int) -> dict[str, Any]:
    """Train on a sample in slices, then place and add part by part, as `index` does."""
    started = time.perf_counter()
    workers = Threads()
    count = SAMPLE_ROWS_PER_LIST * lists
    generator = np.random.default_rng(1)
    drawn = np.sort(generator.choice(len(vectors), count, replace=False))
    hashes = generator.permutation(count).astype(np.uint64)
    cuts = [slice(first, first + _SLICE) for first in range(0, count, _SLICE)]
    ready = workers.map(make_slice, [(vectors[drawn[c]], hashes[c], "cosine") for c in cuts])
    slices = [StoredSlice(part, hashes[cut]) for part, cut in zip(ready, cuts, strict=True)]
    centroids = fit_kmeans(slices, lists, "cosine", workers)
    trained = time.perf_counter()
    halves = np.array_split(np.arange(len(vectors)), THREADS)
    before = time.process_time()
    indexes = list(workers.map(_filled, [(vectors, half, centroids) for half in halves]))
    times = {"train": trained - started, "add": time.perf_counter() - trained}
    cpu = time.process_time() - before
    indexes[0].merge_from(indexes[1], 0)
    used = _product(vectors, lists)
    bounds = {p.name: product_bound(workers, vectors, lists, p) for p in (FLOAT32_PRODUCT, used)}
    return {
        **times, "add_cpu": cpu, "product": used.name,
        "placed": 2e-9 * vectors.size * lists / THREADS,
        "bound": {name: wall for name, (wall, _) in bounds.items()},
        "bound_cpu": {name: spent for name, (_, spent) in bounds.items()},
        "recalls": recalls(indexes[0], vectors, queries),
    }  # fmt: skip


def _product(vectors: NDArray[Any], lists: int) -> Product:
    return choose_product("cpu", float(vectors.size) * lists)


def _filled(vectors: NDArray[Any], rows: NDArray[np.int64], centroids: NDArray[Any]) -> Any:
    lists = len(centroids)
    plan = IndexPlan(f"IVF{lists},SQfp16", lists, "float16", 1, len(vectors), 0, False, ())
    index = make_empty_index(plan, centroids, "cosine")
    ready = block(read_centroids(index), "ip")
    product = _product(vectors, lists)
    near = []
    for first in range(0, len(rows), _BLOCK):
        own = rows[first : first + _BLOCK]
        near.append(nearest_centroids(block(vectors[own[0] : own[-1] + 1], "ip"), ready, product))
    found = np.concatenate(near)
    reserve_list_space(index, found)
    for first in range(0, len(rows), _FILL):
        part = slice(first, first + _FILL)
        append_codes(index, vectors[rows[0] :][part], rows[part], found[part])
    return index


def faiss_as_used(vectors: NDArray[Any], queries: NDArray[Any], lists: int) -> dict[str, Any]:
    """Do what the documentation does: factory, train, add."""
    return _by_faiss(vectors, queries, vectors, lists)


def faiss_on_64(vectors: NDArray[Any], queries: NDArray[Any], lists: int) -> dict[str, Any]:
    """Do the same, trained on a sample as large as ours."""
    count = SAMPLE_ROWS_PER_LIST * lists
    drawn = np.random.default_rng(1).choice(len(vectors), count, replace=False)
    return _by_faiss(vectors, queries, vectors[drawn], lists)


def _by_faiss(
    vectors: NDArray[Any], queries: NDArray[Any], sample: NDArray[Any], lists: int
) -> dict[str, Any]:
    wide, sample = vectors.astype(np.float32), sample.astype(np.float32)
    started = time.perf_counter()
    kind = f"IVF{lists},SQfp16"
    index: Any = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.by_residual = False
    index.train(sample)
    trained = time.perf_counter()
    index.add(wide)
    times = {"train": trained - started, "add": time.perf_counter() - trained}
    return {**times, "recalls": recalls(index, vectors, queries)}


SIDES = {"ours": ours, "faiss": faiss_as_used, "faiss_64": faiss_on_64}


def recalls(index: Any, vectors: NDArray[Any], queries: NDArray[Any]) -> dict[int, float]:
    """Measure recall@10 against exact search, at some nprobe."""
    wide, asked = vectors.astype(np.float32), queries.astype(np.float32)
    _, exact = faiss.knn(asked, wide, 10, faiss.METRIC_INNER_PRODUCT)
    found = {}
    for nprobe in (1, 2, 4, 8, 16, 32):
        index.nprobe = nprobe
        found[nprobe] = recall_of(index.search(asked, 10)[1], exact)
    return found


def product_bound(
    workers: Threads, vectors: NDArray[Any], lists: int, product: Product
) -> tuple[float, float]:
    """Give the seconds that the products of assigning all rows take, and of processors; of three.

    The threads multiply at once, as they do when they assign; each is given the same rows.
    """
    rows = product.prepare(block(vectors[: 1 << 14], "ip")).matrix
    centroids = rows[:lists].T

    def multiply() -> None:
        for first in range(0, len(rows), 512):
            rows[first : first + 512] @ centroids

    times = []
    for _ in range(3):
        started, before = time.perf_counter(), time.process_time()
        list(workers.map(multiply, [()] * THREADS))
        times.append((time.perf_counter() - started, time.process_time() - before))
    share = len(vectors) / (len(rows) * THREADS)
    wall, cpu = (min(each) * share for each in zip(*times, strict=True))
    return wall, cpu


if __name__ == "__main__":
    main()
