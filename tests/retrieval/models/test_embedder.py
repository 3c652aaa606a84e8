"""Embedding equals the plain network, whatever the batch is filled up with."""

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

SIDE = 64


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
        image_size=SIDE,
        resize="crop",
        seed=0,
    )


def normalized(bundle: Bundle) -> Bundle:
    return dataclasses.replace(bundle, normalize=True)


def images(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 3, SIDE, SIDE)
    return list(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))


def test_it_is_the_network_on_normalised_images(bundle):
    body = build_extractor(bundle.backbone, bundle.state(), bundle.pooling)
    mean, std = bundle.transform.mean, bundle.transform.std
    with torch.inference_mode():
        expected = body(normalize(torch.stack(images(3)) / 255, mean, std)).numpy()
    embedded = Embedder(bundle, plan(3)).embed(images(3))
    assert embedded.dtype == np.float32
    assert embedded.shape == (3, bundle.dimension)
    np.testing.assert_allclose(embedded, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_short_batch_gives_the_same_bits_as_a_full_one(bundle, count):
    embedder = Embedder(bundle, plan(4))
    full = embedder.embed(images(4))
    np.testing.assert_array_equal(embedder.embed(images(4)[:count]), full[:count])


def test_what_was_embedded_before_leaves_no_trace(bundle):
    embedder, fresh = Embedder(bundle, plan(4)), Embedder(bundle, plan(4))
    first = embedder.embed(images(4))
    before = first.copy()
    again = embedder.embed(images(1))
    np.testing.assert_array_equal(again, fresh.embed(images(1)))
    np.testing.assert_array_equal(first, before)  # no view of a buffer that is used again


def test_no_images_give_no_vectors(bundle):
    assert Embedder(bundle, plan(2)).embed([]).shape == (0, bundle.dimension)


def test_vectors_have_unit_length_if_the_bundle_says_so(bundle):
    plain = Embedder(bundle, plan(4)).embed(images(4))
    embedded = Embedder(normalized(bundle), plan(4)).embed(images(4))
    lengths = np.linalg.norm(plain.astype(np.float64), axis=1, keepdims=True)
    assert (abs(lengths - 1) > 0.01).all()  # they are not of unit length by chance
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(embedded, (plain / lengths).astype(np.float32))


def test_a_vector_without_length_stays_so(bundle):
    """Dividing by nothing would make it NaN; the caller refuses it by name instead."""
    state = fit_state(
        {k: v * 0 for k, v in build_network("scratch").state_dict().items()}, "scratch"
    )
    state |= {key: value + 1 for key, value in state.items() if key.endswith("running_var")}
    empty = dataclasses.replace(normalized(bundle), weights=serialize_state(state))
    embedded = Embedder(empty, plan(2)).embed(images(2))
    np.testing.assert_array_equal(embedded, np.zeros((2, bundle.dimension)))


def test_order_is_kept(bundle):
    embedder = Embedder(bundle, plan(4))
    order = [2, 0, 3, 1]
    shuffled = embedder.embed([images(4)[place] for place in order])
    np.testing.assert_allclose(shuffled, embedder.embed(images(4))[order], rtol=1e-5, atol=1e-6)
    assert len(np.unique(shuffled.round(4), axis=0)) == 4


# --- with a projection --------------------------------------------------------------------------


def some_projection(dimensions: int, numbers: int, seed: int = 0) -> Projection:
    sample = np.random.default_rng(seed).normal(0.3, 1, (dimensions + numbers + 1, numbers))
    moments = StreamingMoments(numbers)
    moments.add(normalize_rows(sample).astype(np.float32))
    return moments.fit(dimensions)


@pytest.mark.parametrize("normalize", [False, True])
@quick
@given(seed=seeds, count=st.integers(0, 5), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
def test_vectors_are_brought_to_unit_length_projected_and_brought_there_again(
    normalize, seed, count, scale
):
    made = some_projection(4, 9)
    raw = (np.random.default_rng(seed).normal(size=(count, 9)) * scale).astype(np.float32)
    finished = finish_vectors(raw, normalize=normalize, projection=made)
    assert (finished.dtype, finished.shape) == (np.float32, (count, 4))
    wide = raw.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    expected = (wide - made.mean) @ made.axes.T.astype(np.float64)
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(finished, expected, rtol=1e-5, atol=1e-6)
    for place in range(count):
        alone = finish_vectors(raw[place : place + 1], normalize=normalize, projection=made)
        np.testing.assert_array_equal(alone, finished[place : place + 1])


@pytest.mark.parametrize("normalize", [False, True])
def test_a_projection_gives_no_length_to_a_vector_without(normalize):
    made = some_projection(4, 9)
    raw = np.ones((3, 9), np.float32) * np.arange(3, dtype=np.float32)[:, None]
    finished = finish_vectors(raw, normalize=normalize, projection=made)
    np.testing.assert_array_equal(finished[0], np.zeros(4))
    assert finished[1:].any()


@pytest.mark.parametrize("normalize", [False, True])
def test_what_is_not_finite_stays_so_for_the_caller_to_refuse(normalize):
    raw = np.ones((2, 9), np.float32)
    raw[0, 3] = np.nan
    for made in (None, some_projection(4, 9)):
        finished = finish_vectors(raw, normalize=normalize, projection=made)
        assert np.isfinite(finished).all(1).tolist() == [False, True]


@pytest.mark.parametrize("normalize", [False, True])
def test_an_embedder_projects_what_the_network_gives(bundle, normalize):
    made = some_projection(5, bundle.dimension)
    base = dataclasses.replace(bundle, normalize=normalize)
    embedder = Embedder(base.with_projection(made), plan(4))
    raw = Embedder(bundle, plan(4)).embed(images(4))
    embedded = embedder.embed(images(4))
    assert embedded.shape == (4, embedder.bundle.dimension) == (4, 5)
    np.testing.assert_array_equal(
        embedded, finish_vectors(raw, normalize=normalize, projection=made)
    )
    np.testing.assert_array_equal(embedder.embed(images(4)[:3]), embedded[:3])
    assert embedder.embed([]).shape == (0, 5)
