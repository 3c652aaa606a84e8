"""A report put: thumbnails and pages in slices, on the cluster where there are many of them.

What a run that was killed has made is kept. The page itself comes last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.cluster import tasks
from jobs.cluster.resources import Cluster
from jobs.config.option_groups import Judging
from jobs.config.options import MAX_PIXELS
from jobs.evaluation.ground_truth import open_truth, stream_tables
from jobs.evaluation.judge_matches import Evaluation, evaluate_by_labels
from jobs.reporting.page_summary import page_of
from jobs.runtime.progress import progress, say
from retrieval.core.errors import UsageError
from retrieval.core.schemas import FAILURES
from retrieval.evaluation.ground_truth import Truth
from retrieval.report import contact_sheet, page_slices, templates
from retrieval.report.chart import Chart
from retrieval.report.facets import facets_script
from retrieval.report.names import PER_PAGE, PER_SLICE, PER_THUMBNAILS, Names, pages_of
from retrieval.report.page import Page
from retrieval.report.rows import SHOWN_MATCHES, Shown, gather
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder

SHOWN_IN_OUTPUT = 1000
"""Queries that the page shows which `run` and `rank --format html` write; `report` shows more."""
IMAGES_HERE, _QUERIES_HERE = 300, 2000
"""So many are done here before Ray would have started."""


@dataclass(frozen=True)
class Source:
    """What a report is made of: matches, what they are worth, and how many queries it shows."""

    folder: Folder
    manifest: Manifest
    evaluation: Evaluation | None
    truth: Truth
    charts: tuple[Chart, ...] = ()
    title: str = "lookalike"
    max_queries: int = SHOWN_IN_OUTPUT

    def tables(self, prefix: str) -> Iterator[pa.Table]:
        """Read the tables whose path begins so, checked, one after the other."""
        return stream_tables(self.folder, self.manifest, prefix)


def report_of(folder: Folder, manifest: Manifest, seed: int = 0) -> Source:
    """Say what the report in an output is made of: its matches, by the labels in them."""
    from jobs.reporting.pictures import charts_of

    truth = open_truth(folder, manifest, Judging())
    evaluation, _ = evaluate_by_labels(folder, manifest)
    charts = charts_of(folder, manifest, truth, note=say, seed=seed)
    return Source(folder, manifest, evaluation, truth, charts)


def put_report(where: Cluster, source: Source, into: Folder, name: str) -> None:
    """Put a report of finished matches: the page `name`, and further files beside it if need be."""
    failed = pa.concat_tables([FAILURES.schema.empty_table(), *source.tables("failures/")])
    metric = source.manifest.counts["metric"]
    shown, found = gather(
        lambda: source.tables("matches/"), failed, source.truth, metric, source.max_queries
    )
    page = page_of(
        source.folder, source.manifest, source.evaluation, source.charts, title=source.title,
        shown=shown, queries=found + len(failed),
    )  # fmt: skip
    names = Names(name)
    if contact_sheet.fits_one_file(shown):
        into.put(name, contact_sheet.render(page, shown, _thumbnails(where, into, names, shown)))
        page_slices.clear(into, names)
    else:
        into.put(name, _put_folder(where, source, into, names, page, shown))


def _thumbnails(where: Cluster, into: Folder, names: Names, shown: Shown) -> dict[str, bytes]:
    """Make the pictures that lie in a single file."""
    found: dict[str, bytes] = {}
    for made in _each_picture(where, page_slices.make_pictures, into, names, shown.paths()):
        found |= made
    return found


def _put_folder(
    where: Cluster, source: Source, into: Folder, names: Names, page: Page, shown: Shown
) -> bytes:
    """Put all further files; gives the page, which is to come last."""
    facets = facets_script(shown, names)
    if not page_slices.claim(into, names, _made_from(source, names, shown, facets)):
        raise UsageError(
            f"{into.uri(names.folder)} holds files that are not a report's; move them away, or "
            "give the page another name"
        )
    paths = shown.paths()
    answers = _each_picture(where, page_slices.put_pictures, into, names, paths)
    shown = shown.with_pictures(paths, [number for missing in answers for number in missing])
    frame = contact_sheet.Frame(source.title, names, pages_of(len(shown)))
    pages = (
        page_slices.PageSlice(into, frame, shown.cut(first, min(first + PER_SLICE, len(shown))))
        for first in range(0, len(shown), PER_SLICE)
    )
    many = len(shown) > _QUERIES_HERE
    for _ in _each(
        where, many, page_slices.put_pages, pages, "pages", "queries", len(shown), PER_SLICE
    ):
        pass
    page_slices.put_facets(into, names, facets)
    return contact_sheet.render_first(page, shown, names)


def _made_from(source: Source, names: Names, shown: Shown, facets: str) -> dict[str, str]:
    files = {
        record.path: record.sha256
        for record in source.manifest.files.values()
        if record.path.startswith(("matches/", "failures/"))
    }
    pictures = _digest(files, source.max_queries, SHOWN_MATCHES, templates.text_of("thumbnails.py"))
    grades = hashlib.sha256(shown.matches["grade"].to_numpy()).hexdigest()
    drawn = (source.title, names.page, PER_PAGE, templates.digest(), facets, grades)
    return {"thumbnails": pictures, "pages": _digest(pictures, *drawn)}


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _each(
    where: Cluster, many: bool, function: Callable[[Any], Any], work: Iterable[Any],
    stage: str, unit: str, total: int, size: int,
) -> Iterator[Any]:  # fmt: skip
    """Do slices of `size` in any order: on the cluster or, where there are few, here."""
    with progress(stage, total, unit) as shown:
        for answer in tasks.tasks(where, function, work) if many else map(function, work):
            shown.advance(min(size, total - shown.done))
            yield answer


def _each_picture(
    where: Cluster, function: Callable[[page_slices.PictureSlice], Any], into: Folder, names: Names,
    paths: list[str],
) -> Iterator[Any]:  # fmt: skip
    cut = page_slices.picture_slices(into, names, paths, max_pixels=MAX_PIXELS)
    many = len(paths) > IMAGES_HERE
    return _each(where, many, function, cut, "thumbnails", "images", len(paths), PER_THUMBNAILS)
