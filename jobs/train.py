"""lookalike train: labelled images to a bundle."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import torch

from jobs.options import TrainSettings, content_of
from jobs.progress import say
from jobs.result import Result
from jobs.runfile import Stopwatch
from retrieval.errors import InputError
from retrieval.images.listing import read_labels
from retrieval.images.sources.folder import FolderSource
from retrieval.model import backbones
from retrieval.model.bundle import Bundle, write_bundle
from retrieval.model.resolve import make_bundle
from retrieval.storage import commit
from retrieval.storage.files import Folder, open_folder, read_uri
from retrieval.storage.seal import sealed_parquet
from retrieval.tables import HISTORY, Item, Transform
from retrieval.training import data
from retrieval.training.loop import Epoch, Trained, train

_NAMED = 10  # photos that could not be read, named on stderr


def start(settings: TrainSettings) -> Result:
    """Train the compact CNN, unless that was done, and say what it came to."""
    watch = Stopwatch()
    folder = open_folder(settings.output)
    transform = backbones.first_preset(
        backbones.SCRATCH, image_size=settings.image_size, resize="crop"
    )
    items = _items(settings)
    job = _job(settings, transform, items)
    commit.begin(folder, "bundle", job, overwrite=settings.overwrite)
    if not commit.is_finished(folder):
        photos = data.load(items, transform, seed=settings.seed, max_pixels=settings.max_pixels)
        _report(photos.failures, len(items))
        with _all_cores():
            trained = train(
                photos,
                transform,
                epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                seed=settings.seed,
                on_epoch=lambda epoch: say(_line(epoch, settings.epochs)),
            )
        counts = _counts(photos, trained)
        _put(folder, _bundle(trained, transform), trained)
        commit.finish(folder, "bundle", counts)
        watch.write(folder, settings, **counts)
    return _summary(settings.output, commit.read_manifest(folder, kind="bundle").counts)


def _items(settings: TrainSettings) -> list[Item]:
    """List what is trained from: of labelled images those that are not left out."""
    labels = None if settings.labels is None else _labels(settings.labels)
    return data.labelled(FolderSource(settings.data).items(), labels, _left_out(settings))
