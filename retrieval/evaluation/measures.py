"""Retrieval measures: functions from a `RankingRelevance` to one value per query.

`MEASURES` lists them, and docs/measures.md is generated from it. The measures that trec_eval has
are compared with it in `tests/retrieval/evaluation`, under the names of ir-measures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.relevance import RankingRelevance

Values = NDArray[np.float64]


def success(relevance: RankingRelevance, k: int) -> Values:
    """Return 1 where a relevant image is among the first k matches, else 0."""
    return np.asarray(relevance.hits[:, :k].any(1), np.float64)


def precision(relevance: RankingRelevance, k: int) -> Values:
    """Return the share of the first k ranks that hold a relevant image."""
    return np.asarray(relevance.hits[:, :k].sum(1) / k)


def recall(relevance: RankingRelevance, k: int) -> Values:
    """Return the share of the gallery's relevant images that are among the first k matches."""
    return np.asarray(relevance.hits[:, :k].sum(1) / np.maximum(relevance.relevant, 1))


def average_precision(relevance: RankingRelevance, k: int | None = None) -> Values:
    """Return the mean precision at the rank of each relevant image of the gallery.

    A relevant image that is not among the (first k) matches counts 0, so the value depends on
    `--top-k`. 0 where the gallery holds no relevant image.
    """
    return _precision_sums(relevance, k) / np.maximum(relevance.relevant, 1)


def average_precision_within(relevance: RankingRelevance, k: int) -> Values:
    """Return the average precision of the first k matches over the best possible with k matches.

    That is the sum of the precisions at the rank of each relevant image, divided by min(R, k) of R
    relevant images: 1 where all k are relevant, or all R come first.
    """
    return _precision_sums(relevance, k) / np.clip(relevance.relevant, 1, k)


def _precision_sums(relevance: RankingRelevance, k: int | None) -> Values:
    """Return the sum of precisions at the ranks of relevant images among the (first k) matches."""
    hits = relevance.hits[:, :k]
    precisions = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    return np.asarray((precisions * hits).sum(1))


def ndcg(relevance: RankingRelevance, k: int | None = None) -> Values:
    """Return the discounted cumulative gain of the (first k) matches over that of the ideal order.

    The gain of a match is its grade / log2(1 + rank). The ideal order contains all relevant images
    of the gallery, including those that are not among the matches. Source: Järvelin, Kekäläinen,
    "Cumulated gain-based evaluation of IR techniques" (2002), as trec_eval's ndcg and ndcg_cut.
    """
    grades = relevance.grades[:, :k]
    discounted_gains = np.maximum(grades, 0) / np.log2(np.arange(2, grades.shape[1] + 2))
    max_relevant = int(relevance.relevant.max(initial=0))
    sums = np.append(0.0, np.cumsum(1 / np.log2(np.arange(2, max_relevant + 2))))
    counts_within = np.minimum(relevance.counts.cumsum(1), max_relevant if k is None else k)
    ideal = (np.diff(sums[counts_within], axis=1, prepend=0.0) * relevance.levels).sum(1)
    return np.asarray(discounted_gains.sum(1) / np.where(ideal > 0, ideal, 1.0))


def reciprocal_rank(relevance: RankingRelevance, k: int | None = None) -> Values:
    """Return 1 / rank of the first relevant match; 0 if none is among the (first k) matches."""
    hits = relevance.hits[:, :k]
    return np.where(hits.any(1), 1 / (hits.argmax(1) + 1), 0.0)


@dataclass(frozen=True)
class MeasureDefinition:
    """A measure of all matches or, with {k} in its texts, of the first k matches.

    `key` is the name on the command line and of a table column (valid SQL without quotes). `name`
    is that of ir-measures, used in --json and output, or the customary one where ir-measures has
    none. `title` heads a card of the report. Measures that are not `shown_by_default` are printed
    with `--all-measures`.
    """

    key: str
    name: str
    title: str
    values: Callable[[RankingRelevance, Any], Values]
    meaning: str
    source: str
    shown_by_default: bool = False

    @property
    def has_cutoff(self) -> bool:
        """Return whether the measure takes a cutoff k."""
        return "{k}" in self.key


_TREC = "trec_eval"

