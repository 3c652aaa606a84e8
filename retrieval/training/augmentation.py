"""Random augmentation of training photos, a whole batch at once with separate parameters per photo.

torchvision's transforms draw once per batch or process photos one by one. Here crop, rotation,
shear and flip are one sampling grid per photo, and all colour changes one 3 x 3 matrix.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional

MARGIN = 1.125
"""Side of a kept training photo over the side the network reads, so that crops lose little."""

ZOOM = (0.7, 1.1)
"""Side of a crop over that of its photo; beyond 1 the photo shrinks and its edge is mirrored."""

ROTATION = math.radians(20)
"""Most a photo is turned, either way, in radians."""

SHEAR = 0.2
"""Most by which a photo leans, either way: the tangent of the angle."""

BRIGHTNESS, CONTRAST, SATURATION = 0.3, 0.3, 0.5
"""Most by which these factors differ from 1."""

HUE = 0.3
"""Most a colour is turned on the colour wheel, either way, in radians; half a turn learnt worse."""

VARIATIONS = ("flip", "crop", "zoom", "rotate", "shear", "colour")
"""What may be varied, by name."""

_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""NTSC: brightness, and two axes of colour about it on which hue is an angle."""


def augment(
    pixels: Tensor,
    side: int,
    generator: torch.Generator,
    varied: Collection[str] = VARIATIONS,
) -> Tensor:
    """Vary a batch: uint8 (n, 3, m, m) -> float32 (n, 3, side, side), values from 0 to 255.

    It is done where the photos are; numbers are drawn on the CPU, the same for any device. Every
    number is drawn whatever is varied, so that one variation more leaves the others as they
    were. What is left alone is what a match is known by: build and markings.
    """
    draw = _BatchRandom(len(pixels), generator, pixels.device)
    return _shift_colours(_warp(pixels.float(), side, draw, varied), draw, "colour" in varied)


class _BatchRandom:
    """Numbers for a batch, one a photo."""

    def __init__(self, count: int, generator: torch.Generator, device: torch.device) -> None:
        self._count, self._generator, self._device = count, generator, device

    def between(self, low: float, high: float) -> Tensor:
        """Return (n,) float32, evenly spread."""
        drawn = torch.rand(self._count, generator=self._generator).to(self._device)
        return low + (high - low) * drawn

    def around(self, middle: float, most: float) -> Tensor:
        return self.between(middle - most, middle + most)

    def sign(self) -> Tensor:
        return torch.where(self.between(-1, 1) < 0, -1.0, 1.0)


def _warp(images: Tensor, side: int, draw: _BatchRandom, varied: Collection[str]) -> Tensor:
    """Cut a turned, leaning, shifted and maybe mirrored square from each photo."""
    zoom, angle = draw.between(*ZOOM), draw.around(0, ROTATION)
    lean = draw.around(0, SHEAR)
    x, y, mirror = draw.around(0, 1), draw.around(0, 1), draw.sign()
    still = torch.zeros_like(zoom)
    zoom = zoom if "zoom" in varied else still + 1 / MARGIN
    angle = angle if "rotate" in varied else still
    lean = lean if "shear" in varied else still
    mirror = mirror if "flip" in varied else still + 1
    slack = (1 - zoom).abs() if "crop" in varied else still
    across, along = zoom * angle.cos(), zoom * angle.sin()
    rows = (mirror * across, lean * across - along, slack * x,
            mirror * along, lean * along + across, slack * y)  # fmt: skip
    theta = torch.stack(rows, 1).view(-1, 2, 3)
    grid = functional.affine_grid(theta, [len(images), 3, side, side], align_corners=False)
    cut: Tensor = functional.grid_sample(
        images, grid, padding_mode="reflection", align_corners=False
    )
    return cut


def _shift_colours(images: Tensor, draw: _BatchRandom, wanted: bool) -> Tensor:
    """Change brightness, contrast, saturation and hue: one 3 x 3 matrix and one offset a photo."""
    light, contrast = draw.around(1, BRIGHTNESS), draw.around(1, CONTRAST)
    colour, angle = draw.around(1, SATURATION), draw.around(0, HUE)
    if not wanted:
        return images
    to_yiq = torch.tensor(_YIQ, device=images.device)
    turn = torch.zeros(len(images), 3, 3, device=images.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = colour * angle.cos()
    turn[:, 2, 1] = colour * angle.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    matrix = torch.linalg.inv(to_yiq) @ turn @ to_yiq * (light * contrast).view(-1, 1, 1)
    flat: Tensor = matrix @ images.flatten(2)  # (n, 3, side * side)
    middle = images.mean((1, 2, 3)) * light * (1 - contrast)
    return (flat + middle.view(-1, 1, 1)).clamp(0, 255).view_as(images)
