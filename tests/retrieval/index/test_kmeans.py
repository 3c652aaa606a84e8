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
from retrieval.vectors import pair_collector, scoring, topk
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


def clustered_points(count: int = 1200, d: int = 8, dtype: str = "float32") -> NDArray[np.float32]:
    """Draw points around 30 centres."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(30, d)) * 3
    points = centres[generator.integers(0, 30, count)] + generator.normal(size=(count, d))
    return points.astype(dtype)


def normalize_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.sqrt((values**2).sum(-1, keepdims=True))
    return values / np.where(lengths > 0, lengths, 1)


def loss(sample: NDArray[np.float32], centroids: NDArray[np.float32], metric: Metric) -> float:
    """Return the k-means objective: mean squared distance; for ip and cosine minus the mean dot."""
    values = (
        normalize_rows(sample.astype(np.float64)).astype(np.float32)
        if metric == "cosine"
        else sample
    )
    return float(-exact_keys(values, centroids, assignment_metric(metric)).max(1).mean())


def lloyd(
    sample: NDArray[np.float32], nlist: int, metric: Metric, seed: int
) -> NDArray[np.float32]:
    """Return centroids by Lloyd's algorithm; no list may become empty (as is asserted)."""
    values = scoring.block(sample, metric).matmul_input  # of unit length for cosine
    first_rows = np.argsort(np.random.default_rng(seed).permutation(len(values)))[:nlist]
    centroids = values[first_rows].astype(np.float64)
    for iteration in range(ITERATIONS + 1):
        centroids = (centroids if metric == "l2" else normalize_rows(centroids)).astype(np.float32)
        if iteration < ITERATIONS:
            assigned = exact_keys(values, centroids, assignment_metric(metric)).argmax(1)
            assert len(np.unique(assigned)) == nlist
            float64_values = values.astype(np.float64)
            centroids = np.stack(
                [float64_values[assigned == list_number].mean(0) for list_number in range(nlist)]
            )
    return centroids


@every_metric
@pytest.mark.parametrize("seed", [0, 1])
def test_centroids_equal_textbook_lloyd(metric, seed):
    expected = lloyd(clustered_points(), 20, metric, seed)
    np.testing.assert_array_equal(
        train_centroids(clustered_points(), 20, metric, seed=seed), expected
    )


@quick
@given(cases(max_rows=30), metrics, seeds, st.sampled_from([(1, 1), (7, 50)]))
def test_centroids_do_not_depend_on_block_sizes_or_product(case, metric, seed, sizes):
    nlist = 1 + seed % len(case.rows)
    expected = train_centroids(case.rows, nlist, metric, seed=seed)
    pairs, product = sizes
    with (
        mock.patch.object(scoring, "_SCORED_PAIRS", pairs),
        mock.patch.multiple(pair_collector, _PRODUCT_ELEMENTS=product, _BLOCK_ROWS=16),
        mock.patch.object(topk, "_BLOCK_QUERIES", product),
        mock.patch.object(kmeans, "choose_product", return_value=HalfPrecisionProduct("cpu")),
    ):
        result = train_centroids(case.rows, nlist, metric, seed=seed)
    assert result.tobytes() == expected.tobytes()
    assert expected.shape == (nlist, case.rows.shape[1])
    assert expected.dtype == np.float32
    assert np.isfinite(expected).all()


@every_metric
@pytest.mark.parametrize("cuts", [(600,), (1, 2, 900)])
def test_centroids_of_slices_equal_those_of_the_whole_sample(metric, cuts):
    """They differ by rounding, because sums of slices are added instead of rows."""
    whole = train_centroids(clustered_points(), 20, metric, seed=0)
    sliced = train_centroids(clustered_points(), 20, metric, seed=0, cuts=cuts)
    np.testing.assert_allclose(sliced, whole, rtol=1e-5, atol=1e-6)


@every_metric
def test_mean_distance_equals_the_kmeans_objective(metric):
    sample = clustered_points()
    centroids = train_centroids(sample, 20, metric, seed=0)
    rows, lists = (
        block(sample, assignment_metric(metric)),
        block(centroids, assignment_metric(metric)),
    )
    distances = distances_to_centroids(rows, lists, nearest_centroids(rows, lists))
    expected = loss(sample, centroids, metric)
    if metric == "ip":  # the objective is a cosine there, since lengths differ
        expected = loss(
            normalize_rows(sample.astype(np.float64)).astype(np.float32), centroids, metric
        )
    assert distances.mean() == pytest.approx(expected if metric == "l2" else 1 + expected, rel=1e-3)


