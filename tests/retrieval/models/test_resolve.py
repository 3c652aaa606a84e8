"""Tests of resolving options to a bundle, and of the errors for invalid options."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from torchvision.models import WeightsEnum

from retrieval.core.errors import InputError, UsageError
from retrieval.core.records import Transform
from retrieval.models.bundle import Bundle, serialize_state, write_bundle
from retrieval.models.registry import build_network, fit_state
from retrieval.models.resolve import RANDOM, resolve_bundle
from retrieval.storage.local import open_folder
from tests.retrieval.sample_vectors import one_thread  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def resolve(backbone: str = "scratch", **changes: object) -> Bundle:
    defaults = {
        "weights": None,
        "bundle": None,
        "pooling": "avg",
        "normalize": True,
        "image_size": None,
        "resize": "crop",
        "seed": 0,
    }
    return resolve_bundle(backbone=backbone, **{**defaults, **changes})


def test_random_weights_are_determined_by_seed():
    assert resolve(weights=RANDOM, seed=3) == resolve(weights=RANDOM, seed=3)
    assert resolve(weights=RANDOM, seed=3).digest != resolve(weights=RANDOM, seed=4).digest


def test_bundle_records_requested_options():
    bundle = resolve("scratch", weights=RANDOM, pooling="gem", normalize=False, resize="pad")
    assert (bundle.backbone, bundle.pooling, bundle.normalize) == ("scratch", "gem", False)
    assert bundle.dimension == 192
    assert bundle.transform == Transform("pad", 128, 128, "bilinear", *IMAGENET)


@pytest.mark.parametrize(
    ("backbone", "requested", "resize_size", "image_size"),
    [
        ("resnet18", None, 256, 224),
        ("resnet18", 96, 110, 96),  # 96 x 256 / 224 = 109.7
        ("scratch", None, 128, 128),
        ("scratch", 64, 64, 64),
    ],
)
def test_image_size_defaults_to_that_of_backbone(backbone, requested, resize_size, image_size):
    transform = resolve(backbone, weights=RANDOM, image_size=requested).transform
    assert (transform.resize_size, transform.image_size) == (resize_size, image_size)


@pytest.mark.parametrize(("requested", "expected"), [(None, "crop"), ("squash", "squash")])
def test_resize_defaults_to_crop(requested, expected):
    assert resolve(weights=RANDOM, resize=requested).transform.resize == expected


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_are_loaded_from_file(tmp_path, suffix):
    state = dict(build_network("scratch", num_classes=5).state_dict())
    path = tmp_path / f"trained.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    assert resolve(weights=str(path)).weights == serialize_state(fit_state(state, "scratch"))


def test_weights_of_another_backbone_raise_usage_error(tmp_path):
    path = tmp_path / "trained.safetensors"
    save_file(dict(build_network("scratch").state_dict()), path)
    with pytest.raises(UsageError, match="--weights do not fit --backbone squeezenet1_0: missing"):
        resolve("squeezenet1_0", weights=str(path))


@pytest.mark.parametrize("name", ["missing.pth", "", "no-such-protocol://bucket/a.pth"])
def test_unreadable_weights_raise_input_error(tmp_path, name):
    path = name if "://" in name else str(tmp_path / name)  # "" is the folder itself
    with pytest.raises(InputError, match=r"--weights .* cannot be read"):
        resolve(weights=path)


def test_existing_bundle_overrides_other_options(tmp_path):
    stored = resolve(weights=RANDOM, pooling="max")
    write_bundle(open_folder(str(tmp_path)), stored)
    assert resolve("resnet50", bundle=str(tmp_path)) == stored


def test_timm_bundle_requires_timm(tmp_path, monkeypatch):
    stored = dataclasses.replace(resolve(weights=RANDOM), backbone="timm:test_resnet")
    write_bundle(open_folder(str(tmp_path)), stored)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="--backbone timm:test_resnet needs timm; pip install"):
        resolve(bundle=str(tmp_path))


def test_weights_and_bundle_are_mutually_exclusive(tmp_path):
    with pytest.raises(UsageError, match="--weights and --bundle are mutually exclusive"):
        resolve(weights=RANDOM, bundle=str(tmp_path))


def test_scratch_without_weights_raises_usage_error():
    with pytest.raises(UsageError, match="train it and name --bundle"):
        resolve("scratch")


@pytest.mark.parametrize("weights", [None, RANDOM, "file.pth"])
def test_unknown_backbone_raises_before_weights_are_read(weights):
    with pytest.raises(UsageError, match="--backbone resnet51 is not known; did you mean"):
        resolve("resnet51", weights=weights)


@pytest.mark.parametrize(
    "error",
    [
        URLError("no route to host"),
        TimeoutError("timed out"),
        RuntimeError('invalid hash value (expected "5c10", got "0000")'),
    ],
    ids=repr,
)
def test_failed_download_suggests_weights_or_bundle(monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    with pytest.raises(InputError, match="--weights, or a trained bundle with --bundle"):
        resolve("squeezenet1_0")


@pytest.mark.parametrize(
    ("requested", "resize_size", "image_size"),
    [(None, 232, 224), (112, 116, 112)],
)
def test_downloaded_weights_define_transform(monkeypatch, requested, resize_size, image_size):
    """MobileNet's V2 weights use 232 and 224 pixels; another image size keeps the ratio."""
    calls: list[str] = []
    state = dict(build_network("mobilenet_v2").state_dict())

    def fetch(weights: WeightsEnum, **options: object) -> object:
        calls.append(f"{weights} {options}")
        return state

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fetch)
    bundle = resolve("mobilenet_v2", image_size=requested, resize="squash")
    assert calls == ["MobileNet_V2_Weights.IMAGENET1K_V2 {'progress': False, 'check_hash': True}"]
    assert bundle.weights == serialize_state(fit_state(state, "mobilenet_v2"))
    assert bundle.transform == Transform("squash", resize_size, image_size, "bilinear", *IMAGENET)


def test_bicubic_preset_is_kept(monkeypatch):
    state = dict(build_network("efficientnet_b0").state_dict())
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    preset = models.EfficientNet_B0_Weights.DEFAULT.transforms()
    transform = resolve("efficientnet_b0").transform
    assert transform.interpolation == preset.interpolation.value == "bicubic"
    assert [transform.resize_size] == preset.resize_size


@pytest.mark.parametrize(
    ("backbone", "image_size"),
    [("vit_b_32", 256), ("alexnet", 16), ("squeezenet1_0", 8)],
)
def test_unsupported_image_size_raises_usage_error(backbone, image_size):
    message = (
        f"--backbone {backbone} does not take images of {image_size} pixels; change --image-size"
    )
    with pytest.raises(UsageError, match=message):
        resolve(backbone, weights=RANDOM, image_size=image_size)


def test_real_squeezenet_weights_are_loaded(data: Path):
    bundle = resolve("squeezenet1_0", weights=str(data / "weights" / "squeezenet1_0.safetensors"))
    assert bundle.dimension == 512
    assert bundle.transform == Transform("crop", 256, 224, "bilinear", *IMAGENET)
