"""Each engine gives the vectors of the plain network, bit for bit whatever else is in the batch."""

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


def bundle_of(backbone: str, **changes: object) -> Bundle:
    options: dict = {
        "weights": RANDOM, "bundle": None, "pooling": "avg", "normalize": False,
        "image_size": None, "resize": "crop", "seed": 0,
    }  # fmt: skip
    return resolve_bundle(backbone=backbone, **{**options, **changes})


@pytest.fixture(scope="module")
def small() -> Bundle:
    return bundle_of("mobilenet_v3_small", image_size=64)


@pytest.fixture(scope="module")
def ir(small) -> openvino.IR:
    """What OpenVINO reads of it, made once as the driver does for all workers."""
    return convert_bundle(small, EnginePlan("openvino", "fp32", "cpu", BATCH))


@pytest.fixture(params=PLANS, ids=lambda plan: f"{plan.engine} {plan.precision}")
def plan(request) -> EnginePlan:
    try:
        check_processor(request.param)
    except UsageError as refused:
        pytest.skip(str(refused))
    return request.param


def noise(bundle: Bundle, count: int = BATCH) -> np.ndarray:
    side = bundle.transform.image_size
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side), np.uint8)


def vectors(engine: engines.Engine, images: np.ndarray) -> np.ndarray:
    """Embed up to a batch, the rest of it blank."""
    pixels = engine.next_buffer()
    pixels[:] = 0
    pixels[: len(images)] = images
    return engine.submit(pixels)()[: len(images)]


def plainly(bundle: Bundle, images: np.ndarray) -> np.ndarray:
    body = build_extractor(bundle.backbone, bundle.state(), bundle.pooling)
    mean, std = bundle.transform.mean, bundle.transform.std
    with torch.inference_mode():
        return body(normalize(torch.from_numpy(images) / 255, mean, std)).numpy()


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


def test_it_is_the_plain_network(small, plan, ir):
    found = vectors(load_engine(small, plan, ir, threads=1), noise(small))
    assert found.dtype == np.float32
    assert found.shape == (BATCH, small.dimension)
    assert apart(found, plainly(small, noise(small))) < (1e-5 if plan.precision == "fp32" else 0.05)


def test_a_vector_depends_neither_on_its_place_nor_on_its_neighbours(small, plan, ir):
    engine = load_engine(small, plan, ir, threads=1)
    whole = vectors(engine, noise(small)).copy()
    assert len(np.unique(whole, axis=0)) == BATCH
    for count in (1, 3, BATCH):
        np.testing.assert_array_equal(vectors(engine, noise(small)[:count]), whole[:count])
    order = [3, 0, 7, 1, 6, 2, 5, 4]
    np.testing.assert_array_equal(vectors(engine, noise(small)[order]), whole[order])


def test_a_second_engine_gives_the_same_bits(small, plan, ir):
    one, other = (load_engine(small, plan, made, threads=1) for made in (ir, None))
    np.testing.assert_array_equal(vectors(one, noise(small)), vectors(other, noise(small)))


def test_answers_may_be_taken_after_the_next_batch_has_begun(small, plan, ir):
    engine = load_engine(small, plan, ir, threads=1)
    expected = [vectors(engine, images[None]).copy() for images in noise(small)]
    answers, found = [], []
    for image in noise(small):
        pixels = engine.next_buffer()
        pixels[:] = image
        answers.append(engine.submit(pixels))
        if len(answers) > engine.ahead:
            found.append(answers.pop(0)()[:1])
    found += [answer()[:1] for answer in answers]
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))


LONG = (
    "maxvit_t", "swin_v2_t", "wide_resnet50_2", "swin_t", "densenet121", "efficientnet_v2_s",
    "inception_v3", "resnext50_32x4d", "vgg11", "vit_b_32", "convnext_tiny", "shufflenet_v2_x0_5",
    "efficientnet_b0", "mobilenet_v3_small", "mnasnet0_5",
)  # fmt: skip
"""Long to convert, for the night. What they are made of stays: timm's test_vit3 in `test_timm.py`,
the blocks of googlenet, the groups of regnet_y_400mf, the plain layers of alexnet."""


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.nightly] if f in LONG else []) for f in FAMILIES],
)
def test_openvino_takes_every_family_of_torchvision(family):
    bundle = bundle_of(family)
    engine = load_engine(bundle, EnginePlan("openvino", "fp32", "cpu", 4), threads=1)
    images = noise(bundle, 4)
    whole = vectors(engine, images).copy()
    assert whole.shape == (4, bundle.dimension) == (4, FAMILIES[family][0])
    np.testing.assert_array_equal(vectors(engine, images), whole)
    np.testing.assert_array_equal(vectors(engine, images[2:3]), whole[2:3])
    single = load_engine(bundle, EnginePlan("torch", "fp32", "cpu", 1), threads=1)
    assert apart(vectors(single, images[:1]), whole[:1]) < 1e-4


def test_pooling_is_part_of_the_network(small, plan):
    bundle = dataclasses.replace(small, pooling="max")
    found = vectors(load_engine(bundle, plan, threads=1), noise(small))
    expected = plainly(bundle, noise(small))
    assert apart(found, expected) < (1e-5 if plan.precision == "fp32" else 0.05)
    assert apart(expected, plainly(small, noise(small))) > 0.1


class Odd(nn.Module):
    """A network whose path depends on the pixels: no engine but torch can take it."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.float()
        return images.mean((-2, -1)) if images.sum() > 1 else images.amax((-2, -1))


class Twofold(nn.Module):
    """A network that is another one while it is exported."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().mean((-2, -1)) * (1.01 if torch.compiler.is_exporting() else 1)


@pytest.mark.parametrize("network", [Odd(), Twofold()])
def test_what_openvino_does_not_take_or_gets_wrong_is_said(network):
    with pytest.raises(openvino.ConversionFailed):
        openvino.convert_network(network, (2, 3, 8, 8))


def test_a_precision_that_the_processor_lacks_is_refused(monkeypatch):
    class Core:
        def get_property(self, *_: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(engines, "openvino_core", Core)
    with pytest.raises(UsageError, match="--precision bf16: the cpu has no bf16 arithmetic"):
        check_processor(EnginePlan("openvino", "bf16", "cpu", 4))
    check_processor(EnginePlan("openvino", "fp32", "cpu", 4))


def test_openvino_s_telemetry_is_never_loaded(small):
    import sys

    openvino.openvino_core()
    assert sys.modules["openvino_telemetry"] is None


def test_batch_norms_are_folded(small):
    names = [type(module).__name__ for module in build_network(small).modules()]
    assert "Conv2d" in names
    assert "BatchNorm2d" not in names


def test_the_shape_is_that_of_the_bundle(small):
    assert batch_shape(small, EnginePlan("torch", "fp32", "cpu", 5)) == (5, 3, 64, 64)
