"""The `predict` command: classify images with the classifier of a trained bundle.

The images are embedded into OUT/embeddings; OUT/predictions holds one part per chunk of that store.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.cluster.resources import open_cluster
from jobs.config.options import OPTIONS
from jobs.config.settings import EmbedSettings, PredictSettings, content_settings, derive_settings
from jobs.embedding.embed import embed
from jobs.runtime.check_output import check_output
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import Stopwatch
from retrieval.core.schemas import PREDICTIONS
from retrieval.models.bundle import read_bundle
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import Store, open_store, read_vectors
from retrieval.training.classifier import Classifier, read_classifier

_STORE, _TABLE = "embeddings", "predictions/part-{:05d}.parquet"
_MAX_LINES = 10  # images listed in the summary; the table holds all


def start(settings: PredictSettings) -> Result:
    """Embed the images, predict their classes, and return a summary with the first rows."""
    stopwatch = Stopwatch()
    check_output(settings, "predictions")
    folder, bundle = open_folder(settings.output), open_folder(str(settings.bundle))
    classifier, digest = read_classifier(bundle), read_bundle(bundle).digest
    job = {
        **content_settings(settings),
        "bundle": digest,
        "input": open_folder(settings.input).uri(),
    }
    transaction.claim_output(
        folder, "predictions", job, overwrite=settings.overwrite, reuse_if_same=True
    )
    with open_cluster(settings) as cluster:
        embed(
            derive_settings(
                settings, EmbedSettings, output=folder.child(_STORE).uri(),
                backbone=settings.backbone or OPTIONS["backbone"].default,
                pca=0,  # the classifier reads the vectors of the network
            ), cluster,
            reuse_if_same=True, invalidate=lambda: transaction.remove_results(folder),
        )  # fmt: skip
    store = open_store(folder.child(_STORE))
    if not finished_output.is_finished(folder):
        counts = _write_predictions(folder, store, classifier)
        transaction.finish_output(folder, "predictions", counts)
        stopwatch.write(folder, settings)
    return _summary(settings.output, folder)


def _write_predictions(folder: Folder, store: Store, classifier: Classifier) -> dict[str, Any]:
    """Write one table part per chunk of the store and return the counts of the manifest."""
    images = correct = labelled_images = 0
    for number, block in enumerate(store.blocks()):
        table = _predict(block, classifier)
        folder.put(_TABLE.format(number), checksummed_parquet(table))
        labelled = table.filter(pc.is_in(table["label"], value_set=pa.array(classifier.names)))
        matching = pc.sum(pc.equal(labelled["label"], labelled["predicted"])).as_py()
        images, correct = images + len(table), correct + int(matching or 0)
        labelled_images += len(labelled)
    failures = int(store.manifest.counts["failures"])
    return {
        "images": images, "failures": failures, "labelled": labelled_images, "right": correct,
    }  # fmt: skip


def _predict(block: pa.Table, classifier: Classifier) -> pa.Table:
    """Return table PREDICTIONS for one block of a store."""
    shares = classifier.shares(read_vectors(block).astype(np.float32))
    order = np.argsort(-shares, axis=1, kind="stable")
    rows = np.arange(len(shares))
    names = np.array(classifier.names, object)
    second = order[:, min(1, shares.shape[1] - 1)]
    columns = {
        "image_id": block["image_id"], "path": block["path"],
        "predicted": pa.array(names[order[:, 0]], pa.string()),
        "confidence": shares[rows, order[:, 0]],
        "second": pa.array(names[second], pa.string()), "second_confidence": shares[rows, second],
        "label": block["label"],
    }  # fmt: skip
    return pa.table(columns).cast(PREDICTIONS.schema)


def _summary(output: str, folder: Folder) -> Result:
    counts = finished_output.read_manifest(folder, kind="predictions").counts
    lines = [
        f"{counts['images']} images classified, {counts['failures']} failed: {output}/predictions"
    ]
    if counts["labelled"]:
        share = counts["right"] / counts["labelled"]
        lines.append(
            f"{share:.1%} of the {counts['labelled']} images with a known label are correct"
        )
    lines += [
        f"  {row['confidence']:.2f} {row['predicted']}  {row['image_id']}"
        for row in _first_rows(folder)
    ]
    if counts["images"] > _MAX_LINES:
        lines.append(f"  and {counts['images'] - _MAX_LINES} more")
    return Result({"output": output, **counts}, tuple(lines))


def _first_rows(folder: Folder) -> Iterator[dict[str, Any]]:
    manifest = finished_output.read_manifest(folder, kind="predictions")
    path = _TABLE.format(0)
    if path in manifest.files:
        data = finished_output.read_verified(folder, manifest.files[path])
        yield from pq.read_table(pa.BufferReader(data)).slice(0, _MAX_LINES).to_pylist()
