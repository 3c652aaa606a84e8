"""The embed stage against a plain loop without Ray, a DataLoader, and the way it began.

The plain loop is as many plain processes as Ray has workers, one thread each, that read, decode and
embed with the same decoder and engine, each its share of the photos, and write nothing. The other
two run eager torch in fp32 on batches of 32, with as many threads as torch likes: the way it began
in one process with Pillow, a DataLoader (`benchmarks/eager.py`) with a process a core that decodes,
and channels last. Steady state is the rate between a quarter and 95 % of the photos, so that
start-up drops out; whole commands are stated apart. Runs alternate; medians of them.

    python -m benchmarks.embed [--backbone mobilenet_v2] [--photos DIR] [--images 4096] [--runs 5]
                               [--precision bf16] [--alone]

Photos of DIR are repeated until there are enough; without it they are drawn.
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

CHUNK_ROWS = 256  # the smallest that a listing's size gives
WORKERS = os.cpu_count() or 1
FIRST, LAST = 0.25, 0.95  # of the photos: the steady state lies between


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--photos")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--engine")
    parser.add_argument("--precision")
    parser.add_argument("--alone", action="store_true", help="one worker as well")
    asked = parser.parse_args()
    plan = plan_engine(asked.engine, asked.precision, "cpu", None, gpus=False)
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        source = photos_of(Path(scratch, "photos"), asked.photos, asked.images)
        for number in range(asked.runs):
            runs.append(
                {
                    "ray": _with_ray(source, f"{scratch}/ray{number}", asked.backbone, plan),
                    "loop": plain_loop(source, asked.backbone, plan),
                    "began": _eager(eager.as_it_began, source, asked.backbone),
                    "loader": _eager(eager.by_data_loader, source, asked.backbone),
                    **_alone(asked, source, f"{scratch}/alone{number}", plan),
                }
            )
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    write_result("embed", **_answer(asked, plan, runs))


def _alone(
    asked: argparse.Namespace, source: str, output: str, plan: EnginePlan
) -> dict[str, dict[str, float]]:
    """Let one worker do it, if that is asked for."""
    if not asked.alone:
        return {}
    return {"one_worker": _with_ray(source, output, asked.backbone, plan, workers=1)}


def _answer(asked: argparse.Namespace, plan: EnginePlan, runs: list[Any]) -> dict[str, Any]:
    def ratio(one: str, other: str, what: str) -> list[float]:
        values = sorted(run[one][what] / run[other][what] for run in runs)
        return [round(v, 3) for v in (statistics.median(values), values[0], values[-1])]

    def median(who: str, what: str) -> float:
        return round(float(statistics.median(run[who][what] for run in runs)), 1)

    return {
        "backbone": asked.backbone, "engine": plan.engine,
        "precision": plan.precision, "batch_size": plan.batch_size,
        "images": asked.images, "workers": WORKERS, "runs": len(runs),
        "median_min_max_of": "ratios",
        "steady_against_loop": ratio("ray", "loop", "rate"),
        "steady_against_began": ratio("ray", "began", "rate"),
        "steady_against_loader": ratio("ray", "loader", "rate"),
        **({"steady_against_one": ratio("ray", "one_worker", "rate")} if asked.alone else {}),
        "loop_seconds_against_whole": ratio("loop", "ray", "seconds"),
        "images_per_second": {who: median(who, "rate") for who in runs[0]},
        "seconds": {who: median(who, "seconds") for who in ("ray", "loop")},
    }  # fmt: skip


def photos_of(folder: Path, photos: str | None, count: int) -> str:
    """Lay out so many photos, those of a folder over and over or drawn ones; gives the folder."""
    if photos is None:
        write_samples(folder, gallery=-(-count // 12) * 12, queries=12)
        return str(folder / "gallery")
    found = [item.path for item in FolderSource(photos).items()]
    folder.mkdir(parents=True)
    for number in range(count):
        path = found[number % len(found)]
        (folder / f"{number:06d}{Path(path).suffix}").symlink_to(path)
    return str(folder)


def rate_of(marks: list[tuple[float, int]]) -> float:
    """Give images a second in the steady state, of (time, images finished then).

    The slope of a line through all marks: workers finish chunks in step, and the two outermost
    marks alone could be half a round apart.
    """
    times, counts = (np.array(column, float) for column in zip(*sorted(marks), strict=True))
    seen = counts.cumsum()
    steady = (seen >= FIRST * seen[-1]) & (seen <= LAST * seen[-1])
    slope: float = np.polyfit(times[steady] - times[0], seen[steady], 1)[0]
    return slope


def _with_ray(
    source: str, output: str, backbone: str, plan: EnginePlan, workers: int = WORKERS
) -> dict[str, float]:
    """Run the stage as a command does, in a process of its own, and look at its parts' times."""
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
        )
    )  # fmt: skip


def bundle_of(backbone: str) -> Any:
    """Give a network with random parameters."""
    return resolve_bundle(
        backbone=backbone, weights="random", bundle=None, pooling="avg", normalize=True,
        image_size=None, resize="crop", seed=0,
    )  # fmt: skip


def plain_loop(source: str, backbone: str, plan: EnginePlan) -> dict[str, float]:
    """Embed by plain processes: the steady rate, images a second, and all of the seconds."""
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
    found = [mark for _ in processes for mark in marks.get()]
    for process in processes:
        process.join()
    return {"rate": rate_of(found), "seconds": time.time() - started}


def _loop(paths: list[str], bundle: Any, plan: EnginePlan, ir: Any, marks: Any) -> None:
    from retrieval.images.decode import decode
    from retrieval.models.embedder import Embedder

    os.nice(15)  # as Ray's workers are
    embedder = Embedder(bundle, plan, ir)
    seen, batch = [], []
    for path in paths:
        batch.append(decode(Path(path).read_bytes(), bundle.transform, max_pixels=1 << 30).pixels)
        if len(batch) == plan.batch_size:
            embedder.embed(batch)
            seen.append((time.time(), len(batch)))
            batch = []
    marks.put(seen)


def _eager(side: Any, source: str, backbone: str) -> dict[str, float]:
    """Measure on as many photos as give a steady rate; it has no start-up to speak of."""
    context = multiprocessing.get_context("spawn")
    marks: Any = context.SimpleQueue()
    paths = [item.path for item in FolderSource(source).items()][:320]
    process = context.Process(target=side, args=(paths, backbone, marks))
    process.start()
    found = marks.get()
    process.join()
    return {"rate": rate_of(found)}


if __name__ == "__main__":
    main()
