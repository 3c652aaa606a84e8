"""Boxes: rectangles of an upright image, written at the end of the path of a crop.

`photo.jpg#xywh=10,20,300,200` is a box in pixels and `photo.jpg#xywh=percent:12.5,3,40,50.25` one
relative to the image, as W3C Media Fragments write them: x and y of the upper left corner, width,
height. Boxes refer to the image after its EXIF orientation is applied.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

BoxUnits = Literal["pixels", "relative"]

_START = "#xywh="
_FRAGMENT = re.compile(_START + r"(percent:)?" + ",".join([r"([0-9]{1,10}(?:\.[0-9]{1,4})?)"] * 4))
_WHOLE = 1_000_000
"""Parts of a side of an image that relative values are rounded to: a tenth of a pixel of 100,000,
and more than float32 resolves."""

_PER_PERCENT = _WHOLE // 100
_MAX_RELATIVE, _MAX_PIXELS = 2.0, 1e9  # larger values are no box that overlaps the image


@dataclass(frozen=True)
class Box:
    """A rectangle: in pixels, or in millionths of the image's width and height if `relative`."""

    left: int
    top: int
    width: int
    height: int
    relative: bool

    def __str__(self) -> str:
        values = (self.left, self.top, self.width, self.height)
        if self.relative:
            return f"{_START}percent:{','.join(f'{value / _PER_PERCENT:.10g}' for value in values)}"
        return f"{_START}{','.join(map(str, values))}"

    def edges(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom in pixels of an image, clipped to it.

        Relative edges are rounded to whole pixels. Raises ValueError if the box contains no pixel
        of the image.
        """
        left, right = self._pixels(self.left, width), self._pixels(self.left + self.width, width)
        top, bottom = self._pixels(self.top, height), self._pixels(self.top + self.height, height)
        if left >= right or top >= bottom:
            raise ValueError(
                f"the box {str(self)[1:]} contains no pixel of the image of {width} x {height}"
            )
        return left, top, right, bottom

    def _pixels(self, edge: int, size: int) -> int:
        return min(size, (edge * size + _WHOLE // 2) // _WHOLE if self.relative else edge)


def make_box(values: Sequence[float], units: BoxUnits) -> Box:
    """Return the box of x, y, width and height, clipped where it only overlaps the image.

    Pixels are rounded to whole ones, relative values to millionths. Edges beyond the right and the
    bottom of an image of unknown size are clipped by `Box.edges`.

    Raises:
        ValueError: With the reason, if the values are no box, or one outside the image.
    """
    if problem := _problem(values, units):
        text = ", ".join(f"{value:.6g}" for value in values)
        raise ValueError(f"the box {text} {problem}")
    x, y, width, height = values
    scale, limit = (_WHOLE, _WHOLE) if units == "relative" else (1, int(2 * _MAX_PIXELS))
    left, right, top, bottom = (
        min(max(0, math.floor(edge * scale + 0.5)), limit) for edge in (x, x + width, y, y + height)
    )
    if left >= right or top >= bottom:
        text = ", ".join(f"{value:.6g}" for value in values)
        raise ValueError(f"the box {text} lies outside the image")
    return Box(left, top, right - left, bottom - top, units == "relative")


def _problem(values: Sequence[float], units: BoxUnits) -> str | None:
    """Return why values are no box, as the end of a sentence; None if they are one."""
    if not all(math.isfinite(value) for value in values):
        return "is not finite"
    _, _, width, height = values
    if width < 0 or height < 0:
        return "has a negative width or height"
    if width == 0 or height == 0:
        return "has no area"
    largest = max(map(abs, values))
    if units == "relative":
        if largest > _MAX_RELATIVE:
            return "is not relative; specify --box-units pixels if it is in pixels"
    elif width < 1 or height < 1:
        return "is smaller than a pixel; specify --box-units relative if it is relative"
    return "lies outside the image" if largest > _MAX_PIXELS else None


def split_box(path: str) -> tuple[str, Box | None]:
    """Return the path of the image that a path is a crop of, and the box; None for whole images."""
    start = path.rfind(_START)
    match = _FRAGMENT.fullmatch(path, start) if start >= 0 else None
    if match is None:
        return path, None
    relative = match[1] is not None
    scale = _PER_PERCENT if relative else 1
    left, top, width, height = (
        math.floor(float(text) * scale + 0.5) for text in match.groups()[1:]
    )
    return path[:start], Box(left, top, width, height, relative)
