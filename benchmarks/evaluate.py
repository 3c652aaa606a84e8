"""Measure time and memory of evaluating 10^5 queries x 100 matches.

python -m benchmarks.evaluate [--queries 100000] [--top-k 100] [--runs 3]

The whole command, from a folder of matches to the printed tables, is compared with trec_eval (as
pytrec_eval, from a run and qrels in memory; the same means without intervals). Each runs in a
separate process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.matches import CLASSES, trec_run, write_matches
from benchmarks.output import write_result
from benchmarks.sides import run_side, spread

_MEASURES = ("map", "ndcg", "recip_rank", "P_10", "recall_10", "success_1")


def main() -> None:
    """Run the benchmark, or one side of it, and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side")
    parser.add_argument("path", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        print(
            json.dumps(
                {"ours": _run_evaluate, "trec_eval": _run_trec_eval}[arguments.side](arguments.path)
            )
        )
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "matches")
        write_matches(path, arguments.queries, arguments.top_k)
        results: dict[str, list[dict[str, Any]]] = {"ours": [], "trec_eval": []}
        for _ in range(arguments.runs):
            for side, runs in results.items():
                runs.append(run_side("benchmarks.evaluate", side, 1, path))
    figures: dict[str, Any] = {"queries": arguments.queries, "top_k": arguments.top_k}
    for side, runs in results.items():
        figures[side] = {"seconds": spread([run["seconds"] for run in runs]),
                      "peak_bytes": max(run["peak_bytes"] for run in runs),
                      "map": runs[0]["map"]}  # fmt: skip
    ours, theirs = ([run["seconds"] for run in runs] for runs in results.values())
    figures["times_faster"] = spread(
        [trec_seconds / our_seconds for our_seconds, trec_seconds in zip(ours, theirs, strict=True)]
    )
    write_result("evaluate", **figures)


def _run_evaluate(path: Path) -> dict[str, Any]:
    """Run `lookalike evaluate` as a subprocess."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "lookalike", "evaluate", "--matches", str(path), "--json"]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    return {
        "seconds": time.perf_counter() - started,
        "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "map": json.loads(process.stdout)["AP"],
    }


def _run_trec_eval(path: Path) -> dict[str, Any]:
    """Evaluate the matches with pytrec_eval, from memory; qrels list the images of each class."""
    import pytrec_eval

    run = trec_run(path)
    per_class = 10 * len(run) // CLASSES
    images = [
        {f"image{kind + CLASSES * position}.jpg": 1 for position in range(per_class)}
        for kind in range(CLASSES)
    ]
    started = time.perf_counter()
    total = 0.0
    for first in range(0, len(run), 100):  # all qrels at once would take tens of GB
        block = dict(list(run.items())[first : first + 100]) if first == 0 else {
            query: run[query] for query in _names(first, min(first + 100, len(run)))
        }  # fmt: skip
        qrels = {query: images[int(query[5:12]) % CLASSES] for query in block}
        results = pytrec_eval.RelevanceEvaluator(qrels, set(_MEASURES)).evaluate(block)
        total += sum(values["map"] for values in results.values())
    return {
        "seconds": time.perf_counter() - started,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "map": total / len(run),
    }


def _names(first: int, last: int) -> list[str]:
    return [f"query{number:07d}.jpg" for number in range(first, last)]


if __name__ == "__main__":
    main()
