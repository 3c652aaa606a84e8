"""Measure which resize, pooling, projection, size and augmentation rank photos best.

python -m benchmarks.recipes [--data DIR] [--networks NAME,...] [--cache DIR]

DIR holds `images/` (gallery, queries, labels.csv) and `weights/`; by default LOOKALIKE_DATA.
Choices are made on the gallery alone: each of its photos is ranked against the others
(leave-one-out). The queries confirm the chosen recipe once. All rankings are complete; the measure
is the mean average precision (mAP). A gain is that of the default recipe over another, paired by
query, with its 95 % interval; `pooled` takes the mean over the networks for each query. Nothing
depends on the load of the machine but the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
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
from retrieval.core.schemas import Resize
from retrieval.evaluation.leave_one_out import class_numbers, eligible_queries, leave_one_out
from retrieval.evaluation.measures import Values
from retrieval.evaluation.relevance import SCORED_MATCHES, RankingRelevance
from retrieval.evaluation.results import measure_rankings
from retrieval.vectors.float_conversions import to_float32, to_float64
from retrieval.vectors.scoring import Float32, Float64, block

RESIZES: tuple[Resize, ...] = ("crop", "squash", "pad")
POOLINGS = ("avg", "max", "gem")
DIMENSIONS = (0, 256, 500)  # 0: no projection
LARGER = 288  # pixels
SMALL_GALLERIES = (300, 400, 512, 700, 1000)
_DRAWS = 5  # small galleries of each size
_DEFAULT, _ORIGINAL, _PLAIN = "squash gem 256", "squash max 500", "crop avg 0"


@dataclass(frozen=True)
class Recipe:
    """A view of the photos, a pooling and the dimensions after a projection, 0 for none.

    With `second` the vectors of both views are averaged before they are normalised.
    """

    view: View
    pooling: str
    dimensions: int
    second: View | None = None


@dataclass(frozen=True)
class Network:
    """A network with its weights, and the photos that it embeds."""

    data: Path
    backbone: str
    cache: Path
    gallery: Photos
    queries: Photos

    def vectors(self, recipe: Recipe, side: Photos) -> Float32:
        """Return the (n, d) vectors of a recipe before normalisation and projection."""
        views = (recipe.view,) if recipe.second is None else (recipe.view, recipe.second)
        parts = [
            embed_photos(self.data, self.backbone, view, side.paths, self.cache)[recipe.pooling]
            for view in views
        ]
        mean: Float64 = np.mean([to_float64(part) for part in parts], axis=0)
        return to_float32(mean)


def main() -> None:
    """Measure all recipes of all networks and write the result."""
    arguments = make_parser(__doc__).parse_args()
    data, cache = arguments.data, arguments.cache
    gallery, queries = (read_photos(data, split) for split in ("gallery", "queries"))
    networks = [Network(data, name, cache, gallery, queries) for name in arguments.networks]
    started = time.perf_counter()
    recipes = _recipes()
    chosen = {network.backbone: _leave_one_out(network, recipes) for network in networks}
    confirmed = {
        network.backbone: {
            name: _rank_queries(network, recipes[name]) for name in recipes if _is_confirmed(name)
        }
        for network in networks
    }
    write_result(
        "recipes",
        gallery=_summarize(chosen),
        queries=_summarize(confirmed),
        small_galleries=_measure_small_galleries(networks),
        seconds=round(time.perf_counter() - started),
    )


def _recipes() -> dict[str, Recipe]:
    """Return the recipes by name: resize, pooling and dimensions, and what else differs."""
    recipes = {
        f"{resize} {pooling} {dimensions}": Recipe(View(resize), pooling, dimensions)
        for resize, pooling, dimensions in product(RESIZES, POOLINGS, DIMENSIONS)
    }
    squash, mirrored = View("squash"), View("squash", mirrored=True)
    larger = View("squash", LARGER)
    recipes[f"{_DEFAULT} at {LARGER}"] = Recipe(larger, "gem", 256)
    recipes[f"{_DEFAULT} flip"] = Recipe(squash, "gem", 256, mirrored)
    recipes[f"{_DEFAULT} scales"] = Recipe(squash, "gem", 256, larger)
    return recipes


def _is_confirmed(name: str) -> bool:
    """Return whether the queries confirm a recipe: the chosen one, its rivals and its additions."""
    return name.startswith(_DEFAULT) or name in (_ORIGINAL, _PLAIN)


def _leave_one_out(network: Network, recipes: dict[str, Recipe]) -> dict[str, Values]:
    """Return the average precision of each gallery photo ranked against the others, by recipe."""
    photos = network.gallery
    positions = eligible_queries(class_numbers(photos.labels))
    precisions = {}
    for name, recipe in recipes.items():
        raw = network.vectors(recipe, photos)
        vectors = finish(raw, fit_projection(raw, recipe.dimensions))
        ranked = leave_one_out(block(vectors, "cosine"), photos.ids, photos.labels, positions)
        precisions[name] = measure_rankings(ranked, ("map",)).values("map")
    return precisions


def _rank_queries(network: Network, recipe: Recipe) -> Values:
    """Return the (180, 1) average precisions of the queries ranked against the gallery."""
    raw = network.vectors(recipe, network.gallery)
    projection = fit_projection(raw, recipe.dimensions)
    queries = finish(network.vectors(recipe, network.queries), projection)
    return _average_precisions(
        finish(raw, projection), network.gallery.labels, queries, network.queries
    )


def _average_precisions(
    rows: Float32, labels: pa.Array, vectors: Float32, queries: Photos
) -> Values:
    """Return the average precision of each query, (q, 1), over the complete ranking of rows."""

    def parts() -> Iterator[RankingRelevance]:
        names, row_labels = (np.array(a.to_pylist()) for a in (queries.labels, labels))
        scores = to_float64(vectors) @ to_float64(rows).T
        order = np.argsort(-scores, axis=1, kind="stable")
        right = row_labels[order] == names[:, None]
        yield RankingRelevance(
            queries.ids, queries.labels, right.astype(np.int16),
            np.full(len(names), len(row_labels), np.int64), np.ones(1, np.int16),
            right.sum(1)[:, None].astype(np.int64), SCORED_MATCHES.empty_table(), 0, 0,
        )  # fmt: skip

    return measure_rankings(parts(), ("map",)).values("map")


def _summarize(measured: dict[str, dict[str, Values]]) -> dict[str, Any]:
    """Return the mAP of each recipe by network, and what the default recipe gains over it."""
    pooled = {
        name: np.mean([values[name] for values in measured.values()], axis=0)
        for name in next(iter(measured.values()))
    }
    summary: dict[str, Any] = {name: {} for name in pooled}
    for network, values in {**measured, "pooled": pooled}.items():
        for name, precisions in values.items():
            summary[name][network] = _round(precisions.mean())
            if name != _DEFAULT:
                summary[name][f"gain {network}"] = _difference(values[_DEFAULT], precisions)
    return summary


def _difference(first: Values, second: Values) -> list[float]:
    low, high = difference_intervals(first, second)
    return [_round((first - second).mean()), _round(low[0]), _round(high[0])]


def _round(value: Any) -> float:
    return round(float(value), 4)


def _measure_small_galleries(networks: Sequence[Network]) -> dict[str, Any]:
    """Return how much the default projection gains in small galleries, by size and network.

    Galleries are random photos of the gallery, and all its other photos are the queries, so that
    the projection is fitted on few photos and applied to others.
    """
    recipe = _recipes()[_DEFAULT]
    gains: dict[str, Any] = {}
    for size in SMALL_GALLERIES:
        pairs = {network.backbone: _gain_in_small_galleries(network, recipe, size)
                 for network in networks}  # fmt: skip
        together = [np.mean(sides, axis=0) for sides in zip(*pairs.values(), strict=True)]
        gains[str(size)] = {
            name: _difference(projected, plain)
            for name, (projected, plain) in {**pairs, "pooled": together}.items()
        }
    return gains


def _gain_in_small_galleries(network: Network, recipe: Recipe, size: int) -> tuple[Values, Values]:
    """Return the average precisions of each photo with and without projection, (1372, 1) each.

    They are means over the draws in which the photo is a query with a right match.
    """
    photos, raw = network.gallery, network.vectors(recipe, network.gallery)
    count = len(raw)
    sums, queried = np.zeros((2, count)), np.zeros(count)
    for draw in range(_DRAWS):
        order = np.random.default_rng([size, draw]).permutation(count)
        rows, others = np.sort(order[:size]), np.sort(order[size:])
        has_match = np.isin(_names(photos)[others], _names(photos)[rows])
        others = others[has_match]
        sides = pa.array(rows), pa.array(others)
        queries = Photos((), photos.ids.take(sides[1]), photos.labels.take(sides[1]))
        for line, dimensions in enumerate((recipe.dimensions, 0)):
            projection = fit_projection(raw[rows], dimensions)
            sums[line, others] += _average_precisions(
                finish(raw[rows], projection), photos.labels.take(sides[0]),
                finish(raw[others], projection), queries,
            )[:, 0]  # fmt: skip
        queried[others] += 1
    means = sums[:, queried > 0] / queried[queried > 0]
    return means[0][:, None], means[1][:, None]


def _names(photos: Photos) -> Any:
    return np.array(photos.labels.to_pylist())


if __name__ == "__main__":
    main()
