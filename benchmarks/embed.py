"""The embed stage on Ray against a plain loop that does the same without it.

The loop is as many plain processes as Ray has workers, one thread each, that call the very
`embed_chunk` on the same chunks of the same listing. Steady state is the rate between the first and
the last finished chunk, so that start-up drops out of both; it is stated apart. Runs alternate.

    python -m benchmarks.embed [--images 2048] [--runs 5] [--backbone mobilenet_v2]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from retrieval.embeddings.store import LISTING
from retrieval.images.chunks import chunks
from retrieval.images.listing import write_listing
from retrieval.images.sources.folder import FolderSource
from retrieval.model.bundle import read_bundle, write_bundle
from retrieval.model.resolve import resolve_bundle
from retrieval.samples import write_samples
from retrieval.storage.files import open_folder

CHUNK_ROWS = 64
WORKERS = os.cpu_count() or 1


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--backbone", default="mobilenet_v2")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_samples(root / "samples", gallery=asked.images // 12 * 12, queries=12)
        source = str(root / "samples/gallery")
        pairs = []
        for number in range(asked.runs):
            ray = _with_ray(source, str(root / f"ray{number}"), asked.backbone)
            loop = _plain_loop(source, str(root / f"loop{number}"), asked.backbone)
            pairs.append((ray, loop))
            print(json.dumps({"ray": ray, "loop": loop}), flush=True)
    ratios = [ray["rate"] / loop["rate"] for ray, loop in pairs]
    answer = {
        "benchmark": "embed",
        "backbone": asked.backbone,
        "images": asked.images // 12 * 12,
        "workers": WORKERS,
        "ratio_steady": statistics.median(ratios),
        "ratio_steady_range": [min(ratios), max(ratios)],
        "ratio_total": statistics.median(loop["total"] / ray["total"] for ray, loop in pairs),
        "ray_images_per_second": statistics.median(ray["rate"] for ray, _ in pairs),
        "loop_images_per_second": statistics.median(loop["rate"] for _, loop in pairs),
        "ray_first_chunk_seconds": statistics.median(ray["first"] for ray, _ in pairs),
        "loop_first_chunk_seconds": statistics.median(loop["first"] for _, loop in pairs),
    }
    print(json.dumps(answer, indent=1))


def _with_ray(source: str, output: str, backbone: str) -> dict[str, float]:
    """Run the stage as a command does, in a process of its own, and look at its parts' times."""
    started = time.time()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_embed, args=(source, output, backbone))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("the embed stage failed")
    return _rates(output, started)


def _embed(source: str, output: str, backbone: str) -> None:
    from jobs.embed import start
    from jobs.settings import EmbedSettings

    start(
        EmbedSettings(
            input=source, output=output, backbone=backbone, weights="random",
            chunk_rows=CHUNK_ROWS, workers=WORKERS,
        )
    )  # fmt: skip


def _plain_loop(source: str, output: str, backbone: str) -> dict[str, float]:
    started = time.time()
    folder = open_folder(output)
    bundle = resolve_bundle(
        backbone=backbone, weights="random", bundle=None, pooling="avg", normalize=True,
        image_size=None, resize="crop", seed=0,
    )  # fmt: skip
    write_bundle(folder, bundle)
    listing = Path(output) / "listing"
    rows, _ = write_listing(FolderSource(source).items(), listing, chunk_rows=CHUNK_ROWS)
    folder.put_new_file(LISTING, lambda name: _copy(listing, name))
    context = multiprocessing.get_context("spawn")
    todo: Any = context.Queue()
    for chunk in chunks(rows, CHUNK_ROWS):
        todo.put(chunk)
    for _ in range(WORKERS):
        todo.put(None)
    processes = [context.Process(target=_work, args=(output, todo)) for _ in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return _rates(output, started)


def _copy(source: Path, target: str) -> None:
    Path(target).write_bytes(source.read_bytes())


def _work(output: str, todo: Any) -> None:
    from retrieval.model.embed_chunk import Decoding, embed_chunk
    from retrieval.model.embedding import Embedder

    os.nice(15)  # as Ray's workers are
    folder = open_folder(output)
    embedder = Embedder(read_bundle(folder), 8)
    decoding = Decoding(1 << 30, "float16")
    while (chunk := todo.get()) is not None:
        embed_chunk(chunk, folder, embedder, decoding)


def _rates(output: str, started: float) -> dict[str, float]:
    """Read from the parts' times how fast they came."""
    parts = Path(output, "segments/00000/parts").glob("*.parquet")
    times = sorted(part.stat().st_mtime for part in parts)
    # the first of each worker is left out: it ends in the middle of a start-up
    rate = CHUNK_ROWS * (len(times) - 1 - WORKERS) / (times[-2] - times[WORKERS - 1])
    return {"rate": rate, "first": times[0] - started, "total": times[-1] - started}


if __name__ == "__main__":
    main()
