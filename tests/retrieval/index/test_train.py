"""Tests of quantizer training in one or two levels on a sample chosen by image_id."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.core.schemas import Metric
from retrieval.index import train, two_level_kmeans
from retrieval.index.faiss_io import deserialize_index, read_centroids
from retrieval.index.kmeans import assignment_metric
from retrieval.index.sampling import below_fraction, draw_sample, hash_image_ids, sampling_fraction
from retrieval.index.train import train_index
from retrieval.index.two_level_kmeans import apportion_lists
from retrieval.index.workers import InProcessWorkers
from retrieval.storage import transaction
from retrieval.storage.local import open_folder
from tests.retrieval.index.test_kmeans import clouds, loss
from tests.retrieval.sample_vectors import METRICS, make_plan, make_store, quick

every_metric = pytest.mark.parametrize("metric", METRICS)


def centroids(root, store, metric: Metric, nlist: int, sample: int) -> NDArray[np.float32]:
    """Train an index of a store."""
    folder = open_folder(str(root))
    transaction.claim_output(folder, "index", {})
    plan = make_plan(sample, store.dtype, nlist)
    trained = train_index(folder, store, plan, metric, 0, InProcessWorkers())
    assert trained.plan == plan
    return read_centroids(deserialize_index(trained.faiss))


# --- samples ------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 2**64))
def test_sample_size_is_about_as_requested(count, rows, seed):
    hashes = hash_image_ids([f"{number}.jpg" for number in range(2000)], seed, "training")
    share = sampling_fraction(count, rows)
    assert share == min(1, count / rows)
    found = below_fraction(hashes, share).sum()
    assert abs(found - 2000 * share) <= 6 * np.sqrt(2000 * share) + 1


def test_sample_depends_on_image_ids_alone(tmp_path):
    vectors = clouds(300).astype(np.float16)
    one = make_store(tmp_path / "one", vectors, chunk_rows=7)
    other = make_store(tmp_path / "other", vectors, chunk_rows=100)
    for count in (5, 50, 300, 500):
        for left, right in zip(
            *(draw_sample(store, count, 3, "curve") for store in (one, other)), strict=True
        ):
            np.testing.assert_array_equal(left, right)
    assert len(draw_sample(one, 300, 3, "curve")[1]) == 300


@pytest.mark.parametrize("seed", range(20))
def test_even_the_smallest_sample_holds_one(tmp_path, seed):
    store = make_store(tmp_path, clouds(40).astype(np.float16), chunk_rows=7)
    _, rows = draw_sample(store, 1, seed, "curve")
    assert len(rows) >= 1


# --- one level ----------------------------------------------------------------------------------


@every_metric
def test_centroids_do_not_depend_on_the_chunks(tmp_path, metric, monkeypatch):
    """Slices come from the store's chunks; what they hold in all is the same."""
    vectors = clouds(400)
    found = []
    for name, chunk_rows, size in (("a", 400, 1 << 15), ("b", 50, 100)):
        monkeypatch.setattr(train, "_SLICE", size)
        store = make_store(tmp_path / name, vectors, chunk_rows=chunk_rows)
        found.append(centroids(tmp_path / f"index {name}", store, metric, 12, 400))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


def test_more_lists_than_rows_leave_lists_empty(tmp_path):
    store = make_store(tmp_path / "store", clouds(5), chunk_rows=3)
    found = centroids(tmp_path / "index", store, "l2", 12, 5)
    assert len(found) == 12
    np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(clouds(5), axis=0))


# --- two levels ---------------------------------------------------------------------------------


@quick
@given(st.lists(st.integers(0, 1000), min_size=1).filter(any), st.data())
def test_lists_are_shared_by_rows(rows, data):
    counts = np.array(rows)
    nlist = data.draw(st.integers(1, int(counts.sum())))
    lists = apportion_lists(counts, nlist)
    assert lists.sum() == nlist
    assert (lists >= 0).all()
    assert (lists <= counts).all()
    exact = counts * nlist / counts.sum()
    assert (lists >= np.floor(np.minimum(exact, counts)) - 1e-9).all()


@every_metric
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_two_levels_are_nearly_as_good_as_one(tmp_path, metric, dtype, monkeypatch):
    vectors = clouds(2000, dtype=dtype)
    store = make_store(tmp_path / "store", vectors, chunk_rows=300)
    flat = centroids(tmp_path / "flat", store, metric, 60, 2000)
    monkeypatch.setattr(train, "FLAT_LISTS", 10)
    monkeypatch.setattr(train, "_SLICE", 500)
    monkeypatch.setattr(two_level_kmeans, "COARSE_ROWS", 64)
    cells = centroids(tmp_path / "cells", store, metric, 60, 2000)
    assert cells.shape == flat.shape
    start = np.resize(vectors[:60].astype(np.float32), flat.shape)
    far, near, of_chance = (loss(vectors, c, metric) for c in (cells, flat, start))
    if assignment_metric(metric) == "ip":  # of centroids of unit length
        lengths = np.linalg.norm(start, axis=1, keepdims=True)
        of_chance = loss(vectors, start / lengths, metric)
    assert far - near < 0.35 * (of_chance - near)
    again = centroids(tmp_path / "again", store, metric, 60, 2000)
    np.testing.assert_array_equal(again, cells)


def test_more_lists_than_rows_leave_lists_empty_in_two_levels_too(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "FLAT_LISTS", 4)
    store = make_store(tmp_path / "store", clouds(30), chunk_rows=10)
    found = centroids(tmp_path / "index", store, "l2", 40, 30)
    assert len(found) == 40
    np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(clouds(30), axis=0))


def test_interrupted_two_level_training_ends_the_same(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", clouds(600), chunk_rows=100)
    monkeypatch.setattr(train, "FLAT_LISTS", 4)
    monkeypatch.setattr(train, "_SLICE", 200)
    whole = centroids(tmp_path / "whole", store, "cosine", 20, 600)
    folder = open_folder(str(tmp_path / "index"))
    transaction.claim_output(folder, "index", {})
    two_level_kmeans.write_sample_slice(folder, 0, clouds(3))  # of a run that sampled otherwise
    np.testing.assert_array_equal(centroids(tmp_path / "index", store, "cosine", 20, 600), whole)
