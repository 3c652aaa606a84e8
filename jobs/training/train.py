"""The `train` command: train a backbone on labelled images and write a bundle."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch

from jobs.config.options import parse_comma_list
from jobs.config.settings import TrainSettings, content_settings
from jobs.embedding.listing import read_labels_file
from jobs.runtime.check_output import check_file, check_output
from jobs.runtime.progress import print_message
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import Stopwatch
from jobs.training.run_training import TrainingSetup, local_device, train_here_or_on_cluster
from jobs.training.write_bundle import write_split, write_trained
from retrieval.core.errors import UsageError
from retrieval.evaluation.measures import find_measure
from retrieval.models import registry
from retrieval.models.recipes import RECIPES
from retrieval.models.resolve import RANDOM, choose_pooling, resolve_source
from retrieval.sources.detect import open_source
from retrieval.storage import finished_output, transaction
from retrieval.storage.local import Folder, open_folder
from retrieval.training.augmentation import VARIATIONS
from retrieval.training.dataset import TrainingDataset, dataset_digest, select_training_images
from retrieval.training.loop import TrainingProgress, TrainingRecipe
from retrieval.training.photos import PhotoSplit, decode_photos

_MEASURES = ("top1", "map")
_MAX_NAMED_FAILURES = 10  # unreadable photos named on stderr; the summary counts all


def start(settings: TrainSettings) -> Result:
    """Train, continuing from a checkpoint if there is one, and return the summary."""
    stopwatch = Stopwatch()
    check_output(settings, "bundle")
    if settings.cache is not None:
        check_file("--cache", os.path.join(settings.cache, "photos"), output=settings.output)
    folder = open_folder(settings.output)
    setup = _training_setup(settings)
    data = _list_dataset(settings)
    transaction.claim_output(
        folder, "bundle", _job_content(settings, setup, data), overwrite=settings.overwrite
    )
    if not finished_output.is_finished(folder):
        for note in data.notes:
            print_message(f"train: {note}")
        counts, device = _train_and_write(settings, folder, setup, data)
        stopwatch.write(
            folder, settings, threads=torch.get_num_threads(), learnt_on=device, **counts
        )
        transaction.finish_output(folder, "bundle", counts)
    counts = finished_output.read_manifest(folder, kind="bundle").counts
    values = {find_measure(key).name if key in _MEASURES else key: value
              for key, value in counts.items()}  # fmt: skip
    return Result({"output": settings.output, **values}, _format_summary(settings, counts))


def _training_setup(settings: TrainSettings) -> TrainingSetup:
    """Return the training setup of the options; weights are downloaded here."""
    weights = settings.weights
    if settings.backbone == registry.SCRATCH and weights is None:
        weights = RANDOM
    defaults = RECIPES[settings.recipe]
    source = resolve_source(
        settings.backbone, weights, image_size=settings.image_size, resize=settings.resize,
        seed=settings.seed, python_path=settings.python_path, recipe=defaults,
    )  # fmt: skip
    pooling = settings.pooling or choose_pooling(source, defaults)
    recipe = TrainingRecipe(
        epochs=settings.epochs, batch=settings.batch_size, learning_rate=settings.learning_rate,
        backbone_lr_scale=settings.backbone_lr_scale, schedule=settings.schedule,
        patience=settings.patience, unfreeze=settings.unfreeze,
        augmentations=_parse_augmentations(settings.augment), seed=settings.seed,
    )  # fmt: skip
    return TrainingSetup(
        source, pooling, weights != RANDOM, settings.objective, recipe,
        registry.find_own_model(source.backbone),
    )  # fmt: skip


def _parse_augmentations(text: str) -> tuple[str, ...]:
    names = parse_comma_list(text)
    if names == ["none"]:
        return ()
    for name in names:
        if name not in VARIATIONS:
            raise UsageError(f"--augment {name!r}: write some of {','.join(VARIATIONS)}, or none")
    return tuple(name for name in VARIATIONS if name in names)


def _list_dataset(settings: TrainSettings) -> TrainingDataset:
    """List the images whose class is not excluded; log the notes of the source."""
    labels = None
    if settings.labels is not None:
        table = read_labels_file(settings.labels, None)
        columns = (table[name].to_pylist() for name in ("image_id", "label"))
        labels = dict(zip(*columns, strict=True))
    source = open_source(settings.data)
    data = select_training_images(source.items(), labels, _excluded_classes(settings))
    for note in source.notes():
        print_message(f"train: {note}")
    return data


def _excluded_classes(settings: TrainSettings) -> list[str]:
    return sorted(set(parse_comma_list(settings.exclude_classes)))


def _job_content(
    settings: TrainSettings, setup: TrainingSetup, data: TrainingDataset
) -> dict[str, Any]:
    """Return all settings and inputs that shape the bundle, for job.json."""
    content = content_settings(settings)
    del content["recipe"]  # its parts are recorded
    return {
        **content,
        "pooling": setup.pooling,
        "resize": setup.source.transform.resize,
        "augment": ",".join(setup.recipe.augmentations),
        "data": open_folder(settings.data).uri(),
        "image_size": setup.source.transform.image_size,
        "images": len(data.items),
        "images_sha256": dataset_digest(data.items),
        "exclude_classes": _excluded_classes(settings),
        "weights_sha256": setup.digest(),
    }


def _train_and_write(
    settings: TrainSettings, folder: Folder, setup: TrainingSetup, data: TrainingDataset
) -> tuple[dict[str, Any], str]:
    """Decode, train and write the bundle; return the counts of the manifest and the device."""
    with decode_photos(
        data.items, setup.source.transform, max_pixels=settings.max_pixels,
        cache=settings.cache, threads=os.cpu_count() or 1,
    ) as decoded:  # fmt: skip
        photos = decoded.split(
            by=settings.split_by, share=settings.validation_fraction, seed=settings.seed
        )
        for failure in photos.failures[:_MAX_NAMED_FAILURES]:
            print_message(f"train: cannot read {failure}")
        write_split(folder, photos, data.items)
        progress, device = train_here_or_on_cluster(folder, setup, decoded, photos, settings)
        write_trained(folder, setup, photos, progress, local_device(settings.device))
    return _counts(photos, progress), device


def _counts(photos: PhotoSplit, progress: TrainingProgress) -> dict[str, Any]:
    training, validation, best = len(photos.training), len(photos.validation), progress.best_epoch
    failures = len(photos.failures)
    names = {*photos.training.names, *photos.validation.names}
    return {
        **{key: value for key, value in dataclasses.asdict(best).items() if key != "loss"},
        "best_epoch": best.epoch, "epochs": len(progress.history), "classes": len(names),
        "failures": failures, "images": training + validation + failures, "training": training,
        "validation": validation, "validation_classes": len(photos.validation.names),
    }  # fmt: skip


def _format_summary(settings: TrainSettings, counts: Mapping[str, Any]) -> tuple[str, ...]:
    validation_images = "other images"
    if settings.split_by == "class":  # results for unseen classes depend on their number
        validation_images = f"images of {counts['validation_classes']} other classes"
    accuracy = "" if counts["accuracy"] is None else f", accuracy {counts['accuracy']:.1%}"
    return (
        f"trained on {counts['training']} images for {counts['epochs']} epochs, "
        f"{counts['failures']} failed: {settings.output}",
        f"epoch {counts['best_epoch']} was best on {counts['validation']} {validation_images}: mAP "
        f"{counts['map']:.4f}, top-1 {counts['top1']:.1%}{accuracy}",
    )
