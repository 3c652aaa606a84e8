"""Microbenchmarks of matrix products and thumbnails on one worker, about a second each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_REPEATS = 3


def time_products_and_thumbnails(
    dimension: int, metric: Any, top_k: int, paths: Sequence[str], max_pixels: int, _: int
) -> dict[str, Any]:
    """Time matrix products and thumbnails on a worker.

    `dimension`, `metric` and `top_k` are those of the job, `paths` are images for thumbnails.
    Returns seconds per unit, and the mean size of a thumbnail in bytes (`picture`).
    """
    from retrieval.index.kmeans import assignment_metric
    from retrieval.vectors.scoring import block
    from retrieval.vectors.topk import TopK, nearest_centroids

    started = time.perf_counter()
    from retrieval.report.thumbnails import read_thumbnails  # loads torch

    read_thumbnails(paths[:2], max_pixels=max_pixels, threads=1)
    load_seconds = time.perf_counter() - started

    generator = np.random.default_rng(0)
    rows, queries = (generator.normal(size=(n, dimension)).astype(np.float32) for n in (8192, 512))
    kind = assignment_metric(metric)
    lists = block(queries[:256], kind)
    assign_seconds = _median_seconds(lambda: nearest_centroids(block(rows, kind), lists))
    row_numbers = np.arange(len(rows))

    def compare() -> None:
        best = TopK(block(queries, metric), min(top_k, len(rows)))
        best.push(block(rows, metric), row_numbers, row_numbers)

    compare_seconds = _median_seconds(compare)
    started = time.perf_counter()
    thumbnails = read_thumbnails(paths, max_pixels=max_pixels, threads=1)
    thumbnail_seconds = (time.perf_counter() - started) / max(1, len(paths))
    return {
        "seconds": {
            "placed": assign_seconds / (len(rows) * 256),
            "compared": compare_seconds / (len(rows) * len(queries)),
            "thumbnail": thumbnail_seconds,
            "show": load_seconds,
        },
        "picture": sum(map(len, thumbnails.values())) / max(1, len(thumbnails)),
    }


def _median_seconds(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
