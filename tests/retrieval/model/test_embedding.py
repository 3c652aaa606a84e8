"""Embedding equals the plain network, whatever the batch is filled up with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import normalize

from retrieval.model.backbones import extractor, fit_state, network
from retrieval.model.bundle import Bundle, pack
from retrieval.model.embedding import Embedder
from retrieval.model.plan import EnginePlan
from retrieval.model.resolve import RANDOM, resolve_bundle

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
    body = extractor(bundle.backbone, bundle.state(), bundle.pooling)
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
    plain, unit = Embedder(bundle, plan(4)).embed(images(4)), Embedder(normalized(bundle), plan(4))
    embedded = unit.embed(images(4))
    lengths = np.linalg.norm(plain.astype(np.float64), axis=1, keepdims=True)
    assert (abs(lengths - 1) > 0.01).all()  # they are not of unit length by chance
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(embedded, (plain / lengths).astype(np.float32))


def test_a_vector_without_length_stays_so(bundle):
    """Dividing by nothing would make it NaN; the caller refuses it by name instead."""
    state = fit_state({k: v * 0 for k, v in network("scratch").state_dict().items()}, "scratch")
    state |= {key: value + 1 for key, value in state.items() if key.endswith("running_var")}
    empty = dataclasses.replace(normalized(bundle), weights=pack(state))
    embedded = Embedder(empty, plan(2)).embed(images(2))
    np.testing.assert_array_equal(embedded, np.zeros((2, bundle.dimension)))


def test_order_is_kept(bundle):
    embedder = Embedder(bundle, plan(4))
    order = [2, 0, 3, 1]
    shuffled = embedder.embed([images(4)[place] for place in order])
    np.testing.assert_allclose(shuffled, embedder.embed(images(4))[order], rtol=1e-5, atol=1e-6)
    assert len(np.unique(shuffled.round(4), axis=0)) == 4
