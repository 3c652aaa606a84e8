"""Measure how much each method of re-ranking improves the default recipe, and fusion of networks.

python -m benchmarks.reranking [--data DIR] [--networks NAME,...] [--cache DIR] [--step 1]

DIR holds `images/` (gallery, queries, labels.csv) and `weights/`; default: LOOKALIKE_DATA. Methods
are chosen on the gallery alone: every `step`-th photo is ranked against all others (leave-one-out).
The queries confirm them once. Vectors are squashed photos, gem pooling, PCA 256. Measures are mean
average precision over complete rankings and the share of right first matches; gains are paired by
query, with 95 % intervals, and `pooled` is the mean over the networks of each query.

SuperGlobal (Shao et al. 2023, arXiv 2308.06954) is measured here only, with the parameters of its
authors; its maximum over vectors suits features without signs, which those after a PCA are not.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.output import write_result
from benchmarks.recipe_vectors import BACKBONES, Photos, View, embed_photos, read_photos
from retrieval.core.confidence import difference_intervals
from retrieval.evaluation.measures import Values
from retrieval.evaluation.relevance import SCORED_MATCHES, RankingRelevance
from retrieval.evaluation.results import measure_rankings
from retrieval.models.embedder import finish_vectors
from retrieval.models.pca import StreamingMoments
from retrieval.search.query_expansion import expand_queries
from retrieval.search.reranking.rerank_block import METHODS, pairwise_cosines
from retrieval.vectors.float_conversions import to_float32
from retrieval.vectors.normalize import normalize_rows
from retrieval.vectors.scoring import Float32, Float64, Int64

_DIMENSIONS, _POOLING = 256, "gem"
_COUNTS = 100, 200, 400  # re-ranked matches
_COUNT, _EXPANDED, _ALPHA = 200, 5, 3.0  # defaults of --rerank
_MEASURES = "map", "top1"
_AUGMENTED, _BETA = 9, 0.15  # of SuperGlobal

Order = Callable[[Float32, Float32], Int64]
"""From a query, (d,), and the gallery, (n, d), to all positions, best first."""


@dataclass(frozen=True)
class Vectors:
    """Unit vectors of the photos of both sides by one network, (n, d) and (q, d)."""

    gallery: Float32
    queries: Float32


def main() -> None:
    """Measure all methods with all networks and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", default=os.environ.get("LOOKALIKE_DATA"))
    parser.add_argument("--networks", default=",".join(BACKBONES))
    parser.add_argument("--cache", default="bench-output/recipes")
    parser.add_argument("--step", type=int, default=1)
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("--data is not given; specify a folder with images/ and weights/")
    data, cache = Path(arguments.data), Path(arguments.cache)
    gallery, queries = (read_photos(data, split) for split in ("gallery", "queries"))
    networks = {
        name: embed(data, name, cache, gallery, queries) for name in arguments.networks.split(",")
    }
    started = time.perf_counter()
    others = range(0, len(gallery.paths), arguments.step)
    write_result(
        "reranking",
        gallery=_compare(
            {
                name: {
                    method: _leave_one_out(vectors.gallery, gallery, others, order)
                    for method, order in methods().items()
                }
                for name, vectors in networks.items()
            }
        ),
        queries=_compare(
            {
                name: {
                    method: _rank_queries(vectors, gallery, queries, order)
                    for method, order in methods().items()
                }
                for name, vectors in networks.items()
            }
        ),
        seconds=round(time.perf_counter() - started),
    )


def embed(data: Path, backbone: str, cache: Path, gallery: Photos, queries: Photos) -> Vectors:
    """Return the vectors of both sides, projected by a PCA fitted on the gallery."""
    raw, asked = (
        embed_photos(data, backbone, View("squash"), side.paths, cache)[_POOLING]
        for side in (gallery, queries)
    )
    moments = StreamingMoments(raw.shape[1])
    moments.add(to_float32(normalize_rows(raw)))
    projection = moments.fit(_DIMENSIONS)
    return Vectors(
        *(finish_vectors(side, normalize=True, projection=projection) for side in (raw, asked))
    )


def methods() -> dict[str, Order]:
    """Return the measured methods by name."""
    measured: dict[str, Order] = {"none": rank_by_cosine, f"expand:{_EXPANDED}": rank_expanded}
    for method, similarities in {**METHODS, "superglobal": superglobal_similarities}.items():
        for count in _COUNTS if method in METHODS else (_COUNT,):
            measured[f"{method}:{count}"] = _reranker(similarities, count, rank_by_cosine)
    for method in METHODS:
        measured[f"expand:{_EXPANDED} {method}:{_COUNT}"] = _reranker(
            METHODS[method], _COUNT, rank_expanded
        )
    return measured


