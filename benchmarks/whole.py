"""Measure a whole `lookalike run` against the sum of the lower bounds of its stages.

python -m benchmarks.whole [--backbone resnet50] [--photos DIR] [--images 10000] [--queries 1000]
                           [--runs 1] [--precision bf16]

The limit of a stage is what its bare work takes on all cores: embedding is as many plain processes
as there are cores, one thread each, with the same decoder and engine, that write nothing and have
started already (the steady rate of `benchmarks.embed`); index and rank are their matrix products at
the machine's float32 peak; the page is the thumbnails of all it shows, made by threads that have
started. Starting Ray, loading the libraries, converting the network, listing, writing, evaluating
and drawing have no limit of their own: they are what the ratio charges. Runs alternate: limits of
some of the photos, then the command.
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
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--photos")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--loop", type=int, default=4096, help="photos that the limit is taken of")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--precision")
    asked = parser.parse_args()
    plan = plan_engine(None, asked.precision, "cpu", None, gpus=False)
    peak = machine()["peaks"][f"threads {CORES}"]["float32_gflops"] * 1e9
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        gallery = photos_of(root / "gallery", asked.photos, asked.images)
        queries = photos_of(root / "queries", asked.photos, asked.queries)
        some = photos_of(root / "some", asked.photos, asked.loop)
        runs = []
        for number in range(asked.runs):
            limits = _limits(asked, plan, some, peak)
            words = ["--gallery", gallery, "--queries", queries, "--output", f"{root}/{number}"]
            runs.append({"limits": limits, **_run(asked, plan, words, root / str(number))})
    write_result("whole", **_answer(asked, plan, runs))


def _limits(
    asked: argparse.Namespace, plan: EnginePlan, some: str, peak: float
) -> dict[str, float]:
    rate = plain_loop(some, asked.backbone, plan)["rate"]
    names = [str(path) for path in sorted(Path(some).rglob("*")) if path.is_file()]
    read_thumbnails(names[:32], max_pixels=1 << 30, threads=CORES)
    began = time.perf_counter()
    read_thumbnails(names, max_pixels=1 << 30, threads=CORES)
    picture = (time.perf_counter() - began) / len(names)
    shown = min(asked.queries, _SHOWN)
    pairs = 2.0 * asked.images * asked.queries * 2048
    return {
        "embed": (asked.images + asked.queries) / rate,
        "index_and_rank": pairs / peak,
        "thumbnails": picture * (shown + min(asked.images, _TOP_K * shown)),
    }


def _run(
    asked: argparse.Namespace, plan: EnginePlan, words: list[str], output: Path
) -> dict[str, Any]:
    began = time.perf_counter()
    subprocess.run(
        [LOOKALIKE, "run", *words, "--backbone", asked.backbone, "--weights", "random",
         "--precision", plan.precision, "--top-k", str(_TOP_K)],
        check=True, capture_output=True,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    told = json.loads((output / "run.json").read_text())
    stages = {name: stage["seconds"] for name, stage in told["stages"].items()}
    return {"seconds": seconds, "stages": stages}


def _answer(asked: argparse.Namespace, plan: EnginePlan, runs: list[Any]) -> dict[str, Any]:
    def each(values: list[dict[str, float]]) -> dict[str, list[float]]:
        return {name: spread([value[name] for value in values]) for name in values[0]}

    sums = [sum(run["limits"].values()) for run in runs]
    return {
        "backbone": asked.backbone, "precision": plan.precision, "images": asked.images,
        "queries": asked.queries, "runs": len(runs),
        "limits_of_whole": spread([s / r["seconds"] for s, r in zip(sums, runs, strict=True)]),
        "seconds": spread([run["seconds"] for run in runs]),
        "limit_seconds": each([run["limits"] for run in runs]),
        "stage_seconds": each([run["stages"] for run in runs]),
        "all_but_stages": spread(
            [run["seconds"] - np.sum(list(run["stages"].values())) for run in runs]
        ),
    }  # fmt: skip


if __name__ == "__main__":
    main()
