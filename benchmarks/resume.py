"""Measure running a finished job again, and check that a resumed job embeds nothing twice.

python -m benchmarks.resume [--images 100000]

Images are small and drawn, and the network is small, so that building the store takes minutes; the
times measured afterwards depend only on the number of images. The interrupted job is one whose
process group was killed half-way; none of its finished parts may be written again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.output import write_result

LOOKALIKE = str(Path(sys.executable).with_name("lookalike"))


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100_000)
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as scratch:
        small_photos, photos = (
            photos_of_many(Path(scratch, "small"), 48),
            photos_of_many(Path(scratch, "all"), images),
        )
        start = _timed(_words(small_photos, Path(scratch, "start")))
        words = _words(photos, Path(scratch, "store"))
        killed_parts = _killed_halfway(words, Path(scratch, "store"), images)
        remaining_seconds = _timed(words)
        finished_seconds = [_timed(words) for _ in range(3)]
        answer = {
            "images": images,
            "whole_job_of_48_images_seconds": start,
            "parts_when_killed": len(killed_parts),
            "parts_embedded_again": sum(
                path.stat().st_mtime_ns != mtime for path, mtime in killed_parts.items()
            ),
            "rest_seconds": remaining_seconds,
            "finished_again_seconds": sorted(finished_seconds),
            "verify_seconds": _timed([LOOKALIKE, "verify", f"{scratch}/store"]),
        }
    write_result("resume", **answer)


def photos_of_many(root: Path, count: int) -> Path:
    """Create a folder of `count` images, hard links to 64 drawn ones; return its path."""
    originals = root.with_name(f"{root.name}-drawn")
    originals.mkdir(parents=True)
    for colour in range(64):
        Image.new("RGB", (40, 40), (colour * 4, 128, 255 - colour)).save(
            originals / f"{colour}.png"
        )
    for number in range(count):
        folder = root / f"class{number % 100:02}"
        if number < 100:
            folder.mkdir(parents=True)
        os.link(originals / f"{number % 64}.png", folder / f"{number:07}.png")
    return root


def _words(photos: Path, output: Path) -> list[str]:
    return [
        LOOKALIKE, "embed", "--input", str(photos), "--output", str(output),
        "--backbone", "scratch", "--weights", "random", "--image-size", "32",
    ]  # fmt: skip


def _killed_halfway(words: list[str], output: Path, images: int) -> dict[Path, int]:
    """Kill the process group when half of the parts exist; return these with their mtimes in ns."""
    parts = output / "segments/00000/parts"
    listing = output / "segments/00000/segment.json"
    job: Any = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not listing.is_file():
        time.sleep(0.1)
    chunk = json.loads(listing.read_bytes())["chunk_rows"]
    while len(list(parts.glob("0*.parquet"))) < images / chunk / 2:
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    time.sleep(10)  # workers that are still running may write another part
    return {path: path.stat().st_mtime_ns for path in parts.glob("0*.parquet")}


def _timed(words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return round(time.perf_counter() - started, 2)


if __name__ == "__main__":
    main()
