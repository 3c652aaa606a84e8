"""The `run` command: list, embed, index, search, evaluate and report in one job.

Each stage writes its own output below OUT: gallery and queries (stores), index, matches and
report.html. A stage whose output is finished and unchanged is skipped.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.cluster.resources import Cluster, open_cluster
from jobs.config.settings import (
    EmbedSettings,
    IndexSettings,
    RankSettings,
    RunSettings,
    content_settings,
    derive_settings,
)
from jobs.embedding import embed
from jobs.embedding.listing import open_input, read_labels_file
from jobs.embedding.prepare_model import PreparedModel, prepare_model
from jobs.embedding.recipe import explain_other_bundle, projection_left_out, recipe_job_fields
from jobs.evaluation.evaluate_matches import Evaluation, evaluate_by_labels
from jobs.evaluation.format_results import evaluation_json, format_measures
from jobs.indexing import index
from jobs.ranking import rank
from jobs.ranking.match_constraints import read_requested_calibration
from jobs.reporting.write_report import build_report_source, write_report
from jobs.runtime.check_output import check_output
from jobs.runtime.progress import print_message
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import Stopwatch, read_stage_metadata
from retrieval.storage import finished_output, transaction
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder

if TYPE_CHECKING:
    from retrieval.evaluation.calibration import Calibration

REPORT = "report.html"
_STAGES = ("gallery", "queries", "index", "matches")


@dataclass(frozen=True)
class RunOutcome:
    """The outputs of a finished run, and the summary for the user."""

    folder: Folder
    matches: Manifest
    evaluation: Evaluation | None
    result: Result


@dataclass(frozen=True)
class _RunContext:
    """Context of all stages: the settings, the cluster, and the folder of the outputs."""

    settings: RunSettings
    cluster: Cluster
    folder: Folder

    def uri(self, stage: str) -> str:
        return self.folder.child(stage).uri()

    def invalidate(self) -> None:
        """Mark the run as unfinished; a stage calls this before its output changes."""
        self.folder.delete(finished_output.MANIFEST)


def start(settings: RunSettings) -> Result:
    """Run all stages and return the summary."""
    return run(settings).result


def run(settings: RunSettings) -> RunOutcome:
    """Run all stages, reusing finished outputs of an earlier run."""
    stopwatch = Stopwatch()
    check_output(settings, "run")
    open_input(settings, settings.gallery).check()
    open_input(settings, settings.queries).check()
    if settings.labels is not None:
        read_labels_file(settings.labels, "gallery")
    calibration = read_requested_calibration(settings)
    with open_cluster(settings) as cluster:
        folder = open_folder(settings.output)
        prepared = prepare_model(settings, cluster, folder)
        _check_calibration(settings, prepared, calibration)
        dtype = prepared.resolve_dtype(settings.embedding_dtype)
        settings = replace(settings, embedding_dtype=dtype)
        with explain_other_bundle(settings, folder.child("gallery/model"), prepared.bundle):
            transaction.claim_output(
                folder, "run", _job_content(settings, prepared, calibration),
                overwrite=settings.overwrite, reuse_if_same=True,
            )  # fmt: skip
        context = _RunContext(settings, cluster, folder)
        prepared = _embed_gallery(context, prepared)
        _index_gallery(context)
        _embed_queries(context, prepared)
        matches = _search(context)
        finished = finished_output.is_finished(folder)
        if finished:
            print_message(
                f"nothing to do: {settings.output} is finished and its inputs are unchanged"
            )
        report_began = cluster.profile.now()
        evaluation, reasons = evaluate_by_labels(folder.child("matches"), matches)
        if not finished:
            _report(context, matches, evaluation)
            transaction.finish_output(folder, "run", {"queries": matches.counts["queries"]})
            cluster.profile.add("evaluate and report", report_began)
            stopwatch.write(
                folder, settings, stages=read_stage_metadata(folder, _STAGES),
                profile=cluster.profile.to_json(),
            )  # fmt: skip
    projection = projection_left_out(folder.child("gallery"))
    measure_lines = reasons
    if evaluation is not None:
        measure_lines = format_measures(evaluation, all_measures=settings.all_measures)
    measure_lines = (*projection[1], *measure_lines)
    summary = _summary(settings.output, matches, evaluation, measure_lines)
    summary = replace(summary, values={**summary.values, **projection[0]})
    return RunOutcome(folder, matches, evaluation, summary)


def _check_calibration(
    settings: RunSettings, prepared: PreparedModel, calibration: Calibration | None
) -> None:
    """Raise Mismatch before anything is embedded if --calibration is of another network or metric.

    With a projection, by --pca or the recipe, the bundle is known only when the gallery is
    embedded; `rank` then compares it.
    """
    if calibration is None or settings.calibration is None:
        return
    known: dict[str, Any] = {
        name: getattr(settings, name) for name in ("metric", "top_k", "filter")
    }
    if recipe_job_fields(settings)["pca"] is None:
        known["bundle"] = prepared.bundle.digest
    calibration.check_scoring(replace(calibration.scoring, **known), settings.calibration)


def _job_content(
    settings: RunSettings, prepared: PreparedModel, calibration: Calibration | None
) -> dict[str, Any]:
    """Return all settings and inputs that shape the outputs, for job.json."""
    inputs: dict[str, Any] = {"calibration": calibration.digest if calibration else None}
    inputs |= {name: open_folder(getattr(settings, name)).uri() for name in ("gallery", "queries")}
    content = {**content_settings(settings), **recipe_job_fields(settings)}
    del content["recipe"]  # its parts are recorded
    if content["augment_inference"] is None:
        del content["augment_inference"]
    plan = asdict(prepared.plan)
    return {**content, **plan, "bundle": prepared.bundle.digest, **inputs}


def _embed_gallery(context: _RunContext, prepared: PreparedModel) -> PreparedModel:
    """Embed the gallery; return the model for the queries, with the projection of the gallery."""
    settings = context.settings
    gallery = derive_settings(
        settings, EmbedSettings, input=settings.gallery, output=context.uri("gallery")
    )
    embed.embed(
        gallery, context.cluster, prepared=prepared, split="gallery", stage="embed gallery",
        invalidate=context.invalidate, reuse_if_same=True,
    )  # fmt: skip
    store = context.folder.child("gallery")
    if not finished_output.read_settings(store).get("pca"):
        return prepared
    from retrieval.models.bundle import read_bundle

    return replace(prepared, bundle=read_bundle(store))


def _index_gallery(context: _RunContext) -> Manifest:
    """Build the index of the gallery store."""
    settings = derive_settings(
        context.settings, IndexSettings, embeddings=context.uri("gallery"),
        output=context.uri("index"), overwrite=True,
    )  # fmt: skip
    return index.build_index(settings, context.cluster, reuse_if_same=True)


def _embed_queries(context: _RunContext, prepared: PreparedModel) -> Manifest:
    """Embed the queries with the model of the gallery."""
    settings = derive_settings(
        context.settings, EmbedSettings, input=context.settings.queries,
        output=context.uri("queries"), pca=0,  # the model has that of the gallery
    )  # fmt: skip
    return embed.embed(
        settings, context.cluster, prepared=prepared, split="queries", stage="embed queries",
        invalidate=context.invalidate, reuse_if_same=True,
    ).manifest  # fmt: skip


def _search(context: _RunContext) -> Manifest:
    """Search the index for the matches of the query store."""
    settings = derive_settings(
        context.settings, RankSettings, index=context.uri("index"),
        queries=context.uri("queries"), output=context.uri("matches"), overwrite=True,
        limit=None,  # already applied when the queries were embedded
    )  # fmt: skip
    return rank.rank(settings, context.cluster, invalidate=context.invalidate, reuse_if_same=True)


def _report(context: _RunContext, matches: Manifest, evaluation: Evaluation | None) -> None:
    """Write the HTML report of the matches."""
    source = build_report_source(
        context.folder.child("matches"), matches, evaluation, context.settings.seed
    )
    write_report(context.cluster, source, context.folder, REPORT)


def _summary(
    output: str, matches: Manifest, evaluation: Evaluation | None, measure_lines: tuple[str, ...]
) -> Result:
    ranked = rank.summary(f"{output}/matches", matches)
    report = f"{output}/{REPORT}"
    values = {**ranked.values, "output": output, "report": report}
    if evaluation is not None:
        values = {**evaluation_json(evaluation), **values}
    return Result(values, (*ranked.lines, *measure_lines, f"report: {report}"), ranked.exit_code)
