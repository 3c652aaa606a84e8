"""Test the principal plane against numpy's SVD, and the selection of separated points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.report.charts.projection import principal_plane, select_separated


def by_svd(vectors):
    values = vectors.astype(np.float64) - vectors.astype(np.float64).mean(0)
    _, lengths, axes = np.linalg.svd(values, full_matrices=False)
    return np.abs(values @ axes[:2].T), lengths[:2] ** 2 / (lengths**2).sum()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (30, 30), (3, 5), (500, 2)])
def test_it_is_what_the_svd_gives_but_for_signs(shape, dtype):
    spread = np.linspace(3, 1, shape[1])
    vectors = (np.random.default_rng(0).normal(size=shape) * spread + 1).astype(dtype)
    plane, shares = principal_plane(vectors)
    expected, of_all = by_svd(vectors)
    assert np.allclose(np.abs(plane), expected, atol=1e-6)
    assert np.allclose(shares, of_all)
    assert np.allclose(plane.mean(0), 0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)),
        elements=st.floats(-8, 8, width=16),
    )
)  # fmt: skip
def test_it_keeps_distances_as_far_as_two_axes_can(vectors):
    plane, shares = principal_plane(vectors)
    assert np.isfinite(plane).all()
    assert 0 <= shares[1] <= shares[0] <= 1 + 1e-9
    assert sum(shares) <= 1 + 1e-9
    exact = np.square(vectors.astype(np.float64) - vectors.astype(np.float64).mean(0)).sum()
    assert np.square(plane).sum() == pytest.approx(sum(shares) * exact, rel=1e-6, abs=1e-6)


def test_a_sign_depends_on_neither_the_order_nor_the_number_of_rows():
    vectors = np.random.default_rng(1).normal(size=(60, 8)) * np.linspace(4, 1, 8)
    plane, _ = principal_plane(vectors)
    order = np.random.default_rng(2).permutation(60)
    assert np.allclose(principal_plane(vectors[order])[0], plane[order])
    doubled = np.concatenate([vectors, vectors])
    assert np.allclose(principal_plane(doubled)[0][:60], plane)


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_equal_vectors_lie_in_one_point(count):
    plane, shares = principal_plane(np.full((count, 6), 0.3, np.float16))
    assert (plane == 0).all()
    assert shares == (0, 0)


def test_two_vectors_lie_on_one_axis():
    plane, shares = principal_plane(np.array([[0, 0, 3], [0, 4, 0]], np.float32))
    assert np.allclose(sorted(plane[:, 0]), [-2.5, 2.5])
    assert np.allclose(plane[:, 1], 0)
    assert shares == (pytest.approx(1), 0)


@settings(max_examples=100, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(0, 40), st.just(2)), elements=st.floats(0, 4)))
def test_chosen_squares_do_not_overlap_and_none_is_left_that_would_fit(points):
    chosen = select_separated(points, 0.5, 60)
    assert chosen == sorted(set(chosen))
    for one in range(len(points)):
        near = [
            other for other in chosen
            if other != one and np.abs(points[one] - points[other]).max() < 0.5
        ]  # fmt: skip
        assert bool(near) == (one not in chosen)


def test_no_more_are_chosen_than_asked_for():
    points = np.arange(20.0)[:, None] * np.ones(2)
    assert select_separated(points, 0.5, 7) == [0, 1, 2, 3, 4, 5, 6]
