"""Measure waiting times: --help, the first image, a finished job run again, verify.

python -m benchmarks.start [--runs 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.output import write_result
from retrieval.samples import write_samples

LOOKALIKE = str(Path(sys.executable).with_name("lookalike"))


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--backbone", default="mobilenet_v2")
    arguments = parser.parse_args()
    help_seconds = [_timed("--help") for _ in range(arguments.runs)]
    first_image, embed_seconds, finished_seconds, verify_seconds = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_samples(root / "samples", gallery=48, queries=12)
        for number in range(arguments.runs):
            output = root / f"out{number}"
            words = [
                "embed", "--input", str(root / "samples/gallery"), "--output", str(output),
                "--backbone", arguments.backbone, "--weights", "random",
            ]  # fmt: skip
            embed_seconds.append(_timed(*words))
            finished_seconds.append(_timed(*words))
            verify_seconds.append(_timed("verify", str(output)))
            started = time.time()
            _timed(*words, "--overwrite", "--chunk-rows", "1")
            parts = (output / "segments/00000/parts").glob("*.parquet")
            first_image.append(min(part.stat().st_mtime for part in parts) - started)
    result = {
        "help_seconds": statistics.median(help_seconds),
        "first_image_seconds": statistics.median(first_image),
        "first_image_seconds_range": [min(first_image), max(first_image)],
        "embed_48_images_seconds": statistics.median(embed_seconds),
        "embed_48_images_seconds_range": [min(embed_seconds), max(embed_seconds)],
        "finished_again_seconds": statistics.median(finished_seconds),
        "verify_seconds": statistics.median(verify_seconds),
    }
    write_result("start", **result)


def _timed(*words: str) -> float:
    started = time.perf_counter()
    subprocess.run([LOOKALIKE, *words], check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
