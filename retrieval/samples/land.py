"""Creatures of land and air: beetle, butterfly, owl, snail, snake, spider.

One function each, about the origin and about one unit in radius. Proportions, limb angles, markings
and colours come from the generator; what stays the same within a species is its build and the kind
of its markings.
"""

from __future__ import annotations

import numpy as np

from retrieval.samples.coat import (
    ANY,
    BLUE,
    BROWN,
    GOLD,
    GREEN,
    INK,
    RED,
    SHINE,
    VIOLET,
    Coat,
    draw_eye,
    mix_coat,
)
from retrieval.samples.pen import Colour, Pen, Points, Rng, darker, hsv, mirrored, smooth, trail


def beetle(pen: Pen, rng: Rng) -> None:
    """Draw it from above: wing cases with a seam, a collar, a head, six legs, two feelers."""
    coat, u = mix_coat(rng, BROWN, RED, GREEN, BLUE, GOLD), rng.uniform
    wide, end = u(0.40, 0.58), u(0.72, 0.95)
    horn, feeler, limb = u(0.0, 0.2), u(0.3, 0.55), darker(coat.dark, 0.7)
    for half in pen.both():
        for y, reach in ((-0.28, -0.42), (-0.05, 0.10), (0.22, 0.50)):
            knee = (wide + u(0.12, 0.24), y + reach * u(0.2, 0.7))
            foot = (knee[0] + u(0.0, 0.16), knee[1] + reach * u(0.6, 0.9) + 0.05)
            half.stroke([(wide * 0.4, y), knee, foot], (0.13, 0.10, 0.04), limb)
        bend = np.linspace(-1.3, -0.2 - feeler, 6)
        half.stroke(trail((0.12, -0.82), bend, feeler), (0.05, 0.03, 0.07), limb)
        jaw = [(0.10, -0.85), (0.16, -0.92 - horn / 2), (0.04, -0.92 - horn)]
        half.stroke(jaw, (0.09, 0.03), limb)
    pen.oval(0, -0.76, 0.21, 0.17, coat.dark, rise=130, rim=0.016)
    collar = [(0, -0.70), (0.24, -0.68), (wide * 0.84, -0.42), (wide * 0.78, -0.28), (0, -0.24)]
    pen.shape(mirrored(collar), coat.dark if rng.random() < 0.6 else coat.accent, rise=165)
    back = [(0, -0.30), (wide * 0.82, -0.27), (wide, 0.15), (wide * 0.8, 0.6), (0, end)]
    cases = smooth(mirrored(back), closed=True)
    pen.poly(cases, coat.base, rise=200)
    with pen.within(cases) as inside:
        _mark_cases(inside, rng, coat, wide, end)


def _mark_cases(pen: Pen, rng: Rng, coat: Coat, wide: float, end: float) -> None:
    """Give a beetle's wing cases spots, ridges or nothing, then the glint and the seam."""
    u, marks = rng.uniform, rng.integers(3)
    ink = coat.accent if rng.random() < 0.5 else INK
    spots = [(u(0.10, wide), u(-0.2, 0.7), u(0.06, 0.12)) for _ in range(rng.integers(2, 7))]
    for half in pen.both():
        if marks == 0:
            for x, y, radius in spots:
                half.oval(x, y, radius, radius, ink)
        if marks == 1:
            for x in (0.25 * wide, 0.5 * wide, 0.75 * wide):
                ridge = [(x * 0.9, -0.3), (x, 0.2), (x * 0.5, end)]
                half.stroke(ridge, (0.03, 0.03), coat.dark, rise=140)
        half.stroke([(wide * 0.5, -0.15), (wide * 0.62, 0.15)], (0.05, 0.03), coat.pale, rise=0)
    pen.stroke([(0, -0.3), (0, end)], (0.03, 0.03), INK, rise=90)


