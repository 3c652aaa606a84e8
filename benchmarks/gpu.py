"""Measure embedding on a GPU, from photos on disk to a store, against the network alone.

python -m benchmarks.gpu [--backbones resnet50 vit_b_16] [--photos DIR] [--images 20000]
                         [--device cuda] [--precision bf16] [--runs 3]

The network alone runs on one batch that lies on the device already, without normalising or copying:
nothing that reads photos can be faster. `decode` is what the cores beside it decode, all of them.
End to end is the steady rate of `lookalike embed`. For ranking on a GPU: `benchmarks.rank --device
cuda`. Where there is no GPU it ends with a sentence; `--device cpu` shows that it works.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.embed import CHUNK_ROWS, bundle_of, photos_of, rate_of
from benchmarks.machine import machine
from benchmarks.output import write_result
from benchmarks.sides import spread
from retrieval.models.engine_plan import plan_engine
from retrieval.models.engines import build_network

LOOKALIKE = str(Path(sys.executable).with_name("lookalike"))
_SECONDS = 3.0  # of each measure of the network alone


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "vit_b_16"])
    parser.add_argument("--photos")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --device cpu runs the same lines on a processor")
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        photos = photos_of(Path(scratch, "photos"), asked.photos, asked.images)
        for name in asked.backbones:
            runs = [
                (_alone(name, asked), _end_to_end(name, asked, photos, f"{scratch}/{name}{run}"))
                for run in range(asked.runs)
            ]
            found[name] = {
                "network_alone": spread([alone for alone, _ in runs]),
                "end_to_end": spread([whole for _, whole in runs]),
                "share": spread([whole / alone for alone, whole in runs]),
            }
    decoded = machine()["peaks"][f"threads {os.cpu_count()}"]["decoded_photos"]
    write_result(
        "gpu", device=asked.device, precision=asked.precision, decode=decoded, backbones=found
    )


def _alone(backbone: str, asked: argparse.Namespace) -> float:
    """Give images a second of the network, in eager torch as the engine has it."""
    plan = plan_engine("torch", asked.precision, asked.device, None, gpus=asked.device == "cuda")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[plan.precision]
    body = build_network(bundle_of(backbone)).body.to(asked.device, dtype)
    body = body.to(memory_format=torch.channels_last)
    batch = torch.randn(plan.batch_size, 3, 224, 224, device=asked.device, dtype=dtype)
    batch = batch.contiguous(memory_format=torch.channels_last)

    def run(count: int) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            for _ in range(count):
                body(batch)
        if asked.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    run(3)
    count = max(3, int(_SECONDS / run(1)))
    return len(batch) * count / run(count)


def _end_to_end(backbone: str, asked: argparse.Namespace, photos: str, output: str) -> float:
    words: list[Any] = [
        "--input", photos, "--output", output, "--backbone", backbone, "--weights", "random",
        "--device", asked.device, "--precision", asked.precision, "--chunk-rows", CHUNK_ROWS,
    ]  # fmt: skip
    subprocess.run([LOOKALIKE, "embed", *map(str, words)], check=True, capture_output=True)
    parts = Path(output, "segments/00000/parts").glob("*.parquet")
    return rate_of([(part.stat().st_mtime, CHUNK_ROWS) for part in parts])


if __name__ == "__main__":
    main()
