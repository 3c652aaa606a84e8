"""Measures of a ranking: each a function of the judged hits, a value a query."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.truth import Judged
from retrieval.intervals import bootstrap_mean

Values = NDArray[np.float64]


def top(k: int) -> Callable[[Judged], Values]:
    """1 where a relevant image is among the first k matches."""

    def values(judged: Judged) -> Values:
        return np.asarray(judged.hits[:, :k].any(1), np.float64)

    return values


def precision(k: int) -> Callable[[Judged], Values]:
    """Share of the first k places that hold a relevant image."""

    def values(judged: Judged) -> Values:
        return np.asarray(judged.hits[:, :k].sum(1) / k)

    return values


def average_precision(judged: Judged) -> Values:
    """Mean, over all relevant images of the gallery, of the precision at the rank of each.

    One that is not among the matches counts 0, so the value depends on `--top-k`. 0 where the
    gallery holds no relevant image. Source: Manning et al., "Introduction to Information
    Retrieval" (2008), section 8.4.
    """
    ranks = np.arange(1, judged.hits.shape[1] + 1)
    precisions = judged.hits.cumsum(1) / ranks
    return np.asarray((precisions * judged.hits).sum(1) / np.maximum(judged.relevant, 1))


def reciprocal_rank(judged: Judged) -> Values:
    """1 / rank of the first relevant match; 0 where there is none."""
    first = judged.hits.argmax(1)
    return np.where(judged.hits.any(1), 1 / (first + 1), 0.0)


@dataclass(frozen=True)
class Measure:
    """One measure: its function, and how a page names and explains it."""

    values: Callable[[Judged], Values]
    title: str
    meaning: str


MEASURES = {
    "top1": Measure(top(1), "Top-1", "Share of queries whose best match is right."),
    "top3": Measure(top(3), "Top-3", "Share with a right match among the first 3."),
    "top10": Measure(top(10), "Top-10", "Share with a right match among the first 10."),
    "p10": Measure(precision(10), "Precision@10", "Share of right ones in the first 10 places."),
    "map": Measure(
        average_precision, "mAP", "How early all the right images come: 1 if all come first."
    ),
    "mrr": Measure(reciprocal_rank, "MRR", "1 / rank of the first right match, on average."),
}


@dataclass(frozen=True)
class Measured:
    """A measure over all queries, with its 95 % bootstrap interval."""

    name: str
    title: str
    value: float
    low: float
    high: float
    meaning: str


def measure(judged: Judged, *, seed: int) -> list[Measured]:
    """Measure a ranking by everything in `MEASURES`."""
    answers = []
    for name, each in MEASURES.items():
        values = each.values(judged)
        low, high = bootstrap_mean(values, seed=seed)
        mean = float(values.mean())
        answers.append(Measured(name, each.title, mean, low, high, each.meaning))
    return answers
