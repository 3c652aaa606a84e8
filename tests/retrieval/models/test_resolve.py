"""From what a person asked for to a bundle, or to a sentence that says what to ask for."""

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
    asked = {
        "weights": None,
        "bundle": None,
        "pooling": "avg",
        "normalize": True,
        "image_size": None,
        "resize": "crop",
        "seed": 0,
    }
    return resolve_bundle(backbone=backbone, **{**asked, **changes})


def test_random_weights_are_those_of_the_seed():
    assert resolve(weights=RANDOM, seed=3) == resolve(weights=RANDOM, seed=3)
    assert resolve(weights=RANDOM, seed=3).digest != resolve(weights=RANDOM, seed=4).digest


def test_what_was_asked_for_stands_in_the_bundle():
    made = resolve("scratch", weights=RANDOM, pooling="gem", normalize=False, resize="pad")
    assert (made.backbone, made.pooling, made.normalize) == ("scratch", "gem", False)
    assert made.dimension == 192
    assert made.transform == Transform("pad", 128, 128, "bilinear", *IMAGENET)


@pytest.mark.parametrize(
    ("backbone", "asked", "shorter", "side"),
    [
        ("resnet18", None, 256, 224),
        ("resnet18", 96, 110, 96),  # 96 x 256 / 224 = 109.7
        ("scratch", None, 128, 128),
        ("scratch", 64, 64, 64),
    ],
)
def test_the_side_of_an_image_is_the_usual_one_unless_asked_for(backbone, asked, shorter, side):
    transform = resolve(backbone, weights=RANDOM, image_size=asked).transform
    assert (transform.resize_size, transform.image_size) == (shorter, side)


@pytest.mark.parametrize(("asked", "becomes"), [(None, "crop"), ("squash", "squash")])
def test_a_photo_that_is_not_square_is_cropped_unless_asked_otherwise(asked, becomes):
    assert resolve(weights=RANDOM, resize=asked).transform.resize == becomes


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_are_read_from_a_file(tmp_path, suffix):
    state = dict(build_network("scratch", num_classes=5).state_dict())
    path = tmp_path / f"trained.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    assert resolve(weights=str(path)).weights == serialize_state(fit_state(state, "scratch"))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "trained.safetensors"
    save_file(dict(build_network("scratch").state_dict()), path)
    with pytest.raises(UsageError, match="--weights do not fit --backbone squeezenet1_0: missing"):
        resolve("squeezenet1_0", weights=str(path))


@pytest.mark.parametrize("name", ["missing.pth", "", "no-such-protocol://bucket/a.pth"])
def test_weights_that_cannot_be_read_are_refused(tmp_path, name):
    path = name if "://" in name else str(tmp_path / name)  # "" is the folder itself
    with pytest.raises(InputError, match=r"--weights .* cannot be read"):
        resolve(weights=path)


def test_a_bundle_is_taken_as_it_is(tmp_path):
    stored = resolve(weights=RANDOM, pooling="max")
    write_bundle(open_folder(str(tmp_path)), stored)
    assert resolve("resnet50", bundle=str(tmp_path)) == stored


def test_a_bundle_of_timm_needs_timm(tmp_path, monkeypatch):
    stored = dataclasses.replace(resolve(weights=RANDOM), backbone="timm:test_resnet")
    write_bundle(open_folder(str(tmp_path)), stored)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="--backbone timm:test_resnet needs timm; pip install"):
        resolve(bundle=str(tmp_path))


def test_weights_and_bundle_are_not_both_taken(tmp_path):
    with pytest.raises(UsageError, match="--weights and --bundle are mutually exclusive"):
        resolve(weights=RANDOM, bundle=str(tmp_path))


def test_scratch_has_no_weights_to_fetch():
    with pytest.raises(UsageError, match="train it, name --bundle"):
        resolve("scratch")


@pytest.mark.parametrize("weights", [None, RANDOM, "file.pth"])
def test_an_unknown_backbone_is_refused_before_anything_is_read(weights):
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
def test_without_the_network_the_two_ways_out_are_named(monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    with pytest.raises(InputError, match="--weights, or a trained bundle with --bundle"):
        resolve("squeezenet1_0")


@pytest.mark.parametrize(
    ("asked", "shorter", "side"),
    [(None, 232, 224), (112, 116, 112)],
)
def test_fetched_weights_come_with_their_own_transform(monkeypatch, asked, shorter, side):
    """MobileNet's newer weights were made for 232 and 224 pixels; another side keeps the ratio."""
    seen: list[str] = []
    state = dict(build_network("mobilenet_v2").state_dict())

    def fetch(weights: WeightsEnum, **options: object) -> object:
        seen.append(f"{weights} {options}")
        return state

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fetch)
    made = resolve("mobilenet_v2", image_size=asked, resize="squash")
    assert seen == ["MobileNet_V2_Weights.IMAGENET1K_V2 {'progress': False, 'check_hash': True}"]
    assert made.weights == serialize_state(fit_state(state, "mobilenet_v2"))
    assert made.transform == Transform("squash", shorter, side, "bilinear", *IMAGENET)


def test_bicubic_presets_stay_bicubic(monkeypatch):
    state = dict(build_network("efficientnet_b0").state_dict())
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    preset = models.EfficientNet_B0_Weights.DEFAULT.transforms()
    transform = resolve("efficientnet_b0").transform
    assert transform.interpolation == preset.interpolation.value == "bicubic"
    assert [transform.resize_size] == preset.resize_size


@pytest.mark.parametrize(
    ("backbone", "side"),
    [("vit_b_32", 256), ("alexnet", 16), ("squeezenet1_0", 8)],
)
def test_images_a_network_does_not_take_are_refused(backbone, side):
    way_out = f"--backbone {backbone} does not take images of {side} pixels; change --image-size"
    with pytest.raises(UsageError, match=way_out):
        resolve(backbone, weights=RANDOM, image_size=side)


def test_the_real_weights_are_taken(data: Path):
    made = resolve("squeezenet1_0", weights=str(data / "weights" / "squeezenet1_0.safetensors"))
    assert made.dimension == 512
    assert made.transform == Transform("crop", 256, 224, "bilinear", *IMAGENET)
