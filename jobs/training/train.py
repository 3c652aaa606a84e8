"""lookalike train: labelled images to a bundle whose embeddings rank them better."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch

from jobs.config.settings import TrainSettings, content_of
from jobs.embedding.listing import read_labels_file
from jobs.runtime.check_output import check_file, check_output
from jobs.runtime.progress import say
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import Stopwatch
from jobs.training.learn import Learning, device_here, learn_somewhere
from jobs.training.write_bundle import put_split, put_trained
from retrieval.core.errors import UsageError
from retrieval.evaluation.measures import measure_of
from retrieval.models import registry
from retrieval.models.resolve import RANDOM, resolve_source
from retrieval.sources.detect import open_source
from retrieval.storage import finished_output, transaction
from retrieval.storage.local import Folder, open_folder
from retrieval.training.augmentation import VARIATIONS
from retrieval.training.dataset import Labelled, digest, labelled
from retrieval.training.loop import Progress, Recipe
from retrieval.training.photos import Photos, decoded

_MEASURES = ("top1", "map")
_NAMED = 10  # photos named on stderr, of those that cannot be read; the summary counts all


def start(settings: TrainSettings) -> Result:
    """Train, going on where an earlier run was, and say what it came to."""
    watch = Stopwatch()
    check_output(settings, "bundle")
    if settings.cache is not None:
        check_file("--cache", os.path.join(settings.cache, "photos"), output=settings.output)
    folder = open_folder(settings.output)
    learning = _learning(settings)
    data = _data(settings)
    transaction.begin(
        folder, "bundle", _job(settings, learning, data), overwrite=settings.overwrite
    )
    if not finished_output.is_finished(folder):
        for note in data.notes:
            say(f"train: {note}")
        counts, device = _made(settings, folder, learning, data)
        watch.write(folder, settings, threads=torch.get_num_threads(), learnt_on=device, **counts)
        transaction.finish(folder, "bundle", counts)
    counts = finished_output.read_manifest(folder, kind="bundle").counts
    values = {measure_of(key).name if key in _MEASURES else key: value
              for key, value in counts.items()}  # fmt: skip
    return Result({"output": settings.output, **values}, _lines(settings, counts))


def _learning(settings: TrainSettings) -> Learning:
    """Read the options that say what learns and how; weights are fetched here."""
    weights = settings.weights
    if settings.backbone == registry.SCRATCH and weights is None:
        weights = RANDOM
    source = resolve_source(
        settings.backbone, weights, image_size=settings.image_size, resize=settings.resize,
        seed=settings.seed,
    )  # fmt: skip
    recipe = Recipe(
        epochs=settings.epochs, batch=settings.batch_size, learning_rate=settings.learning_rate,
        body_rate=settings.body_rate, schedule=settings.schedule, patience=settings.patience,
        unfreeze=settings.unfreeze, varied=_varied(settings.augment), seed=settings.seed,
    )  # fmt: skip
    return Learning(
        settings.backbone, source, settings.pooling, weights != RANDOM, settings.objective, recipe
    )


def _varied(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return ()
    for name in names:
        if name not in VARIATIONS:
            raise UsageError(f"--augment {name!r}: write some of {','.join(VARIATIONS)}, or none")
    return tuple(name for name in VARIATIONS if name in names)


def _data(settings: TrainSettings) -> Labelled:
    """List the images that have a class which is not left out."""
    labels = None
    if settings.labels is not None:
        table = read_labels_file(settings.labels, None)
        columns = (table[name].to_pylist() for name in ("image_id", "label"))
        labels = dict(zip(*columns, strict=True))
    source = open_source(settings.data)
    data = labelled(source.items(), labels, _left_out(settings))
    for note in source.notes():
        say(f"train: {note}")
    return data


def _left_out(settings: TrainSettings) -> list[str]:
    return sorted({name.strip() for name in (settings.leave_out or "").split(",")} - {""})


def _job(settings: TrainSettings, learning: Learning, data: Labelled) -> dict[str, Any]:
    """Give what shapes the bundle; changed images, labels or weights make another job."""
    return {
        **content_of(settings),
        "augment": ",".join(learning.recipe.varied),
        "data": open_folder(settings.data).uri(),
        "image_size": learning.source.transform.image_size,
        "images": len(data.items),
        "images_sha256": digest(data.items),
        "leave_out": _left_out(settings),
        "weights_sha256": learning.digest(),
    }


def _made(
    settings: TrainSettings, folder: Folder, learning: Learning, data: Labelled
) -> tuple[dict[str, Any], str]:
    """Decode, learn and put the bundle; gives what is counted, and the device."""
    with decoded(
        data.items, learning.source.transform, max_pixels=settings.max_pixels,
        cache=settings.cache, threads=os.cpu_count() or 1,
    ) as found:  # fmt: skip
        photos = found.parted(by=settings.split_by, share=settings.validation, seed=settings.seed)
        for failure in photos.failures[:_NAMED]:
            say(f"train: cannot read {failure}")
        put_split(folder, photos, data.items)
        progress, device = learn_somewhere(folder, learning, found, photos, settings)
        put_trained(folder, learning, photos, progress, device_here(settings.device))
    return _counts(photos, progress), device


def _counts(photos: Photos, progress: Progress) -> dict[str, Any]:
    training, validation, best = len(photos.training), len(photos.validation), progress.best_epoch
    failures = len(photos.failures)
    names = {*photos.training.names, *photos.validation.names}
    return {
        **{key: value for key, value in dataclasses.asdict(best).items() if key != "loss"},
        "best_epoch": best.epoch, "epochs": len(progress.history), "classes": len(names),
        "failures": failures, "images": training + validation + failures, "training": training,
        "validation": validation, "validation_classes": len(photos.validation.names),
    }  # fmt: skip


def _lines(settings: TrainSettings, counts: Mapping[str, Any]) -> tuple[str, ...]:
    others = "other images"
    if settings.split_by == "class":  # what is said of unseen classes rests on their number
        others = f"images of {counts['validation_classes']} other classes"
    told = "" if counts["accuracy"] is None else f", {counts['accuracy']:.1%} are told right"
    return (
        f"trained on {counts['training']} images for {counts['epochs']} epochs, "
        f"{counts['failures']} failed: {settings.output}",
        f"epoch {counts['best_epoch']} was best on {counts['validation']} {others}: mAP "
        f"{counts['map']:.4f}, {counts['top1']:.1%} find their own class first{told}",
    )
