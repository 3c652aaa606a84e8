"""Creatures of the water: crab, fish, jellyfish, octopus, starfish, turtle.

One function each, as in `land`: about the origin and about one unit in radius.
"""

from __future__ import annotations

import numpy as np

from retrieval.samples.coat import (
    BLUE,
    BROWN,
    GOLD,
    GREEN,
    INK,
    RED,
    VIOLET,
    Coat,
    draw_eye,
    mix_coat,
)
from retrieval.samples.pen import Colour, Pen, Rng, darker, hsv, mirrored, smooth, trail


def crab(pen: Pen, rng: Rng) -> None:
    """Draw it from above: a broad carapace, stalked eyes, eight bent legs and two pincers."""
    coat, u = mix_coat(rng, RED, RED, BROWN, BLUE, GREEN, VIOLET), rng.uniform
    wide, deep = u(0.50, 0.64), u(0.34, 0.44)
    for half in pen.both():
        for k in range(4):
            knee = (wide + 0.32 - 0.07 * k + u(-0.04, 0.04), -0.20 + 0.22 * k + u(-0.05, 0.05))
            foot = (knee[0] + 0.14 - 0.10 * k, knee[1] + u(0.22, 0.34))
            leg = [(wide * 0.7, 0.02 + 0.09 * k), knee, foot]
            half.stroke(leg, (0.12, 0.10, 0.02), coat.base, rise=110)
        elbow = (wide + u(0.05, 0.22), -0.35 + u(-0.08, 0.08))
        half.stroke([(wide * 0.7, -0.1), elbow], (0.13, 0.15), coat.base, rise=130)
        size = u(0.85, 1.3)
        _pincer(half.moved(*elbow, turn=u(-0.9, 0.0), scale=(size, size)), coat)
        half.stroke([(0.13, -deep * 0.8), (0.16, -deep - 0.14)], (0.06, 0.05), coat.dark)
        half.oval(0.16, -deep - 0.16, 0.065, 0.065, INK, rise=180)
    rim = [
        (0, -deep), (wide * 0.5, -deep * 0.95), (wide, -deep * 0.35), (wide * 0.9, deep * 0.2),
        (wide * 0.5, deep * 0.95), (0, deep),
    ]  # fmt: skip
    carapace = smooth(mirrored(rim), closed=True)
    pen.poly(carapace, coat.base, rise=210)
    with pen.within(carapace) as inside:
        for _ in range(rng.integers(10, 40)):
            radius, tone = u(0.012, 0.035), coat.pale if rng.random() < 0.7 else coat.dark
            inside.oval(u(-wide, wide), u(-deep, deep), radius, radius, tone)
        for half in inside.both():
            groove = [(0, 0.06), (0.07, 0.05), (0.12, -0.08), (0.2, -0.14)]
            half.stroke(groove, (0.03, 0.015), coat.dark, rise=150)
            half.stroke([(0.08, 0.07), (0.14, 0.22)], (0.025, 0.015), coat.dark, rise=150)


def _pincer(pen: Pen, coat: Coat) -> None:
    """Draw a claw, its two fingers open, upwards from its wrist at the origin."""
    pen.stroke([(0.06, -0.28), (0.21, -0.42), (0.10, -0.62)], (0.16, 0.13, 0.03), coat.base)
    pen.stroke([(-0.06, -0.28), (-0.17, -0.42), (-0.04, -0.58)], (0.12, 0.09, 0.02), coat.dark)
    palm = [(0, 0.02), (0.15, -0.15), (0.13, -0.35), (-0.02, -0.38), (-0.13, -0.2)]
    pen.shape(palm, coat.base, rise=190)


