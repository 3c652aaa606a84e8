"""Measure the processor time of every process while a job embeds.

python -m benchmarks.processes [--photos DIR] [--backbone mobilenet_v2] [--images 4096]

One `lookalike embed`; between a fifth and four fifths of its parts each process' processor time is
taken, as a share of one core (`workers` together, the driver, and what Ray runs beside them), and
what an image takes of a worker in milliseconds. Processor time is sound on a busy machine, where
rates are not; but others take the caches.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.embed import CHUNK_ROWS, photos_of
from benchmarks.output import write_result

LOOKALIKE = str(Path(sys.executable).with_name("lookalike"))
_FIRST, _LAST = 0.2, 0.8  # of the parts
_OURS = {"MapWorker": "workers", "FailureLog": "failure log"}
_RAYS = ("raylet", "gcs_server", "log_monitor", "DashboardAgent", "AutoscalingCoordinator",
         "ActorLocationTracker", "StatsActor")  # fmt: skip


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--images", type=int, default=4096)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = photos_of(Path(scratch, "photos"), asked.photos, asked.images)
        words = ["--input", source, "--output", f"{scratch}/store", "--backbone", asked.backbone,
                 "--weights", "random", "--chunk-rows", str(CHUNK_ROWS)]  # fmt: skip
        job = subprocess.Popen([LOOKALIKE, "embed", *words], stderr=subprocess.DEVNULL)
        parts = Path(scratch, "store/segments/00000/parts")
        count = -(-asked.images // CHUNK_ROWS)
        first, last = (_looked_at(job, parts, int(share * count)) for share in (_FIRST, _LAST))
        if job.wait():
            raise SystemExit("the embed stage failed")
    write_result("processes", backbone=asked.backbone, images=asked.images, **_shares(first, last))


def _looked_at(job: Any, parts: Path, wanted: int) -> tuple[float, int, Counter[str]]:
    """Wait for so many parts; the time, how many there are, and what each kind has taken."""
    while job.poll() is None:
        there = sum(path.suffix == ".parquet" for path in parts.glob("*"))
        if there >= wanted:
            return time.perf_counter(), there, _taken(psutil.Process(job.pid))
        time.sleep(0.05)
    raise SystemExit("it ended before it could be looked at")


def _taken(driver: psutil.Process) -> Counter[str]:
    """Add up by kind; Ray's daemons are nobody's children, so all that began since count."""
    found: Counter[str] = Counter()
    since = driver.create_time()
    for process in psutil.process_iter():
        try:
            words, times = " ".join(process.cmdline()), process.cpu_times()
            began = process.create_time()
        except psutil.Error:
            continue
        if process.pid == driver.pid or (began >= since and "ray" in words):
            kind = _kind(words, process.pid == driver.pid)
            found[kind] += times.user + times.system  # type: ignore[assignment]
    return found


def _kind(words: str, is_driver: bool) -> str:
    if is_driver:
        return "driver"
    known = [said for mark, said in _OURS.items() if mark in words]
    known += [name for name in _RAYS if name in words]
    return known[0] if known else "others"


def _shares(
    first: tuple[float, int, Counter[str]], last: tuple[float, int, Counter[str]]
) -> dict[str, Any]:
    seconds, images = last[0] - first[0], CHUNK_ROWS * (last[1] - first[1])
    spent = {name: last[2][name] - first[2][name] for name in last[2]}
    order = sorted(spent, key=lambda name: -spent[name])
    beside = sum(spent.values()) - spent["workers"]
    return {
        "images_a_second": round(images / seconds, 1),
        "milliseconds_an_image": round(1000 * spent["workers"] / images, 2),
        "percent_of_a_core": {name: round(100 * spent[name] / seconds, 1) for name in order},
        "percent_of_workers_beside": round(100 * beside / spent["workers"], 1),
    }


if __name__ == "__main__":
    main()
