"""Recipes: the resize, pooling and projection that are used where the options name none.

`default` ranks best on the photos at hand (docs/backbones.md), `original` is what the student
project used that this began with, and `plain` is what published figures refer to. A bundle brings
its own resize and pooling, so recipes apply only to networks that are named by `--backbone`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not loaded for --help
    import torch

    from retrieval.core.schemas import Pooling, Resize

_IMAGES_PER_DIMENSION = 1.2
"""A projection to 256 dimensions gains as much for 300 images as for 1,000 (benchmarks.recipes)."""

_LOWEST_RECTIFIED = -0.4
"""Rectifiers return at least this: ReLU 0, GELU -0.17, SiLU -0.28, Mish -0.31, Hardswish -0.375."""


@dataclass(frozen=True)
class Recipe:
    """Defaults of the model options.

    `pooling` applies to networks that end in a map of rectified features; others keep the vectors
    that they were trained with (avg). `resize` None is that of the weights, `pca` 0 no projection.
    """

    pooling: Pooling
    resize: Resize | None
    pca: int


PLAIN = Recipe("avg", None, 0)
RECIPES = {
    "default": Recipe("gem", "squash", 256),
    "original": Recipe("max", "squash", 500),
    "plain": PLAIN,
}


def min_projection_images(dimensions: int) -> int:
    """Return the number of images from which a recipe projects: 308 for 256 dimensions."""
    return math.ceil(_IMAGES_PER_DIMENSION * dimensions)


def is_rectified(feature_map: torch.Tensor | None) -> bool:
    """Return whether features (n, c, h, w) are those of a rectifier; False for None.

    gem discards negative values and max ignores them, which suits rectified features only.
    """
    return feature_map is not None and float(feature_map.min()) >= _LOWEST_RECTIFIED