def butterfly(pen: Pen, rng: Rng) -> None:
    """Draw it from above: two pairs of wings, marked alike on both sides, and clubbed feelers."""
    coat, u = mix_coat(rng, ANY), rng.uniform
    tip, tail = u(0.75, 1.0), u(0.6, 0.98)
    fore = [
        (0.05, -0.30), (0.35, -tip * 0.85), (0.85, -tip), (0.98, -tip * 0.75), (0.78, -0.25),
        (0.50, 0.02), (0.05, 0.02),
    ]  # fmt: skip
    hind = [
        (0.05, -0.10), (0.55, -0.08), (0.80, 0.20), (0.70, 0.50), (0.48, tail), (0.25, 0.52),
        (0.05, 0.30),
    ]  # fmt: skip
    margin = INK if rng.random() < 0.5 else coat.dark
    second = Coat(coat.accent, coat.dark, coat.pale, coat.base) if rng.random() < 0.4 else coat
    spot = u(0.08, 0.13) if rng.random() < 0.65 else 0
    swing = u(-0.18, 0.25)
    for side in pen.both():
        # Wings at unequal openings: the animal is seen a little from the side.
        half = side.moved(turn=swing, scale=(u(0.75, 1.05), 1))
        _wing(half, hind, second, margin, spot)
        _wing(half, fore, coat, margin, spot)
        feeler = trail((0.03, -0.4), np.linspace(-1.35, -0.7, 6), 0.5)
        half.stroke(feeler, (0.03, 0.02, 0.06), INK)
    body = [(0, -0.42), (0, -0.2), (0, 0.15), (0, 0.55)]
    pen.stroke(body, (0.11, 0.17, 0.13, 0.06), coat.dark, rise=220)
    pen.oval(0, -0.45, 0.08, 0.08, INK, rise=200)


def _wing(pen: Pen, corners: Points, coat: Coat, margin: Colour, spot: float) -> None:
    """Draw a wing: margin, field, veins, dots along the edge and, if `spot` is not 0, an eye."""
    knots = np.asarray(corners)
    outline, root = smooth(knots, closed=True), knots[0]
    pen.poly(outline, margin, rise=150)
    pen.poly(root + (outline - root) * 0.84, coat.base, rise=0, rim=0)
    with pen.within(outline) as inside:
        for knot in knots[1:6]:
            vein = np.stack([root, (root + knot) / 2 + 0.03, knot])
            inside.stroke(vein, (0.03, 0.015), margin, rise=0, rim=0)
            x, y = root + (knot - root) * 0.92
            inside.oval(x, y, 0.035, 0.035, coat.pale)
        if spot:
            x, y = knots.mean(axis=0)
            inside.oval(x + 0.12, y, spot * 1.6, spot * 1.6, coat.pale)
            inside.oval(x + 0.12, y, spot, spot, margin)
            inside.oval(x + 0.10, y - 0.02, spot * 0.4, spot * 0.4, coat.accent)


def owl(pen: Pen, rng: Rng) -> None:
    """Draw it from the front: a face of two discs, great eyes, folded wings, a marked breast."""
    coat, u = mix_coat(rng, BROWN, BROWN, GOLD, RED, BLUE, VIOLET), rng.uniform
    wide, spread = u(0.40, 0.54), u(0.0, 0.12) + (0.4 if rng.random() < 0.15 else 0)
    for half in pen.both():
        half.stroke([(0.10, 0.75), (0.12, 0.92)], (0.12, 0.06), coat.dark)
        for x in (0.05, 0.13, 0.21):
            half.stroke([(0.13, 0.88), (x, 0.97)], (0.07, 0.05), hsv(0.11, 0.55, 0.8))
    pen.shape(mirrored([(0, 0.60), (0.16, 0.70), (0.14, 1.0), (0, 1.03)]), coat.dark, rise=90)
    belly = [(0, -0.55), (wide * 0.8, -0.40), (wide, 0.15), (wide * 0.7, 0.65), (0, 0.86)]
    breast = smooth(mirrored(belly), closed=True)
    pen.poly(breast, coat.pale, rise=170)
    barred = rng.random() < 0.5
    with pen.within(breast) as inside:
        for row, column in np.ndindex(8, 9):
            feather = inside.moved((column - 4 + 0.5 * (row % 2)) * 0.12, -0.25 + 0.13 * row)
            if barred:
                bar = [(-0.04, 0), (0, 0.04), (0.04, 0)]
                feather.stroke(bar, (0.03, 0.03), coat.base, rise=140, rim=0)
            else:
                feather.stroke([(0, 0), (0, 0.07)], (0.05, 0.01), coat.dark, rise=140, rim=0)
    for half in pen.both():
        wing = half.moved(wide * 0.72, -0.30, turn=-spread)
        fan = [(0, -0.05), (0.18, 0.15), (0.17, 0.60), (0.02, 0.98), (-0.10, 0.5)]
        wing.shape(fan, coat.base)
        for k in range(4):
            quill = [(0.14 - 0.04 * k, 0.25 + 0.1 * k), (0.03, 0.62 + 0.09 * k)]
            wing.stroke(quill, (0.03, 0.03), coat.dark, rise=110, rim=0)
    _owl_face(pen.moved(0, -0.52, turn=u(-0.2, 0.2)), rng, coat)


