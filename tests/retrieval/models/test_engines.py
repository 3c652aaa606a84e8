"""Tests that each engine reproduces the network, independent of the rest of the batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.functional import normalize

from retrieval.core.errors import UsageError
from retrieval.models import engines, openvino
from retrieval.models.bundle import Bundle
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.engines import (
    batch_shape,
    build_network,
    check_processor,
    convert_bundle,
    load_engine,
)
from retrieval.models.registry import build_extractor
from retrieval.models.resolve import RANDOM, resolve_bundle
from tests.retrieval.models.test_registry import FAMILIES
from tests.retrieval.sample_vectors import one_thread  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = 8
PLANS = [
    EnginePlan(engine, precision, "cpu", BATCH)
    for engine in ("openvino", "torch")
    for precision in ("fp32", "bf16")
]


def random_bundle(backbone: str, **changes: object) -> Bundle:
    options: dict = {
        "weights": RANDOM, "bundle": None, "pooling": "avg", "normalize": False,
        "image_size": None, "resize": "crop", "seed": 0,
    }  # fmt: skip
    return resolve_bundle(backbone=backbone, **{**options, **changes})


@pytest.fixture(scope="module")
def small_bundle() -> Bundle:
    return random_bundle("mobilenet_v3_small", image_size=64)


@pytest.fixture(scope="module")
def scratch_bundle() -> Bundle:
    """Return the bundle of the network that is converted fastest."""
    return random_bundle("scratch", image_size=32)


@pytest.fixture(scope="module")
def ir(small_bundle) -> openvino.IR:
    """Return the OpenVINO representation, converted once as the driver does for all workers."""
    return convert_bundle(small_bundle, EnginePlan("openvino", "fp32", "cpu", BATCH))


@pytest.fixture(params=PLANS, ids=lambda plan: f"{plan.engine} {plan.precision}")
def plan(request) -> EnginePlan:
    try:
        check_processor(request.param)
    except UsageError as error:
        pytest.skip(str(error))
    return request.param


def random_images(bundle: Bundle, count: int = BATCH) -> np.ndarray:
    side = bundle.transform.image_size
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side), np.uint8)


def embed_batch(engine: engines.Engine, images: np.ndarray) -> np.ndarray:
    """Return the vectors of up to a batch of images; the batch is padded with zeros."""
    pixels = engine.next_buffer()
    pixels[:] = 0
    pixels[: len(images)] = images
    return engine.submit(pixels)()[: len(images)]


def reference_vectors(bundle: Bundle, images: np.ndarray) -> np.ndarray:
    """Return the vectors of the unconverted network."""
    extractor = build_extractor(bundle.backbone, bundle.state(), bundle.pooling)
    mean, std = bundle.transform.mean, bundle.transform.std
    with torch.inference_mode():
        return extractor(normalize(torch.from_numpy(images) / 255, mean, std)).numpy()


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def test_engine_reproduces_network(small_bundle, plan, ir):
    actual = embed_batch(
        load_engine(small_bundle, plan, ir, threads=1), random_images(small_bundle)
    )
    assert actual.dtype == np.float32
    assert actual.shape == (BATCH, small_bundle.dimension)
    assert relative_error(actual, reference_vectors(small_bundle, random_images(small_bundle))) < (
        1e-5 if plan.precision == "fp32" else 0.05
    )


def test_vectors_do_not_depend_on_batch_position_or_neighbours(small_bundle, plan, ir):
    engine = load_engine(small_bundle, plan, ir, threads=1)
    full_batch = embed_batch(engine, random_images(small_bundle)).copy()
    assert len(np.unique(full_batch, axis=0)) == BATCH
    for count in (1, 3, BATCH):
        np.testing.assert_array_equal(
            embed_batch(engine, random_images(small_bundle)[:count]), full_batch[:count]
        )
    order = [3, 0, 7, 1, 6, 2, 5, 4]
    np.testing.assert_array_equal(
        embed_batch(engine, random_images(small_bundle)[order]), full_batch[order]
    )


def test_second_engine_gives_identical_vectors(scratch_bundle, plan):
    """The first engine gets the representation that the driver converted, the second converts."""
    converted = convert_bundle(scratch_bundle, EnginePlan("openvino", "fp32", "cpu", BATCH))
    first, second = (load_engine(scratch_bundle, plan, ir, threads=1) for ir in (converted, None))
    np.testing.assert_array_equal(
        embed_batch(first, random_images(scratch_bundle)),
        embed_batch(second, random_images(scratch_bundle)),
    )


def test_results_are_collected_after_later_batches_were_submitted(small_bundle, plan, ir):
    engine = load_engine(small_bundle, plan, ir, threads=1)
    expected = [embed_batch(engine, images[None]).copy() for images in random_images(small_bundle)]
    pending, collected = [], []
    for image in random_images(small_bundle):
        pixels = engine.next_buffer()
        pixels[:] = image
        pending.append(engine.submit(pixels))
        if len(pending) > engine.ahead:
            collected.append(pending.pop(0)()[:1])
    collected += [result()[:1] for result in pending]
    np.testing.assert_array_equal(np.concatenate(collected), np.concatenate(expected))


SLOW_FAMILIES = (
    "maxvit_t", "swin_v2_t", "wide_resnet50_2", "swin_t", "densenet121", "efficientnet_v2_s",
    "inception_v3", "resnext50_32x4d", "vgg11", "vit_b_32", "convnext_tiny", "shufflenet_v2_x0_5",
    "efficientnet_b0", "mobilenet_v3_small", "mnasnet0_5", "googlenet", "regnet_y_400mf",
    "resnet18",
)  # fmt: skip
"""Families that are slow to convert; they run in the nightly tests. Their layers are also covered
by faster networks: test_resnet and test_vit3 in `test_timm.py`, mobilenet_v2 and alexnet."""


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[pytest.mark.nightly] if name in SLOW_FAMILIES else [])
        for name in FAMILIES
    ],
)
def test_openvino_converts_every_torchvision_family(family):
    bundle = random_bundle(family)
    engine = load_engine(bundle, EnginePlan("openvino", "fp32", "cpu", 4), threads=1)
    images = random_images(bundle, 4)
    full_batch = embed_batch(engine, images).copy()
    assert full_batch.shape == (4, bundle.dimension) == (4, FAMILIES[family][0])
    np.testing.assert_array_equal(embed_batch(engine, images), full_batch)
    np.testing.assert_array_equal(embed_batch(engine, images[2:3]), full_batch[2:3])
    single = load_engine(bundle, EnginePlan("torch", "fp32", "cpu", 1), threads=1)
    assert relative_error(embed_batch(single, images[:1]), full_batch[:1]) < 1e-4


def test_engine_applies_pooling(scratch_bundle, plan):
    bundle, images = (
        dataclasses.replace(scratch_bundle, pooling="max"),
        random_images(scratch_bundle),
    )
    actual = embed_batch(load_engine(bundle, plan, threads=1), images)
    expected = reference_vectors(bundle, images)
    assert relative_error(actual, expected) < (1e-5 if plan.precision == "fp32" else 0.05)
    assert relative_error(expected, reference_vectors(scratch_bundle, images)) > 0.1


class DataDependentNetwork(nn.Module):
    """A network with data-dependent control flow, which only PyTorch can run."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.float()
        return images.mean((-2, -1)) if images.sum() > 1 else images.amax((-2, -1))