def rank_by_cosine(query: Float32, gallery: Float32) -> Int64:
    """Rank by cosine alone."""
    order: Int64 = np.argsort(-(normalize_rows(gallery) @ normalize_rows(query[None])[0]),
                              kind="stable")  # fmt: skip
    return order


def rank_expanded(query: Float32, gallery: Float32) -> Int64:
    """Rank by alpha query expansion."""
    return rank_by_cosine(_expand(query, gallery), gallery)


def _expand(query: Float32, gallery: Float32) -> Float32:
    best = rank_by_cosine(query, gallery)[:_EXPANDED]
    scores = pairwise_cosines(query, gallery[best])[:1, 1:]
    present = np.ones(scores.shape, np.bool_)
    return expand_queries(query[None], gallery[best][None], scores, present, _ALPHA, "cosine")[0]


def _reranker(similarities: Callable[..., Float64], count: int, rank: Order) -> Order:
    """Return a ranking whose first `count` matches are ordered anew by their similarities."""

    def order(query: Float32, gallery: Float32) -> Int64:
        positions = rank(query, gallery)
        searched = _expand(query, gallery) if rank is rank_expanded else query
        first = gallery[positions[:count]]
        if similarities is superglobal_similarities:
            values = similarities(searched, first)
        else:
            values = similarities(pairwise_cosines(searched, first))
        new = positions[:count][np.argsort(-values, kind="stable")]
        return np.concatenate([new, positions[count:]])

    return order


def superglobal_similarities(query: Float32, candidates: Float32) -> Float64:
    """Return the scores (S1 + S2) / 2 of section 3.3 of the paper, (n,)."""
    unit = normalize_rows(candidates)
    cosines = unit @ unit.T
    closest = np.argsort(-cosines, axis=1, kind="stable")[:, : _AUGMENTED + 1]
    weights = _BETA * np.take_along_axis(cosines, closest, axis=1)
    weights[:, 0] = 1.0
    refined = (weights[:, :, None] * unit[closest]).sum(1) / weights.sum(1, keepdims=True)
    to_query = refined @ normalize_rows(query[None])[0]
    best = np.argsort(-to_query, kind="stable")[: _AUGMENTED + 1]
    scores: Float64 = (to_query + refined @ refined[best].max(axis=0)) / 2
    return scores


def _leave_one_out(vectors: Float32, photos: Photos, positions: range, order: Order) -> Values:
    """Return the measures of some photos ranked against all others, (q, 2)."""

    def rank(position: int) -> Int64:
        others = np.delete(np.arange(len(vectors)), position)
        ranking: Int64 = others[order(vectors[position], vectors[others])]
        return ranking

    labels = np.array(photos.labels.to_pylist())
    return _measure(np.stack([labels[rank(p)] == labels[p] for p in positions]))


def _rank_queries(vectors: Vectors, gallery: Photos, queries: Photos, order: Order) -> Values:
    """Return the measures of the queries ranked against the gallery, (q, 2)."""
    labels = np.array(gallery.labels.to_pylist())
    return _measure(
        np.stack(
            [
                labels[order(query, vectors.gallery)] == label
                for query, label in zip(vectors.queries, queries.labels.to_pylist(), strict=True)
            ]
        )
    )


def _measure(right: Any) -> Values:
    """Return the average precision and whether the first match is right, (q, 2), of rankings."""

    def parts() -> Iterator[RankingRelevance]:
        names = pa.array([str(number) for number in range(len(right))])
        yield RankingRelevance(
            names, names, right.astype(np.int16),
            np.full(len(right), right.shape[1], np.int64), np.ones(1, np.int16),
            right.sum(1)[:, None].astype(np.int64), SCORED_MATCHES.empty_table(), 0, 0,
        )  # fmt: skip

    results = measure_rankings(parts(), _MEASURES)
    return np.column_stack([results.values(name) for name in _MEASURES])


def _compare(measured: dict[str, dict[str, Values]]) -> dict[str, Any]:
    """Return the measures of each method and its gains over no re-ranking, also pooled."""
    together = {
        method: np.mean([values[method] for values in measured.values()], axis=0)
        for method in next(iter(measured.values()))
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
