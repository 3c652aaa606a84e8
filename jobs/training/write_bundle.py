"""What a training leaves on disk: the bundle, how it came about, and what it confuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from jobs.training.learn import Learning
from retrieval.core.records import Item
from retrieval.core.schemas import HISTORY, SPLIT
from retrieval.models import bundle
from retrieval.models.registry import Source
from retrieval.models.resolve import make_bundle
from retrieval.report.charts.confusion import PAIRS, confusion_print
from retrieval.report.charts.contact_print import BESIDE
from retrieval.report.charts.curves import curves_drawing
from retrieval.report.thumbnails import thumbnail_of
from retrieval.storage import transaction
from retrieval.storage.checksum import sealed_parquet
from retrieval.storage.local import Folder
from retrieval.training.classifier import NOTE, WEIGHTS, Classifier, confusion_of, fit_classifier
from retrieval.training.loop import Progress, embeddings_of
from retrieval.training.network import make_body
from retrieval.training.photos import Part, Photos

_HISTORY, _SPLIT, _CONFUSION = "history.parquet", "split.parquet", "confusion.parquet"
_CURVES, _CONFUSED, _SUMS = "curves.png", "confusion.png", "png.sum.json"

Told = NDArray[np.int64]


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


def put_trained(
    folder: Folder, learning: Learning, photos: Photos, progress: Progress, device: str
) -> None:
    """Put all that comes of a training, in place of what a run that was killed left of it."""
    of_model = (f"{bundle.MODEL}/{name}" for name in (bundle.WEIGHTS, bundle.BUNDLE))
    for path in (*of_model, _HISTORY, _CONFUSION, _CURVES, _CONFUSED, _SUMS, WEIGHTS, NOTE):
        folder.delete(path)  # another number of threads gives other last bits: no mixture of two
    source = Source(progress.best, learning.source.transform)
    bundle.write_bundle(
        folder, make_bundle(learning.backbone, source, learning.pooling, normalize=True)
    )
    rows = [asdict(epoch) for epoch in progress.history]
    history = pa.Table.from_pylist(rows, HISTORY.schema)
    folder.put_new(_HISTORY, sealed_parquet(history))
    classifier, told = _told(learning, source, photos, device)
    for path, data in classifier.files().items():
        folder.put_new(path, data)
    drawing = curves_drawing(history, progress.best_epoch.epoch)
    pictures = {} if drawing is None else {_CURVES: drawing.png()}
    if told is not None:
        confusion = confusion_of(told, photos.validation.classes.numpy(), classifier.names)
        folder.put_new(_CONFUSION, sealed_parquet(confusion))
        if len(confusion):
            pictures[_CONFUSED] = _confused(confusion.slice(0, PAIRS), told, photos)
    transaction.put_named(folder, pictures, _SUMS)


def _told(
    learning: Learning, source: Source, photos: Photos, device: str
) -> tuple[Classifier, Told | None]:
    """Fit the classifier, and let it tell what validates, where it knows its classes."""
    body = make_body(learning.backbone, source, learning.pooling, pretrained=True, device=device)
    plain, seed = photos.plain, learning.recipe.seed
    embeddings = embeddings_of(body, plain)
    classifier = fit_classifier(embeddings, plain.classes, plain.names, seed)
    if not photos.same_classes:
        return classifier, None
    found = torch.nn.functional.normalize(embeddings_of(body, photos.validation)).numpy()
    return classifier, classifier.shares(found).argmax(1)


def _confused(pairs: pa.Table, told: Told, photos: Photos) -> bytes:
    """Draw the most frequent mistakes with photos of both classes."""
    part, rows = photos.validation, pairs.to_pylist()
    places = {name: number for number, name in enumerate(part.names)}
    classes = part.classes.numpy()
    typical, mistaken, others = [], [], []
    for row in rows:
        of, taken = places[row["label"]], places[row["predicted"]]
        typical.append(_photos(part, np.flatnonzero((classes == of) & (told == of))))
        mistaken.append(_photos(part, np.flatnonzero((classes == of) & (told == taken))))
        others.append(_photos(part, np.flatnonzero(classes == taken)))
    return confusion_print(rows, typical, mistaken, others)


def _photos(part: Part, places: NDArray[np.int64]) -> list[bytes]:
    """Give some photos of a part as JPEG."""
    return [thumbnail_of(pixels) for pixels in part.take(torch.from_numpy(places[:BESIDE]))]
