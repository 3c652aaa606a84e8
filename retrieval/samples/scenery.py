"""Backdrops, clutter and light: everything in a sample picture that says nothing of its species.

Pictures are float32 arrays (height, width, 3) of 0..1 here. Every scene, object and light is drawn
with the same odds for every species, so none of them helps to name the creature.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from retrieval.samples.pen import Pen, Rng, hsv

Picture = NDArray[np.float32]

FRAMES = ((1.0, 1.0), (1.0, 0.75), (5 / 6, 13 / 12), (0.75, 1.0))
"""Widths and heights in parts of the nominal size: 192 gives 192x192, 192x144, 160x208, 144x192."""


def clouds(rng: Rng, width: int, height: int, cells: int, stretch: float = 1.0) -> Picture:
    """Make smooth noise of shape (height, width, 1), mean 0 and about +-1, in blobs 1/cells wide.

    Random grids are enlarged rather than drawn at full size: quick, and the scene of a seed stays
    the same at every size. `stretch` above 1 draws the blobs out from side to side.
    """
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(3):
        rows, columns = cells * 2**octave, max(2, round(cells * 2**octave / stretch))
        grid = Image.fromarray(rng.standard_normal((rows, columns)).astype(np.float32))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)) / 2**octave
    return total[..., None] / 1.5


def _mix(low: tuple[int, ...], high: tuple[int, ...], share: Picture) -> Picture:
    """Blend two colours; `share` (height, width, 1) of 0..1 is the part of `high`."""
    ends = np.array([low, high], dtype=np.float32) / 255
    return np.asarray(ends[0] + (ends[1] - ends[0]) * np.clip(share, 0, 1), dtype=np.float32)


def _ground(rng: Rng, width: int, height: int) -> Picture:
    """Paint sand, soil, moss or rock: two tones of one hue under coarse and fine noise."""
    hue, saturation = rng.choice((0.06, 0.09, 0.12, 0.25, 0.6)), rng.uniform(0.08, 0.5)
    value = rng.uniform(0.35, 0.95)
    share = 0.5 + 0.3 * clouds(rng, width, height, 3) + 0.12 * clouds(rng, width, height, 40)
    tones = (hsv(hue + 0.02, saturation, value * 0.6), hsv(hue, saturation * 0.8, value))
    return _mix(*tones, share)


def _ripples(rng: Rng, width: int, height: int) -> Picture:
    """Paint water or dune: bent bands of light, running across."""
    hue = rng.choice((0.10, 0.45, 0.52, 0.58, 0.62))
    value, waves = rng.uniform(0.45, 0.95), rng.uniform(4, 11)
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    phase = 2 * np.pi * waves * y + 2.2 * clouds(rng, width, height, 3, stretch=1.5)
    share = 0.5 + 0.35 * np.sin(phase).astype(np.float32) * rng.uniform(0.3, 1) - 0.3 * (y - 0.5)
    saturation = rng.uniform(0.25, 0.75)
    return _mix(hsv(hue, saturation, value * 0.65), hsv(hue, saturation * 0.7, value), share)


def _sky(rng: Rng, width: int, height: int) -> Picture:
    """Paint day, dusk, deep water or night: a gradient between two hues, a little hazy."""
    night = rng.random() < 0.4
    value = rng.uniform(0.10, 0.3) if night else rng.uniform(0.55, 0.95)
    hue = rng.choice((0.04, 0.12, 0.5, 0.55, 0.6, 0.68))
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    share = y + 0.12 * clouds(rng, width, height, 2, stretch=2)
    far = hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.1, 0.45), value * rng.uniform(0.8, 1.8))
    return _mix(hsv(hue, rng.uniform(0.2, 0.55), value), far, share)


def _foliage(rng: Rng, width: int, height: int) -> Picture:
    """Paint leaves out of focus: soft blotches in two hues, with spots of light."""
    hue = rng.choice((0.06, 0.16, 0.25, 0.30, 0.36))
    value = rng.uniform(0.3, 0.75)
    share = 0.5 + 0.5 * clouds(rng, width, height, 5)
    picture = _mix(
        hsv(hue, 0.7, value * 0.5), hsv(hue + rng.uniform(-0.06, 0.06), 0.5, value), share
    )
    glow = np.clip(clouds(rng, width, height, 6) - 0.9, 0, 1)
    return np.asarray(picture + 0.3 * glow, dtype=np.float32)


_SCENES: tuple[Callable[[Rng, int, int], Picture], ...] = (_ground, _ripples, _sky, _foliage)


def backdrop(rng: Rng, width: int, height: int) -> Picture:
    """Draw one scene of the four kinds."""
    return _SCENES[rng.integers(len(_SCENES))](rng, width, height)


def set_apart(picture: Picture, pen: Pen) -> Picture:
    """Lighten or darken a backdrop whose mean is too near that of what the pen drew.

    Both are brightnesses of 0..1; some animals hide too well for a labelled collection.
    """
    gap = 0.22
    # 64 samples a side do for a mean.
    sampled = pen.colour.resize((64, 64), Image.Resampling.NEAREST)
    small = np.asarray(sampled, dtype=np.float32) / 255
    opacity = small[..., 3]
    subject = float((small[..., :3].mean(axis=2) * opacity).sum() / max(opacity.sum(), 1))
    ground = float(picture.mean())
    if abs(ground - subject) >= gap:
        return picture
    # Dark animals go on light ground, where their thin dark limbs can be seen.
    target = subject + gap if subject < 0.45 else subject - gap
    return np.asarray(picture * (target / ground), dtype=np.float32)


def _blade(pen: Pen, rng: Rng) -> None:
    """Draw grass or weed: one long, bent, tapering stroke."""
    tone = hsv(rng.uniform(0.15, 0.45), rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.8))
    bend = rng.uniform(-0.5, 0.5)
    pen.stroke([(0, 1), (bend * 0.3, 0), (bend, -1)], (0.16, 0.12, 0.01), tone)


def _leaf(pen: Pen, rng: Rng) -> None:
    """Draw a pointed leaf with a midrib."""
    tone = hsv(rng.uniform(0, 0.4), rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.85))
    wide = rng.uniform(0.25, 0.5)
    pen.shape([(0, -1), (wide, -0.2), (wide * 0.7, 0.5), (0, 0.9), (-wide * 0.7, 0.5),
               (-wide, -0.2)], tone)  # fmt: skip
    pen.stroke([(0, -0.9), (0.03, 0), (0, 1.2)], (0.02, 0.07), hsv(0.1, 0.4, 0.4), rise=90)


def _pebble(pen: Pen, rng: Rng) -> None:
    """Draw a rounded, speckled stone."""
    tone = hsv(rng.uniform(0, 1), rng.uniform(0.02, 0.4), rng.uniform(0.3, 0.9))
    angles = np.linspace(0, 2 * np.pi, 7, endpoint=False)
    radii = rng.uniform(0.5, 0.85, 7)
    pen.shape(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1), tone, rise=170)
    for x, y in rng.uniform(-0.4, 0.4, (6, 2)):
        pen.oval(x, y, 0.06, 0.05, hsv(0.1, 0.2, rng.uniform(0.2, 0.9)))


def _twig(pen: Pen, rng: Rng) -> None:
    """Draw a forked stick."""
    tone = hsv(rng.uniform(0.03, 0.12), rng.uniform(0.2, 0.6), rng.uniform(0.25, 0.7))
    kink = rng.uniform(-0.3, 0.3)
    pen.stroke([(0, 0.1), (0.35, -0.3), (0.4, -0.7)], (0.08, 0.03), tone)
    pen.stroke([(0, 1), (kink, 0.1), (0, -1)], (0.15, 0.12, 0.05), tone)


def _blossom(pen: Pen, rng: Rng) -> None:
    """Draw a flower of five to eight round petals."""
    tone = hsv(rng.uniform(0, 1), rng.uniform(0.1, 0.8), rng.uniform(0.7, 1))
    for aim in np.linspace(0, 2 * np.pi, int(rng.integers(5, 9)), endpoint=False):
        pen.oval(0.5 * np.cos(aim), 0.5 * np.sin(aim), 0.33, 0.33, tone, rise=130, rim=0.03)
    pen.oval(0, 0, 0.25, 0.25, hsv(rng.uniform(0.05, 0.16), 0.8, 0.85), rise=180, rim=0.03)


def _ring(pen: Pen, rng: Rng) -> None:
    """Draw a bubble or a drop."""
    tone = hsv(rng.uniform(0, 1), rng.uniform(0, 0.3), rng.uniform(0.7, 1))
    pen.oval(0, 0, 0.6, 0.6, (*tone, 110), rise=150, rim=0.06)
    pen.oval(-0.2, -0.22, 0.14, 0.1, (255, 255, 255, 200))


_OBJECTS: tuple[Callable[[Pen, Rng], None], ...] = (
    _blade, _leaf, _pebble, _twig, _blossom, _ring,
)  # fmt: skip


def scatter(pen: Pen, rng: Rng, count: int, spread: tuple[float, float]) -> None:
    """Strew `count` objects of at most two kinds over +-`spread` units (x, y) round the pen.

    Two kinds at a time, for a place has its own litter; a mixture of all would look like a shelf.
    """
    kinds = rng.choice(len(_OBJECTS), size=2)
    for _ in range(count):
        x, y = rng.uniform(-1, 1, 2) * spread
        size = rng.uniform(0.10, 0.30)
        kind = _OBJECTS[kinds[rng.integers(2)]]
        # Grass grows up; the rest lies as it fell.
        turn = rng.uniform(-0.4, 0.4) if kind is _blade else rng.uniform(-np.pi, np.pi)
        kind(pen.moved(x, y, turn=turn, scale=(size, size * rng.uniform(0.7, 1.6))), rng)


def lay(picture: Picture, pen: Pen, rng: Rng, sun: tuple[float, float], lift: float) -> Picture:
    """Lay what the pen drew over the picture, lit from `sun` and with its shadow.

    `sun` is a unit vector (x, y) towards the light; `lift`, in parts of the picture's shorter side,
    says how far off the shadow falls. The slope of the blurred height layer darkens what faces
    away from the light: fine for plates and limbs, coarse for the roundness of the whole.
    """
    height, width = picture.shape[:2]
    side = min(height, width)
    # LANCZOS on RGBA weighs colour by alpha in Pillow, so no dark fringe appears.
    layer = pen.colour.resize((width, height), Image.Resampling.LANCZOS)
    relief = pen.height.resize((width, height), Image.Resampling.BOX)
    alpha = layer.getchannel("A")
    shade = np.ones((height, width), dtype=np.float32)
    for source, blur, strength in ((relief, 0.004, 1.3), (relief, 0.014, 2.2), (alpha, 0.05, 3.0)):
        level = np.asarray(source.filter(ImageFilter.GaussianBlur(blur * side)), np.float32) / 255
        slope_y, slope_x = np.gradient(level)
        shade -= strength * blur * side * (slope_x * sun[0] + slope_y * sun[1])
    mottle = 1 + 0.07 * clouds(rng, width, height, 24)
    colours = np.asarray(layer, dtype=np.float32) / 255
    skin = colours[..., :3] * np.clip(shade, 0.45, 1.6)[..., None] * mottle
    soft = np.asarray(alpha.filter(ImageFilter.GaussianBlur(0.02 * side)), np.float32) / 255
    shift = (round(-sun[1] * lift * side), round(-sun[0] * lift * side))
    shadow = np.roll(soft, shift, axis=(0, 1))[..., None] * 0.6
    under = picture * (1 - shadow)
    opacity = colours[..., 3:]
    return np.asarray(under + (skin - under) * opacity, dtype=np.float32)


def expose(picture: Picture, rng: Rng) -> Image.Image:
    """Take the photo: brightness, tint, vignette, a little blur and the sensor's noise."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    corner = rng.uniform(0, 0.22) * (x**2 + y**2)[..., None]
    tint = rng.uniform(0.85, 1.3) * rng.uniform(0.9, 1.1, 3)
    lit = np.clip(picture * (tint * (1 - corner)), 0, 1) ** rng.uniform(0.85, 1.2)
    photo = Image.fromarray((lit * 255).astype(np.uint8))
    photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.004) * min(width, height)))
    noise = rng.standard_normal((height, width, 3), dtype=np.float32) * rng.uniform(1.5, 6)
    return Image.fromarray((np.asarray(photo) + noise).clip(0, 255).astype(np.uint8))
