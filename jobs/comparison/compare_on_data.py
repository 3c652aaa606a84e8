"""lookalike compare --data: each network embeds labelled images once, and all ways are measured.

OUT/stores/NAME (a store a network), OUT/backbones/NAME.json (its figures, put when it is done),
OUT/compare.parquet, OUT/compare.html.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.cluster import tasks
from jobs.cluster.heartbeat import alive
from jobs.cluster.resources import Cluster, cluster
from jobs.comparison.candidates import ALL, Contender, contenders_of, model_of
from jobs.comparison.dataset import MOST, Labelled, labelled_images
from jobs.comparison.format_comparison import combined, put_page, result_of
from jobs.config.settings import CompareSettings, EmbedSettings, content_of, part_of
from jobs.embedding import embed
from jobs.embedding.fit_projection import SAMPLE
from jobs.embedding.prepare_model import prepare
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
from retrieval.storage.checksum import read_json, sealed_json
from retrieval.storage.finished_output import RUN, read_if_there
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import Store, open_store

_NOT_OF_A_NETWORK = (StorageFailure, Stalled, Damaged)
"""What would happen to the next one as well."""
_COUNTED = ("running_mean", "running_var", "num_batches_tracked")  # by batch norms, not learnt


@dataclass(frozen=True)
class Comparing:
    """What is compared, and where."""

    settings: CompareSettings
    where: Cluster
    folder: Folder
    labelled: Labelled


def compare(settings: CompareSettings) -> Result:
    """Compare networks on labelled images, going on with what is there."""
    watch = Stopwatch()
    if settings.output is None:
        raise UsageError("--data needs --output, a folder for stores, table and page")
    check_output(settings, "comparison")
    contenders = contenders_of(settings)
    with cluster(settings) as where:
        labelled = labelled_images(_embedding(settings, ""))
        folder = open_folder(settings.output)
        job = content_of(settings) | {
            "data": open_folder(str(settings.data)).uri(), "images_listed": labelled.digest,
            "backbones": [one.name for one in contenders if one.bundle is None],
        }  # fmt: skip
        transaction.begin(folder, "comparison", job, overwrite=settings.overwrite)
        if not finished_output.is_finished(folder):
            _sweep(folder, contenders)
            rows, notes = _all(Comparing(settings, where, folder, labelled), contenders)
            _sweep(folder, [one for one in contenders if folder.exists(one.figures)])
            put_page(folder, combined(rows), labelled, notes)
            counts = {"backbones": len({row["backbone"] for row in rows}),
                      "combinations": len(rows), "notes": notes}  # fmt: skip
            transaction.finish(folder, "comparison", counts)
            watch.write(folder, settings)
    manifest = finished_output.read_manifest(folder, kind="comparison")
    shorten = settings.backbones == ALL
    return result_of(settings.output, folder, manifest, labelled, shorten=shorten)


def _embedding(settings: CompareSettings, output: str) -> EmbedSettings:
    return part_of(
        settings, EmbedSettings, input=settings.data, output=output, embedding_dtype="float32",
        bundle=None, weights=None, pca=None,
    )  # fmt: skip


def _sweep(folder: Folder, contenders: list[Contender]) -> None:
    """Remove the stores of other networks: --overwrite names them no longer, or they failed."""
    keep = tuple(f"stores/{one.file}/" for one in contenders)
    for entry in list(folder.entries("stores")):
        if not entry.path.startswith(keep):
            folder.delete(entry.path)


def _all(
    comparing: Comparing, contenders: list[Contender]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Give the figures of all networks, and what must be said of those that have none."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for contender in contenders:
        try:
            done = _one(comparing, contender)
        except _NOT_OF_A_NETWORK:
            raise
        except Exception as error:  # whatever a library raises of a network
            if isinstance(error, TooManyFailures) and not rows:  # it is the images, as it seems
                raise
            said = " ".join(str(error).split())[:300]
            if isinstance(error, TooManyFailures):
                said = said.partition(",")[0]  # the ledger goes with the store
            why = f"{contender.name} is left out: {said}"
            say(why)
            notes.append(why)
            continue
        rows += done["rows"]
        notes += done["notes"]
    if not rows:
        raise InputError(f"none of the networks could be compared: {'; '.join(notes)}")
    return rows, notes


def _one(comparing: Comparing, contender: Contender) -> dict[str, Any]:
    """Embed and measure one network, unless an earlier run has."""
    settings, where, folder = comparing.settings, comparing.where, comparing.folder
    path = contender.figures
    there = read_if_there(folder, path)
    if there is not None:
        if (done := read_json(there)) is None:
            raise Damaged(f"{folder.uri(path)} was altered; remove it and run again")
        return done
    bundle, widths = model_of(settings, contender)
    into = folder.child(f"stores/{contender.file}")
    embedding = _embedding(settings, into.uri())
    prepared = prepare(embedding, where, into, bundle=bundle)
    manifest = embed.embed(
        embedding, where, prepared=prepared, keep_equal=True, stage=f"embed {contender.name}"
    )
    store = open_store(into)
    known = {
        "backbone": contender.name, "images_per_second": _rate(into),
        "parameters": sum(
            value.numel() for key, value in bundle.state().items() if not key.endswith(_COUNTED)
        ),
        "weight_bytes": len(bundle.weights),
    }  # fmt: skip
    measure = _measuring(store, widths, bundle.dimension if bundle.projection else None, settings)
    say(f"measure {contender.name}: {', '.join(widths)}")
    rows = [known | row for found in tasks.tasks(where, measure, list(widths)) for row in found]
    if not rows:
        raise InputError("too few of its images could be embedded to judge anything")
    rows.sort(key=lambda row: (row["pooling"], row["pca"] or 0, row["metric"]))
    notes = []
    if failed := manifest.counts["failures"]:
        notes.append(f"{contender.name}: {failed} images could not be embedded and are left out")
    if list(widths) == ["avg"] and contender.bundle is None:
        notes.append(f"{contender.name} ends without a map of features: pooling avg alone")
    if settings.pca and all(row["pca"] is None for row in rows):
        notes.append(
            f"{contender.name}: --pca {settings.pca} is left out, it takes more dimensions and "
            "images than that"
        )
    data = sealed_json({"rows": rows, "notes": notes})
    transaction.put_once(folder, path, data)
    done = read_json(data)
    assert done is not None
    return done


def _measuring(
    store: Store, widths: dict[str, int], projected: int | None, settings: CompareSettings
) -> Callable[[str], list[dict[str, Any]]]:
    """Give the task that measures one pooling of a store."""
    pca, seed = settings.pca, settings.seed

    def measure_one(pooling: str) -> list[dict[str, Any]]:
        from retrieval.evaluation.combinations import Trial, measure

        return measure(Trial(store, widths, pca, projected, SAMPLE, MOST, seed), pooling, alive)

    return measure_one


def _rate(store: Folder) -> float | None:
    """Give the images a second of one worker, by what the run that embedded them noted."""
    run = json.loads(read_if_there(store, RUN) or b"{}")
    seconds = run.get("worker_seconds")
    return round(run["embedded"] / seconds, 3) if seconds else None
