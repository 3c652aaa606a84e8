"""Test the vectors and the comparison at equal recall of the benchmarks of search."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.frontier import Point, fastest_at_recall, frontier, rate_at_recall
from benchmarks.photo_crops import (
    CropSettings,
    VectorsMissing,
    assign_crops,
    crop_boxes,
    crop_vectors,
    embed_crops,
    find_photos,
)
from benchmarks.rivals import RIVALS, SearchData, exact_neighbours, measure, sweep
from benchmarks.search import summarize
from benchmarks.vectors import gallery_and_queries
from retrieval.models.resolve import resolve_bundle

DIGEST = hashlib.sha256(b"a photo").hexdigest()


def test_rate_between_two_points_is_interpolated_on_a_logarithmic_scale() -> None:
    points = [Point(0.9, 1000.0), Point(1.0, 10.0)]
    assert rate_at_recall(points, 0.95) == pytest.approx(100.0)
    assert rate_at_recall(points, 0.925) == pytest.approx(10**2.5)


def test_rate_at_a_measured_recall_is_the_measured_one() -> None:
    points = [Point(0.99, 100.0), Point(0.9, 1000.0), Point(0.95, 400.0)]
    assert [rate_at_recall(points, point.recall) for point in points] == [100.0, 1000.0, 400.0]


def test_rate_outside_the_measured_recalls_is_not_extrapolated() -> None:
    points = [Point(0.93, 700.0), Point(0.97, 300.0)]
    assert rate_at_recall(points, 0.9) == 700.0
    assert rate_at_recall(points, 0.98) is None
    assert rate_at_recall([], 0.9) is None


def test_points_that_another_one_beats_are_not_on_the_frontier() -> None:
    best = [Point(0.9, 1000.0), Point(0.95, 500.0), Point(0.99, 100.0)]
    beaten = [Point(0.9, 400.0), Point(0.94, 499.0), Point(0.95, 100.0)]
    for order in itertools.permutations([*best, *beaten]):
        assert frontier(order) == best


def test_kinds_are_interpolated_apart_and_the_fastest_one_counts() -> None:
    points = {
        "small": [Point(0.9, 1000.0), Point(0.96, 100.0)],
        "large": [Point(0.94, 500.0), Point(0.99, 50.0)],
    }
    assert fastest_at_recall(points, 0.9) == ("small", 1000.0)
    assert fastest_at_recall(points, 0.99) == ("large", 50.0)
    kind, rate = fastest_at_recall(points, 0.95) or ("", 0.0)
    assert (kind, rate) == ("large", rate_at_recall(points["large"], 0.95))
    assert fastest_at_recall(points, 0.999) is None


@pytest.mark.parametrize(
    ("recalls", "enough", "measured"),
    [
        ([0.5, 0.9, 0.95, 0.99], 0.95, 3),  # reached
        ([0.5, 0.9, 0.9001, 0.99], 0.95, 3),  # rises no more
        ([0.5, 0.6, 0.7], 0.95, 3),  # no further settings
    ],
)
def test_sweep_ends_where_recall_is_enough_or_rises_no_more(recalls, enough, measured) -> None:
    settings = [({"nprobe": n}, lambda r=recall: {"recall": r, "rate": 1.0})
                for n, recall in enumerate(recalls)]  # fmt: skip
    points = sweep(settings, enough)
    assert [point["recall"] for point in points] == recalls[:measured]
    assert [point["setting"] for point in points] == [{"nprobe": n} for n in range(measured)]


def test_summary_compares_with_the_fastest_kind_of_faiss_run_by_run() -> None:
    def side(*rates: float) -> dict[str, object]:
        points = [{"recall": 0.9, "rate": rate} for rate in rates]
        variants = [
            {"name": f"kind {number}", "build_seconds": 1.0, "points": [point]}
            for number, point in enumerate(points)
        ]
        return {"variants": variants}

    runs = [
        {"ours": side(100.0), "pq": side(50.0, 80.0), "hnsw": side(40.0), "svs": side(1000.0)},
        {"ours": side(100.0), "pq": side(20.0, 10.0), "hnsw": side(50.0), "svs": side(1000.0)},
        {"ours": side(100.0), "pq": side(20.0, 10.0), "hnsw": side(50.0), "svs": side(1000.0)},
    ]
    summary = summarize(runs, [0.9, 0.99])
    assert summary["queries_a_second"]["0.9"]["pq"] == [20.0, 20.0, 80.0]
    assert summary["times_faster"]["0.9"]["best_faiss"] == [2.0, 1.25, 2.0]
    assert summary["times_faster"]["0.9"]["svs"] == [0.1, 0.1, 0.1]
    assert summary["kinds"]["0.9"]["pq"] == "kind 1"
    assert summary["queries_a_second"]["0.99"] == {}


@pytest.mark.parametrize("name", ["flat", "pq", "rabitq", "panorama", "hnsw"])
def test_kinds_of_faiss_reach_high_recall(name) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(1200, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows, queries = vectors[:1000], vectors[1000:1050]
    data = SearchData(rows, queries, exact_neighbours(rows, queries))
    variants = measure(RIVALS[name], data, [4], 0.95)
    assert variants
    for variant in variants:
        assert max(point["recall"] for point in variant["points"]) >= 0.95, variant["name"]


def test_crops_lie_within_the_photo_and_are_the_same_again() -> None:
    boxes = list(crop_boxes(DIGEST, 200, 90, 60, seed=3))
    assert boxes == list(crop_boxes(DIGEST, 200, 90, 60, seed=3))
    assert len(set(boxes)) > 190
    for top, left, height, width in boxes:
        assert 0 <= top <= top + height <= 90
        assert 0 <= left <= left + width <= 60
        assert 0.1 < height * width / (90 * 60) <= 1


def test_first_crops_do_not_depend_on_their_number() -> None:
    boxes = list(crop_boxes(DIGEST, 20, 90, 60, seed=3))
    assert list(crop_boxes(DIGEST, 5, 90, 60, seed=3)) == boxes[:5]
    assert list(crop_boxes(DIGEST, 20, 90, 60, seed=4)) != boxes


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("photo_count", "rows", "queries"), [(2, 5, 3), (30, 100, 17), (9, 4, 1)])
def test_gallery_and_queries_are_crops_of_different_photos(
    photo_count, rows, queries, seed
) -> None:
    photos = [(f"{number}.jpg", f"{number:064x}") for number in range(photo_count)]
    settings = CropSettings(rows, queries, seed)
    gallery, query_side = assign_crops(photos, settings)
    assert not {path for path, _, _ in gallery} & {path for path, _, _ in query_side}
    assert len(gallery) + len(query_side) == photo_count
    assert (sum(crops for *_, crops in gallery), sum(crops for *_, crops in query_side)) == (
        rows,
        queries,
    )
    assert (gallery, query_side) == assign_crops(photos, settings)


def test_copies_of_a_photo_are_left_out(photos, tmp_path) -> None:
    root = photos("drawn", 6)
    names = [Path(path).name for path, _ in find_photos(str(root))]
    copied = next(root.rglob("*.jpg"))
    shutil.copy(copied, root / "zz-copy.jpg")
    assert [Path(path).name for path, _ in find_photos(str(root))] == names
    assert len(names) == 6
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(copied, alone / "a.jpg")
    shutil.copy(copied, alone / "b.jpg")
    with pytest.raises(VectorsMissing, match="1 different photos"):
        find_photos(str(alone))


def test_embedded_crops_are_unit_vectors_and_the_same_again(photos) -> None:
    photo_paths = find_photos(str(photos("drawn", 10)))
    settings = CropSettings(rows=23, queries=5, image_size=64)
    bundle = resolve_bundle(
        backbone="scratch", weights="random", bundle=None, pooling="avg", normalize=True,
        image_size=settings.image_size, resize="squash", seed=0,
    )  # fmt: skip
    rows, queries = embed_crops(photo_paths, bundle, settings)
    assert (rows.shape, queries.shape) == ((23, bundle.dimension), (5, bundle.dimension))
    assert np.linalg.norm(rows.astype(np.float32), axis=1) == pytest.approx(1, abs=2e-3)
    again = embed_crops(photo_paths, bundle, settings)
    assert again[0].tobytes() == rows.tobytes()
    assert again[1].tobytes() == queries.tobytes()


def test_absent_photos_or_weights_are_named(tmp_path) -> None:
    arguments = Namespace(photos=None, weights=None, rows=10, queries=2, seed=0, dimension=256)
    with pytest.raises(VectorsMissing, match="--photos is not given"):
        crop_vectors(arguments)
    arguments.photos, arguments.weights = str(tmp_path), str(tmp_path / "absent.safetensors")
    with pytest.raises(VectorsMissing, match=r"--weights .*absent.* does not exist"):
        crop_vectors(arguments)


def hdf5_file(distance: str, scale: float = 1.0) -> SimpleNamespace:
    """Return what h5py shows of a file: attributes and arrays by name."""
    generator = np.random.default_rng(0)
    arrays = {"train": scale * generator.normal(size=(20, 8)),
              "test": scale * generator.normal(size=(6, 8))}  # fmt: skip

    class File(SimpleNamespace):
        def __getitem__(self, name: str) -> np.ndarray:
            return arrays[name]

    return File(attrs={"distance": distance}, arrays=arrays)


def test_vectors_compared_by_angle_are_normalised() -> None:
    rows, queries = gallery_and_queries(hdf5_file("angular"), "x.hdf5", 10, 5)
    assert (rows.shape, queries.shape) == ((10, 8), (5, 8))
    assert np.linalg.norm(rows.astype(np.float32), axis=1) == pytest.approx(1, abs=1e-3)


def test_vectors_compared_by_inner_product_keep_their_length() -> None:
    file = hdf5_file("ip")
    rows, _ = gallery_and_queries(file, "x.hdf5", 100, 100)
    assert np.array_equal(rows, file.arrays["train"].astype(np.float32).astype(np.float16))


def test_unsuitable_files_are_refused() -> None:
    with pytest.raises(VectorsMissing, match="for the distance euclidean"):
        gallery_and_queries(hdf5_file("euclidean"), "x.hdf5", 10, 5)
    with pytest.raises(VectorsMissing, match="float16 does not hold"):
        gallery_and_queries(hdf5_file("ip", 1e6), "x.hdf5", 10, 5)
