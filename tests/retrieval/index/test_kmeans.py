"""Tests of k-means: Lloyd's centroids, independent of slicing and workers, as good as FAISS'."""

from __future__ import annotations

from unittest import mock

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.core.schemas import Metric
from retrieval.index import kmeans
from retrieval.index.kmeans import ITERATIONS, assignment_metric, distances_to_centroids
from retrieval.vectors import scoring, topk
from retrieval.vectors.matmul import HalfPrecisionProduct
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import nearest_centroids
from tests.retrieval.index.training_cases import train_centroids
from tests.retrieval.sample_vectors import (
    METRICS,
    call_with_flushed_subnormals,
    cases,
    exact_keys,
    metrics,
    quick,
    seeds,
)

every_metric = pytest.mark.parametrize("metric", METRICS)


def clouds(count: int = 1200, d: int = 8, dtype: str = "float32") -> NDArray[np.float32]:
    """Draw points around 30 centres."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(30, d)) * 3
    points = centres[generator.integers(0, 30, count)] + generator.normal(size=(count, d))
    return points.astype(dtype)


def unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.sqrt((values**2).sum(-1, keepdims=True))
    return values / np.where(lengths > 0, lengths, 1)


def loss(sample: NDArray[np.float32], centroids: NDArray[np.float32], metric: Metric) -> float:
    """Give what k-means makes small: squared distances, or for a sphere the dots missed."""
    values = unit(sample.astype(np.float64)).astype(np.float32) if metric == "cosine" else sample
    return float(-exact_keys(values, centroids, assignment_metric(metric)).max(1).mean())


def lloyd(
    sample: NDArray[np.float32], nlist: int, metric: Metric, seed: int
) -> NDArray[np.float32]:
    """Run the textbook's algorithm, for samples in which no list loses all its rows."""
    values = scoring.block(sample, metric).matmul_input  # of unit length for cosine
    start = np.argsort(np.random.default_rng(seed).permutation(len(values)))[:nlist]
    centroids = values[start].astype(np.float64)
    for turn in range(ITERATIONS + 1):
        centroids = (centroids if metric == "l2" else unit(centroids)).astype(np.float32)
        if turn < ITERATIONS:
            own = exact_keys(values, centroids, assignment_metric(metric)).argmax(1)
            assert len(np.unique(own)) == nlist
            wide = values.astype(np.float64)
            centroids = np.stack([wide[own == number].mean(0) for number in range(nlist)])
    return centroids


@every_metric
@pytest.mark.parametrize("seed", [0, 1])
def test_kmeans_equals_a_textbook_implementation(metric, seed):
    expected = lloyd(clouds(), 20, metric, seed)
    np.testing.assert_array_equal(train_centroids(clouds(), 20, metric, seed=seed), expected)


@quick
@given(cases(max_rows=30), metrics, seeds, st.sampled_from([(1, 1), (7, 50)]))
def test_centroids_do_not_depend_on_how_they_are_computed(case, metric, seed, sizes):
    nlist = 1 + seed % len(case.rows)
    plain = train_centroids(case.rows, nlist, metric, seed=seed)
    pairs, product = sizes
    with (
        mock.patch.object(scoring, "_PAIRS", pairs),
        mock.patch.multiple(topk, _PRODUCT=product, _NEAR=product, _FEW=1),
        mock.patch.object(kmeans, "product_for", return_value=HalfPrecisionProduct("cpu")),
    ):
        again = train_centroids(case.rows, nlist, metric, seed=seed)
    assert again.tobytes() == plain.tobytes()
    assert plain.shape == (nlist, case.rows.shape[1])
    assert plain.dtype == np.float32
    assert np.isfinite(plain).all()


@every_metric
@pytest.mark.parametrize("cuts", [(600,), (1, 2, 900)])
def test_slices_are_as_good_as_the_whole(metric, cuts):
    """Not to the last bit: a sum of sums is rounded otherwise."""
    whole = train_centroids(clouds(), 20, metric, seed=0)
    cut = train_centroids(clouds(), 20, metric, seed=0, cuts=cuts)
    np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-6)


@every_metric
def test_distances_are_the_kmeans_objective(metric):
    sample = clouds()
    centroids = train_centroids(sample, 20, metric, seed=0)
    rows, lists = (
        block(sample, assignment_metric(metric)),
        block(centroids, assignment_metric(metric)),
    )
    found = distances_to_centroids(rows, lists, nearest_centroids(rows, lists))
    far = loss(sample, centroids, metric)
    if metric == "ip":  # a cosine there: lengths differ
        far = loss(unit(sample.astype(np.float64)).astype(np.float32), centroids, metric)
    assert found.mean() == pytest.approx(far if metric == "l2" else 1 + far, rel=1e-3)


