"""Compare the search of lookalike with that of other libraries, on real vectors at equal recall.

python -m benchmarks.search [--photos DIR --weights FILE | --hdf5 FILE] [--rows 80000]
                            [--queries 10000] [--dimension 256] [--lists 256 1024] [--shards 2]
                            [--recalls 0.9 0.95 0.99] [--runs 3] [--against flat pq …]

Each side is measured along its search parameter, for each of its kinds of index; queries per second
at a recall are interpolated on its measured frontier (`benchmarks/frontier.py`), and its fastest
kind counts. All sides use two threads: ours two processes of one thread, the others one process.
Recall is recall@10 of all queries against exact search. Ours covers choosing lists, preparing lists
for their products, searching with scores decided in float64, and merging. Times of building are
reported beside; they do not count. Rivals whose package is not installed are left out and named.
The state is printed to stderr as each side ends: all sides take minutes per run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frontier import Point, fastest_at_recall
from benchmarks.index import Threads
from benchmarks.our_search import OurIndex, SearchSetup, open_index, train_centroids
from benchmarks.output import write_result
from benchmarks.photo_crops import VectorsMissing
from benchmarks.rivals import (
    OPTIONAL,
    RIVALS,
    K,
    SearchData,
    Unsuitable,
    installed,
    measure,
    sweep,
)
from benchmarks.sides import recall_of, run_side, spread
from benchmarks.vectors import add_source_options, describe_vectors, prepare_vectors
from retrieval.index.probing import Probing

WORKERS = 2
_OURS = "ours"

_GAPS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.14, 0.17, 0.2, 0.25, 0.3, 0.4, 0.6)
"""Gaps between the scores of the best list and the worst one that is read (`index/probing.py`);
vectors have unit length."""


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    add_source_options(parser)
    parser.add_argument("--rows", type=int, default=80_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--lists", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--shards", type=int, default=WORKERS)
    parser.add_argument("--recalls", type=float, nargs="+", default=[0.9, 0.95, 0.99])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--against", nargs="+", choices=RIVALS, default=installed())
    parser.add_argument("--side")
    parser.add_argument("--place")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(_run_side(arguments)))
        return
    try:
        folder = prepare_vectors(arguments)
    except VectorsMissing as error:
        print(f"skipped: {error}", file=sys.stderr)
        return
    runs = [_run(arguments, folder) for _ in range(arguments.runs)]
    options = {name: getattr(arguments, name) for name in ("lists", "shards", "recalls", "against")}
    write_result(
        "search",
        vectors=describe_vectors(arguments, folder),
        **options,
        missing=[name for name in OPTIONAL if name not in installed()],
        **summarize(runs, arguments.recalls),
    )


def _run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure all sides once, one after the other; return the variants of each, or its problem."""
    words = ["--place", folder, "--lists", *arguments.lists, "--shards", arguments.shards]
    words += ["--recalls", *arguments.recalls]
    results = {}
    for side in (_OURS, *arguments.against):
        started = time.perf_counter()
        results[side] = run_side("benchmarks.search", side, 1 if side == _OURS else WORKERS, *words)
        fastest = {
            recall: _fastest({side: results[side]}, recall).get(side)
            for recall in arguments.recalls
        }
        print(f"{side}: {time.perf_counter() - started:.0f} s, {fastest}", file=sys.stderr)
    return results


def _run_side(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the variants of a side as `measure` does, or why it cannot search the vectors."""
    rows, queries = (
        np.load(f"{arguments.place}/{name}.npy").astype(np.float32) for name in ("rows", "queries")
    )
    data = SearchData(rows, queries, np.load(f"{arguments.place}/exact.npy"))
    enough = max(arguments.recalls)
    if arguments.side == _OURS:
        return {"variants": ours(arguments, data, enough)}
    try:
        rival = RIVALS[arguments.side]
        return {"variants": measure(rival, data, arguments.lists, enough)}
    except Unsuitable as problem:
        return {"variants": [], "problem": str(problem)}


def ours(arguments: argparse.Namespace, data: SearchData, enough: float) -> list[dict[str, Any]]:
    """Train, fill shards in two processes and search, for each number of lists."""
    variants = []
    vectors = np.load(f"{arguments.place}/rows.npy", mmap_mode="r")
    for lists in arguments.lists:
        started = time.perf_counter()
        centroids = train_centroids(vectors, lists, Threads())
        train_seconds = time.perf_counter() - started
        setup = SearchSetup(
            arguments.place, centroids, len(data.queries), K, arguments.shards, WORKERS
        )
        with open_index(setup) as index:
            measurements = (({"gap": gap}, partial(_measure, index, gap, data)) for gap in _GAPS)
            points = sweep(measurements, enough)
            seconds = train_seconds + index.add_seconds
        name = f"{lists} lists, {arguments.shards} shards"
        variants.append({"name": name, "build_seconds": seconds, "points": points})
    return variants


def _measure(index: OurIndex, gap: float, data: SearchData) -> dict[str, float]:
    result = index.search(Probing(len(index.setup.centroids), gap))
    rate = len(data.queries) / result.seconds
    return {"rate": rate, "recall": recall_of(result.rows, data.exact)}


def summarize(runs: list[dict[str, Any]], recalls: list[float]) -> dict[str, Any]:
    """Return rates at each recall, their ratios to ours, and the points of the first run.

    `times_faster` is ours / theirs. `best_faiss` is, run by run, the fastest rival of FAISS.
    """
    at_recall, times_faster, kinds = {}, {}, {}
    for recall in recalls:
        key = f"{recall:g}"
        fastest = [_fastest(run, recall) for run in runs]
        common = [side for side in runs[0] if all(side in sides for sides in fastest)]
        at_recall[key] = {side: spread([sides[side][1] for sides in fastest]) for side in common}
        kinds[key] = {side: fastest[0][side][0] for side in common}
        rivals = [side for side in common if side != _OURS]
        by_faiss = [side for side in rivals if side not in OPTIONAL]
        if _OURS not in common:
            continue
        times_faster[key] = {
            side: spread([sides[_OURS][1] / sides[side][1] for sides in fastest]) for side in rivals
        }
        if by_faiss:
            best = [max(sides[side][1] for side in by_faiss) for sides in fastest]
            times_faster[key]["best_faiss"] = spread(
                [sides[_OURS][1] / rate for sides, rate in zip(fastest, best, strict=True)]
            )
    return {
        "queries_a_second": at_recall,
        "times_faster": times_faster,
        "kinds": kinds,
        "build_seconds": _build_seconds(runs),
        "problems": {side: run["problem"] for side, run in runs[0].items() if "problem" in run},
        "points": {side: run["variants"] for side, run in runs[0].items()},
    }


def _fastest(run: dict[str, Any], recall: float) -> dict[str, tuple[str, float]]:
    """Return the fastest kind of each side that reaches a recall, and its rate."""
    fastest = {
        side: fastest_at_recall(
            {
                variant["name"]: [Point(p["recall"], p["rate"]) for p in variant["points"]]
                for variant in result["variants"]
            },
            recall,
        )
        for side, result in run.items()
    }
    return {side: found for side, found in fastest.items() if found is not None}


def _build_seconds(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the median seconds to build each kind of each side."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for side, result in run.items():
            for variant in result["variants"]:
                times = seconds.setdefault(side, {}).setdefault(variant["name"], [])
                times.append(variant["build_seconds"])
    return {
        side: {name: round(statistics.median(times), 2) for name, times in kinds.items()}
        for side, kinds in seconds.items()
    }


if __name__ == "__main__":
    main()
