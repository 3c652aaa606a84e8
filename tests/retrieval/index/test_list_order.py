"""Tests of the order of lists, in which neighbours are close to each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.index.list_order import order_lists
from tests.retrieval.sample_vectors import cases, quick


@quick
@given(cases())
def test_order_is_a_permutation_that_depends_on_the_values_alone(case):
    values = case.rows.astype(np.float32)
    order = order_lists(values)
    assert sorted(order.tolist()) == list(range(len(values)))
    np.testing.assert_array_equal(order_lists(np.asfortranarray(values)), order)


@quick
@given(st.integers(1, 50), st.floats(-1e30, 1e30))
def test_equal_centroids_keep_their_order(count, value):
    values = np.full((count, 3), value, np.float32)
    np.testing.assert_array_equal(order_lists(values), np.arange(count))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_points_on_a_line_are_ordered_along_it(scale):
    generator = np.random.default_rng(0)
    positions = generator.permutation(500)
    values = (positions[:, None] * np.array([3.0, -4.0, 0.5]) * scale).astype(np.float32)
    ordered = positions[order_lists(values)]
    assert abs(np.diff(ordered)).max() == 1


def test_neighbours_in_the_order_are_close():
    """Of 64 clusters of 16 centroids each, most lists follow one of their own cluster."""
    generator = np.random.default_rng(1)
    cluster = generator.permutation(np.repeat(np.arange(64), 16))
    values = generator.normal(size=(64, 32))[cluster] + 0.05 * generator.normal(size=(1024, 32))
    ordered = cluster[order_lists(values.astype(np.float32))]
    assert (ordered[1:] == ordered[:-1]).mean() > 0.8
