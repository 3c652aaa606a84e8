"""lookalike predict: which class is each image, by a bundle that `train` made, and how surely."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.cluster.resources import cluster
from jobs.config.settings import EmbedSettings, PredictSettings, content_of, part_of
from jobs.embedding.embed import embed
from jobs.runtime.check_output import check_output
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import Stopwatch
from retrieval.core.schemas import PREDICTIONS
from retrieval.models.bundle import read_bundle
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import sealed_parquet
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import Store, open_store, vectors_of
from retrieval.training.classifier import Classifier, read_classifier

_STORE, _TABLE = "embeddings", "predictions/part-{:05d}.parquet"
_SHOWN = 10  # images told on the screen; all are in the table


def start(settings: PredictSettings) -> Result:
    """Embed the images, tell their classes, and say some of them."""
    watch = Stopwatch()
    check_output(settings, "predictions")
    folder, bundle = open_folder(settings.output), open_folder(str(settings.bundle))
    classifier, digest = read_classifier(bundle), read_bundle(bundle).digest
    job = {**content_of(settings), "bundle": digest, "input": open_folder(settings.input).uri()}
    transaction.begin(folder, "predictions", job, overwrite=settings.overwrite, keep_equal=True)
    with cluster(settings) as where:
        embed(
            part_of(settings, EmbedSettings, output=folder.child(_STORE).uri()), where,
            keep_equal=True, unsettle=lambda: transaction.start_over(folder),
        )  # fmt: skip
    store = open_store(folder.child(_STORE))
    if not finished_output.is_finished(folder):
        counts = _put(folder, store, classifier)
        transaction.finish(folder, "predictions", counts)
        watch.write(folder, settings)
    return _summary(settings.output, folder)


def _put(folder: Folder, store: Store, classifier: Classifier) -> dict[str, Any]:
    """Put what is told of the images, a part a chunk of the store."""
    images = right = known = 0
    for number, block in enumerate(store.blocks()):
        table = _told(block, classifier)
        folder.put(_TABLE.format(number), sealed_parquet(table))
        labelled = table.filter(pc.is_in(table["label"], value_set=pa.array(classifier.names)))
        same = pc.sum(pc.equal(labelled["label"], labelled["predicted"])).as_py()
        images, known, right = images + len(table), known + len(labelled), right + int(same or 0)
    failures = int(store.manifest.counts["failures"])
    return {"images": images, "failures": failures, "labelled": known, "right": right}


def _told(block: pa.Table, classifier: Classifier) -> pa.Table:
    shares = classifier.shares(vectors_of(block).astype(np.float32))
    order = np.argsort(-shares, axis=1, kind="stable")
    lines = np.arange(len(shares))
    names = np.array(classifier.names, object)
    second = order[:, min(1, shares.shape[1] - 1)]
    columns = {
        "image_id": block["image_id"], "path": block["path"],
        "predicted": pa.array(names[order[:, 0]], pa.string()),
        "confidence": shares[lines, order[:, 0]],
        "second": pa.array(names[second], pa.string()), "second_confidence": shares[lines, second],
        "label": block["label"],
    }  # fmt: skip
    return pa.table(columns).cast(PREDICTIONS.schema)


def _summary(output: str, folder: Folder) -> Result:
    counts = finished_output.read_manifest(folder, kind="predictions").counts
    said = [f"{counts['images']} images told, {counts['failures']} failed: {output}/predictions"]
    if counts["labelled"]:
        share = counts["right"] / counts["labelled"]
        said.append(
            f"{share:.1%} of the {counts['labelled']} that have a label of these classes are right"
        )
    said += [
        f"  {row['confidence']:.2f} {row['predicted']}  {row['image_id']}" for row in _first(folder)
    ]
    if counts["images"] > _SHOWN:
        said.append(f"  and {counts['images'] - _SHOWN} more")
    return Result({"output": output, **counts}, tuple(said))


def _first(folder: Folder) -> Iterator[dict[str, Any]]:
    manifest = finished_output.read_manifest(folder, kind="predictions")
    path = _TABLE.format(0)
    if path in manifest.files:
        data = finished_output.read_checked(folder, manifest.files[path])
        yield from pq.read_table(pa.BufferReader(data)).slice(0, _SHOWN).to_pylist()
