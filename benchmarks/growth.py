"""Measure how the cost of each command grows with its input, over two decades.

python -m benchmarks.growth [--stages embed index rank evaluate report] [--largest 1000000]

Commands run as a user runs them, on made-up input of three sizes, each ten times the previous one:
small drawn images for `embed`, vectors of dimension 64 for `index`, 1,000 queries on these indexes
for `rank`, and matches of k = 10 for `evaluate` and `report`. The result has the seconds of the
whole command, the peak memory of driver and worker, and the exponent of the last decade, computed
from the time beyond that of the smallest size, which is nearly all start-up. For a linear cost the
exponent is 1.04, since the smallest size has some work too.
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
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--largest", type=int, default=10**6, help="rows of an index")
    arguments = parser.parse_args()
    results = {}
    for name in arguments.stages:
        with tempfile.TemporaryDirectory() as scratch:
            make, share = STAGES[name]
            sizes = [arguments.largest // share // step for step in (100, 10, 1)]
            results[name] = _growth([make(Path(scratch, str(size)), size) for size in sizes], sizes)
    write_result("growth", stages=results)


def _growth(runs: list[dict[str, Any]], sizes: list[int]) -> dict[str, Any]:
    """Return the figures of each run, and the exponent of the time beyond the smallest run."""
    smallest, middle, largest = (run["seconds"] for run in runs)
    return {
        "sizes": sizes,
        **{f"{quantity}_{n}": run[quantity] for n, run in enumerate(runs, 1) for quantity in run},
        "exponent": round(math.log10((largest - smallest) / max(middle - smallest, 0.1)), 2),
    }


def _embed(root: Path, size: int) -> dict[str, Any]:
    photos = photos_of_many(root / "photos", size)
    words = ["--input", photos, "--output", root / "store", "--backbone", "scratch",
             "--weights", "random", "--image-size", "32"]  # fmt: skip
    return _run("embed", words, root / "store")


def _index(root: Path, size: int) -> dict[str, Any]:
    return _run("index", _index_options(root, size), root / "index")


def _rank(root: Path, size: int) -> dict[str, Any]:
    _run("index", _index_options(root, size), root / "index")
    _run_in_process(_save_vectors, root / "queries.npy", _QUERIES, 1)
    words = ["--index", root / "index", "--queries", root / "queries.npy", "--output", root / "m"]
    figures = _run("rank", words, root / "m")
    manifest = json.loads((root / "m/manifest.json").read_text())
    return {
        **figures,
        **{key: value for key, value in manifest["counts"].items() if key in ("nprobe", "recall")},
    }


def _index_options(root: Path, size: int) -> list[Any]:
    root.mkdir(parents=True, exist_ok=True)
    _run_in_process(_save_vectors, root / "vectors.npy", size, 0)
    return ["--embeddings", root / "vectors.npy", "--output", root / "index"]


def _run_in_process(make: Callable[..., None], *arguments: Any) -> None:
    """Make input in a separate process: memory of the parent would count in a command's peak."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(make, arguments)


def _save_vectors(path: Path, count: int, seed: int) -> None:
    """Write vectors drawn around 1,000 centres, which do not depend on `seed`."""
    centres = np.random.default_rng(9).normal(size=(1000, _DIMENSION)).astype(np.float32)
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(count, _DIMENSION)).astype(np.float32)
    np.save(path, centres[generator.integers(0, 1000, count)] + 0.7 * noise)


def _evaluate(root: Path, size: int) -> dict[str, Any]:
    _run_in_process(write_matches, root / "m", size, 10)
    return _run("evaluate", ["--matches", root / "m"], None)


def _report(root: Path, size: int) -> dict[str, Any]:
    _run_in_process(write_matches, root / "m", size, 10)
    return _run("report", ["--matches", root / "m", "--output", root / "report.html"], None)


def _run(verb: str, words: list[Any], output: Path | None) -> dict[str, Any]:
    """Run a command; return its seconds, its peak memory and that of its workers (run.json)."""
    started = time.perf_counter()
    command = [LOOKALIKE, verb, *map(str, words), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{verb} failed: {error.decode()}")
    figures = {
        "seconds": round(time.perf_counter() - started, 2),
        "peak_bytes": usage.ru_maxrss * 1024,
    }
    if output is not None:
        run = json.loads((output / "run.json").read_text())
        figures["worker_peak_bytes"] = run.get("worker_peak_memory_bytes")
    return figures


STAGES: dict[str, tuple[Callable[[Path, int], dict[str, Any]], int]] = {
    "embed": (_embed, 50),
    "index": (_index, 1),
    "rank": (_rank, 1),
    "evaluate": (_evaluate, 10),
    "report": (_report, 100),
}
"""The function that measures a stage, and the factor by which its size is below `--largest`."""


if __name__ == "__main__":
    main()