def fish(pen: Pen, rng: Rng) -> None:
    """Draw it from the side, facing right: fins, a forked tail, scales, bars or a stripe."""
    coat, u = mix_coat(rng, RED, GOLD, GREEN, BLUE, BLUE, VIOLET), rng.uniform
    tall, beat = u(0.34, 0.54), u(-0.12, 0.12)
    tone = coat.accent if rng.random() < 0.5 else coat.dark
    _fins(pen, rng, tone, tall, beat)
    flank = [
        (0.92, 0.03), (0.70, -tall * 0.55), (0.25, -tall), (-0.25, -tall * 0.65),
        (-0.62, -0.09 + beat / 2), (-0.62, 0.09 + beat / 2), (-0.25, tall * 0.65),
        (0.25, tall * 0.95), (0.70, tall * 0.5),
    ]  # fmt: skip
    body = smooth(flank, closed=True)
    pen.poly(body, coat.base, rise=190)
    with pen.within(body) as inside:
        _mark_fish(inside, rng, coat, tall)
    gill = [(0.44, -tall * 0.5), (0.36, 0), (0.44, tall * 0.55)]
    pen.stroke(gill, (0.02, 0.03), coat.dark, rise=130)
    breast_fin = [(0.30, 0.08), (0.05, 0.02 + u(-0.1, 0.1)), (0.02, 0.22), (0.2, 0.2)]
    pen.shape(breast_fin, tone, rise=220)
    pen.stroke([(0.92, 0.08), (0.80, 0.10)], (0.02, 0.02), INK, rise=0)
    draw_eye(pen, 0.64, -tall * 0.22, u(0.07, 0.1), coat.pale)


def _fins(pen: Pen, rng: Rng, tone: Colour, tall: float, beat: float) -> None:
    """Draw what the body of a fish overlaps: tail, back fin and belly fin."""
    fork, crest = rng.uniform(0.25, 0.45), rng.uniform(0.15, 0.32)
    tail = [(-0.55, beat / 2), (-0.98, beat - fork), (-0.80, beat), (-0.98, beat + fork)]
    back = [
        (0.30, -tall * 0.75), (0.05, -tall - crest), (-0.35, -tall * 0.75 - crest * 0.7),
        (-0.45, -tall * 0.3), (-0.1, -tall * 0.5),
    ]  # fmt: skip
    for fin in (tail, back, [(0.05, tall * 0.7), (-0.18, tall + 0.2), (-0.32, tall * 0.5)]):
        pen.shape(fin, tone, rise=90)


def _mark_fish(pen: Pen, rng: Rng, coat: Coat, tall: float) -> None:
    """Give a fish its scales and pale belly, then bars, spots or one stripe."""
    for row, column in np.ndindex(11, 9):
        scale = pen.moved(0.35 - 0.12 * column + 0.06 * (row % 2), (row - 5) * 0.1)
        arc = [(0, 0.05), (-0.05, 0), (0, -0.05)]
        scale.stroke(arc, (0.015, 0.015), darker(coat.base, 0.75), rise=150, rim=0)
    pen.shape([(0.9, 0.2), (0.2, tall * 0.45), (-0.6, 0.1), (0.2, 1.2)], coat.pale, rise=0, rim=0)
    marks = rng.integers(3)
    for k in range(rng.integers(2, 5)):
        x = 0.25 - 0.22 * k
        if marks == 0:
            pen.stroke([(x, -0.6), (x + 0.06, 0), (x, 0.6)], (0.1, 0.09), coat.accent, rise=0)
        if marks == 1:
            pen.oval(x, rng.uniform(-tall, 0) * 0.6, 0.06, 0.06, coat.dark)
    if marks == 2:
        pen.stroke([(0.6, -0.05), (0, -0.1), (-0.6, 0)], (0.08, 0.1), coat.dark, rise=0)


def jellyfish(pen: Pen, rng: Rng) -> None:
    """Draw it from the side: a see-through, scalloped bell over frills and long threads."""
    coat, u = mix_coat(rng, RED, BROWN, GOLD, BLUE, VIOLET, VIOLET), rng.uniform
    wide, top, hem = u(0.46, 0.68), u(0.70, 0.95), u(-0.12, 0.05)
    sway, glass = u(-0.35, 0.35), int(u(150, 225))
    pale = (*coat.pale, glass)
    for x in np.linspace(-wide * 0.9, wide * 0.9, int(rng.integers(7, 12))):
        bend = np.pi / 2 + sway + 0.45 * np.sin(u(0, 6.3) + u(6, 13) * np.linspace(0, 1, 16))
        pen.stroke(trail((x, hem), bend, u(0.7, 1.1)), (0.035, 0.014), pale, rise=60, rim=0)
    for x in np.linspace(-wide * 0.4, wide * 0.4, int(rng.integers(3, 6))):
        bend = np.pi / 2 + sway * 0.7 + 0.6 * np.sin(u(0, 6.3) + np.linspace(0, 9, 18))
        frill = trail((x, hem - 0.1), bend, u(0.5, 0.85))
        pen.stroke(frill, (0.15, 0.13, 0.03), (*coat.base, glass), rise=110)
    lobes = int(rng.integers(6, 10))
    across = np.linspace(1, -1, 2 * lobes + 1)
    scallop = hem + np.where(np.arange(2 * lobes + 1) % 2, 0.07, 0.0) + 0.06 * (1 - across**2)
    arch = np.linspace(np.pi, 2 * np.pi, 14)[1:-1]
    dome = hem - (top + hem) * np.abs(np.sin(arch)) ** 0.8
    rim = np.stack([across * wide, scallop], axis=1)
    cap = np.stack([wide * np.cos(arch), dome], axis=1)
    bell = smooth(np.concatenate([rim, cap]), closed=True)
    pen.poly(bell, (*coat.base, glass), rise=200)
    with pen.within(bell) as inside:
        inside.oval(0, hem + 0.05, wide * 0.8, 0.14, (*coat.dark, glass), rise=150)
        for x in np.linspace(-1, 1, lobes):
            rib = [(x * 0.12, -top), (x * wide * 0.8, (hem - top) / 2), (x * wide, hem)]
            inside.stroke(rib, (0.012, 0.035), pale, rise=220, rim=0)
        for x in (-0.48, -0.16, 0.16, 0.48):
            inside.oval(x * wide, hem - top * 0.4, 0.075, 0.1, pale)
            inside.oval(x * wide, hem - top * 0.4, 0.045, 0.07, (*coat.dark, glass))


