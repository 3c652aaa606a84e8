"""Render the report of finished matches: queries with their matches first, then the figures.

Up to `MAX_SINGLE_FILE_IMAGES` pictures the report is one self-contained file. Each picture is
embedded once as base64 JPEG, an SVG `<image>` referenced by `<use>`, which also works without
JavaScript and in print; 250 queries of 10 matches take 12 to 22 MB. A larger report has a folder
beside the page with further pages, scripts and pictures (`names.py`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from retrieval.report.facets import chunk_script, facets_script
from retrieval.report.groups import NO_GROUPS, ShownGroups
from retrieval.report.names import PER_CHUNK, PER_PAGE, ReportFiles, page_count
from retrieval.report.page import HEADLINE, MARGIN_MEANING, RECALL_MEANING, SCORE_MEANINGS, Page
from retrieval.report.rows import ShownQueries
from retrieval.report.templates import insert_thumbnail_link, read_text, render_page, render_queries

MAX_SINGLE_FILE_IMAGES = 3000
"""Most pictures of a single-file report (about 15 MB, which opens at once and fits an e-mail)."""


def fits_one_file(shown: ShownQueries, groups: ShownGroups = NO_GROUPS) -> bool:
    """Return whether the report is a single file, without a folder beside it."""
    images = len(shown.queries) + len(shown.matches) + len(groups.paths())
    return images <= MAX_SINGLE_FILE_IMAGES


def render(
    page: Page,
    shown: ShownQueries,
    thumbnails: Mapping[str, bytes],
    groups: ShownGroups = NO_GROUPS,
) -> bytes:
    """Return the report as one HTML file with its checksum; equal input gives equal bytes.

    `thumbnails` are JPEGs by path; an image without one is shown as a tile "not readable".
    """
    numbers, pictures = _pictures(shown, groups, thumbnails)
    missing_numbers = [position for position, number in enumerate(numbers.values()) if number < 0]
    shown = shown.with_pictures(numbers, missing_numbers)
    queries = render_queries(shown.rows(), inside=True)
    return _sheet(page, shown, queries, None, pictures, groups.with_pictures(numbers))


def render_first_page(
    page: Page, shown: ShownQueries, names: ReportFiles, groups: ShownGroups = NO_GROUPS
) -> bytes:
    """Return the first page of a report with a folder; queries and groups have picture numbers."""
    fragments = render_queries(shown.cut(0, min(PER_PAGE, len(shown))).rows(), inside=False)
    queries = [insert_thumbnail_link(fragment, _thumbnails(names)) for fragment in fragments]
    return _sheet(page, shown, queries, names, [], groups)


@dataclass(frozen=True)
class PageFrame:
    """The title, file names and page count that further pages need besides their queries."""

    title: str
    names: ReportFiles
    pages: int


def render_further_pages(frame: PageFrame, shown: ShownQueries) -> dict[str, bytes]:
    """Return the further pages and chunk scripts of a slice of the queries, by file name.

    The slice must begin at the start of a page and of a chunk. The first page of the report, which
    `render_first_page` renders, is left out.
    """
    names, files = frame.names, {}
    queries = render_queries(shown.rows(), inside=False)
    for start in range(0, len(queries), PER_CHUNK):
        number = (shown.first + start) // PER_CHUNK
        chunk = [
            insert_thumbnail_link(query, _thumbnails(names))
            for query in queries[start : start + PER_CHUNK]
        ]
        files[names.chunk(number)] = chunk_script(number, chunk).encode()
    for start in range(0, len(queries), PER_PAGE):
        number = (shown.first + start) // PER_PAGE + 1
        if number > 1:
            thumbnail_link = _thumbnails(names, from_further=True)
            files[names.further_page(number)] = render_page(
                "further.html",
                frame=frame,
                number=number,
                queries=[
                    insert_thumbnail_link(query, thumbnail_link)
                    for query in queries[start : start + PER_PAGE]
                ],
                links=links(names, number, frame.pages),
                home=names.link(names.page, from_further=True),
            )
    return files


def links(names: ReportFiles | None, number: int, pages: int) -> dict[str, str | None]:
    """Return the links to the previous and next page, None where there is none."""

    def to(other: int) -> str | None:
        if names is None or not 1 <= other <= pages:
            return None
        target = names.page if other == 1 else names.further_page(other)
        return names.link(target, from_further=number > 1)

    return {"prev": to(number - 1), "next": to(number + 1)}


def _sheet(
    page: Page,
    shown: ShownQueries,
    queries: list[str],
    names: ReportFiles | None,
    pictures: list[str],
    groups: ShownGroups,
) -> bytes:
    pages = page_count(len(shown)) if names else 1
    failed = len(shown) - page.counts["failed"]  # position of the first failed query
    on_first_page = names is None or failed < PER_PAGE
    failed_page = names and names.link(names.further_page(failed // PER_PAGE + 1))
    return render_page(
        "contact_sheet.html",
        page=page,
        introduction=_introduction(page),
        headline=[m for name in HEADLINE for m in page.measures if m.key == name],
        score_meaning=SCORE_MEANINGS[page.metric],
        recall_meaning=RECALL_MEANING,
        margin_meaning=MARGIN_MEANING,
        has_margins=bool(np.isfinite(shown.queries["margin"].to_numpy()).any()),
        has_classes=any(shown.queries["label"].unique().to_pylist()),
        failures=f"#q{failed}" if on_first_page else f"{failed_page}#q{failed}",
        queries=queries,
        groups=groups,
        group_pictures=names and _thumbnails(names),
        pages=pages,
        links=links(names, 1, pages),
        facets=None if names else facets_script(shown, None),
        facets_at=names and names.link(names.facets()),
        has_folder=names is not None,
        folder=names and names.folder,
        pictures=pictures,
        script=read_text("script.js"),
    )


def _thumbnails(names: ReportFiles, *, from_further: bool = False) -> str:
    return names.link(f"{names.folder}/thumbnails/", from_further=from_further)


def _pictures(
    shown: ShownQueries, groups: ShownGroups, thumbnails: Mapping[str, bytes]
) -> tuple[dict[str, int], list[str]]:
    """Return picture numbers by path (-1: missing), and distinct pictures in base64."""
    number_of: dict[bytes, int] = {}
    numbers: dict[str, int] = {}
    columns = (shown.queries["path"].to_pylist(), shown.matches["path"].to_pylist())
    for path in (*columns[0], *columns[1], *groups.paths()):
        if path not in numbers:
            data = thumbnails.get(path)
            numbers[path] = -1 if data is None else number_of.setdefault(data, len(number_of))
    return numbers, [base64.b64encode(data).decode() for data in number_of]


def _introduction(page: Page) -> str:
    shown, count = page.shown_of
    count_text = f"{count:,} {'query' if count == 1 else 'queries'}"
    if shown != count:
        return f"{shown:,} of {count_text}, most similar images first; the figures cover all"
    return f"{count_text}, most similar images first"
