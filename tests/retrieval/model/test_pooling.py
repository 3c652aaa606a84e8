"""Pooling equals numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval.model.pooling import POOLINGS, gem
from tests.retrieval.vectors import quick, seeds

IN_NUMPY = {
    "avg": lambda places: places.mean(-1),
    "max": lambda places: places.max(-1),
    "gem": lambda places: (np.maximum(places, 1e-6) ** 3).mean(-1) ** (1 / 3),
}


@pytest.mark.parametrize("name", POOLINGS)
@quick
@given(seed=seeds, sides=st.tuples(*[st.integers(1, 9)] * 4))
def test_pooling_equals_numpy(name, seed, sides):
    features = np.random.default_rng(seed).normal(1, 2, sides).astype(np.float32)
    pooled = POOLINGS[name](torch.from_numpy(features)).numpy()
    assert pooled.dtype == np.float32
    expected = IN_NUMPY[name](features.reshape(*sides[:2], -1).astype(np.float64))
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


def test_each_pooling_by_hand():
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert POOLINGS["avg"](features).item() == (1 + 2 + 3 + 4) / 4
    assert POOLINGS["max"](features).item() == 4
    assert POOLINGS["gem"](features).item() == pytest.approx(((1 + 8 + 27 + 64) / 4) ** (1 / 3))


def test_gem_lies_between_the_mean_and_the_largest():
    features = torch.rand(3, 5, 4, 4)
    assert (POOLINGS["avg"](features) < gem(features)).all()
    assert (gem(features) < POOLINGS["max"](features)).all()


def test_gem_of_nothing_positive_is_small_and_finite():
    assert gem(torch.full((1, 2, 3, 3), -5.0)).tolist() == [[pytest.approx(1e-6, rel=1e-3)] * 2]
