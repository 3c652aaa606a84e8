"""Measure the embed stage against plain processes, a DataLoader and the original loop.

The plain loop is as many processes as Ray has workers, with one thread each, that read, decode and
embed their share of the photos with the same decoder and engine, and write nothing. The other two
run eager torch in fp32 on batches of 32 with torch's default number of threads: the original loop
in one process with Pillow, and a DataLoader with one decoding process per core and channels last
(`benchmarks/eager.py`). Steady state is the rate between 25 % and 95 % of the photos, which
excludes start-up; times of whole commands are reported separately. Runs alternate; results are
medians.

    python -m benchmarks.embed [--backbone mobilenet_v2] [--photos DIR] [--images 4096] [--runs 5]
                               [--precision bf16] [--alone]

The photos in DIR are repeated as needed; without --photos, images are drawn.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import eager
from benchmarks.output import write_result
from retrieval.models.engine_plan import OPENVINO, EnginePlan, plan_engine
from retrieval.models.engines import convert_bundle
from retrieval.models.resolve import resolve_bundle
from retrieval.samples import write_samples
from retrieval.sources.folder import FolderSource

CHUNK_ROWS = 256  # the smallest automatic chunk size
WORKERS = os.cpu_count() or 1
FIRST, LAST = 0.25, 0.95  # shares of the photos between which the steady rate is measured


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--photos")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--engine")
    parser.add_argument("--precision")
    parser.add_argument("--alone", action="store_true", help="one worker as well")
    arguments = parser.parse_args()
    plan = plan_engine(arguments.engine, arguments.precision, "cpu", None, gpus=False)
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        source = photos_of(Path(scratch, "photos"), arguments.photos, arguments.images)
        for number in range(arguments.runs):
            runs.append(
                {
                    "ray": _with_ray(source, f"{scratch}/ray{number}", arguments.backbone, plan),
                    "loop": plain_loop(source, arguments.backbone, plan),
                    "began": _eager(eager.original_loop, source, arguments.backbone),
                    "loader": _eager(eager.data_loader, source, arguments.backbone),
                    **_alone(arguments, source, f"{scratch}/alone{number}", plan),
                }
            )
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    write_result("embed", **_answer(arguments, plan, runs))


def _alone(
    arguments: argparse.Namespace, source: str, output: str, plan: EnginePlan
) -> dict[str, dict[str, float]]:
    """Measure the stage with one worker, if `--alone` is set."""
    if not arguments.alone:
        return {}
    return {"one_worker": _with_ray(source, output, arguments.backbone, plan, workers=1)}


def _answer(arguments: argparse.Namespace, plan: EnginePlan, runs: list[Any]) -> dict[str, Any]:
    def ratio(name: str, baseline: str, quantity: str) -> list[float]:
        values = sorted(run[name][quantity] / run[baseline][quantity] for run in runs)
        return [round(value, 3) for value in (statistics.median(values), values[0], values[-1])]

    def median(name: str, quantity: str) -> float:
        return round(float(statistics.median(run[name][quantity] for run in runs)), 1)

    return {
        "backbone": arguments.backbone, "engine": plan.engine,
        "precision": plan.precision, "batch_size": plan.batch_size,
        "images": arguments.images, "workers": WORKERS, "runs": len(runs),
        "median_min_max_of": "ratios",
        "steady_against_loop": ratio("ray", "loop", "rate"),
        "steady_against_began": ratio("ray", "began", "rate"),
        "steady_against_loader": ratio("ray", "loader", "rate"),
        **({"steady_against_one": ratio("ray", "one_worker", "rate")} if arguments.alone else {}),
        "loop_seconds_against_whole": ratio("loop", "ray", "seconds"),
        "images_per_second": {name: median(name, "rate") for name in runs[0]},
        "seconds": {name: median(name, "seconds") for name in ("ray", "loop")},
    }  # fmt: skip


def photos_of(folder: Path, photos: str | None, count: int) -> str:
    """Create a folder of `count` photos, links to `photos` or drawn ones; return its path."""
    if photos is None:
        write_samples(folder, gallery=-(-count // 12) * 12, queries=12)
        return str(folder / "gallery")
    paths = [item.path for item in FolderSource(photos).items()]
    folder.mkdir(parents=True)
    for number in range(count):
        path = paths[number % len(paths)]
        (folder / f"{number:06d}{Path(path).suffix}").symlink_to(path)
    return str(folder)


def rate_of(marks: list[tuple[float, int]]) -> float:
    """Return the steady rate in images per second from (time, images finished at that time) marks.

    It is the slope of a line fitted to all marks: workers finish chunks almost simultaneously, so
    the first and last mark alone may be off by half a round.
    """
    times, counts = (np.array(column, float) for column in zip(*sorted(marks), strict=True))
    finished = counts.cumsum()
    steady = (finished >= FIRST * finished[-1]) & (finished <= LAST * finished[-1])
    slope: float = np.polyfit(times[steady] - times[0], finished[steady], 1)[0]
    return slope


def _with_ray(
    source: str, output: str, backbone: str, plan: EnginePlan, workers: int = WORKERS
) -> dict[str, float]:
    """Run the stage like a command, in a new process; compute the rate from times of parts."""
    started = time.time()
    process = multiprocessing.get_context("spawn").Process(
        target=_embed, args=(source, output, backbone, plan, workers)
    )
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("the embed stage failed")
    seconds = time.time() - started
    parts = Path(output, "segments/00000/parts").glob("*.parquet")
    return {"rate": rate_of([(p.stat().st_mtime, CHUNK_ROWS) for p in parts]), "seconds": seconds}


def _embed(source: str, output: str, backbone: str, plan: EnginePlan, workers: int) -> None:
    from jobs.config.settings import EmbedSettings
    from jobs.embedding.embed import start

    start(
        EmbedSettings(
            input=source, output=output, backbone=backbone, weights="random", engine=plan.engine,
            precision=plan.precision, chunk_rows=CHUNK_ROWS, workers=workers,
            recipe="plain",  # as the loops that it is compared with
        )
    )  # fmt: skip


def bundle_of(backbone: str) -> Any:
    """Return a bundle of a backbone with random parameters."""
    return resolve_bundle(
        backbone=backbone, weights="random", bundle=None, pooling="avg", normalize=True,
        image_size=None, resize="crop", seed=0,
    )  # fmt: skip


def plain_loop(source: str, backbone: str, plan: EnginePlan) -> dict[str, float]:
    """Embed with plain processes; return the steady rate in images per second, and the seconds."""
    started = time.time()
    paths = [item.path for item in FolderSource(source).items()]
    bundle = bundle_of(backbone)
    ir = convert_bundle(bundle, plan) if plan.engine == OPENVINO else None
    context = multiprocessing.get_context("spawn")
    marks: Any = context.SimpleQueue()
    shares = [paths[n::WORKERS] for n in range(WORKERS)]
    processes = [
        context.Process(target=_loop, args=(share, bundle, plan, ir, marks)) for share in shares
    ]
    for process in processes:
        process.start()
    all_marks = [mark for _ in processes for mark in marks.get()]
    for process in processes:
        process.join()
    return {"rate": rate_of(all_marks), "seconds": time.time() - started}


def _loop(paths: list[str], bundle: Any, plan: EnginePlan, ir: Any, marks: Any) -> None:
    from retrieval.images.decode import decode
    from retrieval.models.embedder import Embedder

    os.nice(15)  # the priority of Ray's workers
    embedder = Embedder(bundle, plan, ir)
    batch_times, batch = [], []
    for path in paths:
        batch.append(decode(Path(path).read_bytes(), bundle.transform, max_pixels=1 << 30).pixels)
        if len(batch) == plan.batch_size:
            embedder.embed(batch)
            batch_times.append((time.time(), len(batch)))
            batch = []
    marks.put(batch_times)


def _eager(baseline: Any, source: str, backbone: str) -> dict[str, float]:
    """Measure a baseline of `eager.py` on 320 photos, enough for a steady rate without start-up."""
    context = multiprocessing.get_context("spawn")
    marks: Any = context.SimpleQueue()
    paths = [item.path for item in FolderSource(source).items()][:320]
    process = context.Process(target=baseline, args=(paths, backbone, marks))
    process.start()
    batch_times = marks.get()
    process.join()
    return {"rate": rate_of(batch_times)}


if __name__ == "__main__":
    main()
