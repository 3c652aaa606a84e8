"""Measure searching whole query sets, against FAISS index types at equal recall.

python -m benchmarks.rank [--rows 200000] [--dimension 512] [--lists 512] [--queries 10000]
                          [--nprobe 8 32 64] [--shards 2] [--runs 3] [--device cpu|cuda]
                          [--against flat sqfp16 rabitq pq hnsw big_batch] [--sklearn PYTHON]
python -m benchmarks.rank --curve   (ours alone: over queries, nprobe and shards, of one worker)

Clustered unit vectors, the same centroids for all sides, inner product, k = 10. Ours are two
processes of one thread each, as tasks of a cluster are, with a shard each; of one shard (`--shards
1`) each answers some of the blocks, where there are several. Their time is that of lists, search
and merge, from the vectors of the queries to ranked rows. FAISS has one process of two threads, and
each of its kinds the cheapest setting that has our recall (`benchmarks/faiss_kinds.py`). `exact`
reads all lists.
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
_EXACT = 4000  # queries at most that read all lists
_BATCH = 1 << 14  # queries a block, as `index/answer.py` has it for 512 numbers


def main() -> None:
    """Measure and print one JSON object."""
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
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(SIDES[asked.side](asked)))
        return
    with tempfile.TemporaryDirectory() as place:
        prepare(place, asked)
        asked.place = place
        found = _curve(asked) if asked.curve else _compared(asked)
    told = {
        name: value
        for name, value in vars(asked).items()
        if name not in ("side", "place", "sklearn")
    }
    write_result("rank", **told, **found)


def prepare(place: str, asked: argparse.Namespace) -> None:
    """Draw vectors, train centroids, find the exact neighbours."""
    vectors, queries = clustered(asked.rows, asked.dimension, asked.queries)
    sample = vectors[np.random.default_rng(1).permutation(len(vectors))[: 64 * asked.lists]]
    hashes = np.arange(len(sample), dtype=np.uint64)
    held = [StoredSlice(make_slice(sample, hashes, "cosine"), hashes)]
    centroids = fit_kmeans(held, asked.lists, "cosine", InProcessWorkers())
    few = queries[:1000].astype(np.float32)
    _, exact = faiss.knn(few, vectors.astype(np.float32), K, faiss.METRIC_INNER_PRODUCT)
    arrays = {"rows": vectors, "asked": queries, "centroids": centroids, "exact": exact}
    for name, array in arrays.items():
        np.save(f"{place}/{name}.npy", array)


def _words(asked: argparse.Namespace, **changed: Any) -> list[Any]:
    values = {**vars(asked), **changed}
    words: list[Any] = []
    for name in ("lists", "queries", "nprobe", "shards", "device", "place"):
        value = values[name]
        words += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return words


def _compared(asked: argparse.Namespace) -> dict[str, Any]:
    """Let the sides run in turn, nprobe by nprobe; then all lists."""
    found: dict[str, Any] = {}
    for nprobe in asked.nprobe:
        words = _words(asked, nprobe=[nprobe])
        runs: dict[str, list[dict[str, Any]]] = {}
        for _ in range(asked.runs):
            ours = run_side("benchmarks.rank", "ours", 1, *words)
            for side in asked.against:
                theirs = run_side("benchmarks.rank", side, WORKERS, *words)
                runs.setdefault(side, []).append(theirs)
            runs.setdefault("ours", []).append(ours)
        found[f"nprobe {nprobe}"] = _figures(runs)
    exact: dict[str, list[dict[str, Any]]] = {}
    for _ in range(asked.runs):
        for name, side, threads in (("ours", "ours", 1), ("product", "product", WORKERS)):
            words = _words(asked, nprobe=[0], queries=min(asked.queries, _EXACT))
            exact.setdefault(name, []).append(run_side("benchmarks.rank", side, threads, *words))
        if asked.sklearn:
            rival = ("benchmarks.by_sklearn", "sklearn", WORKERS, *words)
            exact.setdefault("sklearn", []).append(run_side(*rival, python=asked.sklearn))
    found["exact"] = _figures(exact)
    bound = [o["flops"] / p["peak"] for o, p in zip(exact["ours"], exact["product"], strict=True)]
    found["exact"]["share_of_float32_peak"] = spread(bound)
    return found


def _figures(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    rates = {name: [one["rate"] for one in them] for name, them in runs.items()}
    return {
        "queries_a_second": {name: spread(them) for name, them in rates.items()},
        "recall": {name: them[0]["recall"] for name, them in runs.items()},
        "settings": {
            name: them[0]["setting"] for name, them in runs.items() if "setting" in them[0]
        },
        "times_faster": {
            name: spread([o / t for o, t in zip(rates["ours"], them, strict=True)])
            for name, them in rates.items()
            if name != "ours"
        },
    }


def _curve(asked: argparse.Namespace) -> dict[str, Any]:
    """Measure one worker over the number of queries, nprobe and shards."""

    def one(**changed: Any) -> float:
        found = run_side("benchmarks.rank", "one_worker", 1, *_words(asked, **changed))
        return round(float(found["rate"]), 1)

    counts = [10**n for n in range(6) if 10**n <= asked.queries]
    some = min(asked.queries, 10_000)
    return {
        "by_queries": {n: one(queries=n, nprobe=[32], shards=1) for n in counts},
        "by_nprobe": {n: one(queries=some, nprobe=[n], shards=1) for n in (1, 4, 16, 64, 256)},
        "by_shards": {n: one(queries=some, nprobe=[32], shards=n) for n in (1, 2, 4, 8, 16)},
    }


def ours(asked: argparse.Namespace) -> dict[str, Any]:
    """Search by two processes; nprobe 0 is all lists."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(WORKERS)
    with context.Pool(WORKERS, _join, (together,)) as pool:
        answers = pool.map(_work, [(asked, worker, WORKERS) for worker in range(WORKERS)], 1)
    return _told(asked, answers)


