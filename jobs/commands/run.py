"""lookalike run: the whole job, each stage an output of its own beside the others.

OUT/gallery and OUT/queries (stores), OUT/index, OUT/matches, OUT/report.html.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from jobs.cluster.resources import Cluster, cluster
from jobs.config.settings import (
    EmbedSettings,
    IndexSettings,
    RankSettings,
    RunSettings,
    content_of,
    part_of,
)
from jobs.embedding import embed
from jobs.embedding.listing import read_labels_file, source_of
from jobs.embedding.prepare_model import Prepared, prepare
from jobs.evaluation.format_results import flat, lines
from jobs.evaluation.judge_matches import Evaluation, evaluate_by_labels
from jobs.indexing import index
from jobs.ranking import rank
from jobs.reporting.write_report import put_report, report_of
from jobs.runtime.check_output import check_output
from jobs.runtime.progress import say
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import Stopwatch, of_stages
from retrieval.storage import finished_output, transaction
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder

REPORT = "report.html"
_STAGES = ("gallery", "queries", "index", "matches")


@dataclass(frozen=True)
class Ran:
    """What a whole job came to."""

    folder: Folder
    matches: Manifest
    evaluation: Evaluation | None
    result: Result


def start(settings: RunSettings) -> Result:
    """Do the whole job and say what it came to."""
    return run(settings).result


def run(settings: RunSettings) -> Ran:
    """Do the whole job, going on with what is there."""
    watch = Stopwatch()
    check_output(settings, "run")
    source_of(settings, settings.gallery).check()
    source_of(settings, settings.queries).check()
    if settings.labels is not None:
        read_labels_file(settings.labels, "gallery")
    with cluster(settings) as where:
        folder = open_folder(settings.output)
        prepared = prepare(settings, where, folder)
        dtype = prepared.stored_dtype(settings.embedding_dtype)
        settings = replace(settings, embedding_dtype=dtype)
        job = {**content_of(settings), **asdict(prepared.plan), "bundle": prepared.bundle.digest}
        job |= {name: open_folder(getattr(settings, name)).uri() for name in ("gallery", "queries")}
        transaction.begin(folder, "run", job, overwrite=settings.overwrite, keep_equal=True)
        matches = _stages(settings, where, folder, prepared)
        if finished_output.is_finished(folder):
            say(f"nothing to do: {settings.output} is finished, and its inputs are as they were")
        evaluation, why_not = evaluate_by_labels(folder.child("matches"), matches)
        if not finished_output.is_finished(folder):
            source = report_of(folder.child("matches"), matches, settings.seed)
            put_report(where, source, folder, REPORT)
            transaction.finish(folder, "run", {"queries": matches.counts["queries"]})
            watch.write(folder, settings, stages=of_stages(folder, _STAGES))
    said = why_not
    if evaluation is not None:
        said = lines(evaluation, all_measures=settings.all_measures)
    return Ran(folder, matches, evaluation, _summary(settings.output, matches, evaluation, said))


def _stages(settings: RunSettings, where: Cluster, folder: Folder, prepared: Prepared) -> Manifest:
    gallery, queries, index_at, matches = (
        folder.child(name).uri() for name in ("gallery", "queries", "index", "matches")
    )
    common: dict[str, Any] = {"keep_equal": True}

    def unsettle() -> None:
        folder.delete(finished_output.MANIFEST)  # of a store that grows the rest is made anew

    embed.embed(
        part_of(settings, EmbedSettings, input=settings.gallery, output=gallery), where,
        prepared=prepared, split="gallery", stage="embed gallery", unsettle=unsettle, **common,
    )  # fmt: skip
    if settings.pca:
        from retrieval.models.bundle import read_bundle

        prepared = replace(prepared, bundle=read_bundle(folder.child("gallery")))
    index.build(
        part_of(settings, IndexSettings, embeddings=gallery, output=index_at, overwrite=True),
        where, **common,
    )  # fmt: skip
    embed.embed(
        part_of(settings, EmbedSettings, input=settings.queries, output=queries, pca=None), where,
        prepared=prepared, split="queries", stage="embed queries", unsettle=unsettle, **common,
    )  # fmt: skip
    return rank.rank(
        part_of(
            settings, RankSettings, index=index_at, queries=queries, output=matches, overwrite=True,
            limit=None,  # the queries are a store by now, which has heeded it
        ),
        where, unsettle=unsettle, **common,
    )  # fmt: skip


def _summary(
    output: str, matches: Manifest, evaluation: Evaluation | None, measured: tuple[str, ...]
) -> Result:
    ranked = rank.summary(f"{output}/matches", matches)
    report = f"{output}/{REPORT}"
    values = {**ranked.values, "output": output, "report": report}
    if evaluation is not None:
        values = {**flat(evaluation), **values}
    return Result(values, (*ranked.lines, *measured, f"report: {report}"), ranked.exit_code)
