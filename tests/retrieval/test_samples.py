"""The drawn sample set: the same everywhere, complete or redrawn, and not solved by colour."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from retrieval.core.errors import UsageError
from retrieval.samples import HELD_OUT, SPECIES, draw, write_samples
from retrieval.samples.pen import Pen
from retrieval.samples.species import DRAWERS


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a set of 48 + 24 pictures once; who changes it takes a set of its own."""
    root = tmp_path_factory.mktemp("samples")
    write_samples(root, gallery=48, queries=24)
    return root


def files(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def labels(root: Path) -> list[dict[str, str]]:
    with (root / "labels.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_species_are_twelve_and_three_are_held_out() -> None:
    assert len(SPECIES) == 12
    assert list(SPECIES) == sorted(set(SPECIES))
    assert len(HELD_OUT) == 3
    assert set(HELD_OUT) < set(SPECIES)


@pytest.mark.parametrize("species", SPECIES)
def test_a_seed_draws_the_same_pixels_again_and_another_seed_others(species: str) -> None:
    first = draw(species, 3, size=96)
    assert first.mode == "RGB"
    assert first.tobytes() == draw(species, 3, size=96).tobytes()
    assert first.tobytes() != draw(species, 4, size=96).tobytes()


def test_sizes_follow_the_nominal_side() -> None:
    assert {draw("snail", seed, size=192).size for seed in range(16)} == {
        (192, 192),
        (192, 144),
        (160, 208),
        (144, 192),
    }
    assert min(draw("snail", 1, size=32).size) >= 24


@pytest.mark.parametrize("species", SPECIES)
def test_every_creature_fills_its_place_and_stays_within_it(species: str) -> None:
    paint, _ = DRAWERS[species]
    for seed in range(3):
        layers = Image.new("RGBA", (200, 200)), Image.new("L", (200, 200))
        # 72 pixels to the unit: feet and feelers may reach 1.38 units from the middle.
        paint(Pen(*layers, np.eye(2) * 72, np.array([100, 100])), np.random.default_rng(seed))
        drawn = np.asarray(layers[0].getchannel("A")) > 0
        assert 0.05 < drawn.mean() < 0.6
        edges = (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1])
        assert not any(edge.any() for edge in edges)
        assert np.asarray(layers[1])[drawn].any()


def test_unknown_species_is_refused() -> None:
    with pytest.raises(UsageError, match="unicorn"):
        draw("unicorn", 0)


@pytest.mark.parametrize("counts", [(13, 12), (12, 5), (-12, 12)])
def test_counts_that_no_species_can_share_are_refused(
    tmp_path: Path, counts: tuple[int, int]
) -> None:
    with pytest.raises(UsageError, match="multiple of 12"):
        write_samples(tmp_path, gallery=counts[0], queries=counts[1])
    assert not list(tmp_path.iterdir())


def test_files_and_labels_agree(samples: Path) -> None:
    rows = labels(samples)
    listed = {f"{row['split']}/{row['image_id']}" for row in rows}
    assert len(listed) == len(rows)
    assert listed | {"labels.csv"} == set(files(samples))
    assert Counter((row["split"], row["label"]) for row in rows) == {
        **{("gallery", species): 4 for species in SPECIES},
        **{("queries", species): 2 for species in SPECIES},
    }
    for row in rows:
        if row["split"] == "gallery":
            assert row["image_id"].startswith(f"{row['label']}/{row['label']}_0")


def test_queries_are_flat_and_shuffled(samples: Path) -> None:
    queries = [row for row in labels(samples) if row["split"] == "queries"]
    assert [row["image_id"] for row in queries] == [f"q{k:04d}.jpg" for k in range(1, 25)]
    named = [row["label"] for row in queries]
    assert named != sorted(named)


def test_every_file_is_a_jpeg_of_its_own(samples: Path) -> None:
    digests = files(samples)
    assert len(set(digests.values())) == len(digests)
    sizes = set()
    for path in samples.rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.add(image.size)
    assert len(sizes) > 1


def test_a_complete_set_is_left_as_it_is(tmp_path: Path) -> None:
    write_samples(tmp_path, gallery=12, queries=12)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_samples(tmp_path, gallery=12, queries=12)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_half_written_set_is_completed_to_the_same_bytes(tmp_path: Path) -> None:
    write_samples(tmp_path, gallery=12, queries=12)
    whole = files(tmp_path)
    table = (tmp_path / "labels.csv").read_bytes()
    # As a stopped process leaves it: no labels.csv, a file cut short, others not yet there.
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "labels.csv.partial").write_bytes(table[:100])
    cut = tmp_path / "gallery" / "crab" / "crab_0001.jpg"
    cut.write_bytes(cut.read_bytes()[:500])
    for query in (tmp_path / "queries").iterdir():
        query.unlink()
    write_samples(tmp_path, gallery=12, queries=12)
    assert files(tmp_path) == whole


@pytest.mark.parametrize("name", ["labels.csv", "labels.csv.partial"])
def test_a_set_of_other_arguments_is_refused(tmp_path: Path, name: str) -> None:
    write_samples(tmp_path, gallery=12, queries=0)
    (tmp_path / "labels.csv").rename(tmp_path / name)
    before = files(tmp_path)
    with pytest.raises(UsageError, match="other samples"):
        write_samples(tmp_path, gallery=0, queries=12)
    assert files(tmp_path) == before


def test_another_seed_draws_another_set(tmp_path: Path, samples: Path) -> None:
    write_samples(tmp_path, gallery=12, queries=12, seed=1)
    ours, theirs = files(samples), files(tmp_path)
    assert not set(ours.values()) & set(theirs.values())


def top1(root: Path, describe: str) -> float:
    """Share of queries whose nearest picture by a plain descriptor has their label."""
    described: dict[str, list[NDArray[np.float64]]] = {"gallery": [], "queries": []}
    named: dict[str, list[str]] = {"gallery": [], "queries": []}
    for row in labels(root):
        with Image.open(root / row["split"] / row["image_id"]) as image:
            if describe == "pixels":
                vector = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=float)
            else:
                bins = np.asarray(image).reshape(-1, 3) // 64 @ (16, 4, 1)
                vector = np.sqrt(np.bincount(bins, minlength=64) / len(bins))
        described[row["split"]].append(vector.ravel())
        named[row["split"]].append(row["label"])
    gallery = np.stack(described["gallery"])
    nearest = [int(((gallery - query) ** 2).sum(axis=1).argmin()) for query in described["queries"]]
    pairs = zip(nearest, named["queries"], strict=True)
    return float(np.mean([named["gallery"][k] == label for k, label in pairs]))


@pytest.mark.parametrize("describe", ["pixels", "histogram"])
def test_neither_pixels_nor_colours_find_the_species(samples: Path, describe: str) -> None:
    assert top1(samples, describe) < 0.5
