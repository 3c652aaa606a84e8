"""The page to judge a run by: the figures on top, then queries with their matches.

Up to `MOST_CELLS` pictures it is a single file without a network: pictures lie in it as base64
JPEG, each once however many queries match it (an SVG `<image>` that is drawn by `<use>` wherever it
is needed, which also works without JavaScript and in print). 250 queries of 10 matches make 12 to
22 MB. Beyond that a folder beside the page holds further pages, scripts and pictures (`names.py`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from retrieval.report.facets import chunk_script, facets_script
from retrieval.report.names import PER_CHUNK, PER_PAGE, Names, pages_of
from retrieval.report.page import HEADLINE, LEAD, RECALL, SCORES, Page
from retrieval.report.rows import Shown
from retrieval.report.templates import draw, fragments, placed, text_of

MOST_CELLS = 3000
"""Pictures of queries and matches up to which a report is one file: some 15 MB, which opens at once
and can still be sent."""


def fits_one_file(shown: Shown) -> bool:
    """Tell whether a report is one file or has a folder beside it."""
    return len(shown.queries) + len(shown.matches) <= MOST_CELLS


def render(page: Page, shown: Shown, thumbnails: Mapping[str, bytes]) -> bytes:
    """Draw the report as one sealed file; the same input gives the same bytes.

    `thumbnails` are JPEGs by path. An image without one gets a neutral tile that says so.
    """
    numbers, pictures = _pictures(shown, thumbnails)
    missing = [place for place, number in enumerate(numbers.values()) if number < 0]
    shown = shown.with_pictures(numbers, missing)
    return _sheet(page, shown, fragments(shown.rows(), inside=True), None, pictures)


def render_first(page: Page, shown: Shown, names: Names) -> bytes:
    """Draw the first page of a report in a folder, with the summary; `shown` has its pictures."""
    first = fragments(shown.cut(0, min(PER_PAGE, len(shown))).rows(), inside=False)
    drawn = [placed(fragment, _thumbnails(names)) for fragment in first]
    return _sheet(page, shown, drawn, names, [])


@dataclass(frozen=True)
class Frame:
    """What further pages say around their queries."""

    title: str
    names: Names
    pages: int


def render_further(frame: Frame, shown: Shown) -> dict[str, bytes]:
    """Draw the pages and the chunk scripts of a slice of the queries, by name.

    The slice begins with a page and a chunk. The first page of all is no further one.
    """
    names, drawn = frame.names, {}
    queries = fragments(shown.rows(), inside=False)
    for at in range(0, len(queries), PER_CHUNK):
        number = (shown.first + at) // PER_CHUNK
        chunk = [placed(query, _thumbnails(names)) for query in queries[at : at + PER_CHUNK]]
        drawn[names.chunk(number)] = chunk_script(number, chunk).encode()
    for at in range(0, len(queries), PER_PAGE):
        number = (shown.first + at) // PER_PAGE + 1
        if number > 1:
            where = _thumbnails(names, from_further=True)
            drawn[names.further(number)] = draw(
                "further.html",
                frame=frame,
                number=number,
                queries=[placed(query, where) for query in queries[at : at + PER_PAGE]],
                links=links(names, number, frame.pages),
                home=names.link(names.page, from_further=True),
            )
    return drawn


def links(names: Names | None, number: int, pages: int) -> dict[str, str | None]:
    """Give the links from a page to the one before and after it, None where there is none."""

    def to(other: int) -> str | None:
        if names is None or not 1 <= other <= pages:
            return None
        target = names.page if other == 1 else names.further(other)
        return names.link(target, from_further=number > 1)

    return {"prev": to(number - 1), "next": to(number + 1)}


def _sheet(
    page: Page, shown: Shown, drawn: list[str], names: Names | None, pictures: list[str]
) -> bytes:
    pages = pages_of(len(shown)) if names else 1
    failed = len(shown) - page.counts["failed"]  # the first that failed
    there = names is None or failed < PER_PAGE
    away = names and names.link(names.further(failed // PER_PAGE + 1))
    return draw(
        "contact_sheet.html",
        page=page,
        lead=_lead(page),
        headline=[m for name in HEADLINE for m in page.measures if m.key == name],
        score_meaning=SCORES[page.metric],
        recall_meaning=RECALL,
        lead_meaning=LEAD,
        has_leads=bool(np.isfinite(shown.queries["margin"].to_numpy()).any()),
        has_classes=any(shown.queries["label"].unique().to_pylist()),
        failures=f"#q{failed}" if there else f"{away}#q{failed}",
        queries=drawn,
        pages=pages,
        links=links(names, 1, pages),
        facets=None if names else facets_script(shown, None),
        facets_at=names and names.link(names.facets()),
        beside=names is not None,
        folder=names and names.folder,
        pictures=pictures,
        script=text_of("script.js"),
    )


def _thumbnails(names: Names, *, from_further: bool = False) -> str:
    return names.link(f"{names.folder}/thumbnails/", from_further=from_further)


def _pictures(shown: Shown, thumbnails: Mapping[str, bytes]) -> tuple[dict[str, int], list[str]]:
    """Give pictures numbers as they are met (-1: not there); equal bytes are one picture."""
    known: dict[bytes, int] = {}
    numbers: dict[str, int] = {}
    for path in [*shown.queries["path"].to_pylist(), *shown.matches["path"].to_pylist()]:
        if path not in numbers:
            data = thumbnails.get(path)
            numbers[path] = -1 if data is None else known.setdefault(data, len(known))
    return numbers, [base64.b64encode(data).decode() for data in known]


def _lead(page: Page) -> str:
    shown, count = page.shown_of
    what = f"{count:,} {'query' if count == 1 else 'queries'}"
    what = what if shown == count else f"{shown:,} of {what}"
    figures = "" if shown == count else " The figures speak of all of them."
    return f"{what}, each with its most similar gallery images, best first.{figures}"