def _owl_face(pen: Pen, rng: Rng, coat: Coat) -> None:
    """Draw the head, on a pen of its own because owls tilt it."""
    u = rng.uniform
    tuft, wide, eye = u(-0.05, 0.25), u(0.42, 0.52), u(0.10, 0.15)
    iris = hsv(u(0.05, 0.16), u(0.5, 1), u(0.75, 1))
    for half in pen.both():
        half.shape([(0.10, -0.25), (wide * 0.8, -0.38 - tuft), (wide * 0.9, -0.1)], coat.dark)
    skull = [(0, -0.36), (wide * 0.75, -0.32), (wide, 0), (wide * 0.6, 0.30), (0, 0.36)]
    pen.shape(mirrored(skull), coat.base, rise=210)
    for half in pen.both():
        half.oval(0.19, 0, 0.215, 0.24, coat.pale, rise=170, rim=0.03)
        for angle in np.linspace(0, 2 * np.pi, 14):
            x, y = np.cos(angle), np.sin(angle)
            ray = [(0.18 + x * 0.13, y * 0.13), (0.18 + x * 0.2, y * 0.21)]
            half.stroke(ray, (0.02, 0.01), coat.base, rise=0, rim=0)
        draw_eye(half, 0.18, 0, eye, iris)
        brow = [(0.03, -0.12), (0.2, -0.2), (0.34, -0.24 - tuft / 2)]
        half.stroke(brow, (0.04, 0.07, 0.03), coat.dark, rise=230)
    beak = [(0, 0.02), (0.06, 0.06), (0.03, 0.17), (0, 0.22)]
    pen.shape(mirrored(beak), hsv(0.1, 0.3, 0.25), rise=250)


def snail(pen: Pen, rng: Rng) -> None:
    """Draw it from the side, facing right: a slug's foot, horns and a coiled, banded shell."""
    u = rng.uniform
    skin, lift = hsv(u(0.03, 0.16), u(0.15, 0.5), u(0.45, 0.85)), u(0.15, 0.55)
    for tilt in (-0.15, 0.36):
        bend = np.linspace(-1.5, -0.7, 5) + tilt + u(-0.2, 0.2)
        horn = trail((0.72, 0.35 - lift), bend, 0.38)
        pen.stroke(horn, (0.06, 0.04), skin)
        pen.oval(horn[-1, 0], horn[-1, 1], 0.045, 0.045, INK, rise=150)
    pen.stroke([(0.78, 0.45 - lift), (0.93, 0.5 - lift)], (0.05, 0.04), skin)
    foot = [
        (-1.0, 0.66), (-0.5, 0.60), (0.1, 0.58), (0.5, 0.52), (0.68, 0.45 - lift * 0.6),
        (0.74, 0.38 - lift),
    ]  # fmt: skip
    pen.stroke(foot, (0.02, 0.18, 0.28, 0.30, 0.24, 0.20), skin, rise=110)
    sole = [(-0.98, 0.69), (-0.3, 0.71), (0.5, 0.70)]
    pen.stroke(sole, (0.02, 0.06, 0.04), darker(skin, 0.7), rise=90)
    place = (-0.12 + u(-0.08, 0.08), 0.02)
    _snail_shell(pen.moved(*place, turn=u(-0.5, 0.3), scale=(1, u(0.82, 1.0))), rng)


