"""Measure a whole `lookalike run` against the sum of the lower bounds of its stages.

python -m benchmarks.whole [--backbone resnet50] [--photos DIR] [--images 10000] [--queries 1000]
                           [--runs 1] [--precision bf16]

The lower bound of a stage is the time of its essential work on all cores. Embedding: one plain
process per core with one thread, the same decoder and engine, that writes nothing and has started
already (the steady rate of `benchmarks.embed`). Index and rank: their matrix products at the
machine's float32 peak. Report: the thumbnails of all shown images, made by running threads.
Starting Ray, loading libraries, converting the network, listing, writing, evaluating and drawing
have no bound, so the ratio charges them fully. Runs alternate: the bounds, measured on a sample of
the photos, then the command.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embed import photos_of, plain_loop
from benchmarks.machine import machine
from benchmarks.output import write_result
from benchmarks.sides import spread
from retrieval.models.engine_plan import EnginePlan, plan_engine
from retrieval.report.thumbnails import read_thumbnails

LOOKALIKE = str(Path(sys.executable).with_name("lookalike"))
CORES = os.cpu_count() or 1
_SHOWN = 1000  # queries on the page that `run` makes
_TOP_K = 10


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--photos")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument(
        "--loop", type=int, default=4096, help="photos on which the lower bound is measured"
    )
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--precision")
    arguments = parser.parse_args()
    plan = plan_engine(None, arguments.precision, "cpu", None, gpus=False)
    peak = machine()["peaks"][f"threads {CORES}"]["float32_gflops"] * 1e9
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        gallery = photos_of(root / "gallery", arguments.photos, arguments.images)
        queries = photos_of(root / "queries", arguments.photos, arguments.queries)
        sample = photos_of(root / "some", arguments.photos, arguments.loop)
        runs = []
        for number in range(arguments.runs):
            bounds = _lower_bounds(arguments, plan, sample, peak)
            words = ["--gallery", gallery, "--queries", queries, "--output", f"{root}/{number}"]
            runs.append({"limits": bounds, **_run(arguments, plan, words, root / str(number))})
    write_result("whole", **_summarize(arguments, plan, runs))


def _lower_bounds(
    arguments: argparse.Namespace, plan: EnginePlan, sample: str, peak: float
) -> dict[str, float]:
    rate = plain_loop(sample, arguments.backbone, plan)["rate"]
    names = [str(path) for path in sorted(Path(sample).rglob("*")) if path.is_file()]
    read_thumbnails(names[:32], max_pixels=1 << 30, threads=CORES)
    started = time.perf_counter()
    read_thumbnails(names, max_pixels=1 << 30, threads=CORES)
    picture = (time.perf_counter() - started) / len(names)
    shown = min(arguments.queries, _SHOWN)
    pairs = 2.0 * arguments.images * arguments.queries * 2048
    return {
        "embed": (arguments.images + arguments.queries) / rate,
        "index_and_rank": pairs / peak,
        "thumbnails": picture * (shown + min(arguments.images, _TOP_K * shown)),
    }


def _run(
    arguments: argparse.Namespace, plan: EnginePlan, words: list[str], output: Path
) -> dict[str, Any]:
    started = time.perf_counter()
    subprocess.run(
        [LOOKALIKE, "run", *words, "--backbone", arguments.backbone, "--weights", "random",
         "--precision", plan.precision, "--top-k", str(_TOP_K), "--recipe", "plain"],
        check=True, capture_output=True,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    run_record = json.loads((output / "run.json").read_text())
    stages = {name: stage["seconds"] for name, stage in run_record["stages"].items()}
    return {"seconds": seconds, "stages": stages}


def _summarize(arguments: argparse.Namespace, plan: EnginePlan, runs: list[Any]) -> dict[str, Any]:
    def spreads(values: list[dict[str, float]]) -> dict[str, list[float]]:
        return {name: spread([value[name] for value in values]) for name in values[0]}

    sums = [sum(run["limits"].values()) for run in runs]
    return {
        "backbone": arguments.backbone, "precision": plan.precision, "images": arguments.images,
        "queries": arguments.queries, "runs": len(runs),
        "limits_of_whole": spread(
            [bound / run["seconds"] for bound, run in zip(sums, runs, strict=True)]
        ),
        "seconds": spread([run["seconds"] for run in runs]),
        "limit_seconds": spreads([run["limits"] for run in runs]),
        "stage_seconds": spreads([run["stages"] for run in runs]),
        "all_but_stages": spread(
            [run["seconds"] - np.sum(list(run["stages"].values())) for run in runs]
        ),
    }  # fmt: skip


if __name__ == "__main__":
    main()