def octopus(pen: Pen, rng: Rng) -> None:
    """Draw a bulbous mantle, two eyes and eight tapering arms that curl and carry suckers."""
    coat, u = mix_coat(rng, RED, BROWN, GOLD, VIOLET, BLUE), rng.uniform
    spread, wide = u(1.5, 2.1), u(0.30, 0.40)
    for k in rng.permutation(8):
        _arm(pen, rng, coat, np.pi / 2 + spread * (k - 3.5) / 3.5)
    top = pen.moved(0, 0.05, turn=u(-0.25, 0.25))
    bulb = [
        (0, -0.98), (wide, -0.80), (wide * 1.1, -0.50), (0.22, -0.15), (0.30, 0.06), (0, 0.16),
    ]  # fmt: skip
    mantle = smooth(mirrored(bulb), closed=True)
    top.poly(mantle, coat.base, rise=220)
    with top.within(mantle) as inside:
        for _ in range(rng.integers(6, 26)):
            radius, tone = u(0.02, 0.06), coat.dark if rng.random() < 0.7 else coat.pale
            inside.oval(u(-wide, wide), u(-0.95, -0.2), radius, radius, tone)
    for half in top.both():
        half.oval(0.19, -0.10, 0.10, 0.10, coat.base, rise=240, rim=0.014)
        half.oval(0.20, -0.10, 0.065, 0.065, coat.pale)
        half.oval(0.20, -0.10, 0.055, 0.024, INK)


def _arm(pen: Pen, rng: Rng, coat: Coat, aim: float) -> None:
    """Draw an arm that leaves in direction `aim` (radians) and curls more towards its tip."""
    u, along = rng.uniform, np.linspace(0, 1, 16)
    curl = rng.choice((-1, 1)) * u(0.8, 2.6)
    bend = aim + 0.5 * np.sin(u(0, 6.3) + 4 * along) * along + curl * along**2
    start = (0.22 * np.cos(aim), 0.10 + 0.16 * np.sin(aim))
    path = trail(start, bend, u(0.85, 1.05))
    pen.stroke(path, (0.22, 0.15, 0.09, 0.03), coat.base, rise=int(u(90, 140)))
    inner = np.stack([-np.sin(bend), np.cos(bend)], axis=1) * np.sign(curl)
    for k in range(3, 15):
        x, y = path[k] + inner[k] * (0.055 - 0.003 * k)
        radius = 0.034 - 0.0016 * k
        pen.oval(x, y, radius, radius, coat.pale, rise=170, rim=0.008)