def _snail_shell(pen: Pen, rng: Rng) -> None:
    """Draw a logarithmic spiral, its growth lines and perhaps a band along it."""
    coat, u = mix_coat(rng, BROWN, GOLD, RED, VIOLET, GREEN), rng.uniform
    angle = 0.6 - np.linspace(0, 2 * np.pi * u(2.2, 3.3), 90)
    radius = 0.62 * np.exp(-np.linspace(0, 2.9, 90))
    coil = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    pen.stroke(coil[:30], (0.20, 0.16, 0.1), coat.base, rise=180)
    pen.oval(0, 0, 0.58, 0.56, coat.base, rise=180, rim=0.02)
    ring = np.stack([0.6 * np.cos(angle), 0.58 * np.sin(angle)], axis=1)[:40]
    with pen.within(ring) as inside:
        if rng.random() < 0.6:
            inside.stroke(coil * 0.86, (0.09, 0.01), coat.accent, rise=0, rim=0)
        for turn in np.linspace(0, 2 * np.pi, int(rng.integers(10, 22)), endpoint=False):
            line = [(0.2, 0), (0.44, 0.06), (0.62, 0)]
            inside.moved(turn=turn).stroke(line, (0.01, 0.035), coat.dark, rise=150, rim=0)
    pen.stroke(coil, (0.05, 0.03, 0.015), darker(coat.dark, 0.7), rise=60, rim=0)


def snake(pen: Pen, rng: Rng) -> None:
    """Draw one long patterned body, in waves or a coil, from the tail so that loops overlap."""
    coat, u = mix_coat(rng, GREEN, BROWN, GOLD, RED, BLUE), rng.uniform
    along = np.linspace(0, 1, 72)
    if rng.random() < 0.7:
        bend = u(1.2, 1.7) * np.sin(u(0, 6.3) + u(8, 12) * along)
    else:
        bend = -2 * np.pi * u(1.3, 2.0) * (1 - along) ** u(1.2, 1.8)
    path = trail((0, 0), bend, 1)
    low, high = path.min(axis=0), path.max(axis=0)
    path = (path - (low + high) / 2) * (1.8 / float(np.linalg.norm(high - low)))
    length = float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
    girth = min(u(0.17, 0.22), length * 0.075)
    width = girth * np.interp(along, (0, 0.35, 0.8, 1), (0.12, 1, 1, 0.6))
    marks = int(rng.integers(3))
    for k in range(0, 72, 3):
        edge, skin = slice(max(k - 2, 0), k + 4), slice(max(k - 5, 0), k + 4)
        pen.stroke(path[edge], width[edge] * 1.16, darker(coat.dark, 0.8), rise=110, rim=0)
        pen.stroke(path[skin], width[skin], coat.base, rise=180, rim=0)
        # Markings lag behind, where the next pieces no longer paint them over.
        m = max(k - 6, 0)
        place = pen.moved(path[m, 0], path[m, 1], turn=bend[m], scale=(width[m], width[m]))
        _mark_snake(place, coat, marks, odd=k % 2 == 1)
    size = girth * 1.15
    _snake_head(pen.moved(path[-1, 0], path[-1, 1], turn=bend[-1], scale=(size, size)), coat)


def _mark_snake(pen: Pen, coat: Coat, marks: int, odd: bool) -> None:
    """Draw one diamond, ring or stretch of stripe; one unit is the body's width here."""
    if marks == 0 and odd:
        pen.poly([(-0.55, 0), (0, -0.42), (0.55, 0), (0, 0.42)], coat.dark, rise=0, rim=0.03)
    if marks == 1 and odd:
        pen.stroke([(0, -0.42), (0.1, 0), (0, 0.42)], (0.4, 0.4), coat.accent, rise=0)
    if marks == 2:
        pen.stroke([(-0.6, 0), (0.6, 0)], (0.25, 0.25), coat.pale, rise=0, rim=0)
        for y in (-0.36, 0.36):
            pen.oval(0, y, 0.13, 0.13, coat.dark)


