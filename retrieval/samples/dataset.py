"""Write the drawn animals as a gallery, queries and a file of labels."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np

from retrieval.core.errors import UsageError
from retrieval.samples.animals import SPECIES, draw

HELD_OUT = ("octopus", "owl", "turtle")
"""Species that the demo asks for without having trained on them."""


def write_samples(
    root: str | os.PathLike[str], *, gallery: int = 600, queries: int = 60, seed: int = 0
) -> None:
    """Write pictures and labels below `root`, equally many of each species.

    The files are gallery/SPECIES/SPECIES_0001.jpg, queries/q0001.jpg in shuffled order, and
    labels.csv with the columns split, image_id, label. The same arguments give the same bytes under
    the same version of Pillow. labels.csv is put last and marks a complete set; until then the same
    table lies beside it as labels.csv.partial, so an interrupted call is completed by the next one.

    Raises:
        UsageError: A count is no multiple of the number of species, or `root` holds another set.
    """
    for name, count in (("gallery", gallery), ("queries", queries)):
        if count < 0 or count % len(SPECIES):
            raise UsageError(f"{name} is {count}; give a multiple of {len(SPECIES)}, the species")
    rows = _rows(gallery, queries, seed)
    table = _labels(rows)
    folder = Path(root)
    labels, partial = folder / "labels.csv", folder / "labels.csv.partial"
    for path in (labels, partial):
        if path.exists() and not table.startswith(path.read_bytes()):
            raise UsageError(f"{folder} holds other samples; remove it or name another folder")
    if labels.exists() and labels.read_bytes() == table:
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(table)
    for split, image_id, species, picture_seed in rows:
        path = folder / split / image_id
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(species, picture_seed).save(path, format="JPEG", quality=90)
    os.replace(partial, labels)


def _rows(gallery: int, queries: int, seed: int) -> list[tuple[str, str, str, int]]:
    """List split, image_id, species and seed of each picture, in the order of labels.csv."""
    first_seed = seed << 32  # so that no two pictures of any two sets share a seed
    per_species = gallery // len(SPECIES)
    rows = [
        ("gallery", f"{species}/{species}_{k + 1:04d}.jpg", species, first_seed + k)
        for species in SPECIES
        for k in range(per_species)
    ]
    order = np.repeat(np.arange(len(SPECIES)), queries // len(SPECIES))
    np.random.default_rng(seed).shuffle(order)
    rows += [
        ("queries", f"q{k + 1:04d}.jpg", SPECIES[number], first_seed + per_species + k)
        for k, number in enumerate(order)
    ]
    return rows


def _labels(rows: list[tuple[str, str, str, int]]) -> bytes:
    """Return labels.csv as UTF-8."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("split", "image_id", "label"))
    writer.writerows((split, image_id, species) for split, image_id, species, _ in rows)
    return text.getvalue().encode()
