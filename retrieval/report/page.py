"""The content of a report page as plain data: figures over all queries, and one row per query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from retrieval.evaluation.ground_truth import JUNK, UNKNOWN
from retrieval.evaluation.results import ClassResult, MeasureResult
from retrieval.evaluation.thresholds import Threshold
from retrieval.report.chart import Chart

State = Literal["right", "wrong", "unknown", "failed"]
STATES: tuple[State, ...] = ("right", "wrong", "unknown", "failed")
"""The state of a query, by its first graded match, or failed; table columns hold the index."""

CellState = Literal["right", "wrong", "skipped", "unknown"]

HEADLINE = ("top1", "top3", "top10", "map")
"""Keys of the measures that are shown as cards."""

SCORE_MEANINGS = {
    "cosine": "The cosine between query and match: 1 is the same direction, 0 has nothing in "
    "common. Larger is closer.",
    "ip": "The dot product of query and match, on no fixed scale: compare it within one query "
    "only. Larger is closer.",
    "l2": "The squared distance between query and match: 0 is the same point. Smaller is closer.",
    "unitless": "A number that orders the matches of a query, here after a re-ranking: compare it "
    "within one query only. Larger is closer.",
}
"""Explanations of the score, by kind of score."""

RECALL_MEANING = "The share of the truly closest images that the search finds; at 1 it misses none."

MARGIN_MEANING = (
    "The score difference between the first match and the best match of another class (the last "
    "match shown if all have its class, the second match if classes are not known). The smaller "
    "the margin, the less certain the answer."
)
"""Explanation of the margin (`margin.py`)."""


@dataclass(frozen=True)
class MatchCell:
    """One match of a query.

    `picture` is the number of its thumbnail, None where it has none; `probability` is None without
    --calibration.
    """

    rank: int
    image_id: str
    path: str
    score: float
    label: str | None
    grade: int
    picture: int | None
    probability: float | None = None

    @property
    def name(self) -> str:
        """The caption of the picture: the label, or else the file name."""
        return self.label or self.image_id.rsplit("/", 1)[-1]

    @property
    def state(self) -> CellState:
        """How the match is marked."""
        if self.grade in (JUNK, UNKNOWN):
            return "skipped" if self.grade == JUNK else "unknown"
        return "right" if self.grade > 0 else "wrong"


@dataclass(frozen=True)
class QueryRow:
    """A query with its matches, best first, or with the reason of its failure."""

    number: int  # position on the page from 0: by name, failed queries last
    query_id: str
    path: str
    label: str | None
    state: State
    margin: float  # nan where there is none
    matches: tuple[MatchCell, ...]
    failure: str | None
    picture: int | None


@dataclass(frozen=True)
class Page:
    """The summary above the queries. The measures are over all queries, shown or not.

    `classes` are ordered worst first. `counts` are by state, over the queries shown.
    """

    title: str
    metric: str
    facts: tuple[tuple[str, str], ...]  # origin, such as ("gallery", "600 images in …")
    recall: str  # the certificate, as a sentence
    counts: Mapping[State, int]
    shown_of: tuple[int, int]  # queries on the page, queries in all
    measures: tuple[MeasureResult, ...] = ()
    classes: tuple[ClassResult, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    notes: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
