"""The `compare --data` command: embed labelled images with each network and measure retrieval.

OUT/stores/NAME (a store a network), OUT/backbones/NAME.json (its figures, put when it is done),
OUT/compare.parquet, OUT/compare.html.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.cluster import tasks
from jobs.cluster.resources import Cluster, open_cluster
from jobs.cluster.stall_detector import send_heartbeat
from jobs.comparison.candidates import ALL, Candidate, build_bundle, list_candidates
from jobs.comparison.dataset import MAX_QUERIES, LabelledDataset, list_labelled_images
from jobs.comparison.format_comparison import comparison_table, format_comparison, write_comparison
from jobs.config.settings import CompareSettings, EmbedSettings, content_settings, derive_settings
from jobs.embedding import embed
from jobs.embedding.fit_projection import SAMPLE
from jobs.embedding.prepare_model import prepare_model
from jobs.runtime.check_output import check_output
from jobs.runtime.progress import say
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import Stopwatch
from retrieval.core.errors import (
    Damaged,
    InputError,
    Stalled,
    StorageFailure,
    TooManyFailures,
    UsageError,
)
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.finished_output import RUN, read_if_exists
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import Store, open_store

_FATAL_ERRORS = (StorageFailure, Stalled, Damaged)
"""What would happen to the next one as well."""
_BATCH_NORM_BUFFERS = (
    "running_mean",
    "running_var",
    "num_batches_tracked",
)  # by batch norms, not learnt


@dataclass(frozen=True)
class ComparisonContext:
    """The settings, cluster, output and dataset of a comparison."""

    settings: CompareSettings
    cluster: Cluster
    folder: Folder
    dataset: LabelledDataset


def compare(settings: CompareSettings) -> Result:
    """Compare networks on labelled images, going on with what is there."""
    watch = Stopwatch()
    if settings.output is None:
        raise UsageError("--data needs --output, a folder for stores, table and page")
    check_output(settings, "comparison")
    candidates = list_candidates(settings)
    with open_cluster(settings) as cluster:
        dataset = list_labelled_images(_embed_settings(settings, ""))
        folder = open_folder(settings.output)
        job = content_settings(settings) | {
            "data": open_folder(str(settings.data)).uri(), "images_listed": dataset.digest,
            "backbones": [one.name for one in candidates if one.bundle is None],
        }  # fmt: skip
        transaction.claim_output(folder, "comparison", job, overwrite=settings.overwrite)
        if not finished_output.is_finished(folder):
            _delete_other_stores(folder, candidates)
            rows, notes = _compare_all(
                ComparisonContext(settings, cluster, folder, dataset), candidates
            )
            _delete_other_stores(folder, [one for one in candidates if folder.exists(one.figures)])
            write_comparison(folder, comparison_table(rows), dataset, notes)
            counts = {"backbones": len({row["backbone"] for row in rows}),
                      "combinations": len(rows), "notes": notes}  # fmt: skip
            transaction.finish_output(folder, "comparison", counts)
            watch.write(folder, settings)
    manifest = finished_output.read_manifest(folder, kind="comparison")
    shorten = settings.backbones == ALL
    return format_comparison(settings.output, folder, manifest, dataset, shorten=shorten)


def _embed_settings(settings: CompareSettings, output: str) -> EmbedSettings:
    return derive_settings(
        settings, EmbedSettings, input=settings.data, output=output, embedding_dtype="float32",
        bundle=None, weights=None, pca=None,
    )  # fmt: skip


def _delete_other_stores(folder: Folder, candidates: list[Candidate]) -> None:
    """Remove the stores of other networks: --overwrite names them no longer, or they failed."""
    keep = tuple(f"stores/{one.file}/" for one in candidates)
    for entry in list(folder.entries("stores")):
        if not entry.path.startswith(keep):
            folder.delete(entry.path)


def _compare_all(
    context: ComparisonContext, candidates: list[Candidate]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the figures of all networks, and what must be said of those that have none."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for candidate in candidates:
        try:
            done = _compare_one(context, candidate)
        except _FATAL_ERRORS:
            raise
        except Exception as error:  # whatever a library raises of a network
            if isinstance(error, TooManyFailures) and not rows:  # it is the images, as it seems
                raise
            said = " ".join(str(error).split())[:300]
            if isinstance(error, TooManyFailures):
                said = said.partition(",")[0]  # the ledger goes with the store
            why = f"{candidate.name} is left out: {said}"
            say(why)
            notes.append(why)
            continue
        rows += done["rows"]
        notes += done["notes"]
    if not rows:
        raise InputError(f"none of the networks could be compared: {'; '.join(notes)}")
    return rows, notes


def _compare_one(context: ComparisonContext, candidate: Candidate) -> dict[str, Any]:
    """Embed and measure one network, unless an earlier run has."""
    settings, cluster, folder = context.settings, context.cluster, context.folder
    path = candidate.figures
    there = read_if_exists(folder, path)
    if there is not None:
        if (done := parse_checksummed_json(there)) is None:
            raise Damaged(f"{folder.uri(path)} was altered; remove it and run again")
        return done
    bundle, widths = build_bundle(settings, candidate)
    into = folder.child(f"stores/{candidate.file}")
    embedding = _embed_settings(settings, into.uri())
    prepared = prepare_model(embedding, cluster, into, bundle=bundle)
    embedded = embed.embed(
        embedding, cluster, prepared=prepared, reuse_if_same=True, stage=f"embed {candidate.name}"
    )
    store = open_store(into)
    known = {
        "backbone": candidate.name, "images_per_second": _images_per_second(into),
        "parameters": sum(
            value.numel() for key, value in bundle.state().items()
            if not key.endswith(_BATCH_NORM_BUFFERS)
        ),
        "weight_bytes": len(bundle.weights),
    }  # fmt: skip
    measure_combinations = _measure_task(
        store, widths, bundle.dimension if bundle.projection else None, settings
    )
    say(f"measure {candidate.name}: {', '.join(widths)}")
    rows = [
        known | row
        for found in tasks.run_tasks(cluster, measure_combinations, list(widths))
        for row in found
    ]
    if not rows:
        raise InputError("too few of its images could be embedded to judge anything")
    rows.sort(key=lambda row: (row["pooling"], row["pca"] or 0, row["metric"]))
    notes = []
    if failed := embedded.manifest.counts["failures"]:
        notes.append(f"{candidate.name}: {failed} images could not be embedded and are left out")
    if list(widths) == ["avg"] and candidate.bundle is None:
        notes.append(f"{candidate.name} ends without a map of features: pooling avg alone")
    if settings.pca and all(row["pca"] is None for row in rows):
        notes.append(
            f"{candidate.name}: --pca {settings.pca} is left out, it takes more dimensions and "
            "images than that"
        )
    data = checksummed_json({"rows": rows, "notes": notes})
    transaction.put_if_absent(folder, path, data)
    done = parse_checksummed_json(data)
    assert done is not None
    return done


def _measure_task(
    store: Store, widths: dict[str, int], projected: int | None, settings: CompareSettings
) -> Callable[[str], list[dict[str, Any]]]:
    """Return the task that measures one pooling of a store."""
    pca, seed = settings.pca, settings.seed

    def measure_one(pooling: str) -> list[dict[str, Any]]:
        from retrieval.evaluation.combinations import Trial, measure_combinations

        return measure_combinations(
            Trial(store, widths, pca, projected, SAMPLE, MAX_QUERIES, seed), pooling, send_heartbeat
        )

    return measure_one


def _images_per_second(store: Folder) -> float | None:
    """Return the images a second of one worker, by what the run that embedded them noted."""
    run = json.loads(read_if_exists(store, RUN) or b"{}")
    seconds = run.get("worker_seconds")
    return round(run["embedded"] / seconds, 3) if seconds else None
