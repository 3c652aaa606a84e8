"""Draw twelve species of animals in varied poses, colours, places and lights.

Every species takes its colours, backdrop and light from the same distributions, so neither raw
pixels nor colour histograms identify it: a model has to learn outline, limbs and markings.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter

from retrieval.core.errors import UsageError

Rng = np.random.Generator
Colour = tuple[int, int, int]
Floats = NDArray[np.float64]

FRAMES = ((1.0, 1.0), (1.0, 0.75), (5 / 6, 13 / 12), (0.75, 1.0))
"""Width and height of a picture as multiples of its nominal size."""

_OVERSAMPLING = 3  # Pillow draws without anti-aliasing, so pictures are drawn larger and reduced


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(saturation, 1), min(value, 1))
    return round(255 * red), round(255 * green), round(255 * blue)


class Canvas:
    """A transparent layer that maps animal coordinates (about -1 to 1, y down) to pixels."""

    def __init__(self, image: Image.Image, matrix: Floats, origin: Floats, rng: Rng) -> None:
        self.image, self._matrix, self._origin = image, matrix, origin
        self._draw = ImageDraw.Draw(image)
        self.uniform = rng.uniform
        self.count = rng.integers
        hue = rng.uniform()
        self.base = _colour(hue, rng.uniform(0.2, 0.8), rng.uniform(0.4, 0.95))
        self.dark = _colour(hue + rng.uniform(-0.05, 0.05), 0.5, rng.uniform(0.12, 0.35))
        self.accent = _colour(hue + rng.uniform(0.15, 0.85), rng.uniform(0.3, 0.8), 0.85)
        self.markings = self.dark if rng.random() < 0.5 else self.accent

    def polygon(self, points: ArrayLike, colour: Colour) -> None:
        """Fill the outline through `points`, shape (n, 2)."""
        pixels = np.asarray(points, np.float64) @ self._matrix.T + self._origin
        self._draw.polygon([tuple(point) for point in pixels.tolist()], fill=colour)

    def ellipse(
        self, x: float, y: float, radius_x: float, radius_y: float, colour: Colour, turn: float = 0
    ) -> None:
        """Fill an ellipse around (x, y), turned by `turn` radians."""
        angle = np.linspace(0, 2 * np.pi, 40)
        along, across = radius_x * np.cos(angle), radius_y * np.sin(angle)
        cos, sin = np.cos(turn), np.sin(turn)
        points = np.stack([x + cos * along - sin * across, y + sin * along + cos * across], 1)
        self.polygon(points, colour)

    def stroke(self, points: ArrayLike, start: float, end: float, colour: Colour) -> None:
        """Draw a line through `points`, (n, 2), whose width goes from `start` to `end`."""
        path = np.asarray(points, np.float64)
        at = np.linspace(0, len(path) - 1, 12 * len(path))
        curve = np.stack([np.interp(at, np.arange(len(path)), path[:, i]) for i in (0, 1)], 1)
        for (x, y), radius in zip(curve, np.linspace(start, end, len(curve)) / 2, strict=True):
            self.ellipse(x, y, radius, radius, colour)

    def eyes(self, x: float, y: float, radius: float) -> None:
        """Draw a pair of eyes at (-x, y) and (x, y); a single one where x is 0."""
        for side in {-x, x}:
            self.ellipse(side, y, radius, radius, (240, 236, 220))
            self.ellipse(side, y, radius * 0.55, radius * 0.55, (20, 18, 22))

    def legs(self, pairs: int, body: float, reach: float, width: float, top: float) -> None:
        """Draw `pairs` of bent legs on both sides of a body, from height `top` downwards."""
        for pair in range(pairs):
            y = top + 0.26 * pair
            knee = y + 0.2 * (pair - (pairs - 1) / 2) + self.uniform(-0.07, 0.07)
            for side in (-1, 1):
                foot = side * reach, knee + self.uniform(0.08, 0.22)
                path = [(side * body * 0.5, y), (side * (body + reach) * 0.5, knee), foot]
                self.stroke(path, width, width / 3, self.dark)

    def arms(self, arms: int, length: float, width: float, wave: float) -> None:
        """Draw `arms` tapering arms around the origin, each bent sideways by up to `wave`."""
        for angle in np.arange(arms) * 2 * np.pi / arms:
            steps = np.linspace(0.1, 1, 5)
            bent = angle + self.uniform(-wave, wave) * steps**2
            path = np.stack([np.cos(bent), np.sin(bent)], 1) * (length * steps)[:, None]
            self.stroke(path, width, width / 4, self.base)

    def spots(self, radius_x: float, radius_y: float, count: int, size: float) -> None:
        """Scatter dots over an ellipse around the origin."""
        for _ in range(count):
            angle, distance = self.uniform(0, 2 * np.pi), self.uniform(0, 0.8)
            x, y = radius_x * distance * np.cos(angle), radius_y * distance * np.sin(angle)
            self.ellipse(x, y, size, size, self.markings)


def _beetle(c: Canvas) -> None:
    wide, long = c.uniform(0.38, 0.5), c.uniform(0.55, 0.7)
    c.legs(3, wide, c.uniform(0.75, 0.9), 0.09, -0.25)
    c.ellipse(0, 0.15, wide, long, c.base)
    c.stroke([(0, -0.4), (0, 0.8)], 0.03, 0.03, c.dark)
    for y in np.linspace(-0.15, 0.55, int(c.count(2, 5))):
        for side in (-1, 1):
            c.ellipse(side * wide * 0.5, y, 0.09, 0.07, c.markings)
    c.ellipse(0, -0.5, wide * 0.75, 0.2, c.dark)
    c.ellipse(0, -0.72, 0.16, 0.13, c.dark)
    for side in (-1, 1):
        c.stroke([(side * 0.1, -0.8), (side * 0.35, -1.0)], 0.04, 0.02, c.dark)


def _butterfly(c: Canvas) -> None:
    reach, droop = c.uniform(0.75, 0.95), c.uniform(0.3, 0.55)
    for side in (-1, 1):
        c.ellipse(side * reach * 0.5, -0.3, reach * 0.52, 0.4, c.base, side * -0.5)
        c.ellipse(side * reach * 0.4, 0.38, reach * 0.4, 0.32, c.accent, side * droop)
        c.ellipse(side * reach * 0.6, -0.35, 0.16, 0.13, c.dark)
        c.ellipse(side * reach * 0.42, 0.4, 0.11, 0.11, c.dark)
        c.stroke([(0, -0.5), (side * 0.25, -0.95)], 0.03, 0.05, c.dark)
    c.ellipse(0, 0.05, 0.07, 0.6, c.dark)


def _crab(c: Canvas) -> None:
    wide, deep = c.uniform(0.5, 0.62), c.uniform(0.32, 0.42)
    c.legs(4, wide, c.uniform(0.85, 0.98), 0.1, -0.1)
    for side in (-1, 1):
        elbow = side * c.uniform(0.68, 0.85), -0.4
        claw = side * c.uniform(0.3, 0.6), c.uniform(-0.85, -0.7)
        c.stroke([(side * wide * 0.6, -0.15), elbow, claw], 0.13, 0.13, c.base)
        c.ellipse(*claw, 0.24, 0.16, c.base, side * -0.9)
        c.stroke([claw, (claw[0], claw[1] - 0.2)], 0.05, 0.05, c.dark)
    c.ellipse(0, 0, wide, deep, c.base)
    c.spots(wide, deep, int(c.count(8, 20)), 0.03)
    c.eyes(0.15, -deep - 0.06, 0.08)


def _fish(c: Canvas) -> None:
    tall, beat = c.uniform(0.32, 0.48), c.uniform(-0.12, 0.12)
    c.polygon([(-0.45, 0), (-0.95, beat - 0.38), (-0.8, beat), (-0.95, beat + 0.38)], c.markings)
    c.polygon([(0.3, -tall * 0.7), (-0.05, -tall - 0.28), (-0.4, -tall * 0.5)], c.markings)
    c.polygon([(0.15, tall * 0.7), (-0.1, tall + 0.22), (-0.25, tall * 0.6)], c.markings)
    c.ellipse(0.1, 0, 0.72, tall, c.base)
    for x in np.linspace(-0.35, 0.3, int(c.count(3, 6))):
        c.stroke([(x, -tall * 0.75), (x + 0.06, 0), (x, tall * 0.75)], 0.08, 0.05, c.markings)
    c.stroke([(0.5, -tall * 0.5), (0.43, 0), (0.5, tall * 0.5)], 0.03, 0.03, c.dark)
    c.ellipse(0.64, -0.1, 0.09, 0.09, (240, 236, 220))
    c.ellipse(0.65, -0.1, 0.05, 0.05, (20, 18, 22))


def _jellyfish(c: Canvas) -> None:
    wide = c.uniform(0.6, 0.8)
    for x in np.linspace(-wide * 0.8, wide * 0.8, int(c.count(6, 10))):
        sway = c.uniform(-0.15, 0.15)
        c.stroke([(x, -0.1), (x + sway, 0.4), (x - sway, c.uniform(0.7, 1))], 0.06, 0.02, c.accent)
    angle = np.linspace(np.pi, 2 * np.pi, 30)
    c.polygon(np.stack([wide * np.cos(angle), 0.75 * np.sin(angle)], 1), c.base)
    for x in np.linspace(-wide * 0.85, wide * 0.85, 7):
        c.ellipse(x, 0, wide * 0.15, 0.1, c.markings)
    c.ellipse(0, -0.35, wide * 0.45, 0.22, c.accent)


def _octopus(c: Canvas) -> None:
    for x in np.linspace(-0.75, 0.75, 8):
        curl = c.uniform(-0.3, 0.3)
        path = [(x * 0.35, 0.15), (x, 0.45), (x * 1.15 + curl * 0.4, 0.8), (x + curl, 0.92)]
        c.stroke(path, 0.17, 0.05, c.base)
    c.ellipse(0, -0.35, c.uniform(0.38, 0.5), c.uniform(0.5, 0.6), c.base)
    c.ellipse(0, 0.1, 0.36, 0.25, c.base)
    c.spots(0.3, 0.3, int(c.count(4, 9)), 0.05)
    c.eyes(0.18, 0.05, 0.1)


def _owl(c: Canvas) -> None:
    wide = c.uniform(0.42, 0.52)
    for side in (-1, 1):
        c.polygon([(side * 0.1, -0.7), (side * 0.42, -1.0), (side * 0.42, -0.55)], c.dark)
        c.ellipse(side * wide * 0.9, 0.25, 0.17, 0.5, c.dark, side * -0.15)
        c.stroke([(side * 0.15, 0.8), (side * 0.15, 0.98)], 0.08, 0.1, c.accent)
    c.ellipse(0, 0.25, wide, 0.65, c.base)
    c.ellipse(0, -0.48, 0.46, 0.4, c.base)
    for row, column in np.ndindex(4, 3):
        x, y = (column - 1) * 0.24 + 0.06 * (row % 2), 0.1 + 0.16 * row
        c.stroke([(x - 0.06, y), (x + 0.06, y)], 0.05, 0.05, c.markings)
    c.eyes(0.2, -0.5, c.uniform(0.14, 0.18))
    c.polygon([(-0.07, -0.38), (0.07, -0.38), (0, -0.2)], c.accent)


def _snail(c: Canvas) -> None:
    c.stroke([(-0.95, 0.62), (0.3, 0.6), (0.72, 0.35), (0.8, 0.05)], 0.16, 0.26, c.accent)
    for lean in (0.0, 0.16):
        c.stroke([(0.8, 0), (0.78 + lean, -0.35)], 0.05, 0.07, c.accent)
    size = c.uniform(0.5, 0.62)
    c.ellipse(-0.15, 0.1, size, size, c.base)
    turns = c.uniform(2.2, 3) * 2 * np.pi
    angle = np.linspace(0.5, turns, 60)
    radius = size * 0.9 * angle / turns
    spiral = np.stack([-0.15 + radius * np.cos(angle), 0.1 + radius * np.sin(angle)], 1)
    c.stroke(spiral[::3], 0.04, 0.1, c.dark)


def _snake(c: Canvas) -> None:
    waves, swing = c.uniform(1.2, 1.9), c.uniform(0.3, 0.45)
    x = np.linspace(-0.95, 0.8, 40)
    path = np.stack([x, swing * np.sin(waves * np.pi * x)], 1)
    c.stroke(path, 0.1, 0.24, c.base)
    for x, y in path[2 : -3 : int(c.count(3, 5))]:
        c.ellipse(x, y, 0.06, 0.09, c.markings)
    c.ellipse(path[-1, 0], path[-1, 1], 0.17, 0.14, c.base)
    c.stroke([path[-1] + (0.1, 0), path[-1] + (0.3, 0.02)], 0.03, 0.02, c.accent)
    c.ellipse(path[-1][0] + 0.05, path[-1][1] - 0.07, 0.04, 0.04, (20, 18, 22))


def _spider(c: Canvas) -> None:
    for pair in range(4):
        lift = (pair - 1.5) * 0.42
        for side in (-1, 1):
            knee = side * 0.5, lift - 0.15 + c.uniform(-0.05, 0.05)
            foot = side * c.uniform(0.8, 0.95), lift * 1.5 + c.uniform(0, 0.15)
            c.stroke([(side * 0.1, -0.1 + 0.06 * pair), knee, foot], 0.07, 0.03, c.dark)
    c.ellipse(0, 0.35, c.uniform(0.3, 0.38), c.uniform(0.36, 0.44), c.base)
    c.stroke([(0, 0.1), (0, 0.6)], 0.16, 0.06, c.markings)
    c.stroke([(-0.14, 0.35), (0.14, 0.35)], 0.08, 0.08, c.markings)
    c.ellipse(0, -0.15, 0.22, 0.22, c.dark)
    c.eyes(0.07, -0.28, 0.04)


def _starfish(c: Canvas) -> None:
    c.arms(5, c.uniform(0.85, 0.98), c.uniform(0.34, 0.46), 0.25)
    c.ellipse(0, 0, 0.3, 0.3, c.base)
    for angle in np.arange(5) * 2 * np.pi / 5:
        for distance in np.linspace(0.15, 0.65, int(c.count(3, 6))):
            c.ellipse(distance * np.cos(angle), distance * np.sin(angle), 0.04, 0.04, c.markings)


def _turtle(c: Canvas) -> None:
    wide, long = c.uniform(0.5, 0.6), c.uniform(0.58, 0.68)
    for x, y in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        c.ellipse(x * wide * 0.95, y * 0.48, 0.3, 0.14, c.accent, x * y * c.uniform(0.4, 0.9))
    c.ellipse(0, -0.78, 0.19, 0.24, c.accent)
    c.ellipse(0, 0, wide, long, c.base)
    for y in np.linspace(-long * 0.6, long * 0.6, 4):
        half = wide * 0.9 * np.sqrt(max(0.0, 1 - (y / long) ** 2))
        c.stroke([(-half, y), (half, y)], 0.035, 0.035, c.dark)
    for side in (-wide * 0.38, wide * 0.38):
        c.stroke([(side, -long * 0.75), (side, long * 0.75)], 0.035, 0.035, c.dark)
    c.eyes(0.1, -0.85, 0.04)


_SPECIES: dict[str, tuple[Callable[[Canvas], None], float]] = {
    "beetle": (_beetle, np.pi), "butterfly": (_butterfly, np.pi), "crab": (_crab, 0.5),
    "fish": (_fish, 0.45), "jellyfish": (_jellyfish, 0.5), "octopus": (_octopus, 0.4),
    "owl": (_owl, 0.25), "snail": (_snail, 0.35), "snake": (_snake, np.pi),
    "spider": (_spider, np.pi), "starfish": (_starfish, np.pi), "turtle": (_turtle, np.pi),
}  # fmt: skip
"""What draws each species, and the largest turn of its pose in radians, either way."""

SPECIES = tuple(sorted(_SPECIES))
"""The twelve labels, in alphabetical order."""


def draw(species: str, seed: int, size: int = 192) -> Image.Image:
    """Return an RGB picture of `species`; the same arguments give the same pixels.

    Args:
        species: One of `SPECIES`.
        seed: 0 or more; also selects one of `FRAMES` for the shape of the picture.
        size: Nominal side in pixels, at least 32.
    """
    if species not in _SPECIES:
        raise UsageError(f"no species is named {species!r}; there are {', '.join(SPECIES)}")
    paint, turn = _SPECIES[species]
    rng = np.random.default_rng((seed, SPECIES.index(species)))
    width, height = (round(size * share) for share in FRAMES[rng.integers(len(FRAMES))])
    layer = Image.new("RGBA", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    angle = rng.uniform(-turn, turn)
    cos, sin = np.cos(angle), np.sin(angle)
    unit = min(layer.size) / 2 * rng.uniform(0.62, 0.92)
    mirror = np.diag([rng.choice((-1.0, 1.0)), rng.uniform(0.8, 1)])
    matrix = unit * np.array([[cos, -sin], [sin, cos]]) @ mirror
    origin = np.array(layer.size) / 2 * rng.uniform(0.85, 1.15, 2)
    paint(Canvas(layer, matrix, origin, rng))
    layer = layer.resize((width, height), Image.Resampling.BOX)
    scene = _backdrop(rng, width, height)
    shadow = layer.getchannel("A").filter(ImageFilter.GaussianBlur(size / 50))
    left, top = (int(step) for step in rng.uniform(-0.05, 0.05, 2) * size)
    scene.paste((15, 15, 20), (left, top), shadow.point(lambda alpha: alpha * 0.5))
    scene.paste(layer, (0, 0), layer)
    return _expose(scene, rng)


def _noise(rng: Rng, width: int, height: int) -> Iterator[Floats]:
    """Yield smooth noise of growing detail, each of shape (height, width) and about -1 to 1."""
    for cells in (2, 5, 12, 40):
        grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        yield np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float64)


def _backdrop(rng: Rng, width: int, height: int) -> Image.Image:
    """Return a scene of two colours mixed by noise or ripples, with some clutter on it."""
    weights = rng.uniform(0.05, 0.5, 4)
    share = 0.5 + sum(w * n for w, n in zip(weights, _noise(rng, width, height), strict=True))
    if rng.random() < 0.4:
        rows = np.linspace(0, rng.uniform(4, 12) * np.pi, height)[:, None]
        share = share + 0.3 * np.sin(rows + 4 * share)
    hue = rng.uniform()
    ends = [
        _colour(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.1, 0.7), rng.uniform(0.15, 0.95))
        for _ in range(2)
    ]
    low, high = np.array(ends, np.float64)
    pixels = low + (high - low) * np.clip(share, 0, 1)[..., None]
    scene = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(scene)
    for _ in range(rng.integers(3, 14)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        long, wide = rng.uniform(0.01, 0.09, 2) * min(width, height)
        colour = _colour(rng.uniform(), rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.9))
        if rng.random() < 0.5:
            pen.ellipse((x - long, y - wide, x + long, y + wide), fill=colour)
        else:
            pen.line((x, y, x + 3 * long, y + 3 * wide * rng.choice((-1, 1))), fill=colour, width=2)
    return scene


def _expose(scene: Image.Image, rng: Rng) -> Image.Image:
    """Return the scene under uneven light, slightly blurred, with sensor noise."""
    pixels = np.asarray(scene.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.9))), np.float64)
    light = rng.uniform(0.7, 1.2) + 0.25 * next(_noise(rng, scene.width, scene.height))
    pixels = pixels * light[..., None] * rng.uniform(0.9, 1.1, 3) + rng.normal(0, 5, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
