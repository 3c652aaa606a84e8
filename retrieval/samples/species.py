"""The twelve creatures: one function each, about the origin and about one unit in radius.

Proportions, limb angles, markings and colours are drawn from the generator. The palettes of the
species overlap on purpose (most have a brown, a red and a blue or green form), so that colour
alone tells little; what stays the same within a species is its build and the kind of its markings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from retrieval.samples.pen import Colour, Pen, Rng, darker, hsv, mirrored, smooth, trail

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


def _coat(rng: Rng, *hues: tuple[float, float]) -> Coat:
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


def _eye(pen: Pen, x: float, y: float, radius: float, iris: Colour) -> None:
    """Draw a round eye with a pupil and a glint."""
    pen.oval(x, y, radius, radius, iris, rise=190, rim=0.014)
    pen.oval(x, y, radius * 0.6, radius * 0.6, INK)
    pen.oval(x - radius * 0.25, y - radius * 0.3, radius * 0.22, radius * 0.22, SHINE)


def _beetle(pen: Pen, rng: Rng) -> None:
    """From above: wing cases with a seam, a collar, a head, six legs, two feelers."""
    coat, u = _coat(rng, BROWN, RED, GREEN, BLUE, GOLD), rng.uniform
    wide, end = u(0.40, 0.58), u(0.72, 0.95)
    horn, antenna = u(0.0, 0.2), u(0.3, 0.55)
    for half in pen.both():
        for y, reach in ((-0.28, -0.42), (-0.05, 0.10), (0.22, 0.50)):
            knee = (wide + u(0.12, 0.24), y + reach * u(0.2, 0.7))
            foot = (knee[0] + u(0.0, 0.16), knee[1] + reach * u(0.6, 0.9) + 0.05)
            half.stroke([(wide * 0.4, y), knee, foot], (0.13, 0.10, 0.04), darker(coat.dark, 0.7))
        feeler = trail((0.12, -0.82), np.linspace(-1.3, -0.2 - antenna, 6), antenna)
        half.stroke(feeler, (0.05, 0.03, 0.07), darker(coat.dark, 0.6))
        half.stroke([(0.10, -0.85), (0.16, -0.92 - horn / 2), (0.04, -0.92 - horn)],
                    (0.09, 0.03), darker(coat.dark, 0.6))
    pen.oval(0, -0.76, 0.21, 0.17, coat.dark, rise=130, rim=0.016)
    collar = [(0.0, -0.70), (0.24, -0.68), (wide * 0.84, -0.42), (wide * 0.78, -0.28), (0, -0.24)]
    pen.shape(mirrored(collar), coat.dark if rng.random() < 0.6 else coat.accent, rise=165)
    case = smooth(mirrored([(0.0, -0.30), (wide * 0.82, -0.27), (wide, 0.15), (wide * 0.8, 0.6),
                            (0.0, end)]), closed=True)
    pen.poly(case, coat.base, rise=200)
    marks = rng.integers(3)
    spots = [(u(0.10, wide), u(-0.2, 0.7), u(0.06, 0.12)) for _ in range(rng.integers(2, 7))]
    with pen.within(case) as inside:
        for half in inside.both():
            if marks == 0:
                for x, y, r in spots:
                    half.oval(x, y, r, r, coat.accent if spots[0][0] > 0.3 else INK)
            if marks == 1:
                for x in (0.25, 0.5, 0.75):
                    half.stroke([(wide * x * 0.9, -0.3), (wide * x, 0.2), (wide * x * 0.5, end)],
                                (0.03, 0.03), coat.dark, rise=140)
            half.stroke([(wide * 0.5, -0.15), (wide * 0.62, 0.15)], (0.05, 0.03), coat.pale, rise=0)
        inside.stroke([(0, -0.3), (0, end)], (0.03, 0.03), INK, rise=90)


def _butterfly(pen: Pen, rng: Rng) -> None:
    """From above: two pairs of wings, margined, veined and eye-spotted alike on both sides."""
    coat, u = _coat(rng, ANY), rng.uniform
    tip, tail = u(0.75, 1.0), u(0.6, 0.98)
    fore = np.array([(0.05, -0.30), (0.35, -tip * 0.85), (0.85, -tip), (0.98, -tip * 0.75),
                     (0.78, -0.25), (0.50, 0.02), (0.05, 0.02)])
    hind = np.array([(0.05, -0.10), (0.55, -0.08), (0.80, 0.20), (0.70, 0.50), (0.48, tail),
                     (0.25, 0.52), (0.05, 0.30)])
    eyed, banded, spot = rng.random(), rng.random(), u(0.08, 0.13)
    margin = INK if rng.random() < 0.5 else coat.dark
    swing = u(-0.18, 0.25)
    for half in pen.both():
        # Wings at unequal openings: the animal is seen a little from the side.
        half = half.moved(turn=swing, scale=(u(0.75, 1.05), 1))
        for wing, fill, rise in ((hind, coat.accent if banded < 0.4 else coat.base, 120),
                                 (fore, coat.base, 160)):
            outline, centre = smooth(wing, closed=True), wing.mean(axis=0)
            half.poly(outline, margin, rise=rise)
            half.poly(wing[0] + (outline - wing[0]) * 0.84, fill, rise=0, rim=0)
            with half.within(outline) as inside:
                for k in range(1, 6):
                    vein = [wing[0], (wing[0] + wing[k]) / 2 + 0.03, wing[k]]
                    inside.stroke(np.array(vein), (0.03, 0.015), margin, rise=0, rim=0)
                for k in range(1, 6):
                    x, y = wing[0] + (wing[k] - wing[0]) * 0.92
                    inside.oval(x, y, 0.035, 0.035, coat.pale)
                if eyed < 0.65:
                    x, y = centre + (0.12, 0.02)
                    inside.oval(x, y, spot * 1.6, spot * 1.6, coat.pale)
                    inside.oval(x, y, spot, spot, margin)
                    inside.oval(x - 0.02, y - 0.02, spot * 0.4, spot * 0.4, coat.accent)
        half.stroke(trail((0.03, -0.4), np.linspace(-1.35, -0.7, 6), 0.5), (0.03, 0.02, 0.06), INK)
    pen.stroke([(0, -0.42), (0, -0.2), (0, 0.15), (0, 0.55)], (0.11, 0.17, 0.13, 0.06),
               coat.dark, rise=220)
    pen.oval(0, -0.45, 0.08, 0.08, INK, rise=200)


def _crab(pen: Pen, rng: Rng) -> None:
    """From above: a broad carapace, stalked eyes, eight bent legs and two pincers."""
    coat, u = _coat(rng, RED, RED, BROWN, BLUE, GREEN, VIOLET), rng.uniform
    wide, deep = u(0.50, 0.64), u(0.34, 0.44)
    for half in pen.both():
        for k in range(4):
            out = wide + 0.32 - 0.07 * k + u(-0.04, 0.04)
            root = (wide * 0.7, 0.02 + 0.09 * k)
            knee = (out, -0.20 + 0.22 * k + u(-0.05, 0.05))
            foot = (out + 0.14 - 0.10 * k, knee[1] + u(0.22, 0.34))
            half.stroke([root, knee, foot], (0.12, 0.10, 0.02), coat.base, rise=110)
        elbow = (wide + u(0.05, 0.22), -0.35 + u(-0.08, 0.08))
        half.stroke([(wide * 0.7, -0.1), elbow], (0.13, 0.15), coat.base, rise=130)
        claw = half.moved(*elbow, turn=u(-0.9, 0.0), scale=(u(0.85, 1.3),) * 2)
        claw.stroke([(0.06, -0.28), (0.21, -0.42), (0.10, -0.62)], (0.16, 0.13, 0.03), coat.base)
        claw.stroke([(-0.06, -0.28), (-0.17, -0.42), (-0.04, -0.58)], (0.12, 0.09, 0.02), coat.dark)
        claw.shape([(0, 0.02), (0.15, -0.15), (0.13, -0.35), (-0.02, -0.38), (-0.13, -0.2)],
                   coat.base, rise=190)
        half.stroke([(0.13, -deep * 0.8), (0.16, -deep - 0.14)], (0.06, 0.05), coat.dark)
        half.oval(0.16, -deep - 0.16, 0.065, 0.065, INK, rise=180)
    shell = smooth(mirrored([(0.0, -deep), (wide * 0.5, -deep * 0.95), (wide, -deep * 0.35),
                             (wide * 0.9, deep * 0.2), (wide * 0.5, deep * 0.95), (0, deep)]),
                   closed=True)
    pen.poly(shell, coat.base, rise=210)
    with pen.within(shell) as inside:
        for _ in range(rng.integers(10, 40)):
            r = u(0.012, 0.035)
            inside.oval(u(-wide, wide), u(-deep, deep), r, r, coat.pale if u() < 0.7 else coat.dark)
        for half in inside.both():
            half.stroke([(0.10, -0.08), (0.22, 0.05), (0.12, 0.2)], (0.02, 0.03), coat.dark, 150)


def _fish(pen: Pen, rng: Rng) -> None:
    """From the side, facing right: fins, a forked tail, scales and bars or a flank stripe."""
    coat, u = _coat(rng, RED, GOLD, GREEN, BLUE, BLUE, VIOLET), rng.uniform
    tall, fin = u(0.34, 0.54), coat.accent if rng.random() < 0.5 else coat.dark
    beat, fork = u(-0.12, 0.12), u(0.25, 0.45)
    pen.shape([(-0.55, beat * 0.5), (-0.98, beat - fork), (-0.80, beat), (-0.98, beat + fork)],
              fin, rise=90)
    crest = u(0.15, 0.32)
    pen.shape([(0.30, -tall * 0.75), (0.05, -tall - crest), (-0.35, -tall * 0.75 - crest * 0.7),
               (-0.45, -tall * 0.3), (-0.1, -tall * 0.5)], fin, rise=90)
    pen.shape([(0.05, tall * 0.7), (-0.18, tall + 0.2), (-0.32, tall * 0.5)], fin, rise=90)
    body = smooth([(0.92, 0.03), (0.70, -tall * 0.55), (0.25, -tall), (-0.25, -tall * 0.65),
                   (-0.62, -0.09 + beat / 2), (-0.62, 0.09 + beat / 2), (-0.25, tall * 0.65),
                   (0.25, tall * 0.95), (0.70, tall * 0.5)], closed=True)
    pen.poly(body, coat.base, rise=190)
    marks = rng.integers(3)
    with pen.within(body) as inside:
        for row in range(-5, 6):
            for column in range(9):
                x, y = 0.35 - 0.12 * column + 0.06 * (row % 2), row * 0.1
                inside.stroke([(x, y - 0.05), (x - 0.05, y), (x, y + 0.05)][::-1], (0.015, 0.015),
                              darker(coat.base, 0.75), rise=150, rim=0)
        inside.shape([(0.9, 0.2), (0.2, tall * 0.45), (-0.6, 0.1), (0.2, 1.2)], coat.pale, 0, 0)
        for k in range(rng.integers(2, 5)):
            x = 0.25 - 0.22 * k
            if marks == 0:
                inside.stroke([(x, -0.6), (x + 0.06, 0), (x, 0.6)], (0.1, 0.09), coat.accent, 0)
            if marks == 1:
                inside.oval(x, u(-tall, 0) * 0.6, 0.06, 0.06, coat.dark)
        if marks == 2:
            inside.stroke([(0.6, -0.05), (0, -0.1), (-0.6, beat / 2)], (0.08, 0.1), coat.dark, 0)
    pen.stroke([(0.44, -tall * 0.5), (0.36, 0), (0.44, tall * 0.55)], (0.02, 0.03), coat.dark, 130)
    pen.shape([(0.30, 0.08), (0.05, 0.02 + u(-0.1, 0.1)), (0.02, 0.22), (0.2, 0.2)], fin, rise=220)
    pen.stroke([(0.92, 0.08), (0.80, 0.10)], (0.02, 0.02), INK, rise=0)
    _eye(pen, 0.64, -tall * 0.22, u(0.07, 0.1), coat.pale)


def _jellyfish(pen: Pen, rng: Rng) -> None:
    """From the side: a ribbed, scalloped, see-through bell over frills and long threads."""
    coat, u = _coat(rng, RED, BROWN, GOLD, BLUE, VIOLET, VIOLET), rng.uniform
    wide, top, hem = u(0.46, 0.68), u(0.70, 0.95), u(-0.12, 0.05)
    sway, glass = u(-0.35, 0.35), int(u(150, 225))
    for x in np.linspace(-wide * 0.9, wide * 0.9, rng.integers(7, 12)):
        phase, waves = u(0, 6.3), u(1.0, 2.2)
        bend = np.pi / 2 + sway + 0.45 * np.sin(phase + waves * np.linspace(0, 6, 16))
        pen.stroke(trail((float(x), hem), bend, u(0.7, 1.1)), (0.035, 0.014),
                   (*coat.pale, glass), rise=60, rim=0)
    for x in np.linspace(-wide * 0.4, wide * 0.4, rng.integers(3, 6)):
        phase = u(0, 6.3)
        bend = np.pi / 2 + sway * 0.7 + 0.6 * np.sin(phase + np.linspace(0, 9, 18))
        pen.stroke(trail((float(x), hem - 0.1), bend, u(0.5, 0.85)), (0.15, 0.13, 0.03),
                   (*coat.base, glass), rise=110)
    lobes = int(rng.integers(6, 10))
    across = np.linspace(1, -1, 2 * lobes + 1)
    frill = np.where(np.arange(2 * lobes + 1) % 2, 0.07, 0.0) + 0.06 * (1 - across**2)
    arch = np.linspace(np.pi, 2 * np.pi, 14)[1:-1]
    dome = np.stack([wide * np.cos(arch), hem - (top + hem) * np.abs(np.sin(arch)) ** 0.8], axis=1)
    bell = smooth(np.concatenate([np.stack([across * wide, hem + frill], axis=1), dome]), True)
    pen.poly(bell, (*coat.base, glass), rise=200)
    with pen.within(bell) as inside:
        inside.oval(0, hem + 0.05, wide * 0.8, 0.14, (*coat.dark, glass), rise=150)
        for x in np.linspace(-1, 1, lobes):
            inside.stroke([(x * 0.12, -top), (x * wide * 0.8, (hem - top) / 2), (x * wide, hem)],
                          (0.012, 0.035), (*coat.pale, glass), rise=220, rim=0)
        for x in (-0.24, -0.08, 0.08, 0.24):
            inside.oval(x * wide * 2, hem - top * 0.4, 0.075, 0.1, (*coat.pale, glass))
            inside.oval(x * wide * 2, hem - top * 0.4, 0.045, 0.07, (*coat.dark, glass))


def _octopus(pen: Pen, rng: Rng) -> None:
    """A bulbous mantle, two eyes, and eight tapering arms that curl and carry suckers."""
    coat, u = _coat(rng, RED, BROWN, GOLD, VIOLET, BLUE), rng.uniform
    spread, wide, lean = u(1.5, 2.1), u(0.30, 0.40), u(-0.25, 0.25)
    for k in rng.permutation(8):
        aim = np.pi / 2 + spread * (k - 3.5) / 3.5
        curl = rng.choice((-1, 1)) * u(0.8, 2.6)
        along = np.linspace(0, 1, 16)
        bend = aim + 0.5 * np.sin(u(0, 6.3) + 4 * along) * along + curl * along**2
        start = (0.22 * np.cos(aim), 0.10 + 0.16 * np.sin(aim))
        arm = trail((float(start[0]), float(start[1])), bend, u(0.85, 1.05))
        pen.stroke(arm, (0.22, 0.15, 0.09, 0.03), coat.base, rise=int(u(90, 140)))
        side = np.stack([-np.sin(bend), np.cos(bend)], axis=1) * np.sign(curl)
        for t in range(3, 15):
            x, y = arm[t] + side[t] * (0.055 - 0.003 * t)
            r = 0.034 - 0.0016 * t
            pen.oval(x, y, r, r, coat.pale, rise=170, rim=0.008)
    top = pen.moved(0, 0.05, turn=lean)
    mantle = smooth(mirrored([(0.0, -0.98), (wide, -0.80), (wide * 1.1, -0.50), (0.22, -0.15),
                              (0.30, 0.06), (0.0, 0.16)]), closed=True)
    top.poly(mantle, coat.base, rise=220)
    with top.within(mantle) as inside:
        for _ in range(rng.integers(6, 26)):
            r = u(0.02, 0.06)
            inside.oval(u(-wide, wide), u(-0.95, -0.2), r, r, coat.dark if u() < 0.7 else coat.pale)
    for half in top.both():
        half.oval(0.19, -0.10, 0.10, 0.10, coat.base, rise=240, rim=0.014)
        half.oval(0.20, -0.10, 0.065, 0.065, coat.pale)
        half.oval(0.20, -0.10, 0.055, 0.024, INK)


def _owl(pen: Pen, rng: Rng) -> None:
    """From the front: a face of two discs, great eyes, a beak, folded wings, barred breast."""
    coat, u = _coat(rng, BROWN, BROWN, GOLD, RED, BLUE, VIOLET), rng.uniform
    wide, drop = u(0.40, 0.54), u(0.10, 0.45)
    for half in pen.both():
        half.stroke([(0.10, 0.75), (0.12, 0.92)], (0.12, 0.06), coat.dark)
        for x in (0.05, 0.13, 0.21):
            half.stroke([(0.13, 0.88), (x, 0.97)], (0.07, 0.05), (205, 170, 90))
    pen.shape(mirrored([(0.0, 0.60), (0.16, 0.70), (0.14, 1.0), (0.0, 1.03)]), coat.dark, rise=90)
    breast = smooth(mirrored([(0.0, -0.55), (wide * 0.8, -0.40), (wide, 0.15), (wide * 0.7, 0.65),
                              (0.0, 0.86)]), closed=True)
    pen.poly(breast, coat.pale, rise=170)
    bars = rng.random() < 0.5
    with pen.within(breast) as inside:
        for row in range(8):
            for column in range(-4, 5):
                x, y = (column + 0.5 * (row % 2)) * 0.12, -0.25 + 0.13 * row
                if bars:
                    inside.stroke([(x - 0.04, y), (x, y + 0.04), (x + 0.04, y)], (0.03, 0.03),
                                  coat.base, rise=140, rim=0)
                else:
                    inside.stroke([(x, y), (x, y + 0.07)], (0.05, 0.01), coat.dark, rise=140, rim=0)
    for half in pen.both():
        wing = half.moved(wide * 0.72, -0.30, turn=-u(0.0, 0.12) - (drop if drop > 0.4 else 0))
        wing.shape([(0, -0.05), (0.18, 0.15), (0.17, 0.60), (0.02, 0.98), (-0.10, 0.5)], coat.base)
        for k in range(4):
            wing.stroke([(0.14 - 0.04 * k, 0.25 + 0.1 * k), (0.03, 0.62 + 0.09 * k)], (0.03, 0.03),
                        coat.dark, rise=110, rim=0)
    _owl_face(pen.moved(0, -0.52, turn=u(-0.2, 0.2)), rng, coat)


def _owl_face(pen: Pen, rng: Rng, coat: Coat) -> None:
    """The head on its own pen, for owls tilt it."""
    u = rng.uniform
    tuft, wide, eye = u(-0.05, 0.25), u(0.42, 0.52), u(0.10, 0.15)
    iris = hsv(u(0.05, 0.16), u(0.5, 1), u(0.75, 1))
    for half in pen.both():
        half.shape([(0.10, -0.25), (wide * 0.8, -0.38 - tuft), (wide * 0.9, -0.1)], coat.dark)
    pen.shape(mirrored([(0.0, -0.36), (wide * 0.75, -0.32), (wide, 0.0), (wide * 0.6, 0.30),
                        (0.0, 0.36)]), coat.base, rise=210)
    for half in pen.both():
        half.oval(0.19, 0.0, 0.215, 0.24, coat.pale, rise=170, rim=0.03)
        for angle in np.linspace(0, 2 * np.pi, 14):
            x, y = np.cos(angle), np.sin(angle)
            half.stroke([(0.18 + x * 0.13, y * 0.13), (0.18 + x * 0.2, y * 0.21)], (0.02, 0.01),
                        coat.base, rise=0, rim=0)
        _eye(half, 0.18, 0.0, eye, iris)
        half.stroke([(0.03, -0.12), (0.2, -0.2), (0.34, -0.24 - tuft / 2)], (0.04, 0.07, 0.03),
                    coat.dark, rise=230)
    pen.shape(mirrored([(0.0, 0.02), (0.06, 0.06), (0.03, 0.17), (0.0, 0.22)]), (60, 50, 40), 250)


def _snail(pen: Pen, rng: Rng) -> None:
    """From the side, facing right: a slug's foot, four horns and a coiled, banded shell."""
    coat, u = _coat(rng, BROWN, GOLD, RED, VIOLET, GREEN), rng.uniform
    skin = hsv(u(0.03, 0.16), u(0.15, 0.5), u(0.45, 0.85))
    lift, turns = u(0.15, 0.55), u(2.2, 3.3)
    for tilt in (-0.05, 0.12):
        horn = trail((0.72, 0.35 - lift), np.linspace(-1.5, -0.7, 5) + tilt * 3 + u(-0.2, 0.2), 0.38)
        pen.stroke(horn, (0.06, 0.04), skin)
        pen.oval(horn[-1, 0], horn[-1, 1], 0.045, 0.045, INK, rise=150)
    pen.stroke([(0.78, 0.45 - lift), (0.93, 0.5 - lift)], (0.05, 0.04), skin)
    pen.stroke([(-1.0, 0.66), (-0.5, 0.60), (0.1, 0.58), (0.5, 0.52), (0.68, 0.45 - lift * 0.6),
                (0.74, 0.38 - lift)], (0.02, 0.18, 0.28, 0.30, 0.24, 0.20), skin, rise=110)
    pen.stroke([(-0.98, 0.69), (-0.3, 0.71), (0.5, 0.70)], (0.02, 0.06, 0.04), darker(skin, 0.7), 90)
    shell = pen.moved(-0.12 + u(-0.08, 0.08), 0.02, turn=u(-0.5, 0.3), scale=(1, u(0.82, 1.0)))
    angle = np.linspace(0.6, 0.6 - 2 * np.pi * turns, 90)
    radius = 0.62 * np.exp(-np.linspace(0, 2.9, 90))
    coil = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    shell.stroke(coil[:30], (0.20, 0.16, 0.1), coat.base, rise=180)
    shell.oval(0, 0, 0.58, 0.56, coat.base, rise=180, rim=0.02)
    stripes, banded = int(rng.integers(10, 22)), rng.random() < 0.6
    ring = np.stack([0.6 * np.cos(angle), 0.58 * np.sin(angle)], axis=1)[:40]
    with shell.within(ring) as inside:
        if banded:
            inside.stroke(coil * 0.86, (0.09, 0.01), coat.accent, rise=0, rim=0)
        for k in np.linspace(0, 2 * np.pi, stripes, endpoint=False):
            x, y = np.cos(k), np.sin(k)
            inside.stroke([(0.2 * x, 0.2 * y), (0.44 * x - 0.06 * y, 0.44 * y + 0.06 * x),
                           (0.62 * x, 0.62 * y)], (0.01, 0.035), coat.dark, rise=150, rim=0)
    shell.stroke(coil, (0.05, 0.03, 0.015), darker(coat.dark, 0.7), rise=60, rim=0)


