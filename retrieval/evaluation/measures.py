"""Measures of a ranking: each a function of what is judged, a value a query.

Definitions are those of trec_eval, which `tests/retrieval/evaluation` holds them against.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.judged import Judged

Values = NDArray[np.float64]


def top(judged: Judged, k: int) -> Values:
    """1 where a relevant image is among the first k matches."""
    return np.asarray(judged.hits[:, :k].any(1), np.float64)


def precision(judged: Judged, k: int) -> Values:
    """Share of the first k places that hold a relevant image."""
    return np.asarray(judged.hits[:, :k].sum(1) / k)


def recall(judged: Judged, k: int) -> Values:
    """Share of the gallery's relevant images that are among the first k matches."""
    return np.asarray(judged.hits[:, :k].sum(1) / np.maximum(judged.relevant, 1))


def average_precision(judged: Judged, k: int | None = None) -> Values:
    """Mean, over all relevant images of the gallery, of the precision at the rank of each.

    One that is not among the (first k) matches counts 0, so the value depends on `--top-k`. 0 where
    the gallery holds no relevant image. Source: Manning et al., "Introduction to Information
    Retrieval" (2008), section 8.4; trec_eval's map and map_cut.
    """
    hits = judged.hits[:, :k]
    precisions = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    return np.asarray((precisions * hits).sum(1) / np.maximum(judged.relevant, 1))


def gain(judged: Judged, k: int | None = None) -> Values:
    """Discounted gain of the (first k) matches over that of the best order there could be.

    A match gains its grade over log2(1 + rank). The best order has all relevant images of the
    gallery, also beyond the matches there are. Source: Järvelin, Kekäläinen, "Cumulated gain-based
    evaluation of IR techniques" (2002), as trec_eval's ndcg and ndcg_cut.
    """
    grades = judged.grades[:, :k]
    gained = np.maximum(grades, 0) / np.log2(np.arange(2, grades.shape[1] + 2))
    most = int(judged.relevant.max(initial=0))
    sums = np.append(0.0, np.cumsum(1 / np.log2(np.arange(2, most + 2))))
    upto = np.minimum(judged.counts.cumsum(1), most if k is None else k)
    best = (np.diff(sums[upto], axis=1, prepend=0.0) * judged.levels).sum(1)
    return np.asarray(gained.sum(1) / np.where(best > 0, best, 1.0))


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


def _cut(name: str, k: int) -> Measure:
    """Make a measure of the first k matches."""
    return {
        "top": Measure(lambda j: top(j, k), f"Top-{k}", _top_meaning(k)),
        "p": Measure(
            lambda j: precision(j, k), f"Precision@{k}",
            f"Share of right ones in the first {k} places.",
        ),
        "recall": Measure(
            lambda j: recall(j, k), f"Recall@{k}",
            f"Share of all the right images that stand in the first {k} places.",
        ),
        "map": Measure(
            lambda j: average_precision(j, k), f"mAP@{k}",
            f"mAP of the first {k} matches; right images beyond count as missed.",
        ),
        "ndcg": Measure(
            lambda j: gain(j, k), f"nDCG@{k}", f"nDCG of the first {k} matches."
        ),
    }[name]  # fmt: skip


def _top_meaning(k: int) -> str:
    if k == 1:
        return "Share of queries whose best match is right."
    return f"Share with a right match among the first {k}."


_WHOLE = {
    "map": Measure(
        average_precision, "mAP", "How early all the right images come: 1 if all come first."
    ),
    "ndcg": Measure(
        gain, "nDCG", "How good the order is, late places counting less: 1 is the best there could be."
    ),
    "mrr": Measure(reciprocal_rank, "MRR", "1 / rank of the first right match, on average."),
}
_CUTS = ("top", "p", "recall", "map", "ndcg")
_NAME = re.compile(r"(top|p|recall|map|ndcg)([1-9]\d{0,6})")
TOPS = (1, 3, 10)
"""What is always told, whatever cuts are asked for: the original project's three."""


def measure_of(name: str) -> Measure:
    """Give the measure of a name, `map`, `ndcg`, `mrr` or one with a cut: `top1`, `p10`, `map100`.

    Raises KeyError where there is none such.
    """
    if name in _WHOLE:
        return _WHOLE[name]
    found = _NAME.fullmatch(name)
    if found is None:
        raise KeyError(name)
    return _cut(found[1], int(found[2]))


def names(cuts: Sequence[int] = (10,)) -> tuple[str, ...]:
    """Name the measures that are told for these cuts, in their order."""
    tops = [f"top{k}" for k in sorted({*TOPS, *cuts})]
    rest = [f"{name}{k}" for name in _CUTS[1:] for k in sorted(set(cuts))]
    at = {name: [each for each in rest if each.startswith(name)] for name in ("map", "ndcg")}
    others = [each for each in rest if each.startswith(("p", "recall"))]
    return (*tops, *others, "map", *at["map"], "ndcg", *at["ndcg"], "mrr")


_CELLS = 1 << 22
"""Of grades measured at once, so that what is made of them stays within some 100 MB."""


def values_of(judged: Judged, wanted: Sequence[str]) -> Values:
    """Give the (q, m) values of the measures of these names."""
    measures = [measure_of(name) for name in wanted]
    step = max(1, _CELLS // judged.grades.shape[1])
    blocks = [np.empty((0, len(wanted)))]
    for first in range(0, len(judged.grades), step):
        some = judged.slice(first, first + step)
        blocks.append(np.stack([each.values(some) for each in measures], axis=1))
    return np.concatenate(blocks)
