"""Drawn photos for training: shapes on disk, stripes in memory."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from retrieval.core.records import Item
from retrieval.models import registry
from retrieval.sources.folder import FolderSource
from retrieval.training.dataset import select_training_images
from retrieval.training.photos import PhotoSplit, PhotoSubset

SIDE = 32
TRANSFORM = registry.default_transform("scratch", image_size=SIDE, resize="crop")
CLASSES = ("disc", "square", "triangle")
STRIPES = ("across", "along", "plain")


def draw(root: Path, *counts: int) -> Path:
    """Draw coloured shapes, a folder a class; `counts` says how many of each."""
    rng = np.random.default_rng(0)
    for name, count in zip(CLASSES, counts, strict=False):
        (root / name).mkdir(parents=True)
        for number in range(count):
            ground, colour = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in "ab")
            image = Image.new("RGB", (40, 36), ground)
            x, y, r = (int(v) for v in rng.integers((12, 12, 6), (28, 24, 11)))
            pen = ImageDraw.Draw(image)
            if name == "disc":
                pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
            else:
                sides = 4 if name == "square" else 3
                pen.regular_polygon((x, y, r), sides, fill=colour)
            image.save(root / name / f"{number:02d}.png")
    return root


def items_of(root: Path) -> tuple[Item, ...]:
    return select_training_images(FolderSource(str(root)).items(), None, ()).items


def stripes(each: int, side: int, seed: int, names=STRIPES) -> PhotoSubset:
    """Draw stripes that run across or along, or none, in any colours, with noise."""
    rng = np.random.default_rng(seed)
    pixels, classes = [], []
    for number in range(each * 3):
        wave = np.sin(np.arange(side) * rng.uniform(0.6, 1.2) + rng.uniform(0, 6))
        field = (wave[:, None], wave[None, :], 0)[number % 3] + np.zeros((side, side))
        low, high = rng.uniform(60, 110, 3), rng.uniform(130, 200, 3)
        image = low + (high - low) * (field[..., None] + 1) / 2 + rng.normal(0, 6, (side, side, 3))
        pixels.append(torch.from_numpy(image.clip(0, 255).astype(np.uint8)).permute(2, 0, 1))
        classes.append(number % 3)
    ids = tuple(str(number) for number in range(len(pixels)))
    rows = np.arange(len(pixels))
    return PhotoSubset(torch.stack(pixels), rows, torch.tensor(classes), tuple(names), ids)


def photos_of(training: int, validation: int) -> PhotoSplit:
    return PhotoSplit(
        stripes(training, 36, 0), stripes(training, SIDE, 0), stripes(validation, SIDE, 1), ()
    )
