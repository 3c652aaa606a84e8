"""Measure small commands against a plain script that does the same in one process.

The plain script loads the weights, converts the network for OpenVINO, and reads, decodes and embeds
the photos with the functions of lookalike; it lists and writes nothing. `embed` has as many photos,
`run` ranks 8 photos against 8. The commands and the script run in turn, each as a new process.
Seconds, and processor seconds of all processes, are medians; the profile is that of the last run.

    python -m benchmarks.startup --photos DIR [--weights FILE] [--images 48] [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.embed import photos_of
from benchmarks.output import write_result

LOOKALIKE = str(Path(sys.executable).with_name("lookalike"))
_RUN_IMAGES = 8  # of the gallery and of the queries of `run`

_PLAIN_SCRIPT = """
import sys
from retrieval.embedding.embed_batch import DecodeSettings, embed_items
from retrieval.models.embedder import Embedder
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.engines import convert_bundle
from retrieval.models.resolve import resolve_bundle
from retrieval.sources.folder import FolderSource

bundle = resolve_bundle(
    backbone="mobilenet_v2", weights=sys.argv[2], bundle=None, pooling="avg", normalize=True,
    image_size=None, resize=None, seed=0,
)
plan = EnginePlan("openvino", "fp32", "cpu", 2)
embedder = Embedder(bundle, plan, convert_bundle(bundle, plan))
items = [
    {"row": row, "image_id": item.image_id, "path": item.path, "label": None}
    for row, item in enumerate(FolderSource(sys.argv[1]).items())
]
batches = list(embed_items(items, embedder, DecodeSettings(10**9, "float16")))
assert sum(len(batch.vectors) for batch in batches) == len(items)
"""


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", required=True)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        gallery = photos_of(Path(root, "gallery"), arguments.photos, arguments.images)
        small = photos_of(Path(root, "small"), arguments.photos, _RUN_IMAGES)
        model = ["--backbone", "mobilenet_v2", "--weights", arguments.weights]
        for number in range(arguments.runs):
            out = Path(root, f"out{number}")
            runs.append({
                "plain": timed(sys.executable, "-c", _PLAIN_SCRIPT, gallery, arguments.weights),
                "embed": timed(LOOKALIKE, "embed", "--input", gallery,
                                "--output", str(out / "store"), *model),
                "run": timed(LOOKALIKE, "run", "--gallery", small, "--queries", small,
                              "--output", str(out / "run"), *model),
            })  # fmt: skip
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
        profiles = {
            name: json.loads((out / folder / "run.json").read_text())["profile"]
            for name, folder in (("embed", "store"), ("run", "run"))
        }
    write_result(
        "startup", images=arguments.images, runs=len(runs), **_summarize(runs), profiles=profiles
    )


def timed(*command: str) -> dict[str, float]:
    """Return the seconds of a command, and the processor seconds of all its processes."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds, after = time.perf_counter() - started, os.times()
    processor = sum(after[2:4]) - sum(before[2:4])
    return {"seconds": round(seconds, 2), "processor_seconds": round(processor, 2)}


def _summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    def spread(values: list[float]) -> list[float]:
        return [round(statistics.median(values), 2), min(values), max(values)]

    seconds = {name: spread([run[name]["seconds"] for run in runs]) for name in runs[0]}
    return {
        "seconds": seconds,
        "processor_seconds": {
            name: spread([run[name]["processor_seconds"] for run in runs]) for name in runs[0]
        },
        "relative_to_plain": {
            name: spread([
                round(run[name]["seconds"] / run["plain"]["seconds"], 2) for run in runs
            ])
            for name in ("embed", "run")
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
