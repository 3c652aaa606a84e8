"""Output of a training: the bundle, the classifier, the history, the split and the confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from jobs.training.run_training import TrainingSetup
from retrieval.core.records import Item
from retrieval.core.schemas import HISTORY, SPLIT
from retrieval.models import bundle
from retrieval.models.registry import WeightSource
from retrieval.models.resolve import make_bundle
from retrieval.report.charts.confusion import PAIRS, draw_confusion_print
from retrieval.report.charts.contact_print import SIDE_BY_SIDE_MATCHES
from retrieval.report.charts.curves import draw_curves
from retrieval.report.thumbnails import make_thumbnail
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

ClassNumbers = NDArray[np.int64]
"""(n,) class numbers of photos."""


def write_split(folder: Folder, photos: PhotoSplit, items: Sequence[Item]) -> None:
    """Write the table SPLIT: which images are for training, for validation, or unreadable."""
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
    setup: TrainingSetup,
    photos: PhotoSplit,
    progress: TrainingProgress,
    device: str,
) -> None:
    """Write all outputs of a training, replacing those of an interrupted run."""
    model_files = (f"{bundle.MODEL}/{name}" for name in (bundle.WEIGHTS, bundle.BUNDLE))
    for path in (
        *model_files,
        _HISTORY,
        _CONFUSION,
        _CURVES_IMAGE,
        _CONFUSION_IMAGE,
        _IMAGE_CHECKSUMS,
        WEIGHTS,
        NOTE,
    ):
        # with another number of threads the last bits differ: do not mix files of two runs
        folder.delete(path)
    source = replace(setup.source, state=progress.best)
    bundle.write_bundle(folder, make_bundle(source, setup.pooling, normalize=True))
    rows = [asdict(epoch) for epoch in progress.history]
    history = pa.Table.from_pylist(rows, HISTORY.schema)
    folder.put_new(_HISTORY, checksummed_parquet(history))
    classifier, predicted = _fit_and_predict(setup, source, photos, device)
    for path, data in classifier.files().items():
        folder.put_new(path, data)
    drawing = draw_curves(history, progress.best_epoch.epoch)
    pictures = {} if drawing is None else {_CURVES_IMAGE: drawing.png()}
    if predicted is not None:
        confusion = count_confusions(predicted, photos.validation.classes.numpy(), classifier.names)
        folder.put_new(_CONFUSION, checksummed_parquet(confusion))
        if len(confusion):
            pictures[_CONFUSION_IMAGE] = _draw_confusion(
                confusion.slice(0, PAIRS), predicted, photos
            )
    transaction.put_with_checksums(folder, pictures, _IMAGE_CHECKSUMS)


def _fit_and_predict(
    setup: TrainingSetup, source: WeightSource, photos: PhotoSplit, device: str
) -> tuple[Classifier, ClassNumbers | None]:
    """Fit the classifier, and predict the (n,) classes of the validation photos.

    The predictions are None if the validation photos have other classes.
    """
    backbone = build_trainable_backbone(source, setup.pooling, pretrained=True, device=device)
    plain, seed = photos.plain, setup.recipe.seed
    embeddings = embed_photos(backbone, plain)
    classifier = fit_classifier(embeddings, plain.classes, plain.names, seed)
    if not photos.same_classes:
        return classifier, None
    vectors = torch.nn.functional.normalize(embed_photos(backbone, photos.validation)).numpy()
    return classifier, classifier.shares(vectors).argmax(1)


def _draw_confusion(pairs: pa.Table, predicted: ClassNumbers, photos: PhotoSplit) -> bytes:
    """Draw the most frequent confusions with photos of both classes, as PNG."""
    subset, rows = photos.validation, pairs.to_pylist()
    class_numbers = {name: number for number, name in enumerate(subset.names)}
    classes = subset.classes.numpy()
    correct, confused, others = [], [], []
    for row in rows:
        label, other = class_numbers[row["label"]], class_numbers[row["predicted"]]
        has_label = classes == label
        correct.append(_thumbnails(subset, np.flatnonzero(has_label & (predicted == label))))
        confused.append(_thumbnails(subset, np.flatnonzero(has_label & (predicted == other))))
        others.append(_thumbnails(subset, np.flatnonzero(classes == other)))
    return draw_confusion_print(rows, correct, confused, others)


def _thumbnails(subset: PhotoSubset, positions: NDArray[np.int64]) -> list[bytes]:
    """Return the photos at the first positions as JPEG thumbnails."""
    return [
        make_thumbnail(pixels)
        for pixels in subset.take(torch.from_numpy(positions[:SIDE_BY_SIDE_MATCHES]))
    ]