class ExportDependentNetwork(nn.Module):
    """A network that computes something else while it is exported."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().mean((-2, -1)) * (1.01 if torch.compiler.is_exporting() else 1)


@pytest.mark.parametrize("network", [DataDependentNetwork(), ExportDependentNetwork()])
def test_unconvertible_or_wrongly_converted_network_raises(network):
    with pytest.raises(openvino.ConversionFailed):
        openvino.convert_network(network, (2, 3, 8, 8))


def test_precision_unsupported_by_processor_raises_usage_error(monkeypatch):
    class Core:
        def get_property(self, *_: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(engines, "openvino_core", Core)
    with pytest.raises(UsageError, match="--precision bf16: the cpu has no bf16 arithmetic"):
        check_processor(EnginePlan("openvino", "bf16", "cpu", 4))
    check_processor(EnginePlan("openvino", "fp32", "cpu", 4))


def test_openvino_telemetry_is_not_loaded(small_bundle):
    import sys

    openvino.openvino_core()
    assert sys.modules["openvino_telemetry"] is None


def test_batch_norms_are_folded_into_convolutions(small_bundle):
    names = [type(module).__name__ for module in build_network(small_bundle).modules()]
    assert "Conv2d" in names
    assert "BatchNorm2d" not in names


def test_batch_shape_follows_bundle_image_size(small_bundle):
    assert batch_shape(small_bundle, EnginePlan("torch", "fp32", "cpu", 5)) == (5, 3, 64, 64)