MEASURES = (
    MeasureDefinition(
        "top{k}", "Success@{k}", "Top-{k}", success,
        "Share of queries with a relevant image among the first {k} matches.", f"{_TREC}: success",
        shown_by_default=True,
    ),
    MeasureDefinition(
        "p{k}", "P@{k}", "Precision@{k}", precision,
        "Share of the first {k} matches that are relevant.", f"{_TREC}: P",
        shown_by_default=True,
    ),
    MeasureDefinition(
        "recall{k}", "R@{k}", "Recall@{k}", recall,
        "Share of all relevant gallery images that are among the first {k} matches.",
        f"{_TREC}: recall",
    ),
    MeasureDefinition(
        "map{k}", "mAP@{k}", "mAP@{k}", average_precision_within,
        "Mean average precision of the first {k} matches: 1 if all are relevant, or all relevant "
        "images come first.",
        "Weyand et al., Google Landmarks Dataset v2 (2020): divided by min(R, K) for R relevant "
        "images",
        shown_by_default=True,
    ),
    MeasureDefinition(
        "map", "AP", "mAP", average_precision,
        "Mean average precision (mAP): 1 if all relevant images come first.",
        f"{_TREC}: map; Manning et al., Introduction to Information Retrieval (2008), 8.4",
        shown_by_default=True,
    ),
    MeasureDefinition(
        "map_cut_{k}", "AP@{k}", "mAP, cut at {k}", average_precision,
        "As AP, but relevant images beyond the first {k} matches count as missed.",
        f"{_TREC}: map_cut, divided by the number of all relevant images",
    ),
    MeasureDefinition(
        "ndcg", "nDCG", "nDCG", ndcg,
        "Discounted cumulative gain relative to the best possible order: 1 is the best.",
        f"{_TREC}: ndcg; Järvelin, Kekäläinen, Cumulated gain-based evaluation (2002)",
    ),
    MeasureDefinition(
        "ndcg{k}", "nDCG@{k}", "nDCG@{k}", ndcg,
        "nDCG of the first {k} matches.", f"{_TREC}: ndcg_cut",
    ),
    MeasureDefinition(
        "mrr", "RR", "MRR", reciprocal_rank,
        "Mean of 1 / rank of the first relevant image (MRR).", f"{_TREC}: recip_rank",
    ),
)  # fmt: skip
"""All measures, in the order in which they are reported."""

SUCCESS_CUTOFFS = (1, 3, 10)
"""Success cutoffs that are always reported, whatever `--cutoffs` says."""


@dataclass(frozen=True)
class Measure:
    """A measure whose cutoff, if it has one, is filled in; see `MeasureDefinition`."""

    key: str
    name: str
    title: str
    values: Callable[[RankingRelevance], Values]
    meaning: str
    shown_by_default: bool


def find_measure(text: str) -> Measure:
    """Return the measure with a key or name such as `map`, `AP`, `map10` or `mAP@10`.

    Raises KeyError for an unknown measure.
    """
    parsed = re.fullmatch(r"(.*?)([1-9]\d{0,6})?", text)
    kind, cutoff = parsed.groups() if parsed else (text, None)
    pattern = kind if cutoff is None else kind + "{k}"
    for definition in MEASURES:
        if pattern in (definition.key, definition.name) and definition.has_cutoff == (
            cutoff is not None
        ):
            return _with_cutoff(definition, None if cutoff is None else int(cutoff))
    raise KeyError(text)


def _with_cutoff(definition: MeasureDefinition, k: int | None) -> Measure:
    texts = (definition.key, definition.name, definition.title, definition.meaning)
    key, name, title, meaning = (text.format(k=k) for text in texts)
    if key == "top1":
        meaning = "Share of queries whose first match is relevant."
    return Measure(
        key,
        name,
        title,
        lambda relevance: definition.values(relevance, k),
        meaning,
        definition.shown_by_default,
    )


def measure_keys(cutoffs: Collection[int] = (10,)) -> tuple[str, ...]:
    """Return the keys of the measures reported for these cutoffs, in reporting order."""
    keys: list[str] = []
    for definition in MEASURES:
        ks = {*cutoffs, *SUCCESS_CUTOFFS} if definition.values is success else set(cutoffs)
        measures = [_with_cutoff(definition, k) for k in sorted(ks)] if definition.has_cutoff else [
            _with_cutoff(definition, None)
        ]  # fmt: skip
        keys += [measure.key for measure in measures]
    return tuple(keys)


_CELLS = 1 << 22
"""Grades measured at once, which bounds temporary arrays to about 100 MB."""


def compute_measures(relevance: RankingRelevance, keys: Sequence[str]) -> Values:
    """Return the (q, m) float64 values of the measures of these keys."""
    measures = [find_measure(key) for key in keys]
    step = max(1, _CELLS // relevance.grades.shape[1])
    blocks = [np.empty((0, len(keys)))]
    for first in range(0, len(relevance.grades), step):
        block = relevance.slice(first, first + step)
        blocks.append(np.stack([measure.values(block) for measure in measures], axis=1))
    return np.concatenate(blocks)
