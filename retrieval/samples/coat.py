"""The colours of the animals: hue ranges that species share, and the coat mixed from them.

Palettes overlap on purpose (most species have a brown, a red and a blue or green form), so that
colour alone tells little.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrieval.samples.pen import Colour, Pen, Rng, hsv

# Hue ranges, 0 to 1.
BROWN, RED, GOLD, GREEN = (0.04, 0.10), (-0.03, 0.04), (0.09, 0.16), (0.22, 0.42)
BLUE, VIOLET, ANY = (0.50, 0.66), (0.70, 0.93), (0.0, 1.0)
INK: Colour = (22, 20, 24)
SHINE: Colour = (250, 250, 245)


@dataclass(frozen=True)
class Coat:
    """The colours of one animal."""

    base: Colour
    dark: Colour
    pale: Colour
    accent: Colour


def mix_coat(rng: Rng, *hues: tuple[float, float]) -> Coat:
    """Choose one of the hue ranges of a species and mix the colours of an animal from it."""
    hue = rng.uniform(*hues[rng.integers(len(hues))])
    saturation, value = rng.uniform(0.25, 0.75), rng.uniform(0.45, 0.90)
    accent = hsv(hue + rng.uniform(0.08, 0.5), rng.uniform(0.3, 0.75), rng.uniform(0.55, 0.95))
    return Coat(
        base=hsv(hue, saturation, value),
        dark=hsv(hue + rng.uniform(-0.04, 0.04), saturation, value * rng.uniform(0.35, 0.55)),
        pale=hsv(hue + rng.uniform(-0.05, 0.05), saturation * 0.4, min(1.0, value + 0.25)),
        accent=accent,
    )


def draw_eye(pen: Pen, x: float, y: float, radius: float, iris: Colour) -> None:
    """Draw a round eye with a pupil and a glint."""
    pen.oval(x, y, radius, radius, iris, rise=190, rim=0.014)
    pen.oval(x, y, radius * 0.6, radius * 0.6, INK)
    pen.oval(x - radius * 0.25, y - radius * 0.3, radius * 0.22, radius * 0.22, SHINE)
