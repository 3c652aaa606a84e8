"""Compare the prediction of `lookalike plan` with the run that follows.

python -m benchmarks.plan [--photos DIR] [--sizes 300 1000 3000] [-- options of run]

Plans and then runs each size, and prints predicted / actual for each stage, the total time, memory
and disk. A gallery consists of copies of the photos in DIR, repeated as needed; every tenth photo
is also a query. Without --photos, images are drawn.
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
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 1000, 3000])
    parser.add_argument("options", nargs="*", default=_SCRATCH)
    arguments = parser.parse_args()
    measured = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        photos = arguments.photos or root / "samples/gallery"
        if arguments.photos is None:
            write_samples(root / "samples", gallery=300, queries=12)
        for size in arguments.sizes:
            lay_out(photos, root / str(size), size)
            measured[size] = compare(root / str(size), arguments.options)
            shutil.rmtree(root / str(size))
    write_result("plan", options=arguments.options, sizes=measured)


def lay_out(photos: Path, root: Path, size: int) -> None:
    """Copy photos, repeated as needed, into a gallery of `size` and queries of a tenth of it."""
    photo_paths = sorted(path for path in photos.rglob("*") if path.is_file())
    for number, path in enumerate(islice(cycle(photo_paths), size)):
        target = root / "gallery" / path.parent.name / f"{number:06}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        if number % 10 == 0:
            query_path = root / "queries" / path.parent.name / target.name
            query_path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, query_path)


def compare(root: Path, options: list[str]) -> dict[str, Any]:
    """Plan and run; return predicted and actual values, and whether these are within the range."""
    words = ["--gallery", str(root / "gallery"), "--queries", str(root / "queries"), *options]
    started = time.perf_counter()
    plan = json.loads(_call("plan", *words, "--json"))
    planning, started = time.perf_counter() - started, time.perf_counter()
    load = [os.getloadavg()[0]]
    _call("run", *words, "--output", str(root / "out"))
    actual = {"total": time.perf_counter() - started}
    load.append(os.getloadavg()[0])
    run = json.loads((root / "out/run.json").read_text())
    stages = run["stages"]
    actual |= {name: stages[side]["seconds"] for side, name in _STAGES.items()}
    actual["rest"] = 2 * actual["total"] - sum(actual.values())
    other_stages = ("start", "list", "evaluate_and_report")
    for end in ("", "_low", "_high"):
        plan[f"rest_seconds{end}"] = sum(plan[f"{name}_seconds{end}"] for name in other_stages)
    sizes = {
        "memory_worker": ("memory_bytes_worker", stages["gallery"]["worker_peak_memory_bytes"]),
        "memory_index_task": ("memory_bytes_index_task",
                              stages["index"]["worker_peak_memory_bytes"]),
        "memory_driver": ("memory_bytes_driver", run["peak_memory_bytes"]),
        "disk": ("disk_bytes", plan["disk_bytes_scratch"] + sum(
            path.stat().st_size for path in (root / "out").rglob("*") if path.is_file())),
    }  # fmt: skip
    return {
        "plan_seconds": round(planning, 1),
        "load_before_and_after_the_run": load,
        "seconds": {
            name: {
                "predicted": round(plan[f"{name}_seconds"], 2),
                "actual": round(seconds, 2),
                "ratio": round(plan[f"{name}_seconds"] / seconds, 3),
                "within": plan[f"{name}_seconds_low"] <= seconds <= plan[f"{name}_seconds_high"],
            }
            for name, seconds in actual.items()
        },
        "bytes": {
            name: {"predicted": plan[key], "actual": size, "ratio": round(plan[key] / size, 3)}
            for name, (key, size) in sizes.items()
        },
    }


def _call(*words: str) -> str:
    process = subprocess.run([LOOKALIKE, *words], check=True, capture_output=True, text=True)
    return process.stdout


if __name__ == "__main__":
    main()
