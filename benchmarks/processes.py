"""Measure the processor time of every process while a job embeds.

python -m benchmarks.processes [--photos DIR] [--backbone mobilenet_v2] [--images 4096]

During one `lookalike embed`, between 20 % and 80 % of its parts, the processor time of the workers,
the driver and each process of Ray is measured as a share of one core, and the worker time per image
in milliseconds. On a busy machine processor time is more reliable than rates, although other load
still competes for the caches.
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
_OUR_PROCESSES = {"MapWorker": "workers", "FailureLog": "failure log"}
_RAY_PROCESSES = ("raylet", "gcs_server", "log_monitor", "DashboardAgent", "AutoscalingCoordinator",
         "ActorLocationTracker", "StatsActor")  # fmt: skip


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--images", type=int, default=4096)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = photos_of(Path(scratch, "photos"), arguments.photos, arguments.images)
        words = ["--input", source, "--output", f"{scratch}/store",
                 "--backbone", arguments.backbone, "--weights", "random",
                 "--chunk-rows", str(CHUNK_ROWS), "--recipe", "plain"]  # fmt: skip
        job = subprocess.Popen([LOOKALIKE, "embed", *words], stderr=subprocess.DEVNULL)
        parts = Path(scratch, "store/segments/00000/parts")
        count = -(-arguments.images // CHUNK_ROWS)
        first, last = (_sample(job, parts, int(share * count)) for share in (_FIRST, _LAST))
        if job.wait():
            raise SystemExit("the embed stage failed")
    write_result(
        "processes", backbone=arguments.backbone, images=arguments.images, **_shares(first, last)
    )


def _sample(job: Any, parts: Path, part_count: int) -> tuple[float, int, Counter[str]]:
    """Wait for `part_count` parts; return the time, their number, and processor seconds by kind."""
    while job.poll() is None:
        finished = sum(path.suffix == ".parquet" for path in parts.glob("*"))
        if finished >= part_count:
            return time.perf_counter(), finished, _processor_seconds(psutil.Process(job.pid))
        time.sleep(0.05)
    raise SystemExit("the job ended before it could be measured")


def _processor_seconds(driver: psutil.Process) -> Counter[str]:
    """Return processor seconds by kind of process.

    Ray's daemons are not children of the driver, so all Ray processes started since it count.
    """
    seconds: Counter[str] = Counter()
    driver_start = driver.create_time()
    for process in psutil.process_iter():
        try:
            words, times = " ".join(process.cmdline()), process.cpu_times()
            started = process.create_time()
        except psutil.Error:
            continue
        if process.pid == driver.pid or (started >= driver_start and "ray" in words):
            kind = _kind(words, process.pid == driver.pid)
            seconds[kind] += times.user + times.system  # type: ignore[assignment]
    return seconds


def _kind(words: str, is_driver: bool) -> str:
    if is_driver:
        return "driver"
    names = [name for pattern, name in _OUR_PROCESSES.items() if pattern in words]
    names += [name for name in _RAY_PROCESSES if name in words]
    return names[0] if names else "others"


def _shares(
    first: tuple[float, int, Counter[str]], last: tuple[float, int, Counter[str]]
) -> dict[str, Any]:
    seconds, images = last[0] - first[0], CHUNK_ROWS * (last[1] - first[1])
    spent = {name: last[2][name] - first[2][name] for name in last[2]}
    order = sorted(spent, key=lambda name: -spent[name])
    other_seconds = sum(spent.values()) - spent["workers"]
    return {
        "images_a_second": round(images / seconds, 1),
        "milliseconds_an_image": round(1000 * spent["workers"] / images, 2),
        "percent_of_a_core": {name: round(100 * spent[name] / seconds, 1) for name in order},
        "percent_of_workers_beside": round(100 * other_seconds / spent["workers"], 1),
    }


if __name__ == "__main__":
    main()
