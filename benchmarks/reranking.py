"""Measure how much each method of re-ranking improves the ranking of the default recipe.

python -m benchmarks.reranking [--data DIR] [--networks NAME,...] [--cache DIR] [--step 1]

DIR holds `images/` (gallery, queries, labels.csv) and `weights/`; default: LOOKALIKE_DATA. Methods
are chosen on the gallery alone: every `step`-th photo is ranked against all others (leave-one-out).
The queries confirm them once. Vectors are squashed photos, gem pooling, PCA 256. Measures are mean
average precision over complete rankings and the share of right first matches; gains are paired by
query, with 95 % intervals, and `pooled` is the mean over the networks of each query. Nothing
depends on the load of the machine but the seconds.

SuperGlobal (Shao et al. 2023, arXiv 2308.06954) is measured here only, with its authors'
parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.output import write_result
from benchmarks.recipe_vectors import (
    Photos,
    View,
    embed_photos,
    finish,
    fit_projection,
    make_parser,
    read_photos,
)
from retrieval.core.confidence import difference_intervals
from retrieval.evaluation.measures import Values
from retrieval.evaluation.relevance import SCORED_MATCHES, RankingRelevance
from retrieval.evaluation.results import measure_rankings
from retrieval.search.reranking.rerank_block import METHODS
from retrieval.vectors.normalize import normalize_rows
from retrieval.vectors.scoring import Float64, Int64

_DIMENSIONS, _POOLING = 256, "gem"
_COUNTS = 100, 200  # re-ranked matches
_EXPANDED, _ALPHA = 5, 3.0  # matches that expand a query, and the power of their weights
_MEASURES = "map", "top1"
_NEIGHBOURS, _BETA = 9, 0.15  # of SuperGlobal: K and beta

Ranking = Callable[["Photographs", int, Int64], Int64]
"""From all photos, the position of a query and those of the gallery to the latter, best first."""


@dataclass(frozen=True)
class Photographs:
    """The photos of both sides, gallery first: unit vectors (n, d), their cosines, and labels."""

    vectors: Float64
    cosines: Float64
    labels: Any
    gallery: int  # number of photos of the gallery


def main() -> None:
    """Measure all methods with all networks and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument("--step", type=int, default=1)
    arguments = parser.parse_args()
    data, cache = arguments.data, arguments.cache
    gallery, queries = (read_photos(data, split) for split in ("gallery", "queries"))
    networks = {name: _embed(data, name, cache, gallery, queries) for name in arguments.networks}
    started = time.perf_counter()
    sides = {
        "gallery": range(0, len(gallery.paths), arguments.step),
        "queries": range(len(gallery.paths), len(gallery.paths) + len(queries.paths)),
    }
    results = {
        side: _compare({name: _measure_methods(photos, rows) for name, photos in networks.items()})
        for side, rows in sides.items()
    }
    write_result("reranking", **results, seconds=round(time.perf_counter() - started))


def _embed(data: Path, backbone: str, cache: Path, gallery: Photos, queries: Photos) -> Photographs:
    """Embed the photos of both sides; the PCA is fitted on the gallery."""
    sides = [
        embed_photos(data, backbone, View("squash"), side.paths, cache)[_POOLING]
        for side in (gallery, queries)
    ]
    projection = fit_projection(sides[0], _DIMENSIONS)
    vectors = normalize_rows(np.vstack([finish(side, projection) for side in sides]))
    labels = np.array(gallery.labels.to_pylist() + queries.labels.to_pylist())
    return Photographs(vectors, vectors @ vectors.T, labels, len(sides[0]))


def _methods() -> dict[str, Ranking]:
    """Return the measured methods by name."""
    methods: dict[str, Ranking] = {
        "none": _rank_by_cosine,
        f"expand:{_EXPANDED}": lambda photos, query, gallery: _best_first(
            _expanded_cosines(photos, query, gallery)[gallery], gallery
        ),
        f"superglobal:{_COUNTS[-1]}": _rank_by_superglobal,
    }
    for method in METHODS:
        for count in _COUNTS:
            methods[f"{method}:{count}"] = _reranking(method, count, expand=False)
        methods[f"expand:{_EXPANDED}, {method}:{count}"] = _reranking(method, count, expand=True)
    return methods


def _best_first(scores: Float64, positions: Int64) -> Int64:
    order: Int64 = positions[np.argsort(-scores, kind="stable")]
    return order


def _rank_by_cosine(photos: Photographs, query: int, gallery: Int64) -> Int64:
    return _best_first(photos.cosines[query, gallery], gallery)


