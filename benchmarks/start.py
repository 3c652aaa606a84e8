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
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--backbone", default="mobilenet_v2")
    asked = parser.parse_args()
    help_seconds = [_timed("--help") for _ in range(asked.runs)]
    first, whole, again, verified = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_samples(root / "samples", gallery=48, queries=12)
        for number in range(asked.runs):
            output = root / f"out{number}"
            words = [
                "embed", "--input", str(root / "samples/gallery"), "--output", str(output),
                "--backbone", asked.backbone, "--weights", "random",
            ]  # fmt: skip
            whole.append(_timed(*words))
            again.append(_timed(*words))
            verified.append(_timed("verify", str(output)))
            began = time.time()
            _timed(*words, "--overwrite", "--chunk-rows", "1")
            parts = (output / "segments/00000/parts").glob("*.parquet")
            first.append(min(part.stat().st_mtime for part in parts) - began)
    answer = {
        "help_seconds": statistics.median(help_seconds),
        "first_image_seconds": statistics.median(first),
        "first_image_seconds_range": [min(first), max(first)],
        "embed_48_images_seconds": statistics.median(whole),
        "embed_48_images_seconds_range": [min(whole), max(whole)],
        "finished_again_seconds": statistics.median(again),
        "verify_seconds": statistics.median(verified),
    }
    write_result("start", **answer)


def _timed(*words: str) -> float:
    began = time.perf_counter()
    subprocess.run([LOOKALIKE, *words], check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
