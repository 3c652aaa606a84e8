"""Pooling, projection and metric: how well each combination retrieves, from one store's vectors.

The store holds what a network gave, not normalised; where the poolings stand side by side, each is
some of the columns. What cosine compares has no length. After a projection all vectors have unit
length and the three metrics agree, so it is measured with cosine alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval.core.schemas import Metric
from retrieval.evaluation.leave_one_out import askable, classes_of, leave_one_out
from retrieval.evaluation.results import gather, measured
from retrieval.index.sampling import hashes_of
from retrieval.listing.listing import sampled_rows
from retrieval.store.reader import Store, vectors_of
from retrieval.vectors.float_conversions import to_float32
from retrieval.vectors.scoring import Float32, Int64, block, slices

MEASURES = ("top1", "top3", "top10", "map")
_METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")
_FITTED = 1024  # vectors brought to unit length at once


@dataclass(frozen=True)
class Trial:
    """What is measured of a store, and how.

    `widths` are the numbers of each pooling, in the order of their columns. `projected` is what the
    store's bundle has projected already: cosine compares that alone. `sample` is how many images a
    projection is fitted on, `most` how many queries are asked.
    """

    store: Store
    widths: dict[str, int]
    pca: int | None
    projected: int | None
    sample: int
    most: int
    seed: int


@dataclass(frozen=True)
class Images:
    """The images of a store with the vectors of one pooling, (n, d) float32."""

    rows: Int64
    ids: pa.Array
    labels: pa.Array
    vectors: Float32


def measure(trial: Trial, pooling: str, alive: Callable[[], None]) -> list[dict[str, Any]]:
    """Measure a pooling with each projection and metric; a dict of figures each.

    None where no two images of a class have a vector.
    In memory are the vectors of one pooling, as they are and projected, and a block of rankings.
    """
    images = _images(trial, pooling)
    queries = asked(images.ids, classes_of(images.labels), trial.most, trial.seed)
    found: list[dict[str, Any]] = []
    for pca, metrics in _steps(trial, images) if len(queries) else ():
        vectors = images.vectors if pca is None or trial.projected else _project(trial, images, pca)
        for metric in metrics:
            ready = block(vectors, metric)
            parts = leave_one_out(ready, images.ids, images.labels, queries, alive)
            results = gather(parts, MEASURES)
            figures: dict[str, Any] = {
                "pooling": pooling, "pca": pca, "metric": metric, "dimension": vectors.shape[1],
                "queries": len(queries), "images": len(vectors),
            }  # fmt: skip
            for each in measured(results):
                ends = (each.low, each.high) if each.has_interval else (None, None)
                figures[each.key] = each.value
                figures[f"{each.key}_low"], figures[f"{each.key}_high"] = ends
            found.append(figures)
    return found


def _steps(trial: Trial, images: Images) -> list[tuple[int | None, tuple[Metric, ...]]]:
    """Give each projection with its metrics; one that would leave nothing out is skipped."""
    if trial.projected:
        return [(trial.projected, ("cosine",))]
    fitted = min(len(images.rows), trial.sample)
    if trial.pca is None or trial.pca >= min(images.vectors.shape[1], fitted):
        return [(None, _METRICS)]
    return [(None, _METRICS), (trial.pca, ("cosine",))]


def asked(image_ids: pa.Array, classes: Int64, most: int, seed: int) -> Int64:
    """Give the places of the queries, ascending: all that can be, or those of the least hashes."""
    places = askable(classes)
    if len(places) <= most:
        return places
    hashes = hashes_of(image_ids.take(pa.array(places)).to_pylist(), seed, "compare")
    return np.sort(places[np.argsort(hashes, kind="stable")[:most]])


def _images(trial: Trial, pooling: str) -> Images:
    names = list(trial.widths)
    ends = np.cumsum(list(trial.widths.values()))
    last = int(ends[names.index(pooling)])
    first = last - trial.widths[pooling]
    tables, vectors = [], []
    for table in trial.store.blocks():
        tables.append(table.select(["row", "image_id", "label"]))
        vectors.append(vectors_of(table)[:, first:last].astype(np.float32))
    lines = pa.concat_tables(tables)
    return Images(
        lines["row"].to_numpy().astype(np.int64), lines["image_id"].combine_chunks(),
        lines["label"].combine_chunks(), np.concatenate(vectors),
    )  # fmt: skip


def _project(trial: Trial, images: Images, pca: int) -> Float32:
    """Do what `embed --pca` does: fit on the same sample, L2, PCA, L2."""
    from retrieval.models.embedder import finish
    from retrieval.models.pca import Moments, unit

    drawn = sampled_rows(trial.store.span, trial.sample, trial.seed)
    chosen = images.vectors[np.isin(images.rows, drawn)]
    moments = Moments(images.vectors.shape[1])
    for part in slices(len(chosen), _FITTED):
        moments.add(to_float32(unit(chosen[part])))
    projection = moments.fit(pca)
    return finish(images.vectors, normalize=True, projection=projection)
