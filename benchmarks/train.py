"""Measure what reading and augmenting photos, and evaluating epochs, cost a training.

python -m benchmarks.train [--data DIR] [--backbone scratch] [--weights random] [--runs 3]

Images a second of an epoch's learning, photos mapped from disk and varied in each batch, against
the same steps on batches that are ready in memory, in turn in one process. Without --data photos
are drawn. One thread, since two that wait for each other measure the waiting.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.output import write_result
from benchmarks.sides import spread
from retrieval.models.resolve import resolve_source
from retrieval.sources.detect import open_source
from retrieval.training import loop
from retrieval.training.augmentation import VARIATIONS, augment
from retrieval.training.batches import draw_batches
from retrieval.training.dataset import select_training_images
from retrieval.training.distributed import ProcessGroup
from retrieval.training.loop import TrainingRecipe
from retrieval.training.network import build_trainable_backbone, normalise_pixels
from retrieval.training.objectives import make_objective
from retrieval.training.photos import decode_photos
from tests.conftest import draw_photos


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--backbone", default="scratch")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = asked.data or draw_photos(Path(scratch, "photos"), asked.images)
        write_result("train", **_measured(asked, str(root), scratch))


def _measured(asked: argparse.Namespace, root: str, cache: str) -> dict[str, Any]:
    source = resolve_source(asked.backbone, asked.weights, image_size=None, resize=None, seed=0)
    items = select_training_images(list(open_source(root).items())[: asked.images], None, ()).items
    recipe = TrainingRecipe(1000, 16, 1e-3, 0.1, "cosine", None, "all", VARIATIONS, 0)
    with decode_photos(items, source.transform, max_pixels=10**9, cache=cache, threads=2) as found:
        photos = found.parted(by="image", share=0.1, seed=0)
        body = build_trainable_backbone(asked.backbone, source, "avg", pretrained=False)
        dimension = body.extractor(torch.zeros(2, 3, *photos.plain.pixels.shape[2:])).shape[1]
        objective = make_objective("cross-entropy", dimension, len(photos.training.names), 0)
        learner = loop.Trainer(body, objective, photos, recipe, ProcessGroup())
        ready = _ready(photos.training, source.transform)
        ours, bare = [], []
        for number in range(1, asked.runs + 2):  # the first of each warms up
            started = time.perf_counter()
            learner.learn(number, [])
            between = time.perf_counter()
            _steps(learner, ready)
            ours.append(len(photos.training) / (between - started))
            bare.append(len(photos.training) / (time.perf_counter() - between))
    ratios = [a / b for a, b in zip(ours[1:], bare[1:], strict=True)]
    return {"backbone": asked.backbone, "images": len(photos.training),
            "images_per_second": spread(ours[1:]), "ready_in_memory": spread(bare[1:]),
            "ratio": spread(ratios)}  # fmt: skip


def _ready(part: Any, transform: Any) -> list[tuple[Any, Any]]:
    generator = torch.Generator().manual_seed(0)
    drawn = draw_batches(part.classes, 16, generator, balanced=False)
    return [
        (normalise_pixels(augment(part.take(w), transform.image_size, generator), transform),
         part.classes[w])
        for w in drawn
    ]  # fmt: skip


def _steps(learner: Any, ready: list[tuple[Any, Any]]) -> None:
    learner.body.learn()
    learner.objective.train()
    for images, classes in ready:
        loss = learner.objective(learner.body.extractor(images), classes)
        learner.optimizer.zero_grad()
        loss.backward()
        learner.optimizer.step()


if __name__ == "__main__":
    main()