def one_worker(asked: argparse.Namespace) -> dict[str, Any]:
    """Search in this process."""
    _join(None)
    return _told(asked, [_work((asked, 0, 1))])


def _told(asked: argparse.Namespace, answers: list[Any]) -> dict[str, Any]:
    started = time.perf_counter()
    table, place = top_candidates([table for _, table, _ in answers], K)
    seconds = time.perf_counter() - started + max(seconds for seconds, _, _ in answers)
    found = np.full((asked.queries, K), -1)
    found[table["query"].to_numpy(), place] = table["row"].to_numpy()
    exact = np.load(f"{asked.place}/exact.npy")[: asked.queries]
    rate = asked.queries / seconds
    work = sum(work for _, _, work in answers) / seconds
    return {"rate": rate, "recall": recall_of(found[: len(exact)], exact), "flops": work}


_together: list[Any] = []


def _join(barrier: Any) -> None:
    import torch  # noqa: F401 - as a worker has it that has answered before

    _together[:] = [barrier]
    faiss.omp_set_num_threads(1)


def _work(given: tuple[argparse.Namespace, int, int]) -> tuple[float, pa.Table, float]:
    """Make the shards of a worker, wait for the others, and answer all queries; best of two.

    Workers that are more than the shards share one: each answers some of the blocks, as tasks do.
    """
    asked, worker, workers = given
    shares = workers if asked.shards < workers else 1
    own = range(asked.shards) if shares > 1 else range(worker, asked.shards, workers)
    shards = [_shard(asked, number) for number in own]
    queries = np.load(f"{asked.place}/asked.npy")[: asked.queries]
    centroids = block(np.load(f"{asked.place}/centroids.npy"), "ip")
    nprobe = asked.nprobe[0]
    rows = sum(len(shard.rows) for shard in shards)
    work = 2.0 * queries.size * rows / shares
    met = len(queries) * (nprobe / asked.lists if nprobe else 1)
    product = choose_search_product(
        asked.device, met, len(shards[0].rows), queries.shape[1], asked.lists
    )
    searchers = [ShardSearcher(shard, product) for shard in shards]
    probed = top_k_positions(block(queries, "ip"), centroids, nprobe) if nprobe else None
    firsts = range(0, len(queries), _BATCH)[worker if shares > 1 else 0 :: shares]
    mine = np.array_split(queries, workers)[worker]  # whose lists this worker finds for all
    best, table = float("inf"), None
    for _ in range(2):
        if _together[0]:
            _together[0].wait()
        started = time.perf_counter()
        if nprobe:
            top_k_positions(block(mine, "ip"), centroids, nprobe)
        answers = []
        for first in firsts:
            part = queries[first : first + _BATCH]
            numbers = np.arange(first, first + len(part))
            lists = None if probed is None else probed[first : first + _BATCH]
            done: list[pa.Table] = []
            for shard in searchers:
                known = QueryBatch(block(part, "ip"), numbers, kth_best_keys(done, K, numbers))
                done.append(shard.search(known, lists, K))
            answers += done
        table, _ = top_candidates(answers, K)
        best = min(best, time.perf_counter() - started)
    assert table is not None
    return best, table, work


def _shard(asked: argparse.Namespace, number: int) -> Shard:
    vectors = np.load(f"{asked.place}/rows.npy", mmap_mode="r")
    centroids = np.load(f"{asked.place}/centroids.npy")
    rows = np.array_split(np.arange(len(vectors)), asked.shards)[number]
    own = np.ascontiguousarray(vectors[rows])
    ready = block(own, "ip")
    plan = IndexPlan(f"IVF{len(centroids)},SQfp16", len(centroids), "float16", 1, len(rows), 0,
                     False, ())  # fmt: skip
    index = make_empty_index(plan, centroids, "ip")
    append_codes(index, own, rows, nearest_centroids(ready, block(centroids, "ip")))
    names = [f"{row:09d}.jpg" for row in rows]
    known = {"row": rows, "image_id": names, "path": names, "squared_norm": ready.squared_norms}
    columns = [known.get(f.name, pa.nulls(len(rows), f.type)) for f in SHARD_ROWS.schema]
    metadata = pa.table(columns, schema=SHARD_ROWS.schema)
    return Shard(index, metadata, "ip", "float16", np.empty(0, np.int64))


def product(asked: argparse.Namespace) -> dict[str, Any]:
    """Multiply all pairs in float32 and keep the k best, by torch; also the peak of the product."""
    import torch

    rows = torch.from_numpy(np.load(f"{asked.place}/rows.npy").astype(np.float32))
    queries = np.load(f"{asked.place}/asked.npy").astype(np.float32)[: asked.queries]
    exact = np.load(f"{asked.place}/exact.npy")

    def search(asked: NDArray[Any]) -> NDArray[Any]:
        parts = [(torch.from_numpy(asked[f : f + 256]) @ rows.T).topk(K).indices.numpy()
                 for f in range(0, len(asked), 256)]  # fmt: skip
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