def test_a_tiny_vector_counts_as_a_longer_one_of_its_direction():
    """cosine: the float32 copies of all others changed with it, and so did all centroids."""
    axis = np.eye(1, 8, dtype=np.float32)
    one, other = (np.concatenate([clouds(), axis * np.float32(size)]) for size in (1, 1e-30))
    centroids = train_centroids(one, 20, "cosine", seed=0)
    assert train_centroids(other, 20, "cosine", seed=0).tobytes() == centroids.tobytes()


@settings(quick, max_examples=40)
@given(cases(max_rows=30), metrics, seeds)
def test_centroids_are_the_same_where_subnormal_numbers_are_zero(case, metric, seed):
    nlist = 1 + seed % len(case.rows)
    plain, flushed = (
        call(lambda: train_centroids(case.rows, nlist, metric, seed=seed).tobytes())
        for call in (lambda make: make(), call_with_flushed_subnormals)
    )
    assert flushed == plain


@every_metric
def test_centroids_depend_on_the_seed(metric):
    one, other = (train_centroids(clouds(), 20, metric, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one, other)


@every_metric
def test_float16_and_float32_of_the_same_numbers_have_the_same_centroids(metric):
    sample = clouds(dtype="float16")
    wide = train_centroids(sample.astype(np.float32), 20, metric, seed=0)
    np.testing.assert_array_equal(train_centroids(sample, 20, metric, seed=0), wide)


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_centroids_of_a_sphere_have_unit_length(metric):
    lengths = np.linalg.norm(train_centroids(clouds() * 50, 20, metric, seed=0), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def test_for_cosine_a_vectors_length_changes_nothing():
    scales = 2.0 ** np.random.default_rng(0).integers(-9, 9, (1200, 1))
    scaled = (clouds() * scales).astype(np.float32)
    plain = train_centroids(clouds(), 20, "cosine", seed=0)
    np.testing.assert_allclose(train_centroids(scaled, 20, "cosine", seed=0), plain, atol=1e-6)


@every_metric
def test_the_loss_falls_well_below_that_of_the_random_start(metric, monkeypatch):
    trained = train_centroids(clouds(), 30, metric, seed=0)
    monkeypatch.setattr(kmeans, "ITERATIONS", 0)
    start = train_centroids(clouds(), 30, metric, seed=0)
    before, after = (loss(clouds(), centroids, metric) for centroids in (start, trained))
    assert after < before - 0.1 * abs(before)


@every_metric
def test_the_loss_is_about_that_of_faiss(metric):
    sample = unit(clouds().astype(np.float64)).astype(np.float32)
    ours, theirs = [], []  # each falls into another local minimum for each seed
    for seed in range(5):
        ours.append(loss(sample, train_centroids(sample, 30, metric, seed=seed), metric))
        other = faiss.Kmeans(8, 30, niter=ITERATIONS, seed=seed + 1, spherical=metric != "l2")
        other.train(sample)
        theirs.append(loss(sample, other.centroids, metric))
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.1)


@every_metric
@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_fewer_distinct_rows_than_lists_leave_each_row_near_a_centroid(metric, distinct):
    corners = np.eye(8, dtype=np.float32)[:distinct] * 4
    sample = np.repeat(corners, 40, axis=0)
    centroids = train_centroids(sample, 16, metric, seed=0)
    best = 0.0 if metric == "l2" else -1.0 if metric == "cosine" else -4.0
    assert loss(sample, centroids, metric) == pytest.approx(best, abs=1e-3)


@every_metric
def test_zero_vectors_are_supported(metric):
    assert not train_centroids(np.zeros((9, 3), np.float32), 4, metric, seed=0).any()


@every_metric
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_largest_finite_numbers_are_supported(metric, dtype):
    largest = np.finfo(dtype).max
    sample = np.repeat(np.array([[largest, -largest]], dtype), 9, axis=0)
    centroids = train_centroids(sample, 4, metric, seed=0)
    assert np.isfinite(centroids).all()


def test_a_list_that_lost_its_rows_takes_half_of_the_fullest():
    sums, counts = np.array([[8.0, 8], [9, 9], [0, 0]]), np.array([8, 1, 0])
    before = np.array([[1, 1], [9, 9], [70, 70]], np.float32)
    up, down = 1 + 1 / 1024, 1 - 1 / 1024
    np.testing.assert_array_equal(
        kmeans._means(sums, counts, before), [[up, down], [9, 9], [down, up]]
    )
