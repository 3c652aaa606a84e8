"""Tests that embeddings equal those of the network, for full and padded batches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.functional import normalize

from retrieval.models.bundle import Bundle, serialize_state
from retrieval.models.embedder import Embedder, finish_vectors
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.pca import Projection, StreamingMoments
from retrieval.models.registry import build_extractor, build_network, fit_state
from retrieval.models.resolve import RANDOM, resolve_bundle
from retrieval.vectors.normalize import normalize_rows
from tests.retrieval.sample_vectors import quick, seeds

IMAGE_SIZE = 64


def plan(batch_size: int) -> EnginePlan:
    return EnginePlan("torch", "fp32", "cpu", batch_size)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return resolve_bundle(
        backbone="scratch",
        weights=RANDOM,
        bundle=None,
        pooling="avg",
        normalize=False,
        image_size=IMAGE_SIZE,
        resize="crop",
        seed=0,
    )


def normalized(bundle: Bundle) -> Bundle:
    return dataclasses.replace(bundle, normalize=True)


def images(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 3, IMAGE_SIZE, IMAGE_SIZE)
    return list(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))


def test_embeddings_equal_network_on_normalized_images(bundle):
    extractor = build_extractor(bundle.backbone, bundle.state(), bundle.pooling)
    mean, std = bundle.transform.mean, bundle.transform.std
    with torch.inference_mode():
        expected = extractor(normalize(torch.stack(images(3)) / 255, mean, std)).numpy()
    embedded = Embedder(bundle, plan(3)).embed(images(3))
    assert embedded.dtype == np.float32
    assert embedded.shape == (3, bundle.dimension)
    np.testing.assert_allclose(embedded, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_partial_batch_equals_full_batch_bitwise(bundle, count):
    embedder = Embedder(bundle, plan(4))
    full = embedder.embed(images(4))
    np.testing.assert_array_equal(embedder.embed(images(4)[:count]), full[:count])


def test_embeddings_do_not_depend_on_previous_batches(bundle):
    embedder, fresh = Embedder(bundle, plan(4)), Embedder(bundle, plan(4))
    first = embedder.embed(images(4))
    before = first.copy()
    second = embedder.embed(images(1))
    np.testing.assert_array_equal(second, fresh.embed(images(1)))
    np.testing.assert_array_equal(first, before)  # the result is no view of a reused buffer


def test_empty_batch_gives_no_vectors(bundle):
    assert Embedder(bundle, plan(2)).embed([]).shape == (0, bundle.dimension)


def test_normalize_scales_vectors_to_unit_norm(bundle):
    unnormalized = Embedder(bundle, plan(4)).embed(images(4))
    embedded = Embedder(normalized(bundle), plan(4)).embed(images(4))
    norms = np.linalg.norm(unnormalized.astype(np.float64), axis=1, keepdims=True)
    assert (abs(norms - 1) > 0.01).all()  # the unnormalized vectors are not of unit norm
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(embedded, (unnormalized / norms).astype(np.float32))


def test_zero_vectors_stay_zero_when_normalized(bundle):
    """Dividing by zero would make NaN; callers report zero vectors instead."""
    state = fit_state(
        {k: v * 0 for k, v in build_network("scratch").state_dict().items()}, "scratch"
    )
    state |= {key: value + 1 for key, value in state.items() if key.endswith("running_var")}
    zero_bundle = dataclasses.replace(normalized(bundle), weights=serialize_state(state))
    embedded = Embedder(zero_bundle, plan(2)).embed(images(2))
    np.testing.assert_array_equal(embedded, np.zeros((2, bundle.dimension)))


def test_embeddings_keep_image_order(bundle):
    embedder = Embedder(bundle, plan(4))
    order = [2, 0, 3, 1]
    shuffled = embedder.embed([images(4)[position] for position in order])
    np.testing.assert_allclose(shuffled, embedder.embed(images(4))[order], rtol=1e-5, atol=1e-6)
    assert len(np.unique(shuffled.round(4), axis=0)) == 4


# --- bundles with a projection --------------------------------------------------------------------


def fit_projection(dimensions: int, width: int, seed: int = 0) -> Projection:
    sample = np.random.default_rng(seed).normal(0.3, 1, (dimensions + width + 1, width))
    moments = StreamingMoments(width)
    moments.add(normalize_rows(sample).astype(np.float32))
    return moments.fit(dimensions)


@pytest.mark.parametrize("normalize", [False, True])
@quick
@given(seed=seeds, count=st.integers(0, 5), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
def test_vectors_are_normalized_then_projected_then_normalized(normalize, seed, count, scale):
    projection = fit_projection(4, 9)
    raw = (np.random.default_rng(seed).normal(size=(count, 9)) * scale).astype(np.float32)
    finished = finish_vectors(raw, normalize=normalize, projection=projection)
    assert (finished.dtype, finished.shape) == (np.float32, (count, 4))
    unit = raw.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    expected = (unit - projection.mean) @ projection.axes.T.astype(np.float64)
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(finished, expected, rtol=1e-5, atol=1e-6)
    for row in range(count):
        single = finish_vectors(raw[row : row + 1], normalize=normalize, projection=projection)
        np.testing.assert_array_equal(single, finished[row : row + 1])


@pytest.mark.parametrize("normalize", [False, True])
def test_zero_vectors_stay_zero_when_projected(normalize):
    projection = fit_projection(4, 9)
    raw = np.ones((3, 9), np.float32) * np.arange(3, dtype=np.float32)[:, None]
    finished = finish_vectors(raw, normalize=normalize, projection=projection)
    np.testing.assert_array_equal(finished[0], np.zeros(4))
    assert finished[1:].any()


@pytest.mark.parametrize("normalize", [False, True])
def test_non_finite_vectors_stay_non_finite(normalize):
    raw = np.ones((2, 9), np.float32)
    raw[0, 3] = np.nan
    for projection in (None, fit_projection(4, 9)):
        finished = finish_vectors(raw, normalize=normalize, projection=projection)
        assert np.isfinite(finished).all(1).tolist() == [False, True]


@pytest.mark.parametrize("normalize", [False, True])
def test_embedder_applies_projection_to_network_output(bundle, normalize):
    projection = fit_projection(5, bundle.dimension)
    base = dataclasses.replace(bundle, normalize=normalize)
    embedder = Embedder(base.with_projection(projection), plan(4))
    raw = Embedder(bundle, plan(4)).embed(images(4))
    embedded = embedder.embed(images(4))
    assert embedded.shape == (4, embedder.bundle.dimension) == (4, 5)
    np.testing.assert_array_equal(
        embedded, finish_vectors(raw, normalize=normalize, projection=projection)
    )
    np.testing.assert_array_equal(embedder.embed(images(4)[:3]), embedded[:3])
    assert embedder.embed([]).shape == (0, 5)