def starfish(pen: Pen, rng: Rng) -> None:
    """Draw five, seldom six, knobbly arms with rounded ends and a row of beads down each."""
    coat, u = mix_coat(rng, RED, RED, GOLD, VIOLET, BLUE, BROWN), rng.uniform
    count = 6 if rng.random() < 0.15 else 5
    waist, blunt = u(0.30, 0.44), u(0.10, 0.17)
    angles = np.arange(count) * 2 * np.pi / count - np.pi / 2 + u(-0.12, 0.12, count)
    arms = list(zip(angles, u(0.82, 1.02, count), u(-0.22, 0.22, count), strict=True))
    outline = []
    for aim, reach, bend in arms:
        for r, off in ((0.62, -0.20), (0.92, -blunt), (1.0, 0), (0.92, blunt), (0.62, 0.20)):
            turn = aim + off / r + bend * r
            outline.append((reach * r * np.cos(turn), reach * r * np.sin(turn)))
        gap = aim + np.pi / count
        outline.append((waist * np.cos(gap), waist * np.sin(gap)))
    skin = smooth(outline, closed=True)
    pen.poly(skin, coat.base, rise=150, rim=0.025)
    with pen.within(skin) as inside:
        for _ in range(rng.integers(60, 160)):
            radius, tone = u(0.012, 0.026), coat.dark if rng.random() < 0.5 else coat.pale
            inside.oval(u(-1, 1), u(-1, 1), radius, radius, tone, rise=190)
        for aim, reach, bend in arms:
            out = np.linspace(0.1, 0.92, 9)
            turned = aim + bend * out
            ridge = np.stack([np.cos(turned), np.sin(turned)], axis=1) * (reach * out)[:, None]
            inside.stroke(ridge, (0.22, 0.16, 0.07), darker(coat.base, 1.12), rise=190, rim=0)
            for k, (x, y) in enumerate(ridge):
                radius = 0.045 - 0.003 * k
                inside.oval(x, y, radius, radius, coat.pale, rise=235, rim=0.01)


def turtle(pen: Pen, rng: Rng) -> None:
    """Draw it from above: a shell of scutes, a blunt head, four flippers and a tail."""
    coat, u = mix_coat(rng, GREEN, GREEN, BROWN, GOLD, BLUE, RED), rng.uniform
    skin = hsv(u(0.08, 0.45), u(0.2, 0.55), u(0.45, 0.8))
    wide, deep, paddle = u(0.46, 0.58), u(0.56, 0.66), u(0.30, 0.62)
    for half in pen.both():
        _flipper(half.moved(wide * 0.68, -0.38, turn=u(-0.7, 0.35)), rng, skin, paddle)
        _flipper(half.moved(wide * 0.68, 0.45, turn=u(0.5, 1.2)), rng, skin, 0.34)
    pen.stroke([(0, deep), (u(-0.08, 0.08), deep + 0.2)], (0.12, 0.02), skin)
    neck = pen.moved(0, -deep + 0.08, turn=u(-0.35, 0.35))
    head = [(0, -0.42), (0.11, -0.36), (0.15, -0.2), (0.11, 0), (0, 0.05)]
    neck.shape(mirrored(head), skin, rise=120)
    for half in neck.both():
        half.oval(0.10, -0.27, 0.035, 0.035, INK, rise=160)
    rim = [
        (0, -deep),
        (wide * 0.7, -deep * 0.8),
        (wide, -0.05),
        (wide * 0.8, deep * 0.6),
        (0, deep),
    ]
    shell = smooth(mirrored(rim), closed=True)
    pen.poly(shell, coat.dark, rise=160, rim=0.03)
    with pen.within(shell * 0.87) as inside:
        for k in range(5):
            row = inside.moved(0, (-0.92 + 0.46 * k) * deep)
            for half in row.both():
                side = [(0.14, -0.02), (0.24, 0.13), (0.14, 0.28), (0.62, 0.32), (0.62, -0.04)]
                half.poly(side, coat.base, rise=200, rim=0.03)
                half.oval(0.36, 0.13, 0.06, 0.07, coat.pale if u() < 0.8 else coat.accent)
        for k in range(6):
            row = inside.moved(0, (-1.15 + 0.46 * k) * deep)
            plate = [(0.10, 0), (0.19, 0.14), (0.10, 0.28)]
            row.poly(mirrored(plate), coat.base, rise=225, rim=0.03)
            row.oval(0, 0.14, 0.07, 0.07, coat.pale)


def _flipper(pen: Pen, rng: Rng, skin: Colour, long: float) -> None:
    """Draw a spotted flipper that points right from its shoulder at the origin."""
    blade = [
        (-0.05, -0.12), (long * 0.6, -0.16), (long, 0.02), (long * 0.9, 0.12), (long * 0.5, 0.08),
        (-0.05, 0.12),
    ]  # fmt: skip
    pen.shape(blade, skin, rise=100)
    for _ in range(9):
        x, y = rng.uniform(0.08, long * 0.8), rng.uniform(-0.09, 0.06)
        pen.oval(x, y, 0.03, 0.03, darker(skin, 0.75), rise=120)
