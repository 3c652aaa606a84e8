"""What a report says, as plain data: the figures over all queries, and a row a query.

`retrieval/report` draws it and knows nothing of where it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from retrieval.evaluation.ground_truth import JUNK, UNKNOWN
from retrieval.evaluation.results import ClassMeasured, Measured
from retrieval.evaluation.thresholds import Threshold
from retrieval.report.chart import Chart

State = Literal["right", "wrong", "unknown", "failed"]
STATES: tuple[State, ...] = ("right", "wrong", "unknown", "failed")
"""How a query stands: by its first match that counts, or failed. Columns hold the position here."""

CellState = Literal["right", "wrong", "skipped", "unknown"]

HEADLINE = ("top1", "top3", "top10", "map")
"""The measures that get a card of their own, those of them that there are."""

SCORES = {
    "cosine": "The cosine between query and match: 1 is the same direction, 0 has nothing in "
    "common. Larger is closer.",
    "ip": "The dot product of query and match, on no fixed scale: compare it within one query "
    "only. Larger is closer.",
    "l2": "The squared distance between query and match: 0 is the same point. Smaller is closer.",
}
"""What a score says, by metric."""

RECALL = "The share of the truly closest images that the search finds; at 1 it misses none."

LEAD = (
    "How far the first match's score is ahead of the best match of another class, of the last one "
    "shown where all are of its class, or of the second match where classes are not known. "
    "The smaller the lead, the less sure the answer."
)
"""What the page calls a lead, and the code a margin (`margin.py`)."""


@dataclass(frozen=True)
class MatchCell:
    """One match of a query; `picture` is the number of its thumbnail, None where it has none."""

    rank: int
    image_id: str
    path: str
    score: float
    label: str | None
    grade: int
    picture: int | None

    @property
    def name(self) -> str:
        """What stands below the picture: the label, or else the file's name."""
        return self.label or self.image_id.rsplit("/", 1)[-1]

    @property
    def state(self) -> CellState:
        """Say how it is marked."""
        if self.grade in (JUNK, UNKNOWN):
            return "skipped" if self.grade == JUNK else "unknown"
        return "right" if self.grade > 0 else "wrong"


@dataclass(frozen=True)
class QueryRow:
    """A query with its matches, best first, or with the reason why it has none."""

    number: int  # its place on the page, from 0: by name, the failed ones last
    query_id: str
    path: str
    label: str | None
    state: State
    margin: float  # not finite where there is none
    matches: tuple[MatchCell, ...]
    failure: str | None
    picture: int | None


@dataclass(frozen=True)
class Page:
    """All that stands above the queries. The measures speak of all queries, shown or not.

    `classes` stand worst first. `counts` are those of the queries shown.
    """

    title: str
    metric: str
    facts: tuple[tuple[str, str], ...]  # what it was made from: ("gallery", "600 images in …")
    recall: str  # the certificate, as a sentence
    counts: Mapping[State, int]
    shown_of: tuple[int, int]  # queries on the page, queries in all
    measures: tuple[Measured, ...] = ()
    classes: tuple[ClassMeasured, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    notes: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
