"""lookalike report: matches to a page with pictures, and a folder beside it where they are many."""

from __future__ import annotations

import os

from jobs.cluster.resources import cluster
from jobs.config.settings import ReportSettings
from jobs.evaluation.ground_truth import open_truth
from jobs.evaluation.judge_matches import evaluate, evaluate_by_labels
from jobs.reporting.write_report import Source, put_report
from jobs.runtime.check_output import check_file
from jobs.runtime.progress import say
from jobs.runtime.result import Result
from retrieval.core.errors import UsageError
from retrieval.core.output_layout import REPORT_FOLDERS
from retrieval.evaluation.ground_truth import Truth
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, file_at, is_remote, local_path, open_folder, unwritable

_FORMATS = ("html", "png")


def start(settings: ReportSettings) -> Result:
    """Write the report, replacing one that is there."""
    folder = open_folder(settings.matches)
    manifest = finished_output.read_manifest(folder, kind="matches")
    formats = _formats(settings)
    into, name = _target(settings.output)
    truth = open_truth(folder, manifest, settings)
    said: tuple[str, ...] = ()
    values = {}
    if "png" in formats:
        beside = into.child(f"{name.removesuffix('.html')}{REPORT_FOLDERS[1]}")
        said += _put_pictures(settings, folder, manifest, truth, beside)
        values["pictures"] = beside.uri()
    if "html" in formats:
        said += _put_page(settings, folder, manifest, truth, into, name)
        values["report"] = settings.output
    return Result(values, said)


def _formats(settings: ReportSettings) -> list[str]:
    names = [name.strip() for name in (settings.format or "html").split(",") if name.strip()]
    for name in names or [""]:
        if name not in _FORMATS:
            raise UsageError(f"--format {name!r}: write one or both of {','.join(_FORMATS)}")
    if settings.compare is not None and "png" not in names:
        raise UsageError("--compare draws pictures of two rankings: add --format png, or html,png")
    return names


def _put_page(
    settings: ReportSettings, folder: Folder, manifest: Manifest, truth: Truth, into: Folder,
    name: str,
) -> tuple[str, ...]:  # fmt: skip
    from jobs.reporting.pictures import charts_of

    why_not: tuple[str, ...] = ()
    if settings.labels is None and settings.qrels is None:
        evaluation, why_not = evaluate_by_labels(folder, manifest, settings.intervals_over)
    else:
        evaluation = evaluate(folder, manifest, truth, over=settings.intervals_over)
    charts = charts_of(folder, manifest, truth, note=say, seed=settings.seed)
    source = Source(
        folder, manifest, evaluation, truth, charts, settings.title, settings.max_queries
    )
    with cluster(settings) as where:
        put_report(where, source, into, name)
    return (*why_not, f"report: {settings.output}")


def _put_pictures(
    settings: ReportSettings, folder: Folder, manifest: Manifest, truth: Truth, target: Folder
) -> tuple[str, ...]:
    """Put pictures beside the page; with --compare also of two rankings side by side."""
    from jobs.reporting.contact_sheets import before_after
    from jobs.reporting.pictures import pictures_of, put_pictures

    made = pictures_of(folder, manifest, truth, note=say, seed=settings.seed)
    if settings.compare is not None:
        other = open_folder(settings.compare)
        there = finished_output.read_manifest(other, kind="matches")
        names = (_name(settings.compare), _name(settings.matches))
        made |= before_after(other, there, folder, manifest, truth, names, note=say)
    put_pictures(target, made)
    return (f"{len(made)} pictures: {target.uri()}",)


def _name(path: str) -> str:
    """Name a ranking by the end of its path, of two parts where the last is `matches`."""
    parts = [part for part in path.split("/") if part]
    return "/".join(parts[-2:] if parts[-1:] == ["matches"] else parts[-1:])


def _target(output: str) -> tuple[Folder, str]:
    """Give the folder and the name of the page, or refuse what cannot be written."""
    into, name = file_at(output)
    if not name or (not is_remote(output) and os.path.isdir(local_path(output))):
        raise UsageError(f"--output {output} is a folder; name a file in it, like report.html")
    check_file("--output", output)
    if why := unwritable(into):
        raise UsageError(f"--output {output} cannot be written ({why}); name a file that can")
    return into, name
