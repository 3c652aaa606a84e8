"""Measure what reading and augmenting photos, and evaluating epochs, cost a training.

python -m benchmarks.train [--data DIR] [--backbone scratch] [--weights random] [--runs 3]

Images per second of a training epoch with photos mapped from disk and augmented, against the same
steps on augmented batches in memory, alternately in one process. Without --data, photos are drawn.
One thread, since with two the time of synchronisation would be measured too.
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
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--backbone", default="scratch")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.data or draw_photos(Path(scratch, "photos"), arguments.images)
        write_result("train", **_measure(arguments, str(root), scratch))


def _measure(arguments: argparse.Namespace, root: str, cache: str) -> dict[str, Any]:
    source = resolve_source(
        arguments.backbone, arguments.weights, image_size=None, resize=None, seed=0
    )
    items = select_training_images(
        list(open_source(root).items())[: arguments.images], None, ()
    ).items
    recipe = TrainingRecipe(1000, 16, 1e-3, 0.1, "cosine", None, "all", VARIATIONS, 0)
    with decode_photos(
        items, source.transform, max_pixels=10**9, cache=cache, threads=2
    ) as decoded:
        photos = decoded.split(by="image", share=0.1, seed=0)
        body = build_trainable_backbone(source, "avg", pretrained=False)
        dimension = body.extractor(torch.zeros(2, 3, *photos.plain.pixels.shape[2:])).shape[1]
        objective = make_objective("cross-entropy", dimension, len(photos.training.names), 0)
        trainer = loop.Trainer(body, objective, photos, recipe, ProcessGroup())
        batches = _load_batches(photos.training, source.transform)
        rates, memory_rates = [], []
        for number in range(1, arguments.runs + 2):  # the first of each warms up
            started = time.perf_counter()
            trainer.train_epoch(number, [])
            epoch_end = time.perf_counter()
            _run_steps(trainer, batches)
            rates.append(len(photos.training) / (epoch_end - started))
            memory_rates.append(len(photos.training) / (time.perf_counter() - epoch_end))
    ratios = [
        rate / memory_rate for rate, memory_rate in zip(rates[1:], memory_rates[1:], strict=True)
    ]
    return {"backbone": arguments.backbone, "images": len(photos.training),
            "images_per_second": spread(rates[1:]), "ready_in_memory": spread(memory_rates[1:]),
            "ratio": spread(ratios)}  # fmt: skip


def _load_batches(photos: Any, transform: Any) -> list[tuple[Any, Any]]:
    generator = torch.Generator().manual_seed(0)
    batch_positions = draw_batches(photos.classes, 16, generator, balanced=False)
    return [
        (
            normalise_pixels(
                augment(photos.take(positions), transform.image_size, generator), transform
            ),
            photos.classes[positions],
        )
        for positions in batch_positions
    ]  # fmt: skip


def _run_steps(trainer: Any, batches: list[tuple[Any, Any]]) -> None:
    trainer.body.set_training_mode()
    trainer.objective.train()
    for images, classes in batches:
        loss = trainer.objective(trainer.body.extractor(images), classes)
        trainer.optimizer.zero_grad()
        loss.backward()
        trainer.optimizer.step()


if __name__ == "__main__":
    main()
