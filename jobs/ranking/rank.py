"""The `rank` command: search an index for queries, write matches and certify their recall.

Queries are a store, images, or vectors in files; the latter two are first written to a store beside
the matches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from jobs.cluster.driver_process import choose_process, estimate_seconds
from jobs.cluster.resources import Cluster, open_cluster
from jobs.config.options import Reranking
from jobs.config.settings import EngineOptions, RankSettings, VectorSourceOptions, content_settings
from jobs.embedding.precomputed_vectors import PrecomputedVectors, add_rounding
from jobs.embedding.prepare_model import PreparedModel
from jobs.indexing.index import read_table
from jobs.ranking.duplicates import RankedStores, format_duplicates, requested_files
from jobs.ranking.match_constraints import (
    MatchConstraints,
    read_match_constraints,
    select_exclusion_column,
)
from jobs.ranking.output_formats import ExtraFiles, format_extra_files, parse_formats
from jobs.ranking.queries import QUERIES, embed_queries, open_query_store, prepare_queries
from jobs.ranking.rerank import makes_new_order
from jobs.ranking.search_passes import search_queries
from jobs.ranking.write_matches import failures_path
from jobs.runtime.check_output import check_output
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import Stopwatch
from retrieval.core.errors import BelowBound
from retrieval.core.output_layout import CALIBRATION
from retrieval.core.records import Certificate, FileRecord
from retrieval.core.schemas import FAILURES, ScoreKind
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import checksummed_json, checksummed_parquet, read_checksummed_json
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import Store

_LOSSY_CODES_HINT = (
    "all lists were read, so the compressed codes cause the loss of recall: build an index with "
    "--index-factory IVFn,Flat (or IVFn,SQfp16 for float16 vectors), which is lossless"
)
_PAIR_PRODUCTS = 10
CERTIFICATE = "certificate.json"
_RECALL_FIELDS = ("target", "low", "high", "sample", "extrapolated")
_CERTIFIED_FOLDERS = ("matches", "failures", "barred")
"""Folders whose files are listed with their checksums in the certificate."""


def start(settings: RankSettings) -> Result:
    """Run the command and return its result."""
    check_output(settings, "matches")
    with open_cluster(settings) as cluster:
        manifest = rank(settings, cluster)
    result = summary(settings.output, manifest)
    return add_rounding(result, open_folder(settings.output).child(QUERIES), "query vectors")


def rank(
    settings: RankSettings, cluster: Cluster, *, reuse_if_same: bool = False,
    invalidate: Callable[[], None] | None = None,
) -> Manifest:  # fmt: skip
    """Write matches to the output, continuing an unfinished run, and return their manifest.

    Args:
        settings: What to rank, how, and where to.
        cluster: The Ray cluster that does the work.
        reuse_if_same: Whether `--overwrite` keeps finished matches that have the same settings.
        invalidate: Called before a file is added to finished matches; deletes the manifests of
            outputs that depend on them.
    """
    stopwatch = Stopwatch(cluster, "rank")
    index_folder = open_folder(settings.index)
    index = finished_output.read_manifest(index_folder, kind="index")
    folder = open_folder(settings.output)
    formats = parse_formats(settings)
    constraints = read_match_constraints(settings, index_folder, index)
    query_store = open_query_store(settings, index_folder)
    extra_files = ExtraFiles(formats, requested_files(settings, query_store, index))
    prepared = None if query_store else prepare_queries(settings, cluster, folder, index_folder)
    job = _job(settings, index, constraints, query_store, prepared)
    _check_calibration(settings, constraints, job, index_folder, index)
    transaction.claim_output(
        folder, "matches", job, overwrite=settings.overwrite, reuse_if_same=reuse_if_same
    )
    queries = query_store or embed_queries(
        settings,
        cluster,
        index_folder,
        prepared,
        invalidate=lambda: transaction.remove_results(folder),
    )
    if finished_output.is_finished(folder):
        manifest = finished_output.read_manifest(folder, kind="matches")
        if not extra_files.any_missing(manifest.files):
            return manifest
        if invalidate:
            invalidate()
        # if this run is killed, the matches are unfinished and the next run continues
        folder.delete(finished_output.MANIFEST)

    def search_and_finish() -> Manifest:
        if constraints.calibration is not None:
            transaction.put_if_absent(folder, CALIBRATION, constraints.calibration.to_json())
        certificate, unmatched = _read_certificate(folder) or search_queries(
            settings,
            _choose_search_process(settings, cluster, index, queries, constraints.reranking),
            folder, index_folder, index, queries,
            select_exclusion_column(constraints, queries, index),
        )  # fmt: skip
        kind: ScoreKind = index.counts["metric"]
        if makes_new_order(constraints.reranking):
            kind = "unitless"
        manifest = _finish(
            cluster,
            folder,
            index_folder,
            index,
            queries,
            certificate,
            unmatched,
            extra_files,
            kind,
        )
        stopwatch.write(
            folder, settings, done=queries.rows, files=manifest.files.values(),
            queries=queries.rows,
        )  # fmt: skip
        return manifest

    return transaction.make_unless_finished(folder, "matches", search_and_finish)


def _choose_search_process(
    settings: RankSettings,
    cluster: Cluster,
    index: Manifest,
    queries: Store,
    reranking: Reranking | None,
) -> Cluster:
    """Return the process or cluster that searches; its GPUs are used if --device cuda asks for it.

    The estimate assumes that each query is compared with each row, twice with --rerank expand. All
    pairs of re-ranked matches are scored in float64, in the time of `_PAIR_PRODUCTS` products each.
    """
    if settings.device == "cuda":
        return cluster
    rows = queries.rows + index.counts["rows"]
    passes, pairs = 1, 0
    if reranking is not None:
        if makes_new_order(reranking):
            pairs = _PAIR_PRODUCTS * reranking.count**2
        else:
            passes = 2
    products = float(queries.rows) * (index.counts["rows"] * passes + pairs) * queries.dimension
    return choose_process(cluster, estimate_seconds(4 * rows * queries.dimension, products))


def _read_certificate(folder: Folder) -> tuple[Certificate, int] | None:
    """Read the certificate and the number of unmatched queries; None if matches are missing."""
    try:
        values = read_checksummed_json(folder, CERTIFICATE)
    except FileNotFoundError:
        return None
    existing = {entry.path for name in _CERTIFIED_FOLDERS for entry in folder.entries(name)}
    if not values["files"].keys() <= existing:
        return None
    return Certificate(**values["certificate"]), values["unmatched"]


def _write_certificate(
    folder: Folder, certificate: Certificate, unmatched: int
) -> list[FileRecord]:
    """Write the recall and the checksums of all files of the matches; return their records."""
    records = transaction.collect_records(folder).values()
    parts = [record for record in records if record.path.partition("/")[0] in _CERTIFIED_FOLDERS]
    files = {record.path: record.sha256 for record in parts}
    values = {"certificate": asdict(certificate), "unmatched": unmatched, "files": files}
    transaction.put_if_absent(folder, CERTIFICATE, checksummed_json(values))
    return parts


def _job(
    settings: RankSettings,
    index: Manifest,
    constraints: MatchConstraints,
    queries: Store | None,
    prepared: PreparedModel | PrecomputedVectors | None,
) -> dict[str, Any]:
    """Return the content of job.json.

    Options of engines and vector sources are left out here; `prepared` adds those that apply.
    """
    names = {f.name for s in (EngineOptions, VectorSourceOptions) for f in dataclasses.fields(s)}
    content = {k: v for k, v in content_settings(settings).items() if k not in names}
    return {
        **content,
        "rerank": asdict(constraints.reranking) if constraints.reranking else None,
        "calibration": constraints.calibration.digest if constraints.calibration else None,
        **(prepared.job_fields() if prepared else {}),
        "index": open_folder(settings.index).uri(),
        "index_sha256": index.sha256,
        "queries": open_folder(settings.queries).uri(),
        "queries_sha256": queries.manifest.sha256 if queries else None,
    }


def _check_calibration(
    settings: RankSettings,
    constraints: MatchConstraints,
    job: dict[str, Any],
    index_folder: Folder,
    index: Manifest,
) -> None:
    """Raise Mismatch if --calibration was made with another network, metric or scoring."""
    from retrieval.evaluation.calibration import read_scoring

    if constraints.calibration is not None and settings.calibration is not None:
        index_job = finished_output.read_settings(index_folder)
        scoring = read_scoring(job, index_job, index.counts["dimension"])
        constraints.calibration.check_scoring(scoring, settings.calibration)


def _finish(
    cluster: Cluster,
    folder: Folder,
    index_folder: Folder,
    index: Manifest,
    queries: Store,
    certificate: Certificate,
    unmatched: int,
    extra_files: ExtraFiles,
    score_kind: ScoreKind,
) -> Manifest:
    """Write failures, labels, certificate and extra files beside the matches, then the manifest."""
    from retrieval.index.shard import LABELS

    failed = pa.concat_tables([FAILURES.schema.empty_table(), *queries.failures()])
    if len(failed):
        transaction.put_if_absent(
            folder, failures_path(0), checksummed_parquet(failed.combine_chunks())
        )
    if not folder.exists(LABELS):  # already written if options restrict the matches
        labels = read_table(index_folder, index, LABELS)
        transaction.put_if_absent(folder, LABELS, checksummed_parquet(labels))
    parts = _write_certificate(folder, certificate, unmatched)
    counts = {
        "queries": queries.rows,
        "failures": len(failed),
        "unmatched": unmatched,
        "gallery": index.counts["rows"],
        "metric": score_kind,
        "certificate": asdict(certificate),
    }
    counts = extra_files.write(folder, counts, RankedStores(index_folder, index, queries), cluster)
    return transaction.finish_output(folder, "matches", counts, parts)


def summary(output: str, manifest: Manifest) -> Result:
    """Return the result of finished matches; exit code 5 if the target recall is not certified."""
    counts = manifest.counts
    certificate = Certificate(**counts["certificate"])
    lines: tuple[str, ...] = (
        f"{counts['queries']} queries ranked against {counts['gallery']} gallery images, "
        f"{counts['failures']} queries failed: {output}",
        certificate.sentence(),
    )
    if counts["unmatched"]:
        lines += (f"{counts['unmatched']} queries have no match with the options of the ranking",)
    settings = finished_output.read_settings(open_folder(output))
    lines += format_extra_files(manifest.files) + format_duplicates(manifest, settings["top_k"])
    below = certificate.low < certificate.target
    code = BelowBound.exit_code if settings["nprobe"] is None and below else 0
    if below and certificate.reads_all_lists:
        lines += (_LOSSY_CODES_HINT,)
    values = {key: value for key, value in counts.items() if key != "certificate"}
    for key, value in asdict(certificate).items():
        if key != "queries":
            values[f"recall_{key}" if key in _RECALL_FIELDS else key] = value
    return Result({"output": output, **values}, lines, code)