def _expanded_cosines(photos: Photographs, query: int, gallery: Int64) -> Float64:
    """Return the cosines of the query, expanded by its first matches, to all photos."""
    best = _rank_by_cosine(photos, query, gallery)[:_EXPANDED]
    weights = np.maximum(photos.cosines[query, best], 0.0) ** _ALPHA
    members, weights = np.append(best, query), np.append(weights, 1.0)
    square = weights @ photos.cosines[np.ix_(members, members)] @ weights
    cosines: Float64 = weights @ photos.cosines[members] / np.sqrt(square)
    return cosines


def _reranking(method: Any, count: int, *, expand: bool) -> Ranking:
    """Return a ranking whose first `count` matches are ordered anew by a method of --rerank."""

    def rank(photos: Photographs, query: int, gallery: Int64) -> Int64:
        to_query = photos.cosines[query]
        if expand:
            to_query = _expanded_cosines(photos, query, gallery)
        order = _best_first(to_query[gallery], gallery)
        first = order[:count]
        cosines = np.empty((len(first) + 1, len(first) + 1))
        cosines[0, 0], cosines[0, 1:], cosines[1:, 0] = 1.0, to_query[first], to_query[first]
        cosines[1:, 1:] = photos.cosines[np.ix_(first, first)]
        return np.concatenate([_best_first(METHODS[method](cosines), first), order[count:]])

    return rank


def _rank_by_superglobal(photos: Photographs, query: int, gallery: Int64) -> Int64:
    """Rank by the scores (S1 + S2) / 2 of the paper, as in the authors' program."""
    order = _rank_by_cosine(photos, query, gallery)
    first = order[: _COUNTS[-1]]
    vectors, cosines = photos.vectors[first], photos.cosines[np.ix_(first, first)]
    closest = np.argsort(-cosines, axis=1, kind="stable")[:, : _NEIGHBOURS + 1]
    weights = _BETA * np.take_along_axis(cosines, closest, axis=1)
    weights[:, 0] = 1.0
    refined = (weights[:, :, None] * vectors[closest]).sum(1) / weights.sum(1, keepdims=True)
    to_query = refined @ photos.vectors[query]
    best = np.argsort(-to_query, kind="stable")[: _NEIGHBOURS + 1]
    scores = (to_query + refined @ refined[best].max(axis=0)) / 2
    return np.concatenate([_best_first(scores, first), order[len(first) :]])


def _measure_methods(photos: Photographs, queries: range) -> dict[str, Values]:
    """Return the measures of the queries, (q, 2), by method; a query is not its own match."""
    gallery = np.arange(photos.gallery)
    measured = {}
    for name, rank in _methods().items():
        right = [
            photos.labels[rank(photos, query, gallery[gallery != query])] == photos.labels[query]
            for query in queries
        ]
        measured[name] = _measure(right)
    return measured


def _measure(right: list[Any]) -> Values:
    """Return the average precision and whether the first match is right, (q, 2), of rankings."""

    def parts() -> Iterator[RankingRelevance]:
        for number, row in enumerate(right):
            names = pa.array([str(number)])
            yield RankingRelevance(
                names, names, row.astype(np.int16)[None], np.array([len(row)]),
                np.ones(1, np.int16), np.array([[row.sum()]]), SCORED_MATCHES.empty_table(), 0, 0,
            )  # fmt: skip

    results = measure_rankings(parts(), _MEASURES)
    return np.column_stack([results.values(name) for name in _MEASURES])


def _compare(measured: dict[str, dict[str, Values]]) -> dict[str, Any]:
    """Return the measures of each method and its gains over no re-ranking, also pooled."""
    together = {
        method: np.mean([values[method] for values in measured.values()], axis=0)
        for method in _methods()
    }
    return {
        network: {method: _summary(values["none"], values[method]) for method in values}
        for network, values in {**measured, "pooled": together}.items()
    }


def _summary(before: Values, after: Values) -> dict[str, Any]:
    summary: dict[str, Any] = {
        name: round(float(mean), 4)
        for name, mean in zip(_MEASURES, after.mean(axis=0), strict=True)
    }
    if after is not before:
        gains = [(after - before).mean(axis=0), *difference_intervals(after, before)]
        for name, gain in zip(_MEASURES, np.transpose(gains), strict=True):
            summary[f"{name}_gain"] = [round(float(number), 4) for number in gain]
    return summary


if __name__ == "__main__":
    main()
