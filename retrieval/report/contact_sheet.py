"""One page to judge a run by: the figures on top, then every query with its matches.

The page is a single file without a network: pictures lie in it as base64 JPEG, each once however
many queries match it (an SVG `<image>` that is drawn by `<use>` wherever it is needed, which also
works without JavaScript and in print). 200 queries of 10 matches make 10 to 18 MB, depending on how
many matches they share; 1.3 of them are markup. Names come from file systems and mean nothing to
us: all are escaped, and a content security policy lets nothing run or load but the page's own
style, script (by hash) and pictures.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from jinja2 import Environment, StrictUndefined, Template

from retrieval.storage.seal import SEAL, seal

State = Literal["right", "wrong", "unknown", "failed"]
_STATES: dict[bool | None, State] = {True: "right", False: "wrong", None: "unknown"}

SCORES = {
    "cosine": "The cosine between query and match: 1 is the same direction, 0 has nothing in "
    "common. Larger is closer.",
    "ip": "The dot product of query and match, on no fixed scale: compare it within one query "
    "only. Larger is closer.",
    "l2": "The squared distance between query and match: 0 is the same point. Smaller is closer.",
}
"""What a score says, by metric."""

MEANINGS = {
    "top-1": "Share of queries whose best match shows the right class.",
    "mAP": "How far the right images stand before the wrong ones, averaged over queries: "
    "1 if all right ones come first.",
    "recall": "The share of the truly closest images that the search finds; at 1 it misses none.",
}
"""Sentences for a newcomer, for whoever makes the measures and for the page itself."""


@dataclass(frozen=True)
class Measure:
    """A figure over all queries, with the ends of its 95 % interval where it has one."""

    name: str
    value: float
    low: float | None
    high: float | None
    meaning: str


@dataclass(frozen=True)
class MatchCell:
    """One match of a query; `right` is None where a label is unknown."""

    rank: int
    image_id: str
    path: str
    score: float
    label: str | None
    right: bool | None

    @property
    def name(self) -> str:
        """What stands below the picture: the label, or else the file's name."""
        return self.label or self.image_id.rsplit("/", 1)[-1]

    @property
    def state(self) -> State:
        """Say how it is marked."""
        return _STATES[self.right]


@dataclass(frozen=True)
class QueryRow:
    """A query with its matches, best first, or with the reason why it has none."""

    query_id: str
    path: str
    label: str | None
    matches: tuple[MatchCell, ...]
    failure: str | None

    @property
    def state(self) -> State:
        """Say how its first match stands; a failure goes before."""
        if self.failure is not None:
            return "failed"
        return self.matches[0].state if self.matches else "unknown"


@dataclass(frozen=True)
class Page:
    """All that the page says. Measures and recall speak of all queries, shown or not."""

    title: str
    metric: str
    facts: tuple[tuple[str, str], ...]  # what it was made from: ("gallery", "600 images in …")
    measures: tuple[Measure, ...]
    recall: str  # the certificate, as a sentence
    queries: tuple[QueryRow, ...]
    shown_of: tuple[int, int]  # queries on the page, queries in all


def render(page: Page, thumbnails: Mapping[str, bytes]) -> bytes:
    """Give the page as sealed HTML; the same page and thumbnails (path to JPEG) give its bytes.

    An image without a thumbnail gets a neutral tile that says so.
    """
    numbers, pictures = _pictures(page, thumbnails)
    classes = sorted({query.label for query in page.queries if query.label})
    html = _template().render(
        page=page,
        lead=_lead(page),
        policy=_policy,
        score_meaning=SCORES[page.metric],
        recall_meaning=MEANINGS["recall"],
        counts=_counts(page),
        numbers=numbers,
        pictures=pictures,
        classes={label: number for number, label in enumerate(classes)},
        seal=SEAL,
    )
    # a name that is no Unicode (a lone surrogate) shows as \udcXX instead of stopping the page
    return seal(html.encode("utf-8", "backslashreplace"))


def _pictures(page: Page, thumbnails: Mapping[str, bytes]) -> tuple[dict[str, int], list[str]]:
    """Give each path the number of its picture, as they are met; equal bytes are one picture."""
    known: dict[bytes, int] = {}
    numbers: dict[str, int] = {}
    for query in page.queries:
        for path in (query.path, *(match.path for match in query.matches)):
            if path in thumbnails:
                numbers[path] = known.setdefault(thumbnails[path], len(known))
    return numbers, [base64.b64encode(data).decode() for data in known]


def _lead(page: Page) -> str:
    shown, count = page.shown_of
    what = f"{count:,} {'query' if count == 1 else 'queries'}"
    what = what if shown == count else f"{shown:,} of {what}"
    figures = "" if shown == count else " The figures speak of all of them."
    return f"{what}, each with its most similar gallery images, best first.{figures}"


def _counts(page: Page) -> dict[State, int]:
    counts: dict[State, int] = dict.fromkeys(("right", "wrong", "unknown", "failed"), 0)
    for query in page.queries:
        counts[query.state] += 1
    return counts


@cache
def _template() -> Template:
    """Load the template from the package, wherever it is installed, a zip included."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "bar": _bar}
    source = resources.files("retrieval.report").joinpath("contact_sheet.html")
    return environment.from_string(source.read_text(encoding="utf-8"))


def _policy(style: str, script: str) -> str:
    """Write the content security policy: this style, this script, pictures from within, no more.

    By hash and not by nonce: a nonce that the same page always has could be known beforehand.
    """
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def number(value: float, places: int = 4) -> str:
    """Write a score or measure: fixed places up to 1000, so that columns align, then powers.

    Four places for scores, since near duplicates differ in the third and fourth.
    """
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{places}f}" if abs(value) < 1000 else f"{value:.4g}"
    return "−" + text[1:] if text.startswith("-") and float(text) else text.removeprefix("-")


def _bar(measure: Measure) -> dict[str, float] | None:
    """Place a share and its interval on a bar from 0 to 100; None for what is no share."""
    low, high = measure.low, measure.high
    if low is None or high is None or not 0 <= low <= measure.value <= high <= 1:
        return None
    start, width, point = 100 * low, 100 * (high - low), 99.2 * measure.value  # it is 0.8 wide
    return {"start": round(start, 2), "width": round(width, 2), "point": round(point, 2)}
