"""Measure embedding on a GPU, from photos on disk to a store, against the network alone.

python -m benchmarks.gpu [--backbones resnet50 vit_b_16] [--photos DIR] [--images 20000]
                         [--device cuda] [--precision bf16] [--runs 3]

The network alone runs on one batch that is already on the device, without normalising or copying;
this bounds the rate of any stage that reads photos. `decode` is the rate at which all CPU cores
decode. End to end is the steady rate of `lookalike embed`. For ranking on a GPU see
`benchmarks.rank --device cuda`. Without a GPU the command stops with a message; `--device cpu`
tests it on a CPU.
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
_SECONDS = 3.0  # duration of each measurement of the network alone


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "vit_b_16"])
    parser.add_argument("--photos")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU was found; use --device cpu to run the same code on a CPU")
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        photos = photos_of(Path(scratch, "photos"), arguments.photos, arguments.images)
        for name in arguments.backbones:
            runs = [
                (
                    _network_rate(name, arguments),
                    _embed_rate(name, arguments, photos, f"{scratch}/{name}{run}"),
                )
                for run in range(arguments.runs)
            ]
            results[name] = {
                "network_alone": spread([network_rate for network_rate, _ in runs]),
                "end_to_end": spread([rate for _, rate in runs]),
                "share": spread([rate / network_rate for network_rate, rate in runs]),
            }
    decode_rate = machine()["peaks"][f"threads {os.cpu_count()}"]["decoded_photos"]
    write_result(
        "gpu",
        device=arguments.device,
        precision=arguments.precision,
        decode=decode_rate,
        backbones=results,
    )


def _network_rate(backbone: str, arguments: argparse.Namespace) -> float:
    """Return images per second of the network alone, in eager torch like the engine."""
    plan = plan_engine(
        "torch", arguments.precision, arguments.device, None, gpus=arguments.device == "cuda"
    )
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[plan.precision]
    body = build_network(bundle_of(backbone)).body.to(arguments.device, dtype)
    body = body.to(memory_format=torch.channels_last)
    batch = torch.randn(plan.batch_size, 3, 224, 224, device=arguments.device, dtype=dtype)
    batch = batch.contiguous(memory_format=torch.channels_last)

    def run(count: int) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            for _ in range(count):
                body(batch)
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    run(3)
    count = max(3, int(_SECONDS / run(1)))
    return len(batch) * count / run(count)


def _embed_rate(backbone: str, arguments: argparse.Namespace, photos: str, output: str) -> float:
    words: list[Any] = [
        "--input", photos, "--output", output, "--backbone", backbone, "--weights", "random",
        "--device", arguments.device, "--precision", arguments.precision,
        "--chunk-rows", CHUNK_ROWS, "--recipe", "plain",
    ]  # fmt: skip
    subprocess.run([LOOKALIKE, "embed", *map(str, words)], check=True, capture_output=True)
    parts = Path(output, "segments/00000/parts").glob("*.parquet")
    return rate_of([(part.stat().st_mtime, CHUNK_ROWS) for part in parts])


if __name__ == "__main__":
    main()
