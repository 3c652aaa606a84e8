"""Output of a training: the bundle, its history and split, and its confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from jobs.training.learn import TrainingSetup
from retrieval.core.records import Item
from retrieval.core.schemas import HISTORY, SPLIT
from retrieval.models import bundle
from retrieval.models.registry import WeightSource
from retrieval.models.resolve import make_bundle
from retrieval.report.charts.confusion import PAIRS, draw_confusion_print
from retrieval.report.charts.contact_print import SIDE_BY_SIDE_MATCHES
from retrieval.report.charts.curves import draw_curves
from retrieval.report.thumbnails import pixels_to_thumbnail
from retrieval.storage import transaction
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.local import Folder
from retrieval.training.classifier import (
    NOTE,
    WEIGHTS,
    Classifier,
    count_confusions,
    fit_classifier,
)
from retrieval.training.loop import TrainingProgress, embed_photos
from retrieval.training.network import build_trainable_backbone
from retrieval.training.photos import PhotoSplit, PhotoSubset

_HISTORY, _SPLIT, _CONFUSION = "history.parquet", "split.parquet", "confusion.parquet"
_CURVES_IMAGE, _CONFUSION_IMAGE, _IMAGE_CHECKSUMS = "curves.png", "confusion.png", "png.sum.json"

Predicted = NDArray[np.int64]


def write_split(folder: Folder, photos: PhotoSplit, items: Sequence[Item]) -> None:
    """Write table SPLIT: which image is for training and which for validation."""
    part = dict.fromkeys((item.image_id for item in items), "unreadable")
    part |= dict.fromkeys(photos.training.image_ids, "training")
    part |= dict.fromkeys(photos.validation.image_ids, "validation")
    rows = [
        {"image_id": item.image_id, "label": item.label, "part": part[item.image_id]}
        for item in sorted(items, key=lambda item: item.image_id.encode("utf-8", "surrogateescape"))
    ]
    folder.put(_SPLIT, checksummed_parquet(pa.Table.from_pylist(rows, SPLIT.schema)))


def write_trained(
    folder: Folder,
    learning: TrainingSetup,
    photos: PhotoSplit,
    progress: TrainingProgress,
    device: str,
) -> None:
    """Write all outputs of a training, replacing those of an interrupted run."""
    of_model = (f"{bundle.MODEL}/{name}" for name in (bundle.WEIGHTS, bundle.BUNDLE))
    for path in (
        *of_model,
        _HISTORY,
        _CONFUSION,
        _CURVES_IMAGE,
        _CONFUSION_IMAGE,
        _IMAGE_CHECKSUMS,
        WEIGHTS,
        NOTE,
    ):
        folder.delete(path)  # another number of threads gives other last bits: no mixture of two
    source = WeightSource(progress.best, learning.source.transform)
    bundle.write_bundle(
        folder, make_bundle(learning.backbone, source, learning.pooling, normalize=True)
    )
    rows = [asdict(epoch) for epoch in progress.history]
    history = pa.Table.from_pylist(rows, HISTORY.schema)
    folder.put_new(_HISTORY, checksummed_parquet(history))
    classifier, told = _fit_and_predict(learning, source, photos, device)
    for path, data in classifier.files().items():
        folder.put_new(path, data)
    drawing = draw_curves(history, progress.best_epoch.epoch)
    pictures = {} if drawing is None else {_CURVES_IMAGE: drawing.png()}
    if told is not None:
        confusion = count_confusions(told, photos.validation.classes.numpy(), classifier.names)
        folder.put_new(_CONFUSION, checksummed_parquet(confusion))
        if len(confusion):
            pictures[_CONFUSION_IMAGE] = _draw_confusion(confusion.slice(0, PAIRS), told, photos)
    transaction.put_with_checksums(folder, pictures, _IMAGE_CHECKSUMS)


def _fit_and_predict(
    learning: TrainingSetup, source: WeightSource, photos: PhotoSplit, device: str
) -> tuple[Classifier, Predicted | None]:
    """Fit the classifier, and let it tell what validates, where it knows its classes."""
    body = build_trainable_backbone(
        learning.backbone, source, learning.pooling, pretrained=True, device=device
    )
    plain, seed = photos.plain, learning.recipe.seed
    embeddings = embed_photos(body, plain)
    classifier = fit_classifier(embeddings, plain.classes, plain.names, seed)
    if not photos.same_classes:
        return classifier, None
    found = torch.nn.functional.normalize(embed_photos(body, photos.validation)).numpy()
    return classifier, classifier.shares(found).argmax(1)


def _draw_confusion(pairs: pa.Table, told: Predicted, photos: PhotoSplit) -> bytes:
    """Draw the most frequent mistakes with photos of both classes."""
    part, rows = photos.validation, pairs.to_pylist()
    places = {name: number for number, name in enumerate(part.names)}
    classes = part.classes.numpy()
    typical, mistaken, others = [], [], []
    for row in rows:
        of, taken = places[row["label"]], places[row["predicted"]]
        typical.append(_thumbnails(part, np.flatnonzero((classes == of) & (told == of))))
        mistaken.append(_thumbnails(part, np.flatnonzero((classes == of) & (told == taken))))
        others.append(_thumbnails(part, np.flatnonzero(classes == taken)))
    return draw_confusion_print(rows, typical, mistaken, others)


def _thumbnails(part: PhotoSubset, places: NDArray[np.int64]) -> list[bytes]:
    """Return some photos of a part as JPEG."""
    return [
        pixels_to_thumbnail(pixels)
        for pixels in part.take(torch.from_numpy(places[:SIDE_BY_SIDE_MATCHES]))
    ]
