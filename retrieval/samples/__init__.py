"""A labelled set of pictures, drawn offline, for `make demo` and for trying things out.

Twelve species of creatures stand in varied poses, colours, places and lights, as in a small
natural-history collection. Colours, backdrops and clutter are shared by all species, so neither
equal pixels nor colour histograms find the species: a model has to learn build and markings.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from retrieval.core.errors import UsageError
from retrieval.samples.pen import Pen, Rng
from retrieval.samples.scenery import FRAMES, backdrop, expose, lay, scatter, set_apart
from retrieval.samples.species import DRAWERS

__all__ = ["HELD_OUT", "SPECIES", "draw", "write_samples"]

SPECIES: tuple[str, ...] = tuple(sorted(DRAWERS))
"""The twelve labels, in alphabetical order."""

HELD_OUT: tuple[str, ...] = ("octopus", "owl", "turtle")
"""Species the demo never trains on but asks for: how far an embedding carries to unseen ones."""

_OVERSAMPLING = 3
"""Pixels drawn per pixel kept, a side; Pillow draws without anti-aliasing."""


def draw(species: str, seed: int, size: int = 192) -> Image.Image:
    """Draw one picture of `species`: RGB, uint8, the same pixels for the same arguments.

    `size` is a nominal side in pixels (at least 32); the seed chooses one of the shapes in
    `scenery.FRAMES`, so that 192 gives 192x192, 192x144, 160x208 or 144x192. `seed` is 0 or more.
    """
    if species not in DRAWERS:
        raise UsageError(f"no species is named {species!r}; there are {', '.join(SPECIES)}")
    rng = np.random.default_rng((seed, SPECIES.index(species)))
    width, height = (round(size * part) for part in FRAMES[rng.integers(len(FRAMES))])
    spread = (width / min(width, height), height / min(width, height))
    aim = rng.uniform(-2.6, -0.6)
    sun = (float(np.cos(aim)), float(np.sin(aim)))
    litter, creature = _pen(width, height), _pen(width, height)
    paint, turn = DRAWERS[species]
    paint(_pose(creature, rng, spread, turn), rng)
    scatter(litter, rng, int(rng.integers(1, 9)), spread)
    picture = set_apart(backdrop(rng, width, height), creature)
    picture = lay(picture, litter, rng, sun, lift=0.012)
    picture = lay(picture, creature, rng, sun, lift=rng.uniform(0.01, 0.05))
    if rng.random() < 0.3:
        # Something in front, at the margin: whole outlines are not to be relied upon.
        front = _pen(width, height)
        x, y = rng.uniform(-1, 1), rng.choice((-0.95, 0.95))
        scatter(front.moved(x, y), rng, int(rng.integers(1, 3)), (0.3, 0.1))
        picture = lay(picture, front, rng, sun, lift=0.03)
    return expose(picture, rng)


def _pen(width: int, height: int) -> Pen:
    """Give a pen on empty layers whose unit is half the shorter side, from the middle."""
    full = (width * _OVERSAMPLING, height * _OVERSAMPLING)
    unit = min(full) / 2
    return Pen(Image.new("RGBA", full), Image.new("L", full), np.eye(2) * unit, np.array(full) / 2)


def _pose(pen: Pen, rng: Rng, spread: tuple[float, float], turn: float) -> Pen:
    """Place the creature: where it stands, how large, turned, mirrored and seen aslant."""
    size = rng.uniform(0.76, 1.0)
    slack = np.maximum(np.asarray(spread) - size, 0.08) * 0.5
    x, y = rng.uniform(-slack, slack)
    flip = size * rng.choice((-1.0, 1.0))
    placed = pen.moved(x, y, turn=rng.uniform(-0.3, 0.3), scale=(1, rng.uniform(0.8, 1)))
    return placed.moved(turn=rng.uniform(-turn, turn), scale=(flip, size))


def write_samples(
    root: str | os.PathLike[str], *, gallery: int = 600, queries: int = 60, seed: int = 0
) -> None:
    """Write a gallery, queries and their labels below `root`, equally many of each species.

    gallery/<species>/<species>_0001.jpg and so on; queries/q0001.jpg and so on, shuffled, so that
    neither name nor order gives a species away; labels.csv with the columns split, image_id, label.
    The same arguments give the same bytes, under one version of Pillow. A complete set is left as
    it is, a half-written one is drawn again, and one of other arguments is refused, because what
    it left behind would stand in the gallery without a label.

    labels.csv marks a complete set, so it takes its name last; until then the same table lies
    beside it as labels.csv.partial and says what is being drawn.
    """
    for name, count in (("gallery", gallery), ("queries", queries)):
        if count < 0 or count % len(SPECIES):
            raise UsageError(f"{name} is {count}; give a multiple of {len(SPECIES)}, the species")
    plan = _plan(gallery, queries, seed)
    table = _labels(plan)
    folder = Path(root)
    labels, partial = folder / "labels.csv", folder / "labels.csv.partial"
    for found in (labels, partial):
        # A beginning of the same table is what a stopped write leaves.
        if found.exists() and not table.startswith(found.read_bytes()):
            raise UsageError(f"{folder} holds other samples; remove it or specify another folder")
    if labels.exists() and labels.read_bytes() == table:
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(table)
    for split, image_id, species, number in plan:
        path = folder / split / image_id
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(species, number).save(path, format="JPEG", quality=90)
    os.replace(partial, labels)


def _labels(plan: list[tuple[str, str, str, int]]) -> bytes:
    """Give labels.csv as UTF-8: split, image_id, label, a line a picture."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("split", "image_id", "label"))
    rows.writerows((split, image_id, species) for split, image_id, species, _ in plan)
    return text.getvalue().encode()


def _plan(gallery: int, queries: int, seed: int) -> list[tuple[str, str, str, int]]:
    """List split, image_id, species and the seed of each picture, in the order of labels.csv."""
    first = seed << 32  # No two pictures of one set, nor of two seeds, share a seed of their own.
    each = gallery // len(SPECIES)
    plan = [
        ("gallery", f"{species}/{species}_{k + 1:04d}.jpg", species, first + k)
        for species in SPECIES
        for k in range(each)
    ]
    asked = np.repeat(np.arange(len(SPECIES)), queries // len(SPECIES))
    np.random.default_rng(seed).shuffle(asked)
    plan += [
        ("queries", f"q{k + 1:04d}.jpg", SPECIES[which], first + each + k)
        for k, which in enumerate(asked)
    ]
    return plan
