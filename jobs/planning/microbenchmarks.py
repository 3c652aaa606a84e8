"""Microbenchmarks of matrix products and thumbnails on one worker, about a second each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_TRIES = 3


def time_products_and_thumbnails(
    dimension: int, metric: Any, top_k: int, paths: Sequence[str], max_pixels: int, _: int
) -> dict[str, Any]:
    """Time the house's own products and thumbnails; a worker does this."""
    from retrieval.index.kmeans import assignment_metric
    from retrieval.vectors.scoring import block
    from retrieval.vectors.topk import TopK, nearest_centroids

    began = time.perf_counter()
    from retrieval.report.thumbnails import read_thumbnails  # loads torch

    read_thumbnails(paths[:2], max_pixels=max_pixels, threads=1)
    loaded = time.perf_counter() - began

    generator = np.random.default_rng(0)
    rows, queries = (generator.normal(size=(n, dimension)).astype(np.float32) for n in (8192, 512))
    kind = assignment_metric(metric)
    lists = block(queries[:256], kind)
    placed = _median_seconds(lambda: nearest_centroids(block(rows, kind), lists))
    places = np.arange(len(rows))

    def compare() -> None:
        best = TopK(block(queries, metric), min(top_k, len(rows)))
        best.push(block(rows, metric), places, places)

    compared = _median_seconds(compare)
    began = time.perf_counter()
    made = read_thumbnails(paths, max_pixels=max_pixels, threads=1)
    shown = (time.perf_counter() - began) / max(1, len(paths))
    return {
        "seconds": {"placed": placed / (len(rows) * 256), "compared":
                    compared / (len(rows) * len(queries)), "thumbnail": shown, "show": loaded},
        "picture": sum(map(len, made.values())) / max(1, len(made)),
    }  # fmt: skip


def _median_seconds(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
