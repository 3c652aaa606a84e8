"""Synthetic photos for tests of training: shapes in files, stripes in memory."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from retrieval.core.records import Item
from retrieval.models import registry
from retrieval.sources.folder import FolderSource
from retrieval.training.dataset import select_training_images
from retrieval.training.photos import PhotoSplit, PhotoSubset

IMAGE_SIZE = 32
TRANSFORM = registry.default_transform("scratch", image_size=IMAGE_SIZE)
CLASSES = ("disc", "square", "triangle")
STRIPES = ("horizontal", "vertical", "plain")


def draw_shapes(root: Path, *counts: int) -> Path:
    """Draw coloured shapes into one folder per class, `counts` photos of each class."""
    rng = np.random.default_rng(0)
    for name, count in zip(CLASSES, counts, strict=False):
        (root / name).mkdir(parents=True)
        for number in range(count):
            background, colour = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in "ab")
            image = Image.new("RGB", (40, 36), background)
            x, y, r = (int(v) for v in rng.integers((12, 12, 6), (28, 24, 11)))
            canvas = ImageDraw.Draw(image)
            if name == "disc":
                canvas.ellipse((x - r, y - r, x + r, y + r), fill=colour)
            else:
                sides = 4 if name == "square" else 3
                canvas.regular_polygon((x, y, r), sides, fill=colour)
            image.save(root / name / f"{number:02d}.png")
    return root


def training_items(root: Path) -> tuple[Item, ...]:
    """Return the training images of a folder."""
    return select_training_images(FolderSource(str(root)).items(), None, ()).items


def draw_stripes(per_class: int, side: int, seed: int, names=STRIPES) -> PhotoSubset:
    """Draw noisy photos of three classes: horizontal stripes, vertical stripes, none."""
    rng = np.random.default_rng(seed)
    pixels, classes = [], []
    for number in range(per_class * 3):
        wave = np.sin(np.arange(side) * rng.uniform(0.6, 1.2) + rng.uniform(0, 6))
        pattern = (wave[:, None], wave[None, :], 0)[number % 3] + np.zeros((side, side))
        low, high = rng.uniform(60, 110, 3), rng.uniform(130, 200, 3)
        image = (
            low + (high - low) * (pattern[..., None] + 1) / 2 + rng.normal(0, 6, (side, side, 3))
        )
        pixels.append(torch.from_numpy(image.clip(0, 255).astype(np.uint8)).permute(2, 0, 1))
        classes.append(number % 3)
    ids = tuple(str(number) for number in range(len(pixels)))
    rows = np.arange(len(pixels))
    return PhotoSubset(torch.stack(pixels), rows, torch.tensor(classes), tuple(names), ids)


def make_photo_split(training: int, validation: int) -> PhotoSplit:
    return PhotoSplit(
        draw_stripes(training, 36, 0),
        draw_stripes(training, IMAGE_SIZE, 0),
        draw_stripes(validation, IMAGE_SIZE, 1),
        (),
    )
