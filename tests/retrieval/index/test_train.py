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
from tests.retrieval.index.test_kmeans import clustered_points, loss
from tests.retrieval.sample_vectors import METRICS, make_plan, make_store, quick

every_metric = pytest.mark.parametrize("metric", METRICS)


def train_centroids(root, store, metric: Metric, nlist: int, sample: int) -> NDArray[np.float32]:
    """Return the centroids that `train_index` writes for a store."""
    folder = open_folder(str(root))
    transaction.claim_output(folder, "index", {})
    plan = make_plan(sample, store.dtype, nlist)
    trained = train_index(folder, store, plan, metric, 0, InProcessWorkers())
    assert trained.plan == plan
    return read_centroids(deserialize_index(trained.faiss))


# --- samples --------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 2**64))
def test_sample_size_is_close_to_the_requested_size(count, rows, seed):
    hashes = hash_image_ids([f"{number}.jpg" for number in range(2000)], seed, "training")
    fraction = sampling_fraction(count, rows)
    assert fraction == min(1, count / rows)
    selected = below_fraction(hashes, fraction).sum()
    assert abs(selected - 2000 * fraction) <= 6 * np.sqrt(2000 * fraction) + 1


def test_sample_depends_on_image_ids_alone(tmp_path):
    vectors = clustered_points(300).astype(np.float16)
    first_store = make_store(tmp_path / "one", vectors, chunk_rows=7)
    second_store = make_store(tmp_path / "other", vectors, chunk_rows=100)
    for count in (5, 50, 300, 500):
        for first, second in zip(
            *(draw_sample(store, count, 3, "curve") for store in (first_store, second_store)),
            strict=True,
        ):
            np.testing.assert_array_equal(first, second)
    assert len(draw_sample(first_store, 300, 3, "curve")[1]) == 300


@pytest.mark.parametrize("seed", range(20))
def test_sample_of_one_is_never_empty(tmp_path, seed):
    store = make_store(tmp_path, clustered_points(40).astype(np.float16), chunk_rows=7)
    _, rows = draw_sample(store, 1, seed, "curve")
    assert len(rows) >= 1


# --- one level ------------------------------------------------------------------------------------


@every_metric
def test_centroids_do_not_depend_on_chunks_or_slices(tmp_path, metric, monkeypatch):
    """The chunks decide how the sample is cut into slices, but not what the sample contains."""
    vectors = clustered_points(400)
    results = []
    for name, chunk_rows, size in (("a", 400, 1 << 15), ("b", 50, 100)):
        monkeypatch.setattr(train, "_SLICE", size)
        store = make_store(tmp_path / name, vectors, chunk_rows=chunk_rows)
        results.append(train_centroids(tmp_path / f"index {name}", store, metric, 12, 400))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


def test_more_lists_than_rows_leave_lists_empty(tmp_path):
    store = make_store(tmp_path / "store", clustered_points(5), chunk_rows=3)
    result = train_centroids(tmp_path / "index", store, "l2", 12, 5)
    assert len(result) == 12
    np.testing.assert_array_equal(np.unique(result, axis=0), np.unique(clustered_points(5), axis=0))


# --- two levels -----------------------------------------------------------------------------------


@quick
@given(st.lists(st.integers(0, 1000), min_size=1).filter(any), st.data())
def test_lists_are_apportioned_by_rows(rows, data):
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
def test_two_level_loss_is_close_to_one_level_loss(tmp_path, metric, dtype, monkeypatch):
    vectors = clustered_points(2000, dtype=dtype)
    store = make_store(tmp_path / "store", vectors, chunk_rows=300)
    one_level = train_centroids(tmp_path / "flat", store, metric, 60, 2000)
    monkeypatch.setattr(train, "FLAT_LISTS", 10)
    monkeypatch.setattr(train, "_SLICE", 500)
    monkeypatch.setattr(two_level_kmeans, "COARSE_ROWS", 64)
    two_level = train_centroids(tmp_path / "cells", store, metric, 60, 2000)
    assert two_level.shape == one_level.shape
    initial = np.resize(vectors[:60].astype(np.float32), one_level.shape)
    two_level_loss, one_level_loss, initial_loss = (
        loss(vectors, c, metric) for c in (two_level, one_level, initial)
    )
    if assignment_metric(metric) == "ip":  # its centroids have unit length
        lengths = np.linalg.norm(initial, axis=1, keepdims=True)
        initial_loss = loss(vectors, initial / lengths, metric)
    assert two_level_loss - one_level_loss < 0.35 * (initial_loss - one_level_loss)
    repeated = train_centroids(tmp_path / "again", store, metric, 60, 2000)
    np.testing.assert_array_equal(repeated, two_level)


def test_more_lists_than_rows_leave_lists_empty_in_two_levels(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "FLAT_LISTS", 4)
    store = make_store(tmp_path / "store", clustered_points(30), chunk_rows=10)
    result = train_centroids(tmp_path / "index", store, "l2", 40, 30)
    assert len(result) == 40
    np.testing.assert_array_equal(
        np.unique(result, axis=0), np.unique(clustered_points(30), axis=0)
    )


def test_resumed_two_level_training_has_the_same_centroids(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", clustered_points(600), chunk_rows=100)
    monkeypatch.setattr(train, "FLAT_LISTS", 4)
    monkeypatch.setattr(train, "_SLICE", 200)
    expected = train_centroids(tmp_path / "whole", store, "cosine", 20, 600)
    folder = open_folder(str(tmp_path / "index"))
    transaction.claim_output(folder, "index", {})
    two_level_kmeans.write_sample_slice(
        folder, 0, clustered_points(3)
    )  # of a run with another sample
    np.testing.assert_array_equal(
        train_centroids(tmp_path / "index", store, "cosine", 20, 600), expected
    )
