"""The `compare --data` command: embed labelled images with each network and measure retrieval.

It writes OUT/stores/NAME (one store per network), OUT/backbones/NAME.json (the results of the
network, written when it is finished), OUT/compare.parquet and OUT/compare.html.
"""

from __future__ import annotations

import dataclasses
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
from jobs.runtime.progress import print_message
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
from retrieval.models.bundle import Bundle
from retrieval.models.recipes import RECIPES
from retrieval.models.registry import own_code
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.finished_output import RUN, read_if_exists
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import Store, open_store

_FATAL_ERRORS = (StorageFailure, Stalled, Damaged)
"""Errors that end the comparison, since the next network would probably fail with them as well."""

_BATCH_NORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Entries of a state dict that are not parameters."""


@dataclass(frozen=True)
class ComparisonContext:
    """The settings, cluster, output and dataset of a comparison."""

    settings: CompareSettings
    cluster: Cluster
    folder: Folder
    dataset: LabelledDataset


def compare(settings: CompareSettings) -> Result:
    """Compare networks on labelled images, continuing an unfinished comparison.

    Raises InputError if none of the networks can be compared.
    """
    stopwatch = Stopwatch()
    if settings.pca is None:
        settings = dataclasses.replace(settings, pca=RECIPES[settings.recipe].pca)
    if settings.output is None:
        raise UsageError("--data needs --output, a folder for stores, table and page")
    check_output(settings, "comparison")
    candidates = list_candidates(settings)
    with open_cluster(settings) as cluster:
        dataset = list_labelled_images(_embed_settings(settings, ""))
        folder = open_folder(settings.output)
        job = content_settings(settings) | {
            "data": open_folder(str(settings.data)).uri(), "images_listed": dataset.digest,
            "backbones": [network.name for network in candidates if network.bundle is None],
        }  # fmt: skip
        if sources := _own_sources(candidates):
            job["own_sources"] = sources
        transaction.claim_output(folder, "comparison", job, overwrite=settings.overwrite)
        if not finished_output.is_finished(folder):
            _delete_other_stores(folder, candidates)
            rows, notes = _compare_all(
                ComparisonContext(settings, cluster, folder, dataset), candidates
            )
            _delete_other_stores(
                folder, [network for network in candidates if folder.exists(network.results_path)]
            )
            write_comparison(folder, comparison_table(rows), dataset, notes)
            counts = {"backbones": len({row["backbone"] for row in rows}),
                      "combinations": len(rows), "notes": notes}  # fmt: skip
            transaction.finish_output(folder, "comparison", counts)
            stopwatch.write(folder, settings)
    manifest = finished_output.read_manifest(folder, kind="comparison")
    shorten = settings.backbones == ALL
    return format_comparison(settings.output, folder, manifest, dataset, shorten=shorten)


def _own_sources(candidates: list[Candidate]) -> dict[str, str]:
    """Return the SHA-256 of the source of each own model, whose name does not change with it."""
    codes = {network.name: own_code(network.name) for network in candidates if not network.bundle}
    return {name: code.sha256 for name, code in codes.items() if code is not None}


def _embed_settings(settings: CompareSettings, output: str) -> EmbedSettings:
    return derive_settings(
        settings, EmbedSettings, input=settings.data, output=output, embedding_dtype="float32",
        bundle=None, weights=None, pca=0,
    )  # fmt: skip


def _delete_other_stores(folder: Folder, candidates: list[Candidate]) -> None:
    """Remove the stores of networks that are not candidates or that failed."""
    keep = tuple(f"stores/{candidate.file}/" for candidate in candidates)
    for entry in list(folder.entries("stores")):
        if not entry.path.startswith(keep):
            folder.delete(entry.path)


def _compare_all(
    context: ComparisonContext, candidates: list[Candidate]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the result rows of all networks, and notes on those that were skipped."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for candidate in candidates:
        try:
            results = _compare_one(context, candidate)
        except _FATAL_ERRORS:
            raise
        except Exception as error:  # libraries raise errors of any class
            if isinstance(error, TooManyFailures) and not rows:  # the images are probably the cause
                raise
            reason = " ".join(str(error).split())[:300]
            if isinstance(error, TooManyFailures):
                reason = reason.partition(",")[0]  # the rest names the ledger, which is deleted
            note = f"{candidate.name} is left out: {reason}"
            print_message(note)
            notes.append(note)
            continue
        rows += results["rows"]
        notes += results["notes"]
    if not rows:
        raise InputError(f"none of the networks could be compared: {'; '.join(notes)}")
    return rows, notes


def _count_parameters(bundle: Bundle) -> int:
    """Return the number of parameters of a network without its classifier."""
    if bundle.is_onnx:
        from retrieval.models.openvino_onnx import count_onnx_parameters

        return count_onnx_parameters(bundle.weights, bundle.backbone)
    return sum(
        value.numel()
        for key, value in bundle.state().items()
        if not key.endswith(_BATCH_NORM_BUFFERS)
    )


def _compare_one(context: ComparisonContext, candidate: Candidate) -> dict[str, Any]:
    """Embed and measure one network, unless an earlier run has; return its rows and notes."""
    settings, cluster, folder = context.settings, context.cluster, context.folder
    path = candidate.results_path
    existing = read_if_exists(folder, path)
    if existing is not None:
        if (results := parse_checksummed_json(existing)) is None:
            raise Damaged(f"{folder.uri(path)} was altered; remove it and run again")
        return results
    bundle, widths = build_bundle(settings, candidate)
    store_folder = folder.child(f"stores/{candidate.file}")
    embedding = _embed_settings(settings, store_folder.uri())
    prepared = prepare_model(embedding, cluster, store_folder, bundle=bundle)
    embedded = embed.embed(
        embedding, cluster, prepared=prepared, reuse_if_same=True, stage=f"embed {candidate.name}"
    )
    store = open_store(store_folder)
    network_values = {
        "backbone": candidate.name, "images_per_second": _images_per_second(store_folder),
        "parameters": _count_parameters(bundle),
        "weight_bytes": len(bundle.weights),
    }  # fmt: skip
    measure_combinations = _measure_task(
        store, widths, bundle.dimension if bundle.projection else None, settings
    )
    print_message(f"measure {candidate.name}: {', '.join(widths)}")
    rows = [
        network_values | row
        for pooling_rows in tasks.run_tasks(cluster, measure_combinations, list(widths))
        for row in pooling_rows
    ]
    if not rows:
        raise InputError("too few of its images could be embedded to measure retrieval")
    rows.sort(key=lambda row: (row["pooling"], row["pca"] or 0, row["metric"]))
    notes = []
    if failed := embedded.manifest.counts["failures"]:
        notes.append(f"{candidate.name}: {failed} images could not be embedded and are left out")
    if list(widths) == ["avg"] and candidate.bundle is None:
        notes.append(f"{candidate.name} has no feature map: only pooling avg is compared")
    if settings.pca and all(row["pca"] is None for row in rows):
        notes.append(
            f"{candidate.name}: --pca {settings.pca} is left out, since it needs more dimensions "
            "and images"
        )
    data = checksummed_json({"rows": rows, "notes": notes})
    transaction.put_if_absent(folder, path, data)
    results = parse_checksummed_json(data)
    assert results is not None
    return results


def _measure_task(
    store: Store, widths: dict[str, int], projected: int | None, settings: CompareSettings
) -> Callable[[str], list[dict[str, Any]]]:
    """Return the task that measures one pooling of a store.

    `widths` are the dimensions of the poolings, `projected` that after the projection of a bundle.
    """
    pca, seed = settings.pca or None, settings.seed

    def measure_one(pooling: str) -> list[dict[str, Any]]:
        from retrieval.evaluation.combinations import Trial, measure_combinations

        return measure_combinations(
            Trial(store, widths, pca, projected, SAMPLE, MAX_QUERIES, seed), pooling, send_heartbeat
        )

    return measure_one


def _images_per_second(store: Folder) -> float | None:
    """Return the images embedded per second of worker time, from the run.json of a store."""
    run = json.loads(read_if_exists(store, RUN) or b"{}")
    seconds = run.get("worker_seconds")
    return round(run["embedded"] / seconds, 3) if seconds else None
