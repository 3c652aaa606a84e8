"""Tests of the principal plane against numpy's SVD, and of the selection of separated points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.report.charts.projection import principal_plane, select_separated


def svd_plane(vectors):
    """Return the absolute coordinates and the variance shares of the first two principal axes."""
    values = vectors.astype(np.float64) - vectors.astype(np.float64).mean(0)
    _, singular_values, axes = np.linalg.svd(values, full_matrices=False)
    return np.abs(values @ axes[:2].T), singular_values[:2] ** 2 / (singular_values**2).sum()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (30, 30), (3, 5), (500, 2)])
def test_plane_equals_svd_up_to_signs(shape, dtype):
    spread = np.linspace(3, 1, shape[1])
    vectors = (np.random.default_rng(0).normal(size=shape) * spread + 1).astype(dtype)
    plane, shares = principal_plane(vectors)
    expected, expected_shares = svd_plane(vectors)
    assert np.allclose(np.abs(plane), expected, atol=1e-6)
    assert np.allclose(shares, expected_shares)
    assert np.allclose(plane.mean(0), 0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)),
        elements=st.floats(-8, 8, width=16),
    )
)  # fmt: skip
def test_plane_keeps_share_of_variance_of_two_axes(vectors):
    plane, shares = principal_plane(vectors)
    assert np.isfinite(plane).all()
    assert 0 <= shares[1] <= shares[0] <= 1 + 1e-9
    assert sum(shares) <= 1 + 1e-9
    total_variance = np.square(
        vectors.astype(np.float64) - vectors.astype(np.float64).mean(0)
    ).sum()
    assert np.square(plane).sum() == pytest.approx(sum(shares) * total_variance, rel=1e-6, abs=1e-6)


def test_signs_do_not_depend_on_order_or_number_of_rows():
    vectors = np.random.default_rng(1).normal(size=(60, 8)) * np.linspace(4, 1, 8)
    plane, _ = principal_plane(vectors)
    order = np.random.default_rng(2).permutation(60)
    assert np.allclose(principal_plane(vectors[order])[0], plane[order])
    doubled = np.concatenate([vectors, vectors])
    assert np.allclose(principal_plane(doubled)[0][:60], plane)


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_identical_vectors_project_to_origin(count):
    plane, shares = principal_plane(np.full((count, 6), 0.3, np.float16))
    assert (plane == 0).all()
    assert shares == (0, 0)


def test_two_vectors_project_to_first_axis():
    plane, shares = principal_plane(np.array([[0, 0, 3], [0, 4, 0]], np.float32))
    assert np.allclose(sorted(plane[:, 0]), [-2.5, 2.5])
    assert np.allclose(plane[:, 1], 0)
    assert shares == (pytest.approx(1), 0)


@settings(max_examples=100, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(0, 40), st.just(2)), elements=st.floats(0, 4)))
def test_selected_squares_are_separated_and_maximal(points):
    selected = select_separated(points, 0.5, 60)
    assert selected == sorted(set(selected))
    for position in range(len(points)):
        overlapping = [
            other for other in selected
            if other != position and np.abs(points[position] - points[other]).max() < 0.5
        ]  # fmt: skip
        assert bool(overlapping) == (position not in selected)


def test_selection_is_limited_to_maximum_count():
    points = np.arange(20.0)[:, None] * np.ones(2)
    assert select_separated(points, 0.5, 7) == [0, 1, 2, 3, 4, 5, 6]
