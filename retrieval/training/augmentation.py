"""Random augmentation of training photos, batch by batch with separate parameters per photo.

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
"""Side of a stored training photo over the input side, so that crops keep their resolution."""

ZOOM = (0.7, 1.1)
"""Range of the side of a crop over that of its photo; above 1 the photo's edges are mirrored."""

ROTATION = math.radians(20)
"""Maximum rotation in either direction, in radians."""

SHEAR = 0.2
"""Maximum shear in either direction, as the tangent of the angle."""

BRIGHTNESS, CONTRAST, SATURATION = 0.3, 0.3, 0.5
"""Maximum deviation of these factors from 1."""

HUE = 0.3
"""Maximum hue rotation in either direction, in radians; half a turn gave worse retrieval."""

VARIATIONS = ("flip", "crop", "zoom", "rotate", "shear", "colour")
"""The names of all variations."""

_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""RGB to YIQ (NTSC): luma, and two chroma axes in whose plane hue is an angle."""


def augment(
    pixels: Tensor,
    side: int,
    generator: torch.Generator,
    variations: Collection[str] = VARIATIONS,
) -> Tensor:
    """Augment a batch: uint8 (n, 3, m, m) -> float32 (n, 3, side, side), values from 0 to 255.

    Runs on the device of `pixels`; random numbers are drawn on the CPU, so they are the same for
    any device. All numbers are drawn whatever `variations` are enabled, so that enabling one more
    leaves the others unchanged.
    """
    draw = _BatchRandom(len(pixels), generator, pixels.device)
    return _shift_colours(
        _warp(pixels.float(), side, draw, variations), draw, "colour" in variations
    )


class _BatchRandom:
    """Random numbers for a batch, one per photo."""

    def __init__(self, count: int, generator: torch.Generator, device: torch.device) -> None:
        self._count, self._generator, self._device = count, generator, device

    def between(self, low: float, high: float) -> Tensor:
        """Return (n,) float32, uniformly distributed."""
        drawn = torch.rand(self._count, generator=self._generator).to(self._device)
        return low + (high - low) * drawn

    def around(self, middle: float, maximum: float) -> Tensor:
        return self.between(middle - maximum, middle + maximum)

    def sign(self) -> Tensor:
        return torch.where(self.between(-1, 1) < 0, -1.0, 1.0)


def _warp(images: Tensor, side: int, draw: _BatchRandom, variations: Collection[str]) -> Tensor:
    """Return a zoomed, rotated, sheared, shifted and possibly mirrored crop of each photo."""
    zoom, angle = draw.between(*ZOOM), draw.around(0, ROTATION)
    shear = draw.around(0, SHEAR)
    x, y, mirror = draw.around(0, 1), draw.around(0, 1), draw.sign()
    zeros = torch.zeros_like(zoom)
    zoom = zoom if "zoom" in variations else zeros + 1 / MARGIN
    angle = angle if "rotate" in variations else zeros
    shear = shear if "shear" in variations else zeros
    mirror = mirror if "flip" in variations else zeros + 1
    shift_range = (1 - zoom).abs() if "crop" in variations else zeros
    across, along = zoom * angle.cos(), zoom * angle.sin()
    rows = (mirror * across, shear * across - along, shift_range * x,
            mirror * along, shear * along + across, shift_range * y)  # fmt: skip
    theta = torch.stack(rows, 1).view(-1, 2, 3)
    grid = functional.affine_grid(theta, [len(images), 3, side, side], align_corners=False)
    warped: Tensor = functional.grid_sample(
        images, grid, padding_mode="reflection", align_corners=False
    )
    return warped


def _shift_colours(images: Tensor, draw: _BatchRandom, enabled: bool) -> Tensor:
    """Change brightness, contrast, saturation and hue: a 3 x 3 matrix and an offset per photo."""
    brightness, contrast = draw.around(1, BRIGHTNESS), draw.around(1, CONTRAST)
    colour, angle = draw.around(1, SATURATION), draw.around(0, HUE)
    if not enabled:
        return images
    to_yiq = torch.tensor(_YIQ, device=images.device)
    hue_rotation = torch.zeros(len(images), 3, 3, device=images.device)
    hue_rotation[:, 0, 0] = 1
    hue_rotation[:, 1, 1] = hue_rotation[:, 2, 2] = colour * angle.cos()
    hue_rotation[:, 2, 1] = colour * angle.sin()
    hue_rotation[:, 1, 2] = -hue_rotation[:, 2, 1]
    matrix = (
        torch.linalg.inv(to_yiq) @ hue_rotation @ to_yiq * (brightness * contrast).view(-1, 1, 1)
    )
    shifted: Tensor = matrix @ images.flatten(2)  # (n, 3, side * side)
    middle = images.mean((1, 2, 3)) * brightness * (1 - contrast)
    return (shifted + middle.view(-1, 1, 1)).clamp(0, 255).view_as(images)
