"""Writing of the report of finished matches: thumbnails and pages in slices, then the first page.

Slices are processed on the cluster if there are many of them, and slices that a killed run has
completed are reused. The first page is written last.
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
from jobs.config.options import MAX_PIXELS
from jobs.config.settings import RelevanceOptions
from jobs.evaluation.evaluate_matches import Evaluation
from jobs.evaluation.ground_truth import open_ground_truth, stream_tables
from jobs.ranking.duplicates import GROUPS, read_duplicate_counts
from jobs.reporting.page_summary import build_page
from jobs.runtime.progress import print_message, progress
from retrieval.core.errors import LookalikeError, UsageError
from retrieval.core.schemas import FAILURES
from retrieval.evaluation.ground_truth import GroundTruth
from retrieval.report import contact_sheet, page_slices, templates
from retrieval.report.chart import Chart
from retrieval.report.facets import facets_script
from retrieval.report.groups import NO_GROUPS, ShownGroups, select_groups
from retrieval.report.names import PER_PAGE, PER_SLICE, PER_THUMBNAILS, ReportFiles, page_count
from retrieval.report.page import Page
from retrieval.report.rows import SHOWN_MATCHES, ShownQueries, select_queries
from retrieval.sources.container_paths import reading_order
from retrieval.storage import finished_output
from retrieval.storage.checksum import stream_checksummed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder

DEFAULT_SHOWN_QUERIES = 1000
"""Queries shown in reports written by `run` and `rank --format html`."""
LOCAL_IMAGE_LIMIT, _LOCAL_QUERY_LIMIT = 300, 2000
"""Numbers of images and queries up to which local work takes less time than starting Ray."""


@dataclass(frozen=True)
class ReportSource:
    """Content of a report: matches, their evaluation, charts, and the number of queries to show."""

    folder: Folder
    manifest: Manifest
    evaluation: Evaluation | None
    ground_truth: GroundTruth
    charts: tuple[Chart, ...] = ()
    title: str = "lookalike"
    max_queries: int = DEFAULT_SHOWN_QUERIES

    def tables(self, prefix: str) -> Iterator[pa.Table]:
        """Yield the tables of the matches below a path prefix, verified."""
        return stream_tables(self.folder, self.manifest, prefix)


def build_report_source(
    folder: Folder, manifest: Manifest, evaluation: Evaluation | None, seed: int = 0
) -> ReportSource:
    """Return the content of the report of finished matches, with charts by the labels in them.

    `evaluation` is the evaluation of the same matches, None if they have no labels.
    """
    from jobs.reporting.pictures import draw_charts

    ground_truth = open_ground_truth(folder, manifest, RelevanceOptions())
    charts = draw_charts(folder, manifest, ground_truth, note=print_message, seed=seed)
    return ReportSource(folder, manifest, evaluation, ground_truth, charts)


def write_report(cluster: Cluster, source: ReportSource, target: Folder, name: str) -> None:
    """Write the report page `name` into a folder and, if it is large, further files beside it.

    Raises UsageError if a folder with the name of the further files contains foreign files.
    """
    failed = pa.concat_tables([FAILURES.schema.empty_table(), *source.tables("failures/")])
    metric = source.manifest.counts["metric"]
    shown, query_count = select_queries(
        lambda: source.tables("matches/"), failed, source.ground_truth, metric, source.max_queries
    )
    page = build_page(
        source.folder, source.manifest, source.evaluation, source.charts, title=source.title,
        shown=shown, queries=query_count + len(failed),
    )  # fmt: skip
    names, groups = ReportFiles(name), _read_groups(source)
    paths = _image_paths(source, shown, groups)
    if contact_sheet.fits_one_file(shown, groups):
        thumbnails = _thumbnails(cluster, target, names, paths)
        target.put(name, contact_sheet.render(page, shown, thumbnails, groups))
        page_slices.remove_files(target, names)
    else:
        target.put(name, _write_folder(cluster, source, target, names, page, shown, groups, paths))


def _read_groups(source: ReportSource) -> ShownGroups:
    """Return the groups of duplicates to show; none if the matches have no groups."""
    groups = read_duplicate_counts(source.folder).get("groups", 0)
    if groups == 0:
        return NO_GROUPS
    return select_groups(stream_checksummed_parquet(source.folder, GROUPS), groups)


def _image_paths(source: ReportSource, shown: ShownQueries, groups: ShownGroups) -> list[str]:
    """Return the distinct paths of all images to show, in efficient reading order.

    There are none if the index holds imported vectors.
    """
    try:
        index = open_folder(finished_output.read_settings(source.folder)["index"])
        holds_images = finished_output.read_settings(index)["bundle"] is not None
    except (OSError, KeyError, LookalikeError):  # the index was moved or removed
        holds_images = True
    if not holds_images:
        return []
    return sorted(dict.fromkeys([*shown.paths(), *groups.paths()]), key=reading_order)


def _thumbnails(
    cluster: Cluster, target: Folder, names: ReportFiles, paths: list[str]
) -> dict[str, bytes]:
    """Return the thumbnails by path, for a report in a single file."""
    thumbnails: dict[str, bytes] = {}
    for slice_thumbnails in _map_thumbnail_slices(
        cluster, page_slices.make_thumbnails, target, names, paths
    ):
        thumbnails |= slice_thumbnails
    return thumbnails


def _write_folder(
    cluster: Cluster,
    source: ReportSource,
    target: Folder,
    names: ReportFiles,
    page: Page,
    shown: ShownQueries,
    groups: ShownGroups,
    paths: list[str],
) -> bytes:
    """Write all files but the first page; return the first page, which must be written last."""
    facets = facets_script(shown, names)
    if not page_slices.prepare_folder(target, names, _origin_digests(source, names, shown, facets)):
        raise UsageError(
            f"{target.uri(names.folder)} contains files that do not belong to a report; move them, "
            "or choose another name for the page"
        )
    missing_by_slice = _map_thumbnail_slices(
        cluster, page_slices.write_thumbnails, target, names, paths
    )
    missing = {number for numbers in missing_by_slice for number in numbers}
    shown = shown.with_pictures(paths, missing)
    groups = groups.with_pictures(
        {path: number for number, path in enumerate(paths) if number not in missing}
    )
    frame = contact_sheet.PageFrame(source.title, names, page_count(len(shown)))
    pages = (
        page_slices.PageSlice(target, frame, shown.cut(first, min(first + PER_SLICE, len(shown))))
        for first in range(0, len(shown), PER_SLICE)
    )
    use_cluster = len(shown) > _LOCAL_QUERY_LIMIT
    for _ in _map_slices(
        cluster,
        use_cluster,
        page_slices.write_pages,
        pages,
        "pages",
        "queries",
        len(shown),
        PER_SLICE,
    ):
        pass
    page_slices.write_facets(target, names, facets)
    return contact_sheet.render_first_page(page, shown, names, groups)


def _origin_digests(
    source: ReportSource, names: ReportFiles, shown: ShownQueries, facets: str
) -> dict[str, str]:
    files = {
        record.path: record.sha256
        for record in source.manifest.files.values()
        if record.path.startswith(("matches/", "failures/")) or record.path == GROUPS
    }
    pictures = _digest(
        files, source.max_queries, SHOWN_MATCHES, templates.read_text("thumbnails.py")
    )
    grades = hashlib.sha256(shown.matches["grade"].to_numpy()).hexdigest()
    page_inputs = (source.title, names.page, PER_PAGE, templates.template_digest(), facets, grades)
    return {"thumbnails": pictures, "pages": _digest(pictures, *page_inputs)}


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _map_slices(
    cluster: Cluster, use_cluster: bool, function: Callable[[Any], Any], work: Iterable[Any],
    stage: str, unit: str, total: int, size: int,
) -> Iterator[Any]:  # fmt: skip
    """Yield the results of `function` for slices of `size` units, in any order.

    `function` is called on the cluster with `use_cluster`, else locally.
    """
    with progress(stage, total, unit) as bar:
        for result in (
            tasks.run_tasks(cluster, function, work) if use_cluster else map(function, work)
        ):
            bar.advance(min(size, total - bar.done))
            yield result


def _map_thumbnail_slices(
    cluster: Cluster, function: Callable[[page_slices.ThumbnailSlice], Any], target: Folder,
    names: ReportFiles, paths: list[str],
) -> Iterator[Any]:  # fmt: skip
    slices = page_slices.thumbnail_slices(target, names, paths, max_pixels=MAX_PIXELS)
    use_cluster = len(paths) > LOCAL_IMAGE_LIMIT
    return _map_slices(
        cluster, use_cluster, function, slices, "thumbnails", "images", len(paths), PER_THUMBNAILS
    )
