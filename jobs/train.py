"""lookalike train: labelled images to a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch

from jobs.progress import say
from jobs.result import Result
from jobs.runfile import Stopwatch
from jobs.settings import TrainSettings, content_of
from retrieval.errors import InputError
from retrieval.images.listing import read_labels
from retrieval.images.sources.choose import open_source
from retrieval.model import backbones, bundle
from retrieval.model.resolve import make_bundle
from retrieval.records import Item, Transform
from retrieval.report.charts.curves import curves_drawing
from retrieval.storage import commit, finished
from retrieval.storage.files import Folder, open_folder
from retrieval.storage.reading import read_uri
from retrieval.storage.seal import sealed_parquet
from retrieval.tables import HISTORY
from retrieval.training import data
from retrieval.training.loop import Trained, train

_HISTORY, _CURVES, _SUMS = "history.parquet", "curves.png", "png.sum.json"
_NAMED = 10  # photos named on stderr, of those that cannot be read; the summary counts all


def start(settings: TrainSettings) -> Result:
    """Train the compact CNN, unless that was done, and say what it came to."""
    watch = Stopwatch()
    folder = open_folder(settings.output)
    side = settings.image_size
    transform = backbones.first_preset(backbones.SCRATCH, image_size=side, resize="crop")
    items = _items(settings)
    commit.begin(folder, "bundle", _job(settings, transform, items), overwrite=settings.overwrite)
    if not finished.is_finished(folder):
        photos = data.load(items, transform, seed=settings.seed, max_pixels=settings.max_pixels)
        trained = _train(photos, transform, settings)
        source = backbones.Source(trained.state, transform)
        _put(folder, make_bundle(backbones.SCRATCH, source, "avg", True), trained)
        counts = _counts(photos, trained)
        watch.write(folder, settings, threads=torch.get_num_threads(), **counts)
        commit.finish(folder, "bundle", counts)
    counts = finished.read_manifest(folder, kind="bundle").counts
    return Result({"output": settings.output, **counts}, _lines(settings.output, counts))


def _items(settings: TrainSettings) -> list[Item]:
    """List the images that have a class which is not left out."""
    labels = None
    if settings.labels is not None:
        try:
            table = read_labels(read_uri(settings.labels), settings.labels, None)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"--labels {settings.labels} cannot be read ({error})") from error
        labels = dict(zip(*(column.to_pylist() for column in table.columns), strict=True))
    found = list(open_source(settings.data).items())
    kept = data.labelled(found, labels, _left_out(settings))
    say(f"train: {len(kept)} of {len(found)} images have a class that is not left out")
    return kept


def _left_out(settings: TrainSettings) -> list[str]:
    return sorted({name.strip() for name in (settings.leave_out or "").split(",")} - {""})


def _job(settings: TrainSettings, transform: Transform, items: list[Item]) -> dict[str, Any]:
    """Give what shapes the bundle; changed images or labels make another job."""
    return {
        **content_of(settings),
        "backbone": backbones.SCRATCH,
        "data": open_folder(settings.data).uri(),
        "image_size": transform.image_size,
        "images": len(items),
        "images_sha256": data.digest(items),
        "leave_out": _left_out(settings),
    }


def _train(photos: data.Photos, transform: Transform, settings: TrainSettings) -> Trained:
    for failure in photos.failures[:_NAMED]:
        say(f"train: cannot read {failure}")
    return train(
        photos, transform, epochs=settings.epochs, learning_rate=settings.learning_rate,
        seed=settings.seed, on_epoch=lambda epoch: say(
            f"train: epoch {epoch.epoch}/{settings.epochs}, loss {epoch.loss:.3f}, "
            f"accuracy {epoch.accuracy:.3f}, top-1 {epoch.top1:.3f}"
        ),
    )  # fmt: skip


def _put(folder: Folder, made: bundle.Bundle, trained: Trained) -> None:
    """Put bundle and history, in place of what a run that was killed left of them."""
    of_model = (f"{bundle.MODEL}/{name}" for name in (bundle.WEIGHTS, bundle.BUNDLE))
    for path in (*of_model, _HISTORY, _CURVES, _SUMS):
        folder.delete(path)  # another number of threads gives other last bits: no mixture of two
    bundle.write_bundle(folder, made)
    rows = [vars(epoch) for epoch in trained.history]
    history = pa.Table.from_pylist(rows, HISTORY.schema)
    folder.put_new(_HISTORY, sealed_parquet(history))
    if drawing := curves_drawing(history, trained.best.epoch):
        commit.put_named(folder, {_CURVES: drawing.png()}, _SUMS)


def _counts(photos: data.Photos, trained: Trained) -> dict[str, Any]:
    training, validation = len(photos.training.classes), len(photos.validation.classes)
    failures, best = len(photos.failures), trained.best
    return {
        "epochs": len(trained.history), "best_epoch": best.epoch, "top1": best.top1,
        "accuracy": best.accuracy, "classes": len(photos.names), "failures": failures,
        "images": training + validation + failures, "training": training, "validation": validation,
    }  # fmt: skip


def _lines(output: str, counts: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"trained on {counts['training']} images of {counts['classes']} classes for "
        f"{counts['epochs']} epochs, {counts['failures']} failed: {output}",
        f"epoch {counts['best_epoch']} was best on {counts['validation']} other images: "
        f"{counts['top1']:.1%} find their own class first, {counts['accuracy']:.1%} are told right",
    )
