"""lookalike rank: queries to ranked matches, with a certificate of the recall reached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from jobs.check_output import check_output
from jobs.cluster import Cluster, cluster
from jobs.elsewhere import Given, with_rounding
from jobs.formats import Further, formats_of, further_lines
from jobs.groups import Elsewhere, EngineOptions
from jobs.index import read_table
from jobs.may_match import MayMatch, against_itself, for_queries, may_match
from jobs.passes import answer, gallery_vectors
from jobs.prepare import Prepared
from jobs.put_matches import failures_path
from jobs.queries import QUERIES, embed_queries, given_store, prepare_queries
from jobs.result import Result
from jobs.runfile import Stopwatch
from jobs.settings import RankSettings, content_of
from retrieval.embeddings.store import Store
from retrieval.errors import BelowBound, Damaged, UsageError
from retrieval.records import Certificate, FileRecord
from retrieval.storage import commit, finished
from retrieval.storage.files import Folder, open_folder
from retrieval.storage.finished import Manifest
from retrieval.storage.seal import read_json, sealed_json, sealed_parquet
from retrieval.tables import FAILURES

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
    index = finished.read_manifest(index_folder, kind="index")
    folder = open_folder(settings.output)
    further = Further(formats_of(settings), settings.unique_pairs)
    chosen = may_match(settings, index_folder, index)
    given = given_store(settings, index_folder)
    _check_pairs(settings, given, index)
    prepared = None if given else prepare_queries(settings, where, folder, index_folder)
    job = _job(settings, index, chosen, given, prepared)
    commit.begin(folder, "matches", job, overwrite=settings.overwrite, keep_equal=keep_equal)
    if not finished.is_finished(folder):
        gallery_vectors(settings, index_folder, index)  # before any query is embedded
    queries = given or embed_queries(
        settings, where, index_folder, prepared, unsettle=lambda: commit.start_over(folder)
    )
    if finished.is_finished(folder):
        manifest = finished.read_manifest(folder, kind="matches")
        if not further.missing(manifest.files):
            return manifest
        if unsettle:
            unsettle()
        folder.delete(finished.MANIFEST)  # a run that is killed now goes on, and is not refused

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

    return commit.unless_overtaken(folder, "matches", make)


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
    made = commit.records(folder).values()
    parts = [record for record in made if record.path.partition("/")[0] in _VOUCHED]
    files = {record.path: record.sha256 for record in parts}
    values = {"certificate": asdict(certificate), "unmatched": unmatched, "files": files}
    commit.put_once(folder, CERTIFICATE, sealed_json(values))
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
    from retrieval.index.shards import LABELS

    failed = pa.concat_tables([FAILURES.schema.empty_table(), *queries.failures()])
    if len(failed):
        commit.put_once(folder, failures_path(0), sealed_parquet(failed.combine_chunks()))
    if not folder.exists(LABELS):  # else conditions of the ranking left fewer
        labels = read_table(index_folder, index, LABELS)
        commit.put_once(folder, LABELS, sealed_parquet(labels))
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
    return commit.finish(folder, "matches", counts, parts)


def summary(output: str, manifest: Manifest) -> Result:
    """Return the result with the recall reached; exit code 5 where the target is not shown."""
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
    settings = finished.read_settings(open_folder(output))
    below = certificate.low < certificate.target
    code = BelowBound.exit_code if settings["nprobe"] is None and below else 0
    if below and certificate.nprobe == certificate.nlist:
        lines += (_LOST,)
    values = {key: value for key, value in counts.items() if key != "certificate"}
    for key, value in asdict(certificate).items():
        if key != "queries":
            values[f"recall_{key}" if key in _OF_RECALL else key] = value
    return Result({"output": output, **values}, lines, code)
