"""Tests of pooling against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from retrieval.models.feature_extractor import TracedExtractor
from retrieval.models.pooling import ALL_POOLINGS, POOLINGS, gem
from retrieval.models.registry import build_extractor
from retrieval.models.resolve import RANDOM, resolve_all_poolings
from tests.retrieval.sample_vectors import quick, seeds

NUMPY_POOLINGS = {
    "avg": lambda features: features.mean(-1),
    "max": lambda features: features.max(-1),
    "gem": lambda features: (np.maximum(features, 1e-6) ** 3).mean(-1) ** (1 / 3),
}


@pytest.mark.parametrize("name", POOLINGS)
@quick
@given(seed=seeds, sides=st.tuples(*[st.integers(1, 9)] * 4))
def test_pooling_equals_numpy(name, seed, sides):
    features = np.random.default_rng(seed).normal(1, 2, sides).astype(np.float32)
    pooled = POOLINGS[name](torch.from_numpy(features)).numpy()
    assert pooled.dtype == np.float32
    expected = NUMPY_POOLINGS[name](features.reshape(*sides[:2], -1).astype(np.float64))
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


def test_poolings_equal_hand_computed_values():
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert POOLINGS["avg"](features).item() == (1 + 2 + 3 + 4) / 4
    assert POOLINGS["max"](features).item() == 4
    assert POOLINGS["gem"](features).item() == pytest.approx(((1 + 8 + 27 + 64) / 4) ** (1 / 3))


def test_gem_is_between_mean_and_maximum():
    features = torch.rand(3, 5, 4, 4)
    assert (POOLINGS["avg"](features) < gem(features)).all()
    assert (gem(features) < POOLINGS["max"](features)).all()


def test_gem_of_negative_features_is_small_and_finite():
    assert gem(torch.full((1, 2, 3, 3), -5.0)).tolist() == [[pytest.approx(1e-6, rel=1e-3)] * 2]


@pytest.mark.parametrize(("tokens", "shape"), [(False, (2, 7, 3, 4)), (True, (2, 5, 7))])
def test_all_poolings_concatenate_single_poolings(tokens, shape):
    """Cover feature maps and tokens, of which avg takes the class token."""
    features = torch.randn(shape)
    parts = [TracedExtractor(nn.Identity(), name, tokens=tokens)(features) for name in POOLINGS]
    concatenated = TracedExtractor(nn.Identity(), ALL_POOLINGS, tokens=tokens)(features)
    assert concatenated.shape == (2, 7 * len(POOLINGS))
    assert torch.equal(concatenated, torch.cat(parts, 1))


@pytest.mark.parametrize(
    ("name", "dimensions"),
    [
        ("timm:test_resnet", dict.fromkeys(POOLINGS, 96)),
        ("timm:mobilenetv3_small_050", dict.fromkeys(POOLINGS, 288) | {"avg": 1024}),
    ],
)
def test_timm_backbones_have_reported_pooling_dimensions(name, dimensions):
    pytest.importorskip("timm", reason="timm is not installed")
    bundle, reported = resolve_all_poolings(name, RANDOM, image_size=None, resize=None, seed=0)
    assert (reported, list(reported), bundle.dimension) == (
        dimensions,
        list(POOLINGS),
        sum(dimensions.values()),
    )
    images = torch.rand(1, 3, bundle.transform.image_size, bundle.transform.image_size)
    with torch.inference_mode():
        concatenated = build_extractor(name, bundle.state(), ALL_POOLINGS)(images)
        parts = [build_extractor(name, bundle.state(), pooling)(images) for pooling in POOLINGS]
    assert torch.equal(concatenated, torch.cat(parts, 1))
    assert [part.shape[1] for part in parts] == list(dimensions.values())
