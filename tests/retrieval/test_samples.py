"""Test the drawn sample set: reproducible, restartable, and not solvable by colour."""

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


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 48 gallery and 24 query pictures, shared by tests that only read them."""
    root = tmp_path_factory.mktemp("samples")
    write_samples(root, gallery=48, queries=24)
    return root


def file_digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def read_labels(root: Path) -> list[dict[str, str]]:
    with (root / "labels.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_twelve_species_of_which_three_are_held_out() -> None:
    assert len(SPECIES) == 12
    assert list(SPECIES) == sorted(set(SPECIES))
    assert len(HELD_OUT) == 3
    assert set(HELD_OUT) < set(SPECIES)


@pytest.mark.parametrize("species", SPECIES)
def test_same_seed_gives_same_pixels_and_other_seed_other_pixels(species: str) -> None:
    first = draw(species, 3, size=96)
    assert first.mode == "RGB"
    assert first.tobytes() == draw(species, 3, size=96).tobytes()
    assert first.tobytes() != draw(species, 4, size=96).tobytes()


def test_sizes_are_multiples_of_the_nominal_side() -> None:
    assert {draw("snail", seed, size=192).size for seed in range(16)} == {
        (192, 192),
        (192, 144),
        (160, 208),
        (144, 192),
    }
    assert min(draw("snail", 1, size=32).size) >= 24


def test_unknown_species_is_refused() -> None:
    with pytest.raises(UsageError, match="unicorn"):
        draw("unicorn", 0)


@pytest.mark.parametrize("counts", [(13, 12), (12, 5), (-12, 12)])
def test_counts_not_divisible_by_species_are_refused(
    tmp_path: Path, counts: tuple[int, int]
) -> None:
    with pytest.raises(UsageError, match="multiple of 12"):
        write_samples(tmp_path, gallery=counts[0], queries=counts[1])
    assert not list(tmp_path.iterdir())


def test_labels_list_exactly_the_files(samples: Path) -> None:
    rows = read_labels(samples)
    listed = {f"{row['split']}/{row['image_id']}" for row in rows}
    assert len(listed) == len(rows)
    assert listed | {"labels.csv"} == set(file_digests(samples))
    assert Counter((row["split"], row["label"]) for row in rows) == {
        **{("gallery", species): 4 for species in SPECIES},
        **{("queries", species): 2 for species in SPECIES},
    }
    for row in rows:
        if row["split"] == "gallery":
            assert row["image_id"].startswith(f"{row['label']}/{row['label']}_0")


def test_queries_are_shuffled(samples: Path) -> None:
    queries = [row for row in read_labels(samples) if row["split"] == "queries"]
    assert [row["image_id"] for row in queries] == [f"q{k:04d}.jpg" for k in range(1, 25)]
    query_labels = [row["label"] for row in queries]
    assert query_labels != sorted(query_labels)


def test_files_are_distinct_jpegs(samples: Path) -> None:
    digests = file_digests(samples)
    assert len(set(digests.values())) == len(digests)
    sizes = set()
    for path in samples.rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.add(image.size)
    assert len(sizes) > 1


def test_complete_set_is_not_rewritten(tmp_path: Path) -> None:
    write_samples(tmp_path, gallery=12, queries=12)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_samples(tmp_path, gallery=12, queries=12)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_interrupted_set_is_completed_with_the_same_bytes(tmp_path: Path) -> None:
    write_samples(tmp_path, gallery=12, queries=12)
    complete = file_digests(tmp_path)
    table = (tmp_path / "labels.csv").read_bytes()
    # as a killed process leaves it: no labels.csv, one file cut short, others missing
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "labels.csv.partial").write_bytes(table[:100])
    truncated = tmp_path / "gallery" / "crab" / "crab_0001.jpg"
    truncated.write_bytes(truncated.read_bytes()[:500])
    for query in (tmp_path / "queries").iterdir():
        query.unlink()
    write_samples(tmp_path, gallery=12, queries=12)
    assert file_digests(tmp_path) == complete


@pytest.mark.parametrize("name", ["labels.csv", "labels.csv.partial"])
def test_folder_with_another_set_is_refused(tmp_path: Path, name: str) -> None:
    write_samples(tmp_path, gallery=12, queries=0)
    (tmp_path / "labels.csv").rename(tmp_path / name)
    before = file_digests(tmp_path)
    with pytest.raises(UsageError, match="other samples"):
        write_samples(tmp_path, gallery=0, queries=12)
    assert file_digests(tmp_path) == before


def test_other_seed_gives_other_files(tmp_path: Path, samples: Path) -> None:
    write_samples(tmp_path, gallery=12, queries=12, seed=1)
    first, second = file_digests(samples), file_digests(tmp_path)
    assert not set(first.values()) & set(second.values())


def top1(root: Path, describe: str) -> float:
    """Return the share of queries whose nearest picture by a plain descriptor has their label."""
    vectors: dict[str, list[NDArray[np.float64]]] = {"gallery": [], "queries": []}
    labels: dict[str, list[str]] = {"gallery": [], "queries": []}
    for row in read_labels(root):
        with Image.open(root / row["split"] / row["image_id"]) as image:
            if describe == "pixels":
                vector = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=float)
            else:
                bins = np.asarray(image).reshape(-1, 3) // 64 @ (16, 4, 1)
                vector = np.sqrt(np.bincount(bins, minlength=64) / len(bins))
        vectors[row["split"]].append(vector.ravel())
        labels[row["split"]].append(row["label"])
    gallery = np.stack(vectors["gallery"])
    nearest = [int(((gallery - query) ** 2).sum(axis=1).argmin()) for query in vectors["queries"]]
    pairs = zip(nearest, labels["queries"], strict=True)
    return float(np.mean([labels["gallery"][k] == label for k, label in pairs]))


@pytest.mark.parametrize("describe", ["pixels", "histogram"])
def test_pixels_and_colour_histograms_do_not_identify_species(samples: Path, describe: str) -> None:
    assert top1(samples, describe) < 0.5