def _snake(pen: Pen, rng: Rng) -> None:
    """One long patterned body in waves or a coil, drawn tail first so that loops overlap."""
    coat, u = _coat(rng, GREEN, BROWN, GOLD, RED, BLUE), rng.uniform
    along = np.linspace(0, 1, 72)
    if rng.random() < 0.6:
        bend = u(1.1, 1.9) * np.sin(u(0, 6.3) + u(7, 13) * along)
    else:
        bend = -2 * np.pi * u(1.3, 2.0) * (1 - along) ** u(1.2, 1.8)
    path = trail((0, 0), bend, 1)
    low, high = path.min(axis=0), path.max(axis=0)
    path = (path - (low + high) / 2) * (1.8 / float(np.linalg.norm(high - low)))
    length = float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
    girth = min(u(0.17, 0.22), length * 0.075)
    width = girth * np.interp(along, (0, 0.35, 0.8, 1), (0.12, 1, 1, 0.6))
    marks = rng.integers(3)
    for k in range(0, 72, 3):
        edge, skin = slice(max(k - 2, 0), k + 4), slice(max(k - 5, 0), k + 4)
        pen.stroke(path[edge], width[edge] * 1.16, darker(coat.dark, 0.8), rise=110, rim=0)
        pen.stroke(path[skin], width[skin], coat.base, rise=180, rim=0)
        # Markings lag behind, where the next pieces no longer paint them over.
        m = max(k - 6, 0)
        spot = pen.moved(*path[m], turn=float(bend[m]), scale=(float(width[m]),) * 2)
        if marks == 0 and k % 2:
            spot.poly([(-0.55, 0), (0, -0.42), (0.55, 0), (0, 0.42)], coat.dark, 0, 0.03)
        if marks == 1 and k % 2:
            spot.stroke([(0, -0.42), (0.1, 0), (0, 0.42)], (0.4, 0.4), coat.accent, 0)
        if marks == 2:
            spot.stroke([(-0.6, 0), (0.6, 0)], (0.25, 0.25), coat.pale, 0, 0)
            for y in (-0.36, 0.36):
                spot.oval(0, y, 0.13, 0.13, coat.dark)
    head = pen.moved(*path[-1], turn=float(bend[-1]), scale=(girth * 1.15,) * 2)
    for fork in (-0.25, 0.25):
        head.stroke([(1.0, 0), (1.7, 0), (2.1, fork)], (0.14, 0.06), (190, 40, 50))
    head.shape([(-0.5, -0.32), (0.2, -0.62), (0.85, -0.4), (1.15, 0), (0.85, 0.4), (0.2, 0.62),
                (-0.5, 0.32)], coat.base, rise=215, rim=0.1)
    for side in (-0.36, 0.36):
        head.oval(0.5, side, 0.17, 0.14, (235, 200, 60))
        head.oval(0.5, side, 0.07, 0.13, INK)


