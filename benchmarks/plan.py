"""Compare the prediction of `lookalike plan` with the run that follows.

python -m benchmarks.plan [--photos DIR] [--sizes 300 1000 3000] [-- options of run]

Plans, then runs, one after the other, and prints predicted / actual of each stage, of the whole, of
memory and of disk. Galleries of other sizes than DIR's are its photos over and over, each a file of
its own; every tenth is a query too. Without --photos they are drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.output import write_result
from retrieval.samples import write_samples

LOOKALIKE = str(Path(sys.executable).with_name("lookalike"))
_STAGES = {"gallery": "embed_gallery", "index": "index", "queries": "embed_queries",
           "matches": "rank"}  # fmt: skip
_SCRATCH = ["--backbone", "scratch", "--weights", "random", "--image-size", "64"]


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 1000, 3000])
    parser.add_argument("options", nargs="*", default=_SCRATCH)
    asked = parser.parse_args()
    measured = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        photos = asked.photos or root / "samples/gallery"
        if asked.photos is None:
            write_samples(root / "samples", gallery=300, queries=12)
        for size in asked.sizes:
            lay_out(photos, root / str(size), size)
            measured[size] = compared(root / str(size), asked.options)
            shutil.rmtree(root / str(size))
    write_result("plan", options=asked.options, sizes=measured)


def lay_out(photos: Path, root: Path, size: int) -> None:
    """Copy photos, over and over, into a gallery of `size` and queries of a tenth of it."""
    known = sorted(path for path in photos.rglob("*") if path.is_file())
    for number, path in enumerate(islice(cycle(known), size)):
        target = root / "gallery" / path.parent.name / f"{number:06}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        if number % 10 == 0:
            other = root / "queries" / path.parent.name / target.name
            other.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, other)


def compared(root: Path, options: list[str]) -> dict[str, Any]:
    """Plan, run, and give predicted / actual, and whether the actual lies in the range."""
    words = ["--gallery", str(root / "gallery"), "--queries", str(root / "queries"), *options]
    began = time.perf_counter()
    told = json.loads(_call("plan", *words, "--json"))
    planning, began = time.perf_counter() - began, time.perf_counter()
    load = [os.getloadavg()[0]]
    _call("run", *words, "--output", str(root / "out"))
    actual = {"total": time.perf_counter() - began}
    load.append(os.getloadavg()[0])
    found = json.loads((root / "out/run.json").read_text())
    stages = found["stages"]
    actual |= {name: stages[side]["seconds"] for side, name in _STAGES.items()}
    actual["rest"] = 2 * actual["total"] - sum(actual.values())
    rest = ("start", "list", "evaluate_and_report")
    for end in ("", "_low", "_high"):
        told[f"rest_seconds{end}"] = sum(told[f"{name}_seconds{end}"] for name in rest)
    sizes = {
        "memory_worker": ("memory_bytes_worker", stages["gallery"]["worker_peak_memory_bytes"]),
        "memory_index_task": ("memory_bytes_index_task",
                              stages["index"]["worker_peak_memory_bytes"]),
        "memory_driver": ("memory_bytes_driver", found["peak_memory_bytes"]),
        "disk": ("disk_bytes", told["disk_bytes_scratch"] + sum(
            path.stat().st_size for path in (root / "out").rglob("*") if path.is_file())),
    }  # fmt: skip
    return {
        "plan_seconds": round(planning, 1),
        "load_before_and_after_the_run": load,
        "seconds": {
            name: {
                "predicted": round(told[f"{name}_seconds"], 2),
                "actual": round(seconds, 2),
                "ratio": round(told[f"{name}_seconds"] / seconds, 3),
                "within": told[f"{name}_seconds_low"] <= seconds <= told[f"{name}_seconds_high"],
            }
            for name, seconds in actual.items()
        },
        "bytes": {
            name: {"predicted": told[key], "actual": size, "ratio": round(told[key] / size, 3)}
            for name, (key, size) in sizes.items()
        },
    }


def _call(*words: str) -> str:
    done = subprocess.run([LOOKALIKE, *words], check=True, capture_output=True, text=True)
    return done.stdout


if __name__ == "__main__":
    main()