def test_cosine_centroids_do_not_depend_on_the_length_of_a_tiny_vector():
    """Regression: a tiny vector changed the float32 copies of all others, and so all centroids."""
    axis = np.eye(1, 8, dtype=np.float32)
    with_unit_row, with_tiny_row = (
        np.concatenate([clustered_points(), axis * np.float32(size)]) for size in (1, 1e-30)
    )
    expected = train_centroids(with_unit_row, 20, "cosine", seed=0)
    assert train_centroids(with_tiny_row, 20, "cosine", seed=0).tobytes() == expected.tobytes()


@settings(quick, max_examples=40)
@given(cases(max_rows=30), metrics, seeds)
def test_centroids_do_not_depend_on_flushed_subnormals(case, metric, seed):
    nlist = 1 + seed % len(case.rows)
    expected, result = (
        call(lambda: train_centroids(case.rows, nlist, metric, seed=seed).tobytes())
        for call in (lambda train: train(), call_with_flushed_subnormals)
    )
    assert result == expected


@every_metric
def test_centroids_depend_on_the_seed(metric):
    first_centroids, second_centroids = (
        train_centroids(clustered_points(), 20, metric, seed=seed) for seed in (0, 1)
    )
    assert not np.array_equal(first_centroids, second_centroids)


@every_metric
def test_centroids_do_not_depend_on_the_dtype_of_equal_values(metric):
    sample = clustered_points(dtype="float16")
    expected = train_centroids(sample.astype(np.float32), 20, metric, seed=0)
    np.testing.assert_array_equal(train_centroids(sample, 20, metric, seed=0), expected)


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_centroids_of_a_sphere_have_unit_length(metric):
    lengths = np.linalg.norm(train_centroids(clustered_points() * 50, 20, metric, seed=0), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def test_cosine_centroids_do_not_depend_on_vector_lengths():
    scales = 2.0 ** np.random.default_rng(0).integers(-9, 9, (1200, 1))
    scaled = (clustered_points() * scales).astype(np.float32)
    expected = train_centroids(clustered_points(), 20, "cosine", seed=0)
    np.testing.assert_allclose(train_centroids(scaled, 20, "cosine", seed=0), expected, atol=1e-6)


@every_metric
def test_training_reduces_the_loss_of_random_centroids(metric, monkeypatch):
    trained = train_centroids(clustered_points(), 30, metric, seed=0)
    monkeypatch.setattr(kmeans, "ITERATIONS", 0)
    initial = train_centroids(clustered_points(), 30, metric, seed=0)
    initial_loss, trained_loss = (
        loss(clustered_points(), centroids, metric) for centroids in (initial, trained)
    )
    assert trained_loss < initial_loss - 0.1 * abs(initial_loss)


@every_metric
def test_loss_is_close_to_faiss_kmeans(metric):
    sample = normalize_rows(clustered_points().astype(np.float64)).astype(np.float32)
    losses, faiss_losses = [], []  # different seeds end in different local minima
    for seed in range(5):
        losses.append(loss(sample, train_centroids(sample, 30, metric, seed=seed), metric))
        reference = faiss.Kmeans(8, 30, niter=ITERATIONS, seed=seed + 1, spherical=metric != "l2")
        reference.train(sample)
        faiss_losses.append(loss(sample, reference.centroids, metric))
    assert np.mean(losses) == pytest.approx(np.mean(faiss_losses), rel=0.1)


@every_metric
@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_fewer_distinct_rows_than_lists_put_a_centroid_on_each_row(metric, distinct):
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


def test_empty_list_is_reseeded_by_splitting_the_fullest():
    sums, counts = np.array([[8.0, 8], [9, 9], [0, 0]]), np.array([8, 1, 0])
    previous = np.array([[1, 1], [9, 9], [70, 70]], np.float32)
    above, below = 1 + 1 / 1024, 1 - 1 / 1024
    np.testing.assert_array_equal(
        kmeans._means(sums, counts, previous), [[above, below], [9, 9], [below, above]]
    )
