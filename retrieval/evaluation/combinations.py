"""Measure how well each combination of pooling, projection and metric retrieves, from one store.

The store holds unnormalised network outputs; several poolings are stored side by side as column
ranges. Projected vectors have unit length, for which the three metrics rank equally, so only cosine
is measured after a projection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval.core.schemas import Metric
from retrieval.evaluation.leave_one_out import class_numbers, eligible_queries, leave_one_out
from retrieval.evaluation.results import measure_rankings, summarize
from retrieval.index.sampling import hash_image_ids
from retrieval.listing.listing import sample_rows
from retrieval.store.reader import Store, read_vectors
from retrieval.vectors.float_conversions import to_float32
from retrieval.vectors.scoring import Float32, Int64, block, split_range

MEASURES = ("top1", "top3", "top10", "map")
_METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")
_NORMALIZE_ROWS = 1024  # vectors normalised at once


@dataclass(frozen=True)
class Trial:
    """The store to measure, and the settings of the measurement.

    `widths` are the dimensions of the poolings, in column order. `projected` is the dimension of
    the bundle's own projection, None without one. `pca` is the dimension of the projection to try,
    `sample` the number of images it is fitted on, `max_queries` the maximum number of queries.
    """

    store: Store
    widths: dict[str, int]
    pca: int | None
    projected: int | None
    sample: int
    max_queries: int
    seed: int


@dataclass(frozen=True)
class PoolingVectors:
    """The n images of a store with the vectors of one pooling, (n, d) float32."""

    rows: Int64
    ids: pa.Array
    labels: pa.Array
    vectors: Float32


def measure_combinations(
    trial: Trial, pooling: str, heartbeat: Callable[[], None]
) -> list[dict[str, Any]]:
    """Measure a pooling with each projection and metric; return one dict of figures for each.

    The list is empty where no two images of a class have a vector. Memory holds the vectors of one
    pooling, unprojected and projected, and a block of rankings.
    """
    images = _images(trial, pooling)
    queries = sample_queries(
        images.ids, class_numbers(images.labels), trial.max_queries, trial.seed
    )
    results: list[dict[str, Any]] = []
    for pca, metrics in _steps(trial, images) if len(queries) else ():
        vectors = images.vectors if pca is None or trial.projected else _project(trial, images, pca)
        for metric in metrics:
            prepared = block(vectors, metric)
            parts = leave_one_out(prepared, images.ids, images.labels, queries, heartbeat)
            measured = measure_rankings(parts, MEASURES)
            figures: dict[str, Any] = {
                "pooling": pooling, "pca": pca, "metric": metric, "dimension": vectors.shape[1],
                "queries": len(queries), "images": len(vectors),
            }  # fmt: skip
            for measure in summarize(measured):
                ends = (measure.low, measure.high) if measure.has_interval else (None, None)
                figures[measure.key] = measure.value
                figures[f"{measure.key}_low"], figures[f"{measure.key}_high"] = ends
            results.append(figures)
    return results


def _steps(trial: Trial, images: PoolingVectors) -> list[tuple[int | None, tuple[Metric, ...]]]:
    """Return each projection with its metrics; a projection that reduces nothing is skipped."""
    if trial.projected:
        return [(trial.projected, ("cosine",))]
    sample_size = min(len(images.rows), trial.sample)
    if trial.pca is None or trial.pca >= min(images.vectors.shape[1], sample_size):
        return [(None, _METRICS)]
    return [(None, _METRICS), (trial.pca, ("cosine",))]


def sample_queries(image_ids: pa.Array, classes: Int64, max_queries: int, seed: int) -> Int64:
    """Return the ascending positions of the `max_queries` queries with the smallest hashes."""
    positions = eligible_queries(classes)
    if len(positions) <= max_queries:
        return positions
    hashes = hash_image_ids(image_ids.take(pa.array(positions)).to_pylist(), seed, "compare")
    return np.sort(positions[np.argsort(hashes, kind="stable")[:max_queries]])


def _images(trial: Trial, pooling: str) -> PoolingVectors:
    names = list(trial.widths)
    ends = np.cumsum(list(trial.widths.values()))
    last = int(ends[names.index(pooling)])
    first = last - trial.widths[pooling]
    tables, vectors = [], []
    for table in trial.store.blocks():
        tables.append(table.select(["row", "image_id", "label"]))
        vectors.append(read_vectors(table)[:, first:last].astype(np.float32))
    rows = pa.concat_tables(tables)
    return PoolingVectors(
        rows["row"].to_numpy().astype(np.int64), rows["image_id"].combine_chunks(),
        rows["label"].combine_chunks(), np.concatenate(vectors),
    )  # fmt: skip


def _project(trial: Trial, images: PoolingVectors, pca: int) -> Float32:
    """Fit and apply the projection of `embed --pca`: same sample, L2 norm, PCA, L2 norm."""
    from retrieval.models.embedder import finish_vectors
    from retrieval.models.pca import StreamingMoments
    from retrieval.vectors.normalize import normalize_rows

    sample_numbers = sample_rows(trial.store.span, trial.sample, trial.seed)
    sample = images.vectors[np.isin(images.rows, sample_numbers)]
    moments = StreamingMoments(images.vectors.shape[1])
    for part in split_range(len(sample), _NORMALIZE_ROWS):
        moments.add(to_float32(normalize_rows(sample[part])))
    projection = moments.fit(pca)
    return finish_vectors(images.vectors, normalize=True, projection=projection)
