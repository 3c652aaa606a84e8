"""Measure how the cost of each command grows with its input, over two decades.

python -m benchmarks.growth [--stages embed index rank evaluate report] [--largest 1000000]

Commands as a user gives them, on made-up input of three sizes, each ten times the one before:
images (small, drawn) for `embed`, vectors of 64 numbers for `index`, which are then asked by 1,000
queries (`rank`), matches x 10 for `evaluate` and `report`. Told are the seconds of a whole command
and its peak memory, of the driver and of a worker; and the exponent of the last decade, of what a
command takes beyond the smallest one, which is nearly all start. Of a cost that is linear it is
1.04, since the smallest has some work as well.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.matches import write_matches
from benchmarks.output import write_result
from benchmarks.resume import photos_of_many

LOOKALIKE = str(Path(sys.executable).with_name("lookalike"))
_DIMENSION = 64
_QUERIES = 1000


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--largest", type=int, default=10**6, help="rows of an index")
    asked = parser.parse_args()
    found = {}
    for name in asked.stages:
        with tempfile.TemporaryDirectory() as scratch:
            make, share = STAGES[name]
            sizes = [asked.largest // share // step for step in (100, 10, 1)]
            found[name] = _grown([make(Path(scratch, str(size)), size) for size in sizes], sizes)
    write_result("growth", stages=found)


def _grown(runs: list[dict[str, Any]], sizes: list[int]) -> dict[str, Any]:
    """Give the figures of each run, and the power by which what the smallest lacks grows."""
    smallest, middle, largest = (run["seconds"] for run in runs)
    return {
        "sizes": sizes,
        **{f"{what}_{n}": run[what] for n, run in enumerate(runs, 1) for what in run},
        "exponent": round(math.log10((largest - smallest) / max(middle - smallest, 0.1)), 2),
    }


def _embed(root: Path, size: int) -> dict[str, Any]:
    photos = photos_of_many(root / "photos", size)
    words = ["--input", photos, "--output", root / "store", "--backbone", "scratch",
             "--weights", "random", "--image-size", "32"]  # fmt: skip
    return _run("embed", words, root / "store")


def _index(root: Path, size: int) -> dict[str, Any]:
    return _run("index", _indexed(root, size), root / "index")


def _rank(root: Path, size: int) -> dict[str, Any]:
    _run("index", _indexed(root, size), root / "index")
    _alone(_save_vectors, root / "queries.npy", _QUERIES, 1)
    words = ["--index", root / "index", "--queries", root / "queries.npy", "--output", root / "m"]
    found = _run("rank", words, root / "m")
    told = json.loads((root / "m/manifest.json").read_text())
    return {**found, **{k: v for k, v in told["counts"].items() if k in ("nprobe", "recall")}}


def _indexed(root: Path, size: int) -> list[Any]:
    root.mkdir(parents=True, exist_ok=True)
    _alone(_save_vectors, root / "vectors.npy", size, 0)
    return ["--embeddings", root / "vectors.npy", "--output", root / "index"]


def _alone(make: Callable[..., None], *words: Any) -> None:
    """Make input in a process of its own: what a command is started from counts as its peak."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(make, words)


def _save_vectors(path: Path, count: int, seed: int) -> None:
    """Draw vectors around 1,000 centres, the same whatever is drawn."""
    centres = np.random.default_rng(9).normal(size=(1000, _DIMENSION)).astype(np.float32)
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(count, _DIMENSION)).astype(np.float32)
    np.save(path, centres[generator.integers(0, 1000, count)] + 0.7 * noise)


def _evaluate(root: Path, size: int) -> dict[str, Any]:
    _alone(write_matches, root / "m", size, 10)
    return _run("evaluate", ["--matches", root / "m"], None)


def _report(root: Path, size: int) -> dict[str, Any]:
    _alone(write_matches, root / "m", size, 10)
    return _run("report", ["--matches", root / "m", "--output", root / "report.html"], None)


def _run(verb: str, words: list[Any], output: Path | None) -> dict[str, Any]:
    """Run a command; its seconds, and what run.json says of its work and memory."""
    began = time.perf_counter()
    command = [LOOKALIKE, verb, *map(str, words), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{verb} failed: {error.decode()}")
    found = {"seconds": round(time.perf_counter() - began, 2), "peak_bytes": usage.ru_maxrss * 1024}
    if output is not None:
        told = json.loads((output / "run.json").read_text())
        found["worker_peak_bytes"] = told.get("worker_peak_memory_bytes")
    return found


STAGES: dict[str, tuple[Callable[[Path, int], dict[str, Any]], int]] = {
    "embed": (_embed, 50),
    "index": (_index, 1),
    "rank": (_rank, 1),
    "evaluate": (_evaluate, 10),
    "report": (_report, 100),
}
"""How a stage is run at a size, and how many times smaller that is than `--largest`."""


if __name__ == "__main__":
    main()
