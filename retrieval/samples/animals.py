"""Draw twelve species of animals in varied poses, colours, places and lights.

Colours, backdrops and light come from the same distributions for all species, so neither raw pixels
nor colour histograms identify one: a model has to learn outline, limbs and markings.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from retrieval.core.errors import UsageError

Floats = NDArray[np.float64]
Point = tuple[float, float]

FRAMES = ((1.0, 1.0), (1.0, 0.75), (5 / 6, 13 / 12), (0.75, 1.0))
"""Width and height of a picture as multiples of its nominal size."""

_OVERSAMPLING = 3  # Pillow draws without anti-aliasing, so pictures are drawn larger and reduced
_SIDES = (-1, 1)


class Canvas:
    """Draws in animal coordinates: the animal fills the square from -1 to 1, y points down."""

    def __init__(self, image: Image.Image, matrix: Floats, rng: np.random.Generator) -> None:
        self._draw, self._matrix = ImageDraw.Draw(image), matrix
        self._origin = np.array(image.size) / 2
        self.uniform = rng.uniform
        hue, light = rng.uniform(), rng.uniform(0.75, 1)
        self.body = _colour(hue, rng.uniform(0.2, 0.8), light)
        self.limb = _colour(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.2, 0.8), light * 0.75)
        self.mark = _colour(hue + rng.uniform(0.2, 0.8), rng.uniform(0.3, 0.8), light * 0.35)

    def polygon(self, points: Sequence[Point] | Floats, colour: str) -> None:
        """Fill the outline through `points`, shape (n, 2)."""
        pixels = np.asarray(points, np.float64) @ self._matrix.T + self._origin
        self._draw.polygon([tuple(point) for point in pixels.tolist()], fill=colour)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, colour: str, turn: float = 0
    ) -> None:
        """Fill an ellipse around (x, y) with radii `rx` and `ry`, turned by `turn` radians."""
        angle = np.linspace(0, 2 * np.pi, 40)
        along, across = rx * np.cos(angle), ry * np.sin(angle)
        cos, sin = np.cos(turn), np.sin(turn)
        self.polygon(
            np.stack([x + cos * along - sin * across, y + sin * along + cos * across], 1), colour
        )

    def pair(self, x: float, y: float, rx: float, ry: float, colour: str, turn: float = 0) -> None:
        """Fill two ellipses, mirrored at the vertical axis."""
        for side in _SIDES:
            self.ellipse(side * x, y, rx, ry, colour, side * turn)

    def eyes(self, x: float, y: float, radius: float) -> None:
        """Draw a pair of eyes at (-x, y) and (x, y); one eye where x is 0."""
        self.pair(x, y, radius, radius, "#f0ecdc")
        self.pair(x, y, radius * 0.55, radius * 0.55, "#141216")

    def stroke(
        self, points: Sequence[Point] | Floats, start: float, end: float, colour: str
    ) -> None:
        """Draw a line through `points`, (n, 2), whose width goes from `start` to `end`."""
        path = np.asarray(points, np.float64)
        steps, nodes = np.linspace(0, len(path) - 1, 12 * len(path)), np.arange(len(path))
        xs, ys = (np.interp(steps, nodes, path[:, axis]) for axis in (0, 1))
        for x, y, radius in zip(xs, ys, np.linspace(start, end, len(xs)) / 2, strict=True):
            self.ellipse(x, y, radius, radius, colour)

    def legs(self, pairs: int, reach: float, width: float, spread: float) -> None:
        """Draw `pairs` of bent legs, whose feet are `spread` apart from one pair to the next."""
        for pair in range(pairs):
            lift = (pair - (pairs - 1) / 2) * spread
            for side in _SIDES:
                knee, foot = self.uniform(0.45, 0.55) * reach, reach * self.uniform(0.9, 1)
                path = [(0, lift / 3), (side * knee, lift - 0.12), (side * foot, lift * 1.2 + 0.1)]
                self.stroke(path, width, width / 3, self.limb)


def _colour(hue: float, saturation: float, value: float) -> str:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _beetle(c: Canvas) -> None:
    c.legs(3, 0.95, 0.09, 0.45)
    c.pair(0.14, -0.88, 0.04, 0.2, c.limb, 0.6)
    c.ellipse(0, -0.62, 0.24, 0.22, c.mark)
    c.ellipse(0, 0.15, c.uniform(0.4, 0.5), 0.68, c.body)
    c.stroke([(0, -0.5), (0, 0.8)], 0.05, 0.05, c.mark)
    for y in (-0.1, 0.2, 0.5):
        c.pair(0.22, y, 0.08, 0.08, c.mark)


def _butterfly(c: Canvas) -> None:
    droop = c.uniform(0.3, 0.6)
    c.pair(0.5, -0.35, 0.5, 0.38, c.body, -0.5)
    c.pair(0.4, 0.42, 0.4, 0.3, c.limb, droop)
    c.pair(0.6, -0.42, 0.16, 0.14, c.mark)
    c.pair(0.42, 0.42, 0.13, 0.13, c.mark)
    c.pair(0.15, -0.7, 0.03, 0.25, c.mark, 0.5)
    c.ellipse(0, 0.05, 0.08, 0.6, c.mark)


def _crab(c: Canvas) -> None:
    c.legs(4, 1.0, 0.09, 0.22)
    for side in _SIDES:
        claw = (side * c.uniform(0.45, 0.65), c.uniform(-0.8, -0.65))
        c.stroke([(side * 0.35, -0.15), (side * 0.75, -0.35), claw], 0.12, 0.12, c.body)
        c.ellipse(*claw, 0.24, 0.15, c.body, side * -0.9)
        c.stroke([claw, (claw[0] - side * 0.1, claw[1] - 0.18)], 0.06, 0.06, c.mark)
    c.ellipse(0, 0.05, 0.55, c.uniform(0.34, 0.42), c.body)
    c.eyes(0.15, -0.36, 0.09)


def _fish(c: Canvas) -> None:
    tall, beat = c.uniform(0.34, 0.46), c.uniform(-0.15, 0.15)
    c.polygon([(-0.4, 0), (-1, beat - 0.4), (-0.8, beat), (-1, beat + 0.4)], c.limb)
    c.polygon([(0.3, -tall * 0.7), (-0.1, -tall - 0.3), (-0.4, -tall * 0.5)], c.limb)
    c.ellipse(0.1, 0, 0.75, tall, c.body)
    for x in (-0.3, -0.05, 0.2):
        c.stroke([(x, -tall * 0.7), (x + 0.06, 0), (x, tall * 0.7)], 0.09, 0.06, c.mark)
    c.ellipse(0.6, -0.1, 0.1, 0.1, "#f0ecdc")
    c.ellipse(0.62, -0.1, 0.05, 0.05, "#141216")


def _jellyfish(c: Canvas) -> None:
    wide, angle = c.uniform(0.65, 0.85), np.linspace(np.pi, 2 * np.pi, 30)
    for x in np.linspace(-wide * 0.8, wide * 0.8, 7):
        sway = c.uniform(-0.15, 0.15)
        c.stroke([(x, -0.1), (x + sway, 0.4), (x - sway, c.uniform(0.7, 1))], 0.08, 0.03, c.limb)
    c.polygon(np.stack([wide * np.cos(angle), 0.8 * np.sin(angle)], 1), c.body)
    c.ellipse(0, -0.4, wide * 0.5, 0.2, c.mark)


def _octopus(c: Canvas) -> None:
    for x in np.linspace(-0.8, 0.8, 8):
        curl = c.uniform(-0.25, 0.25)
        c.stroke([(x * 0.35, 0.1), (x, 0.45), (x * 1.1, 0.8), (x + curl, 0.95)], 0.18, 0.06, c.limb)
    c.ellipse(0, -0.35, c.uniform(0.4, 0.5), 0.6, c.body)
    c.pair(0.2, -0.6, 0.08, 0.08, c.mark)
    c.eyes(0.2, -0.05, 0.12)


def _owl(c: Canvas) -> None:
    for side in _SIDES:
        c.polygon([(side * 0.1, -0.7), (side * 0.45, -1), (side * 0.42, -0.5)], c.body)
    c.pair(0.5, 0.25, 0.17, 0.55, c.limb, -0.15)
    c.ellipse(0, 0.25, c.uniform(0.44, 0.54), 0.7, c.body)
    c.ellipse(0, -0.48, 0.48, 0.42, c.body)
    for row, column in np.ndindex(3, 3):
        c.ellipse((column - 1) * 0.25, 0.15 + 0.22 * row, 0.08, 0.05, c.mark)
    c.eyes(0.21, -0.5, c.uniform(0.16, 0.2))
    c.polygon([(-0.08, -0.36), (0.08, -0.36), (0, -0.16)], c.mark)


def _snail(c: Canvas) -> None:
    c.stroke([(-0.95, 0.65), (0.3, 0.62), (0.72, 0.4), (0.8, 0.05)], 0.18, 0.28, c.limb)
    for lean in (-0.08, 0.14):
        c.stroke([(0.8, 0), (0.8 + lean, -0.35)], 0.06, 0.09, c.limb)
    size, angle = c.uniform(0.55, 0.65), np.linspace(0, c.uniform(2.2, 2.8) * 2 * np.pi, 30)
    radius = size * 0.9 * angle / angle[-1]
    c.ellipse(-0.15, 0.05, size, size, c.body)
    c.stroke(
        np.stack([-0.15 + radius * np.cos(angle), 0.05 + radius * np.sin(angle)], 1),
        0.05,
        0.1,
        c.mark,
    )


def _snake(c: Canvas) -> None:
    x = np.linspace(-0.95, 0.75, 30)
    path = np.stack([x, c.uniform(0.32, 0.45) * np.sin(c.uniform(1.3, 1.8) * np.pi * x)], 1)
    c.stroke(path, 0.1, 0.26, c.body)
    for px, py in path[3:-3:4]:
        c.ellipse(px, py, 0.06, 0.09, c.mark)
    c.ellipse(path[-1, 0], path[-1, 1], 0.2, 0.15, c.body)
    c.stroke([path[-1], path[-1] + (0.32, 0.02)], 0.04, 0.03, c.mark)


def _spider(c: Canvas) -> None:
    c.legs(4, 1.0, 0.06, 0.5)
    c.ellipse(0, 0.35, c.uniform(0.3, 0.38), 0.42, c.body)
    c.stroke([(0, 0.1), (0, 0.65)], 0.16, 0.06, c.mark)
    c.stroke([(-0.16, 0.35), (0.16, 0.35)], 0.09, 0.09, c.mark)
    c.ellipse(0, -0.18, 0.24, 0.22, c.limb)
    c.eyes(0.08, -0.3, 0.05)


def _starfish(c: Canvas) -> None:
    width = c.uniform(0.36, 0.46)
    for angle in np.arange(5) * 2 * np.pi / 5 - np.pi / 2:
        path = np.linspace(0, 0.95, 4)[:, None] * (np.cos(angle), np.sin(angle))
        path[-1] += c.uniform(-0.15, 0.15, 2)
        c.stroke(path, width, width / 3, c.body)
        for x, y in path[1:3]:
            c.ellipse(x, y, 0.06, 0.06, c.mark)


def _turtle(c: Canvas) -> None:
    for y in (-0.5, 0.55):
        c.pair(0.55, y, 0.32, 0.14, c.limb, np.sign(y) * c.uniform(0.4, 0.9))
    c.ellipse(0, -0.8, 0.2, 0.24, c.limb)
    c.ellipse(0, 0, c.uniform(0.52, 0.6), 0.68, c.body)
    for y, half in ((-0.3, 0.46), (0, 0.52), (0.3, 0.46)):
        c.stroke([(-half, y), (half, y)], 0.05, 0.05, c.mark)
    c.pair(0.2, 0, 0.025, 0.6, c.mark)
    c.eyes(0.1, -0.87, 0.05)


_PAINTERS: dict[str, Callable[[Canvas], None]] = {
    "beetle": _beetle, "butterfly": _butterfly, "crab": _crab, "fish": _fish,
    "jellyfish": _jellyfish, "octopus": _octopus, "owl": _owl, "snail": _snail, "snake": _snake,
    "spider": _spider, "starfish": _starfish, "turtle": _turtle,
}  # fmt: skip

SPECIES = tuple(_PAINTERS)
"""The twelve labels, in alphabetical order."""


def draw(species: str, seed: int, size: int = 192) -> Image.Image:
    """Return an RGB picture of `species`; the same arguments give the same pixels.

    Args:
        species: One of `SPECIES`.
        seed: 0 or more; also selects one of `FRAMES` for the shape of the picture.
        size: Nominal side in pixels, at least 32.

    Raises:
        UsageError: `species` is not one of `SPECIES`.
    """
    if species not in _PAINTERS:
        raise UsageError(f"unknown species {species!r}; use one of {', '.join(SPECIES)}")
    rng = np.random.default_rng((seed, SPECIES.index(species)))
    width, height = (round(size * share) for share in FRAMES[rng.integers(len(FRAMES))])
    layer = Image.new("RGBA", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    angle, unit = rng.uniform(-0.6, 0.6), min(layer.size) / 2 * rng.uniform(0.75, 0.95)
    cos, sin = np.cos(angle), np.sin(angle)
    mirror = np.diag([rng.choice((-1.0, 1.0)), rng.uniform(0.8, 1)])
    _PAINTERS[species](Canvas(layer, unit * np.array([[cos, -sin], [sin, cos]]) @ mirror, rng))
    layer = layer.resize((width, height), Image.Resampling.BOX)
    scene = _backdrop(rng, width, height)
    shadow = layer.getchannel("A").filter(ImageFilter.GaussianBlur(size / 40))
    scene.paste("#101014", (0, 0), shadow)  # sets the animal apart from a backdrop of its colour
    scene.paste(layer, (0, 0), layer)
    return _expose(scene, rng)


def _noise(rng: np.random.Generator, cells: int, width: int, height: int) -> Floats:
    """Return smooth noise between about -1 and 1, (height, width), with `cells` bumps per side."""
    grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float64)


def _backdrop(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return a scene of two colours mixed by noise of growing detail, with clutter on it."""
    parts = [rng.uniform(0.05, 0.5) * _noise(rng, cells, width, height) for cells in (2, 5, 12)]
    share = np.clip(0.5 + sum(parts), 0, 1)[..., None]
    low = rng.uniform(60, 150, 3)
    high = low + rng.uniform(-60, 60, 3)
    scene = Image.fromarray((low + (high - low) * share).astype(np.uint8))
    pen = ImageDraw.Draw(scene)
    for _ in range(rng.integers(3, 12)):
        x, y = rng.uniform(0, (width, height))
        rx, ry = rng.uniform(0.01, 0.08, 2) * min(width, height)
        pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=tuple(rng.integers(40, 190, 3).tolist()))
    return scene


def _expose(scene: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the scene under uneven light, with sensor noise."""
    pixels = np.asarray(scene, np.float64)
    light = rng.uniform(0.7, 1.2) + 0.25 * _noise(rng, 2, scene.width, scene.height)
    pixels = pixels * light[..., None] * rng.uniform(0.9, 1.1, 3) + rng.normal(0, 5, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
