"""A pen that draws smooth shapes in a creature's own coordinates.

Species and scenery are written once, about the origin and about one unit in radius (x to the
right, y down); the pen carries the pose, so a drawing function knows nothing of rotation,
mirroring, foreshortening or pixels.

Each stroke lands on two layers of equal size: colour (RGBA) and height (L, 0 to 255). The height
is lit afterwards, which gives limbs, plates and ridges their relief without shading them by hand.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Rng = np.random.Generator
Colour = tuple[int, ...]  # RGB or RGBA, 0 to 255
Floats = NDArray[np.float64]
Points = Sequence[tuple[float, float]] | Floats  # (n, 2): x, y in creature units


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Return an RGB colour; hue wraps round at 1, the other two are clipped to 0..1."""
    channels = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return tuple(round(255 * channel) for channel in channels)


def darker(colour: Colour, factor: float = 0.6) -> Colour:
    """Return `colour` with its RGB multiplied by `factor` and its alpha, if any, kept."""
    return (*(min(255, round(c * factor)) for c in colour[:3]), *colour[3:])


def smooth(points: Points, closed: bool, steps: int = 8) -> Floats:
    """Return the Catmull-Rom curve through `points`, `steps` vertices per span: (m, 2).

    This spline passes through its control points, so outlines can be read off the numbers.
    """
    knots = np.asarray(points, dtype=np.float64)
    if closed:
        padded = np.concatenate([knots[-1:], knots, knots[:2]])
    else:
        padded = np.concatenate([knots[:1], knots, knots[-1:]])
    a, b, c, d = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    flat = curve.transpose(1, 0, 2).reshape(-1, 2)
    return flat if closed else np.concatenate([flat, knots[-1:]])


def trail(start: tuple[float, float], headings: Floats, length: float) -> Floats:
    """Return the path of (n + 1, 2) points that leaves `start` and follows `headings`.

    `headings` are n radians, 0 to the right and growing clockwise; `length` is the whole way.
    """
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / len(headings))
    origin = np.asarray(start, dtype=np.float64)
    return np.concatenate([origin[None], origin + np.cumsum(steps, axis=0)])


def mirrored(half: Points) -> Floats:
    """Return an outline symmetric about x = 0 from its right half, given from top to bottom."""
    right = np.asarray(half, dtype=np.float64)
    return np.concatenate([right, (right * (-1, 1))[::-1]])


@dataclass(frozen=True)
class Pen:
    """Two layers and the affine pose in which shapes reach them."""

    colour: Image.Image  # RGBA
    height: Image.Image  # L
    matrix: Floats  # (2, 2), creature units to pixels
    origin: Floats  # (2,), pixels

    def moved(
        self, x: float = 0, y: float = 0, turn: float = 0, scale: tuple[float, float] = (1, 1)
    ) -> Pen:
        """Return a pen whose origin lies at (x, y) of this one, turned (radians) and scaled.

        A negative first scale mirrors: both halves of a creature come from the same numbers.
        """
        cos, sin = np.cos(turn), np.sin(turn)
        inner = np.array([[cos, -sin], [sin, cos]]) @ np.diag(scale)
        origin = self.origin + self.matrix @ np.array([x, y])
        return Pen(self.colour, self.height, self.matrix @ inner, origin)

    def both(self) -> tuple[Pen, Pen]:
        """Return this pen and its twin mirrored about x = 0."""
        return self, self.moved(scale=(-1, 1))

    def pixels(self, points: Points) -> list[float]:
        """Return `points` in pixels, as the flat x, y, x, y … that Pillow draws quickest."""
        placed = np.asarray(points, dtype=np.float64) @ self.matrix.T + self.origin
        return placed.ravel().tolist()

    def poly(self, points: Points, fill: Colour, rise: int = 150, rim: float = 0.016) -> None:
        """Fill a polygon; `rise` is its height (0 leaves the height as it is).

        A rim `rim` units wide, darker and lower than the fill, sets parts of one colour apart.
        """
        xy = self.pixels(points)
        width = round(rim * float(np.sqrt(abs(np.linalg.det(self.matrix)))))
        draw = ImageDraw.Draw(self.colour)
        draw.polygon(xy, fill=fill)
        if width:
            draw.line([*xy, *xy[:2]], fill=darker(fill), width=width)
        if rise:
            draw = ImageDraw.Draw(self.height)
            draw.polygon(xy, fill=rise)
            if width:
                draw.line([*xy, *xy[:2]], fill=rise * 2 // 3, width=width)

    def shape(self, points: Points, fill: Colour, rise: int = 150, rim: float = 0.016) -> None:
        """Fill the smooth closed curve through `points`."""
        self.poly(smooth(points, closed=True), fill, rise, rim)

    def oval(
        self, x: float, y: float, rx: float, ry: float, fill: Colour, rise: int = 0, rim: float = 0
    ) -> None:
        """Fill an ellipse; flat and without a rim unless told, for most ovals are markings."""
        angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        ring = np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)
        self.poly(ring, fill, rise, rim)

    def stroke(
        self,
        points: Points,
        widths: Sequence[float] | Floats,
        fill: Colour,
        rise: int = 120,
        rim: float = 0.012,
    ) -> None:
        """Draw a smooth limb through `points`, its `widths` spread evenly from start to end."""
        path = smooth(points, closed=False)
        along = np.linspace(0, 1, len(path))
        radius = np.interp(along, np.linspace(0, 1, len(widths)), widths)[:, None] / 2
        ahead = np.gradient(path, axis=0)
        ahead /= np.maximum(np.linalg.norm(ahead, axis=1, keepdims=True), 1e-9)
        side = ahead[:, ::-1] * (-1, 1)
        # Half circles close the ends; a bare cut would show at every joint.
        sweep = np.linspace(0, np.pi, 7)[1:-1, None]
        tip = path[-1] + radius[-1] * (np.cos(sweep) * side[-1] + np.sin(sweep) * ahead[-1])
        root = path[0] - radius[0] * (np.cos(sweep) * side[0] + np.sin(sweep) * ahead[0])
        edge = [path + radius * side, tip, (path - radius * side)[::-1], root]
        self.poly(np.concatenate(edge), fill, rise, rim)

    @contextmanager
    def within(self, outline: Points) -> Iterator[Pen]:
        """Yield a pen that marks only the inside of a polygon, as scales or spots on a skin."""
        pen = Pen(self.colour.copy(), self.height.copy(), self.matrix, self.origin)
        yield pen
        mask = Image.new("L", self.colour.size)
        ImageDraw.Draw(mask).polygon(self.pixels(outline), fill=255)
        self.colour.paste(pen.colour, mask=mask)
        self.height.paste(pen.height, mask=mask)