def _spider(pen: Pen, rng: Rng) -> None:
    """From above: two body parts, a marked abdomen and eight long legs with high knees."""
    coat, u = _coat(rng, BROWN, GOLD, RED, GREEN, BLUE), rng.uniform
    fat, leg = u(0.22, 0.36), coat.dark if rng.random() < 0.6 else coat.base
    ringed = rng.random() < 0.5
    for half in pen.both():
        for aim, reach in ((-1.15, 1.0), (-0.45, 0.85), (0.3, 0.8), (0.95, 1.0)):
            aim, reach = aim + u(-0.16, 0.16), reach * u(0.88, 1.08)
            knee = (0.10 + 0.52 * reach * np.cos(aim), -0.15 + 0.52 * reach * np.sin(aim) - 0.10)
            shin = aim + u(0.1, 0.45) * (1 if aim > 0 else -1)
            foot = (knee[0] + 0.52 * reach * np.cos(shin), knee[1] + 0.5 * reach * np.sin(shin))
            half.stroke([(0.08, -0.15 + 0.06 * aim), knee, foot], (0.09, 0.075, 0.05, 0.02), leg)
            if ringed:
                half.oval(*knee, 0.04, 0.04, coat.pale)
        half.stroke([(0.07, -0.34), (0.14, -0.5), (0.08, -0.58)], (0.07, 0.05), leg)
    pen.oval(0, -0.18, 0.19, 0.23, coat.dark, rise=180, rim=0.016)
    belly = smooth(mirrored([(0.0, 0.0), (fat * 0.7, 0.06), (fat, 0.35), (fat * 0.6, 0.68),
                             (0.0, 0.78)]), closed=True)
    pen.poly(belly, coat.base, rise=220)
    marks = rng.integers(3)
    with pen.within(belly) as inside:
        for k in range(4):
            y, w = 0.14 + 0.15 * k, fat * (0.6 - 0.1 * k)
            if marks == 0:
                inside.stroke([(-w, y + 0.06), (0, y - 0.05), (w, y + 0.06)], (0.05, 0.06), coat.dark)
            if marks == 1:
                inside.oval(-w * 0.7, y, 0.04, 0.04, coat.pale)
                inside.oval(w * 0.7, y, 0.04, 0.04, coat.pale)
        if marks == 2:
            inside.shape([(-0.12, 0.2), (0.12, 0.2), (0.03, 0.38), (0.12, 0.56), (-0.12, 0.56),
                          (-0.03, 0.38)], coat.accent, 200)
    for x, y in ((-0.08, -0.34), (-0.03, -0.37), (0.03, -0.37), (0.08, -0.34)):
        pen.oval(x, y, 0.025, 0.025, SHINE)


