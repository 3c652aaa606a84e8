"""Measures of a ranking: each a function of what is judged, one value per query.

`MEASURES` lists them; docs/measures.md is made from it. Those of trec_eval are compared with it in
`tests/retrieval/evaluation`, under the names of ir-measures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.relevance import Judged

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
    the gallery holds no relevant image.
    """
    return _precisions(judged, k) / np.maximum(judged.relevant, 1)


def average_precision_within(judged: Judged, k: int) -> Values:
    """Average precision of the first k matches over the best that k matches can have.

    That is the sum of the precisions at the rank of each relevant image, divided by min(R, k) of R
    relevant images: 1 where all k are relevant, or all R come first.
    """
    return _precisions(judged, k) / np.clip(judged.relevant, 1, k)


def _precisions(judged: Judged, k: int | None) -> Values:
    """Sum the precisions at the ranks of the relevant images among the (first k) matches."""
    hits = judged.hits[:, :k]
    precisions = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    return np.asarray((precisions * hits).sum(1))


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
class Definition:
    """A measure of all matches, or with {k} in its texts one of the first k matches.

    `key` is its name on the command line and as a column of a table, where SQL takes it without
    quotes; `name` is that of ir-measures, in --json and for readers, or the usual one where
    ir-measures has none; `title` heads a card of the report. `usual` measures are printed, the
    others with `--all-measures`.
    """

    key: str
    name: str
    title: str
    values: Callable[[Judged, Any], Values]
    meaning: str
    source: str
    usual: bool = False

    @property
    def cut(self) -> bool:
        """Whether it is of the first k matches."""
        return "{k}" in self.key


_TREC = "trec_eval"

MEASURES = (
    Definition(
        "top{k}", "Success@{k}", "Top-{k}", top,
        "Share of queries with a right match among the first {k}.", f"{_TREC}: success", usual=True,
    ),
    Definition(
        "p{k}", "P@{k}", "Precision@{k}", precision,
        "Share of the first {k} places that hold a right match.", f"{_TREC}: P", usual=True,
    ),
    Definition(
        "recall{k}", "R@{k}", "Recall@{k}", recall,
        "Share of all right images of the gallery that stand in the first {k} places.",
        f"{_TREC}: recall",
    ),
    Definition(
        "map{k}", "mAP@{k}", "mAP@{k}", average_precision_within,
        "How early right images come in the first {k} places: 1 if all of these are right, or all "
        "right images come first.",
        "Weyand et al., Google Landmarks Dataset v2 (2020): divided by min(R, K) of R right images",
        usual=True,
    ),
    Definition(
        "map", "AP", "mAP", average_precision,
        "How early all right images come (mAP): 1 if all come first.",
        f"{_TREC}: map; Manning et al., Introduction to Information Retrieval (2008), 8.4",
        usual=True,
    ),
    Definition(
        "map_cut_{k}", "AP@{k}", "mAP, cut at {k}", average_precision,
        "As AP, but all right images beyond the first {k} places count as missed.",
        f"{_TREC}: map_cut, divided by all right images",
    ),
    Definition(
        "ndcg", "nDCG", "nDCG", gain,
        "How good the order is, late places counting less: 1 is the best there could be.",
        f"{_TREC}: ndcg; Järvelin, Kekäläinen, Cumulated gain-based evaluation (2002)",
    ),
    Definition(
        "ndcg{k}", "nDCG@{k}", "nDCG@{k}", gain,
        "nDCG of the first {k} matches.", f"{_TREC}: ndcg_cut",
    ),
    Definition(
        "mrr", "RR", "MRR", reciprocal_rank,
        "1 / rank of the first right match, on average (MRR).", f"{_TREC}: recip_rank",
    ),
)  # fmt: skip
"""In the order in which they are told."""

TOPS = (1, 3, 10)
"""Always told, whatever cuts are asked for: the original project's three."""


@dataclass(frozen=True)
class Measure:
    """One measure, with its cut filled in: see `Definition`."""

    key: str
    name: str
    title: str
    values: Callable[[Judged], Values]
    meaning: str
    usual: bool


def measure_of(text: str) -> Measure:
    """Return the measure of a key or name: `map`, `AP`, `map10`, `mAP@10`.

    Raises KeyError where there is none such.
    """
    found = re.fullmatch(r"(.*?)([1-9]\d{0,6})?", text)
    kind, cut = found.groups() if found else (text, None)
    pattern = kind if cut is None else kind + "{k}"
    for definition in MEASURES:
        if pattern in (definition.key, definition.name) and definition.cut == (cut is not None):
            return _filled(definition, None if cut is None else int(cut))
    raise KeyError(text)


def _filled(definition: Definition, k: int | None) -> Measure:
    texts = (definition.key, definition.name, definition.title, definition.meaning)
    key, name, title, meaning = (text.format(k=k) for text in texts)
    if key == "top1":
        meaning = "Share of queries whose first match is right."
    return Measure(
        key, name, title, lambda judged: definition.values(judged, k), meaning, definition.usual
    )


def keys(cuts: Collection[int] = (10,)) -> tuple[str, ...]:
    """Return the keys of the measures that are told for these cuts, in their order."""
    found: list[str] = []
    for definition in MEASURES:
        at = {*cuts, *TOPS} if definition.values is top else set(cuts)
        each = [_filled(definition, k) for k in sorted(at)] if definition.cut else [
            _filled(definition, None)
        ]  # fmt: skip
        found += [measure.key for measure in each]
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
