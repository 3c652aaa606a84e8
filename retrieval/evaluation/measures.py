"""Measures of a ranking: each a function of what is judged, a value a query.

Definitions are those of trec_eval, which `tests/retrieval/evaluation` holds them against.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

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


def reciprocal_rank(judged: Judged, k: int | None = None) -> Values:
    """1 / rank of the first relevant match; 0 where there is none among the (first k) matches."""
    hits = judged.hits[:, :k]
    return np.where(hits.any(1), 1 / (hits.argmax(1) + 1), 0.0)


@dataclass(frozen=True)
class Family:
    """A measure, of all matches or of the first k of them, and how a page names and explains it.

    `whole` and `cut` are title and meaning of either, with {k} in the latter; None: not told.
    """

    values: Callable[[Judged, Any], Values]
    whole: tuple[str, str] | None
    cut: tuple[str, str] | None


MEASURES = {
    "top": Family(top, None, ("Top-{k}", "Share with a right match among the first {k}.")),
    "p": Family(precision, None, ("Precision@{k}", "Share of right ones in the first {k} places.")),
    "recall": Family(
        recall, None,
        ("Recall@{k}", "Share of all the right images that stand in the first {k} places."),
    ),
    "map": Family(
        average_precision, ("mAP", "How early all the right images come: 1 if all come first."),
        ("mAP@{k}", "mAP of the first {k} matches; right images beyond count as missed."),
    ),
    "ndcg": Family(
        gain,
        ("nDCG", "How good the order is, late places counting less: 1 is the best there could be."),
        ("nDCG@{k}", "nDCG of the first {k} matches."),
    ),
    "mrr": Family(
        reciprocal_rank, ("MRR", "1 / rank of the first right match, on average."), None
    ),
}  # fmt: skip
"""By name; of the first k matches by name and k: `map`, `map10`."""

TOPS = (1, 3, 10)
"""Always told, whatever cuts are asked for: the original project's three."""

_NAME = re.compile(r"([a-z]+)([1-9]\d{0,6})?")


@dataclass(frozen=True)
class Measure:
    """One measure: its function, its title and what it means."""

    values: Callable[[Judged], Values]
    title: str
    meaning: str


def measure_of(name: str) -> Measure:
    """Give the measure of a name, `map`, or of a name and a cut, `map10`.

    Raises KeyError where there is none such.
    """
    found = _NAME.fullmatch(name)
    family = MEASURES.get(found[1]) if found else None
    if found is None or family is None:
        raise KeyError(name)
    k = None if found[2] is None else int(found[2])
    told = family.whole if k is None else family.cut
    if told is None:
        raise KeyError(name)
    title, meaning = (text.format(k=k) for text in told)
    if name == "top1":
        meaning = "Share of queries whose best match is right."
    return Measure(lambda judged: family.values(judged, k), title, meaning)


def names(cuts: Collection[int] = (10,)) -> tuple[str, ...]:
    """Name the measures that are told for these cuts, in their order."""
    found = []
    for name, family in MEASURES.items():
        at = {*cuts, *TOPS} if name == "top" else set(cuts)
        found += [name] if family.whole else []
        found += [f"{name}{k}" for k in sorted(at)] if family.cut else []
    return tuple(found)


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
