"""lookalike rank: queries to ranked matches, with a certificate of the recall reached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from jobs.cluster.resources import Cluster, cluster
from jobs.config.option_groups import Elsewhere, EngineOptions
from jobs.config.settings import RankSettings, content_of
from jobs.embedding.precomputed_vectors import Given, with_rounding
from jobs.embedding.prepare_model import Prepared
from jobs.indexing.index import read_table
from jobs.ranking.match_constraints import MayMatch, against_itself, for_queries, may_match
from jobs.ranking.output_formats import Further, formats_of, further_lines
from jobs.ranking.queries import QUERIES, embed_queries, given_store, prepare_queries
from jobs.ranking.search_passes import answer, gallery_vectors
from jobs.ranking.write_matches import failures_path
from jobs.runtime.check_output import check_output
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import Stopwatch
from retrieval.core.errors import BelowBound, Damaged, UsageError
from retrieval.core.records import Certificate, FileRecord
from retrieval.core.schemas import FAILURES
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import read_json, sealed_json, sealed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import Store

_LOST = (
    "all lists were read: what is missing was lost by the codes, and an index with --index-factory "
    "IVFn,Flat (IVFn,SQfp16 for float16 vectors) loses nothing"
)
CERTIFICATE = "certificate.json"
_OF_RECALL = ("target", "low", "high", "sample", "extrapolated")
_VOUCHED = ("matches", "failures", "barred")
"""Folders whose files the certificate names."""


def start(settings: RankSettings) -> Result:
    """Rank queries and say what it came to."""
    check_output(settings, "matches")
    with cluster(settings) as where:
        manifest = rank(settings, where)
    result = summary(settings.output, manifest)
    return with_rounding(result, open_folder(settings.output).child(QUERIES), "query vectors")


def rank(
    settings: RankSettings, where: Cluster, *, keep_equal: bool = False,
    unsettle: Callable[[], None] | None = None,
) -> Manifest:  # fmt: skip
    """Make matches, going on with what is there; queries may be images or a store.

    `unsettle` is called before finished matches get a further file.
    """
    watch = Stopwatch(where)
    index_folder = open_folder(settings.index)
    index = finished_output.read_manifest(index_folder, kind="index")
    folder = open_folder(settings.output)
    further = Further(formats_of(settings), settings.unique_pairs)
    chosen = may_match(settings, index_folder, index)
    given = given_store(settings, index_folder)
    _check_pairs(settings, given, index)
    prepared = None if given else prepare_queries(settings, where, folder, index_folder)
    job = _job(settings, index, chosen, given, prepared)
    transaction.begin(folder, "matches", job, overwrite=settings.overwrite, keep_equal=keep_equal)
    if not finished_output.is_finished(folder):
        gallery_vectors(settings, index_folder, index)  # before any query is embedded
    queries = given or embed_queries(
        settings, where, index_folder, prepared, unsettle=lambda: transaction.start_over(folder)
    )
    if finished_output.is_finished(folder):
        manifest = finished_output.read_manifest(folder, kind="matches")
        if not further.missing(manifest.files):
            return manifest
        if unsettle:
            unsettle()
        folder.delete(
            finished_output.MANIFEST
        )  # a run that is killed now goes on, and is not refused

    def make() -> Manifest:
        ranked = _ranked(folder) or answer(
            settings, where, folder, index_folder, index, queries,
            for_queries(chosen, queries, index),
        )  # fmt: skip
        manifest = _finish(where, folder, index_folder, index, queries, *ranked, further)
        watch.write(
            folder, settings, done=queries.rows, files=manifest.files.values(),
            queries=queries.rows,
        )  # fmt: skip
        return manifest

    return transaction.unless_overtaken(folder, "matches", make)


def _check_pairs(settings: RankSettings, given: Store | None, index: Manifest) -> None:
    if settings.unique_pairs and (given is None or not against_itself(given, index)):
        raise UsageError(
            "--unique-pairs is for a gallery against itself: name the store that "
            f"{settings.index} was made of by --queries, or leave it away"
        )


def _ranked(folder: Folder) -> tuple[Certificate, int] | None:
    """Read what a run put when all matches were there; None where they are not."""
    try:
        data = folder.read(CERTIFICATE)
    except FileNotFoundError:
        return None
    values = read_json(data)
    if values is None:
        raise Damaged(f"{folder.uri(CERTIFICATE)} was altered; remove it and run again")
    there = {entry.path for name in _VOUCHED for entry in folder.entries(name)}
    if not values["files"].keys() <= there:
        return None
    return Certificate(**values["certificate"]), values["unmatched"]


def _put_certificate(folder: Folder, certificate: Certificate, unmatched: int) -> list[FileRecord]:
    """Vouch for all parts of the matches, which are given, and say which recall they have."""
    made = transaction.records(folder).values()
    parts = [record for record in made if record.path.partition("/")[0] in _VOUCHED]
    files = {record.path: record.sha256 for record in parts}
    values = {"certificate": asdict(certificate), "unmatched": unmatched, "files": files}
    transaction.put_once(folder, CERTIFICATE, sealed_json(values))
    return parts


def _job(
    settings: RankSettings,
    index: Manifest,
    chosen: MayMatch,
    queries: Store | None,
    prepared: Prepared | Given | None,
) -> dict[str, Any]:
    """Give what shapes matches; an engine is only of meaning where images are embedded."""
    names = {f.name for s in (EngineOptions, Elsewhere) for f in dataclasses.fields(s)}
    content = {k: v for k, v in content_of(settings).items() if k not in names}
    return {
        **content,
        "expand_queries": asdict(chosen.expansion) if chosen.expansion else None,
        **(prepared.job() if prepared else {}),
        "index": open_folder(settings.index).uri(),
        "index_sha256": index.sha256,
        "queries": open_folder(settings.queries).uri(),
        "queries_sha256": queries.manifest.sha256 if queries else None,
    }


def _finish(
    where: Cluster,
    folder: Folder,
    index_folder: Folder,
    index: Manifest,
    queries: Store,
    certificate: Certificate,
    unmatched: int,
    further: Further,
) -> Manifest:
    """Put what is known beside the matches and the further formats, then the manifest."""
    from retrieval.index.shard import LABELS

    failed = pa.concat_tables([FAILURES.schema.empty_table(), *queries.failures()])
    if len(failed):
        transaction.put_once(folder, failures_path(0), sealed_parquet(failed.combine_chunks()))
    if not folder.exists(LABELS):  # else conditions of the ranking left fewer
        labels = read_table(index_folder, index, LABELS)
        transaction.put_once(folder, LABELS, sealed_parquet(labels))
    parts = _put_certificate(folder, certificate, unmatched)
    counts = {
        "queries": queries.rows,
        "failures": len(failed),
        "unmatched": unmatched,
        "gallery": index.counts["rows"],
        "metric": index.counts["metric"],
        "certificate": asdict(certificate),
    }
    further.put(folder, counts, where)
    return transaction.finish(folder, "matches", counts, parts)


def summary(output: str, manifest: Manifest) -> Result:
    """Say which recall was reached; exit 5 where it is not shown to be what was asked for."""
    counts = manifest.counts
    certificate = Certificate(**counts["certificate"])
    lines: tuple[str, ...] = (
        f"{counts['queries']} queries ranked against {counts['gallery']} gallery images, "
        f"{counts['failures']} queries failed: {output}",
        certificate.sentence(),
    )
    if counts["unmatched"]:
        lines += (f"{counts['unmatched']} queries found no image that may be a match",)
    lines += further_lines(manifest.files)
    settings = finished_output.read_settings(open_folder(output))
    below = certificate.low < certificate.target
    code = BelowBound.exit_code if settings["nprobe"] is None and below else 0
    if below and certificate.nprobe == certificate.nlist:
        lines += (_LOST,)
    values = {key: value for key, value in counts.items() if key != "certificate"}
    for key, value in asdict(certificate).items():
        if key != "queries":
            values[f"recall_{key}" if key in _OF_RECALL else key] = value
    return Result({"output": output, **values}, lines, code)