def _starfish(pen: Pen, rng: Rng) -> None:
    """Five, seldom six, knobbly arms with rounded ends, a row of beads down each."""
    coat, u = _coat(rng, RED, RED, GOLD, VIOLET, BLUE, BROWN), rng.uniform
    arms = 6 if rng.random() < 0.15 else 5
    waist, blunt = u(0.30, 0.44), u(0.10, 0.17)
    angles = np.arange(arms) * 2 * np.pi / arms - np.pi / 2 + rng.uniform(-0.12, 0.12, arms)
    lengths = rng.uniform(0.82, 1.02, arms)
    bends = rng.uniform(-0.22, 0.22, arms)
    outline: list[tuple[float, float]] = []
    for aim, reach, bend in zip(angles, lengths, bends, strict=True):
        for r, off in ((0.62, -0.20), (0.92, -blunt), (1.0, 0), (0.92, blunt), (0.62, 0.20)):
            turn = aim + off / r + bend * r
            outline.append((reach * r * np.cos(turn), reach * r * np.sin(turn)))
        outline.append((waist * np.cos(aim + np.pi / arms), waist * np.sin(aim + np.pi / arms)))
    skin = smooth(outline, closed=True)
    pen.poly(skin, coat.base, rise=150, rim=0.025)
    with pen.within(skin) as inside:
        for _ in range(rng.integers(60, 160)):
            x, y, r = u(-1, 1), u(-1, 1), u(0.012, 0.026)
            inside.oval(x, y, r, r, coat.dark if u() < 0.5 else coat.pale, rise=190)
        for aim, reach, bend in zip(angles, lengths, bends, strict=True):
            ridge = [(r * reach * np.cos(aim + bend * r), r * reach * np.sin(aim + bend * r))
                     for r in np.linspace(0.1, 0.92, 9)]
            inside.stroke(ridge, (0.22, 0.16, 0.07), darker(coat.base, 1.12), rise=190, rim=0)
            for k, (x, y) in enumerate(ridge):
                inside.oval(x, y, 0.045 - 0.003 * k, 0.045 - 0.003 * k, coat.pale, 235, 0.01)