def _snake_head(pen: Pen, coat: Coat) -> None:
    """Draw head, slit eyes and forked tongue; one unit is about the body's width here."""
    for fork in (-0.25, 0.25):
        pen.stroke([(1.0, 0), (1.7, 0), (2.1, fork)], (0.14, 0.06), hsv(0.98, 0.8, 0.75))
    upper = np.array([(1.15, 0), (0.85, -0.4), (0.2, -0.62), (-0.5, -0.32)])
    lower = upper[:0:-1] * (1, -1)
    pen.shape(np.concatenate([upper, lower]), coat.base, rise=215, rim=0.1)
    for y in (-0.36, 0.36):
        pen.oval(0.5, y, 0.17, 0.14, hsv(0.13, 0.75, 0.92))
        pen.oval(0.5, y, 0.07, 0.13, INK)


def spider(pen: Pen, rng: Rng) -> None:
    """Draw it from above: two body parts, a marked abdomen, eight long legs with high knees."""
    coat, u = mix_coat(rng, BROWN, GOLD, RED, GREEN, BLUE), rng.uniform
    fat, tone = u(0.22, 0.36), coat.dark if rng.random() < 0.6 else coat.base
    ringed = rng.random() < 0.5
    for half in pen.both():
        for angle, length in ((-1.15, 1.0), (-0.45, 0.85), (0.3, 0.8), (0.95, 1.0)):
            aim, reach = angle + u(-0.16, 0.16), 0.52 * length * u(0.88, 1.08)
            knee = (0.10 + reach * np.cos(aim), -0.25 + reach * np.sin(aim))
            shin = aim + u(0.1, 0.45) * (1 if aim > 0 else -1)
            foot = (knee[0] + reach * np.cos(shin), knee[1] + reach * np.sin(shin))
            leg = [(0.08, -0.15 + 0.06 * aim), knee, foot]
            half.stroke(leg, (0.09, 0.075, 0.05, 0.02), tone)
            if ringed:
                half.oval(*knee, 0.04, 0.04, coat.pale)
        half.stroke([(0.07, -0.34), (0.14, -0.5), (0.08, -0.58)], (0.07, 0.05), tone)
    pen.oval(0, -0.18, 0.19, 0.23, coat.dark, rise=180, rim=0.016)
    back = [(0, 0), (fat * 0.7, 0.06), (fat, 0.35), (fat * 0.6, 0.68), (0, 0.78)]
    abdomen = smooth(mirrored(back), closed=True)
    pen.poly(abdomen, coat.base, rise=220)
    with pen.within(abdomen) as inside:
        _mark_abdomen(inside, coat, int(rng.integers(3)), fat)
    for x, y in ((-0.08, -0.34), (-0.03, -0.37), (0.03, -0.37), (0.08, -0.34)):
        pen.oval(x, y, 0.025, 0.025, SHINE)


def _mark_abdomen(pen: Pen, coat: Coat, marks: int, fat: float) -> None:
    """Give a spider chevrons, two rows of dots or an hourglass."""
    for k in range(4):
        x, y = fat * (0.6 - 0.1 * k), 0.14 + 0.15 * k
        if marks == 0:
            chevron = [(-x, y + 0.06), (0, y - 0.05), (x, y + 0.06)]
            pen.stroke(chevron, (0.05, 0.06), coat.dark)
        if marks == 1:
            for half in pen.both():
                half.oval(x * 0.7, y, 0.04, 0.04, coat.pale)
    if marks == 2:
        glass = [(0, 0.2), (0.12, 0.2), (0.03, 0.38), (0.12, 0.56), (0, 0.56)]
        pen.shape(mirrored(glass), coat.accent, rise=200)
