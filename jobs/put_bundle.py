"""What a training leaves on disk: the bundle, how it came about, and what it confuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import torch

from jobs.learn import Learning
from retrieval.model import bundle
from retrieval.model.backbones import Source
from retrieval.model.resolve import make_bundle
from retrieval.records import Item
from retrieval.report.charts.curves import curves_drawing
from retrieval.storage import commit
from retrieval.storage.files import Folder
from retrieval.storage.seal import sealed_parquet
from retrieval.tables import HISTORY, SPLIT
from retrieval.training.classifier import NOTE, WEIGHTS, Classifier, confusion_of, fit_classifier
from retrieval.training.loop import Progress, embeddings_of
from retrieval.training.network import make_body
from retrieval.training.photos import Photos

_HISTORY, _SPLIT, _CONFUSION = "history.parquet", "split.parquet", "confusion.parquet"
_CURVES, _SUMS = "curves.png", "png.sum.json"


def put_split(folder: Folder, photos: Photos, items: Sequence[Item]) -> None:
    """Put which image trains and which validates: table SPLIT."""
    part = dict.fromkeys((item.image_id for item in items), "unreadable")
    part |= dict.fromkeys(photos.training.image_ids, "training")
    part |= dict.fromkeys(photos.validation.image_ids, "validation")
    rows = [
        {"image_id": item.image_id, "label": item.label, "part": part[item.image_id]}
        for item in sorted(items, key=lambda item: item.image_id.encode("utf-8", "surrogateescape"))
    ]
    folder.put(_SPLIT, sealed_parquet(pa.Table.from_pylist(rows, SPLIT.schema)))


def put_trained(folder: Folder, learning: Learning, photos: Photos, progress: Progress) -> None:
    """Put all that comes of a training, in place of what a run that was killed left of it."""
    of_model = (f"{bundle.MODEL}/{name}" for name in (bundle.WEIGHTS, bundle.BUNDLE))
    for path in (*of_model, _HISTORY, _CONFUSION, _CURVES, _SUMS, WEIGHTS, NOTE):
        folder.delete(path)  # another number of threads gives other last bits: no mixture of two
    source = Source(progress.best, learning.source.transform)
    bundle.write_bundle(
        folder, make_bundle(learning.backbone, source, learning.pooling, normalize=True)
    )
    rows = [asdict(epoch) for epoch in progress.history]
    history = pa.Table.from_pylist(rows, HISTORY.schema)
    folder.put_new(_HISTORY, sealed_parquet(history))
    classifier, confusion = _told(learning, source, photos)
    for path, data in classifier.files().items():
        folder.put_new(path, data)
    if confusion is not None:
        folder.put_new(_CONFUSION, sealed_parquet(confusion))
    if drawing := curves_drawing(history, progress.best_epoch.epoch):
        commit.put_named(folder, {_CURVES: drawing.png()}, _SUMS)


def _told(learning: Learning, source: Source, photos: Photos) -> tuple[Classifier, Any]:
    """Fit the classifier, and count what it confuses where it knows what validates."""
    body = make_body(learning.backbone, source, learning.pooling, pretrained=True)
    plain, seed = photos.plain, learning.recipe.seed
    embeddings = embeddings_of(body, plain)
    classifier = fit_classifier(embeddings, plain.classes, plain.names, seed)
    if not photos.same_classes:
        return classifier, None
    found = torch.nn.functional.normalize(embeddings_of(body, photos.validation)).numpy()
    told = classifier.shares(found).argmax(1)
    return classifier, confusion_of(told, photos.validation.classes.numpy(), plain.names)