def _turtle(pen: Pen, rng: Rng) -> None:
    """From above: a shell of scutes, a blunt head, four flippers and a tail."""
    coat, u = _coat(rng, GREEN, GREEN, BROWN, GOLD, BLUE, RED), rng.uniform
    skin = hsv(u(0.08, 0.45), u(0.2, 0.55), u(0.45, 0.8))
    wide, deep, paddle = u(0.46, 0.58), u(0.56, 0.66), u(0.30, 0.62)
    for half in pen.both():
        for y, aim, long in ((-0.38, u(-0.7, 0.35), paddle), (0.45, u(0.5, 1.2), 0.34)):
            limb = half.moved(wide * 0.68, y, turn=aim)
            flipper = smooth([(-0.05, -0.12), (long * 0.6, -0.16), (long, 0.02), (long * 0.9, 0.12),
                              (long * 0.5, 0.08), (-0.05, 0.12)], closed=True)
            limb.poly(flipper, skin, rise=100)
            for _ in range(9):
                limb.oval(u(0.08, long * 0.8), u(-0.09, 0.06), 0.03, 0.03, darker(skin, 0.75), 120)
    pen.stroke([(0, deep), (u(-0.08, 0.08), deep + 0.2)], (0.12, 0.02), skin)
    neck = pen.moved(0, -deep + 0.08, turn=u(-0.35, 0.35))
    neck.shape(mirrored([(0, -0.42), (0.11, -0.36), (0.15, -0.2), (0.11, 0), (0, 0.05)]), skin, 120)
    for half in neck.both():
        half.oval(0.10, -0.27, 0.035, 0.035, INK, rise=160)
    shell = smooth(mirrored([(0, -deep), (wide * 0.7, -deep * 0.8), (wide, -0.05),
                             (wide * 0.8, deep * 0.6), (0, deep)]), closed=True)
    pen.poly(shell, coat.dark, rise=160, rim=0.03)
    inner = shell * 0.87
    with pen.within(inner) as inside:
        for k in range(5):
            y = (-0.92 + 0.46 * k) * deep
            for half in inside.both():
                side = [(0.14, y - 0.02), (0.24, y + 0.13), (0.14, y + 0.28), (0.62, y + 0.32),
                        (0.62, y - 0.04)]
                half.poly(side, coat.base, rise=200, rim=0.03)
                half.oval(0.36, y + 0.13, 0.06, 0.07, coat.pale if u() < 0.8 else coat.accent)
        for k in range(6):
            y = (-1.15 + 0.46 * k) * deep
            plate = mirrored([(0.10, y), (0.19, y + 0.14), (0.10, y + 0.28)])
            inside.poly(plate, coat.base, rise=225, rim=0.03)
            inside.oval(0, y + 0.14, 0.07, 0.07, coat.pale)


# What each species' name draws, and how far (radians) it may be turned: animals seen from above
# lie any way round, animals seen from the side keep their feet or their tentacles down.
DRAWERS: Mapping[str, tuple[Callable[[Pen, Rng], None], float]] = MappingProxyType({
    "beetle": (_beetle, 1.2),
    "butterfly": (_butterfly, 1.2),
    "crab": (_crab, 0.7),
    "fish": (_fish, 0.6),
    "jellyfish": (_jellyfish, 0.6),
    "octopus": (_octopus, 0.5),
    "owl": (_owl, 0.25),
    "snail": (_snail, 0.35),
    "snake": (_snake, 1.2),
    "spider": (_spider, 1.2),
    "starfish": (_starfish, 1.2),
    "turtle": (_turtle, 1.2),
})
