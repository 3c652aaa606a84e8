"""Measure time and memory of evaluating 10^5 queries x 100 matches.

python -m benchmarks.evaluate [--queries 100000] [--top-k 100] [--runs 3]

The whole command, from a folder of matches to the printed tables, beside trec_eval (as pytrec_eval,
from a run and qrels that are in memory already, the same means without any interval); each in a
process of its own.
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side")
    parser.add_argument("path", nargs="?", type=Path)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps({"ours": _ours, "trec_eval": _theirs}[asked.side](asked.path)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "matches")
        write_matches(path, asked.queries, asked.top_k)
        found: dict[str, list[dict[str, Any]]] = {"ours": [], "trec_eval": []}
        for _ in range(asked.runs):
            for side, runs in found.items():
                runs.append(run_side("benchmarks.evaluate", side, 1, path))
    said: dict[str, Any] = {"queries": asked.queries, "top_k": asked.top_k}
    for side, runs in found.items():
        said[side] = {"seconds": spread([run["seconds"] for run in runs]),
                      "peak_bytes": max(run["peak_bytes"] for run in runs),
                      "map": runs[0]["map"]}  # fmt: skip
    ours, theirs = ([run["seconds"] for run in runs] for runs in found.values())
    said["times_faster"] = spread([t / o for o, t in zip(ours, theirs, strict=True)])
    write_result("evaluate", **said)


def _ours(path: Path) -> dict[str, Any]:
    """Run the command as a whole process."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "jobs.cli", "evaluate", "--matches", str(path), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {
        "seconds": time.perf_counter() - started,
        "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "map": json.loads(done.stdout)["AP"],
    }


def _theirs(path: Path) -> dict[str, Any]:
    """Let pytrec_eval measure what is in memory already; its qrels name each class's images."""
    import pytrec_eval

    run = trec_run(path)
    per_class = 10 * len(run) // CLASSES
    images = [
        {f"image{kind + CLASSES * place}.jpg": 1 for place in range(per_class)}
        for kind in range(CLASSES)
    ]
    started = time.perf_counter()
    total = 0.0
    for first in range(0, len(run), 100):  # all qrels at once would take tens of GB
        some = dict(list(run.items())[first : first + 100]) if first == 0 else {
            query: run[query] for query in _names(first, min(first + 100, len(run)))
        }  # fmt: skip
        qrels = {query: images[int(query[5:12]) % CLASSES] for query in some}
        found = pytrec_eval.RelevanceEvaluator(qrels, set(_MEASURES)).evaluate(some)
        total += sum(values["map"] for values in found.values())
    return {
        "seconds": time.perf_counter() - started,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "map": total / len(run),
    }


def _names(first: int, last: int) -> list[str]:
    return [f"query{number:07d}.jpg" for number in range(first, last)]


if __name__ == "__main__":
    main()
