"""The `report` command: write finished matches as an HTML page, as PNG pictures, or both."""

from __future__ import annotations

import os

from jobs.cluster.resources import open_cluster
from jobs.config.options import parse_comma_list
from jobs.config.settings import ReportSettings
from jobs.evaluation.evaluate_matches import evaluate_by_labels, evaluate_matches
from jobs.evaluation.ground_truth import open_ground_truth
from jobs.reporting.write_report import ReportSource, write_report
from jobs.runtime.check_output import check_file
from jobs.runtime.progress import print_message
from jobs.runtime.result import Result
from retrieval.core.errors import UsageError
from retrieval.core.output_layout import REPORT_FOLDERS
from retrieval.evaluation.ground_truth import GroundTruth
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import (
    Folder,
    find_write_problem,
    is_remote,
    local_path,
    open_folder,
    split_file_url,
)

_FORMATS = ("html", "png")


def start(settings: ReportSettings) -> Result:
    """Write the requested formats, replacing an existing report."""
    folder = open_folder(settings.matches)
    manifest = finished_output.read_manifest(folder, kind="matches")
    formats = _formats(settings)
    target_folder, name = _target(settings.output)
    ground_truth = open_ground_truth(folder, manifest, settings)
    text_lines: tuple[str, ...] = ()
    values = {}
    if "png" in formats:
        pictures_folder = target_folder.child(f"{name.removesuffix('.html')}{REPORT_FOLDERS[1]}")
        text_lines += _write_pictures(settings, folder, manifest, ground_truth, pictures_folder)
        values["pictures"] = pictures_folder.uri()
    if "html" in formats:
        text_lines += _write_page(settings, folder, manifest, ground_truth, target_folder, name)
        values["report"] = settings.output
    return Result(values, text_lines)


def _formats(settings: ReportSettings) -> list[str]:
    names = parse_comma_list(settings.format or "html")
    for name in names or [""]:
        if name not in _FORMATS:
            raise UsageError(f"--format {name!r}: use one or both of {','.join(_FORMATS)}")
    if settings.compare is not None and "png" not in names:
        raise UsageError("--compare needs pictures; add --format png or --format html,png")
    return names


def _write_page(
    settings: ReportSettings, folder: Folder, manifest: Manifest, ground_truth: GroundTruth,
    target_folder: Folder, name: str,
) -> tuple[str, ...]:  # fmt: skip
    from jobs.reporting.pictures import draw_charts

    reasons: tuple[str, ...] = ()
    if settings.labels is None and settings.qrels is None:
        evaluation, reasons = evaluate_by_labels(folder, manifest, settings.intervals_over)
    else:
        evaluation = evaluate_matches(folder, manifest, ground_truth, over=settings.intervals_over)
    charts = draw_charts(folder, manifest, ground_truth, note=print_message, seed=settings.seed)
    source = ReportSource(
        folder, manifest, evaluation, ground_truth, charts, settings.title, settings.max_queries
    )
    with open_cluster(settings) as cluster:
        write_report(cluster, source, target_folder, name)
    return (*reasons, f"report: {settings.output}")


def _write_pictures(
    settings: ReportSettings,
    folder: Folder,
    manifest: Manifest,
    ground_truth: GroundTruth,
    target: Folder,
) -> tuple[str, ...]:
    """Write pictures of the matches; with --compare also of two rankings side by side."""
    from jobs.reporting.contact_sheets import draw_before_after
    from jobs.reporting.pictures import draw_pictures, write_pictures

    pictures = draw_pictures(folder, manifest, ground_truth, note=print_message, seed=settings.seed)
    if settings.compare is not None:
        other = open_folder(settings.compare)
        other_manifest = finished_output.read_manifest(other, kind="matches")
        names = (_name(settings.compare), _name(settings.matches))
        pictures |= draw_before_after(
            other, other_manifest, folder, manifest, ground_truth, names, note=print_message
        )
    write_pictures(target, pictures)
    return (f"{len(pictures)} pictures: {target.uri()}",)


def _name(path: str) -> str:
    """Return the last part of a path, or the last two if it ends in `matches`."""
    parts = [part for part in path.split("/") if part]
    return "/".join(parts[-2:] if parts[-1:] == ["matches"] else parts[-1:])


def _target(output: str) -> tuple[Folder, str]:
    """Return the folder and name of the page; raise UsageError if it cannot be written."""
    target_folder, name = split_file_url(output)
    if not name or (not is_remote(output) and os.path.isdir(local_path(output))):
        raise UsageError(
            f"--output {output} is a folder; specify a file, such as report.html in it"
        )
    check_file("--output", output)
    if problem := find_write_problem(target_folder):
        raise UsageError(f"--output {output} cannot be written ({problem}); choose a writable file")
    return target_folder, name
