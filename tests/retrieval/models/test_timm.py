"""Tests of timm backbones: those of torchvision, and timm's own pooling and transforms."""

from __future__ import annotations

import dataclasses
import io
import re
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from retrieval.core.errors import InputError, Mismatch, UsageError
from retrieval.core.records import Transform
from retrieval.images.decode import decode
from retrieval.models import registry
from retrieval.models.bundle import Bundle, read_bundle, serialize_state, write_bundle
from retrieval.models.embedder import Embedder
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.engines import convert_bundle, load_engine
from retrieval.models.openvino import ConversionFailed
from retrieval.models.registry import (
    build_extractor,
    build_network,
    default_transform,
    describe_backbone,
    find_provider,
    fit_state,
)
from retrieval.models.resolve import RANDOM, resolve_bundle
from retrieval.models.transforms import override_transform
from retrieval.storage.local import open_folder
from tests.conftest import draw_photos
from tests.retrieval.models.test_registry import BackboneTests, embed, random_images, random_network
from tests.retrieval.sample_vectors import one_thread  # noqa: F401 - a fixture

timm = pytest.importorskip("timm", reason="timm is not installed (pip install 'lookalike[timm]')")

pytestmark = pytest.mark.usefixtures("one_thread")

# one small member of several families: (dimension, image size, channels of the last feature map);
# the channels differ from the dimension where a layer follows the pooling
FAMILIES = {
    "timm:test_resnet": (96, 160, 96),
    "timm:test_byobnet": (256, 160, 256),
    "timm:test_efficientnet": (256, 160, 256),
    "timm:test_nfnet": (192, 160, 192),
    "timm:test_convnext": (64, 160, 64),  # a norm after pooling
    "timm:mobilenetv3_small_050": (1024, 224, 288),  # a layer after pooling
    "timm:test_mambaout": (256, 160, 64),  # channels last, a layer after pooling
    "timm:swin_tiny_patch4_window7_224": (768, 224, 768),  # channels last
    "timm:mobilevit_xxs": (320, 256, 320),
    "timm:test_vit": (64, 160, 64),  # class token
    "timm:test_vit3": (96, 160, 96),  # pools by attention
    "timm:xcit_nano_12_p16_224": (128, 224, 128),
    "timm:efficientformer_l1": (448, 224, 448),  # two classifiers, tokens without a class token
}
PLAN = EnginePlan("torch", "fp32", "cpu", 2)
PLAIN_CNNS = ["timm:test_resnet", "timm:test_byobnet", "timm:test_efficientnet", "timm:test_nfnet"]


def resolve(backbone: str, **changes: object) -> Bundle:
    defaults = {
        "weights": RANDOM,
        "bundle": None,
        "pooling": "avg",
        "normalize": True,
        "image_size": None,
        "resize": None,
        "seed": 0,
    }
    return resolve_bundle(backbone=backbone, **{**defaults, **changes})


LARGE_FAMILIES = ("timm:swin_tiny_patch4_window7_224", "timm:xcit_nano_12_p16_224")
"""Slow networks for the nightly tests; test_mambaout has channels last too, and test_vit tokens."""


class TestTimm(BackboneTests):
    @pytest.fixture(
        scope="class",
        params=[
            pytest.param(name, marks=[pytest.mark.nightly] if name in LARGE_FAMILIES else [])
            for name in FAMILIES
        ],
    )
    def case(self, request):
        return (request.param, *FAMILIES[request.param][:2])

    @pytest.fixture(scope="class")
    def map_channels(self, case):
        return FAMILIES[case[0]][2]

    def test_embedding_does_not_depend_on_larger_batch(self, case, extractor):
        batch = embed(extractor, random_images(8, case[2]))
        single = embed(extractor, random_images(1, case[2]))
        torch.testing.assert_close(single, batch[:1], rtol=1e-4, atol=1e-5)

    def test_avg_embedding_equals_timm_pre_logits(self, case, model, embedded):
        with torch.inference_mode():
            features = model.forward_features(random_images(2, case[2]))
            expected = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PLAIN_CNNS)
def test_avg_of_plain_cnn_is_spatial_mean(name):
    model, images = random_network(name), random_images(2, 160)
    with torch.inference_mode():
        expected = model.forward_features(images).mean((-2, -1))
    embedded = embed(build_extractor(name, fit_state(model.state_dict(), name), "avg"), images)
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "flatten_positions"),
    [
        ("timm:test_resnet", lambda features: features.flatten(2)),
        ("timm:test_mambaout", lambda features: features.flatten(1, 2).transpose(1, 2)),
        ("timm:test_vit", lambda features: features[:, 1:].transpose(1, 2)),
    ],
    ids=["channels first", "channels last", "class token before patch tokens"],
)
def test_max_pools_over_spatial_positions(name, flatten_positions):
    model, images = random_network(name), random_images(2, 160)
    with torch.inference_mode():
        expected = flatten_positions(model.forward_features(images)).amax(-1)
    embedded = embed(build_extractor(name, fit_state(model.state_dict(), name), "max"), images)
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["timm:pit_ti_distilled_224", "timm:crossvit_tiny_240"])
def test_network_without_single_feature_map_allows_avg_only(name):
    """The first returns only class tokens, the second has two patch grids."""
    assert resolve(name).dimension > 0
    with pytest.raises(
        UsageError, match=f"--backbone {name} ends without one map .* --pooling avg"
    ):
        resolve(name, pooling="gem")


@pytest.mark.parametrize("pooling", ["gem", pytest.param("avg", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "name",
    [
        "timm:test_resnet", "timm:test_mambaout", "timm:test_vit",
        pytest.param("timm:mobilevit_xxs", marks=pytest.mark.nightly),
    ],
)  # fmt: skip
def test_extractor_can_be_exported(name, pooling):
    extractor = build_extractor(name, fit_state(random_network(name).state_dict(), name), pooling)
    images = random_images(4, 160)
    with torch.no_grad():
        exported = torch.export.export(extractor, (images,)).module()
        torch.testing.assert_close(exported(images), extractor(images), rtol=1e-5, atol=1e-6)


# --- parameters -----------------------------------------------------------------------------------


def test_bundle_of_weights_file_embeds_images(tmp_path):
    state = dict(build_network("timm:test_efficientnet", num_classes=7).state_dict())
    path = tmp_path / "trained.safetensors"
    save_file({f"module.{key}": value for key, value in state.items()}, path)
    bundle = resolve("timm:test_efficientnet", weights=str(path))
    assert bundle.weights == serialize_state(fit_state(state, "timm:test_efficientnet"))
    folder = open_folder(str(tmp_path / "stored"))
    write_bundle(folder, bundle)
    images = list(torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8))
    embedded = Embedder(read_bundle(folder), PLAN).embed(images)
    assert embedded.shape == (2, bundle.dimension)
    assert (embedded == Embedder(bundle, PLAN).embed(images)).all()


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:vit_small_patch14_dinov2"])
def test_classifier_in_weights_file_is_removed(name):
    """The second network has no classifier by default: its weights were made without classes."""
    state = dict(build_network(name).state_dict())
    expected = fit_state(state, name)
    classifier = "fc" if name == "timm:test_resnet" else "head"
    with_classifier = {
        **state,
        f"{classifier}.weight": torch.zeros(7, 9),
        f"{classifier}.bias": torch.zeros(7),
    }
    assert list(fit_state(with_classifier, name)) == list(expected)


def test_missing_and_unknown_parameters_are_named():
    state = dict(build_network("timm:test_resnet").state_dict())
    state = {k: v for k, v in state.items() if k != "bn1.bias"} | {"neck.weight": torch.zeros(1)}
    with pytest.raises(UsageError) as error:
        fit_state(state, "timm:test_resnet")
    assert str(error.value) == (
        "--weights do not fit --backbone timm:test_resnet: missing bn1.bias; unknown neck.weight"
    )


def test_parameters_of_another_timm_version_raise_mismatch():
    """Otherwise layers that were renamed in timm would keep their random parameters."""
    state = fit_state(build_network("timm:test_resnet").state_dict(), "timm:test_resnet")
    state["bn1.renamed"] = state.pop("bn1.bias")
    with pytest.raises(
        Mismatch, match=f"not those of timm {timm.__version__}; install the version"
    ):
        build_extractor("timm:test_resnet", state, "avg")


def test_downloaded_weights_are_pretrained_timm_weights(monkeypatch):
    models: list[nn.Module] = []
    create = timm.create_model

    def fetch(name: str, *, pretrained: bool = False, **options: object) -> nn.Module:
        model = create(name, **options)
        if pretrained:
            models.append(model)
        return model

    monkeypatch.setattr(timm, "create_model", fetch)
    bundle = resolve("timm:test_resnet.r160_in1k", weights=None)
    [model] = models
    assert bundle.weights == serialize_state(fit_state(model.state_dict(), "timm:test_resnet"))


def test_unreachable_hub_raises_immediately_with_alternatives(monkeypatch, tmp_path):
    from huggingface_hub import constants, utils

    def no_network() -> None:
        raise ConnectionError

    monkeypatch.setattr(utils, "get_session", no_network)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    offline, started = constants.HF_HUB_OFFLINE, time.monotonic()
    with pytest.raises(InputError, match=r"no answer from its hub\); .*--weights, or .*--bundle"):
        resolve("timm:test_resnet", weights=None)
    assert time.monotonic() - started < 10  # the hub's client would retry for a minute
    assert offline == constants.HF_HUB_OFFLINE


def test_backbone_without_pretrained_weights_raises_usage_error():
    with pytest.raises(UsageError, match="no weights of its own; name a file with --weights"):
        resolve("timm:resnetblur18", weights=None)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unknown", "suggestion"),
    [
        ("timm:resnet_50", "timm:resnet50"),
        ("timm:inception_resnetv2", "timm:inception_resnet_v2"),
        ("timm:resnet50.a4_in1k", r"timm:resnet50\."),
        ("timm:resnet50.a4_in1k?img_size=224", r"timm:resnet50\."),
    ],
)
def test_unknown_name_suggests_similar_names(unknown, suggestion):
    with pytest.raises(
        UsageError,
        match=f"--backbone {re.escape(unknown)} is not known; did you mean .*{suggestion}",
    ):
        find_provider(unknown)


@pytest.mark.parametrize("name", ["inception_resnet_v2", "tf_efficientnetv2_b3", "resnetv2_50"])
def test_commonly_used_names_are_accepted(name):
    find_provider(f"timm:{name}")


def test_network_without_classifier_raises_usage_error(monkeypatch):
    """Some timm models are encoders of language models."""
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: nn.Linear(1, 1))
    with pytest.raises(UsageError, match="no classifier that can be removed"):
        build_network("timm:test_resnet")


def test_description_counts_parameters_of_timm_model():
    description = describe_backbone("timm:test_resnet")
    model = timm.create_model("test_resnet")
    assert description.parameters == sum(p.numel() for p in model.parameters())
    assert (description.dimension, description.image_size) == (96, 160)
    assert (description.gflops, description.imagenet_top1) == (None, None)


# --- transforms -----------------------------------------------------------------------------------


def timm_transform(name: str, image_size: int | None) -> nn.Module:
    """Return timm's transform of a backbone, without normalization."""
    configuration = timm.get_pretrained_cfg(name.removeprefix("timm:")).to_dict()
    options = {} if image_size is None else {"img_size": image_size}
    data = timm.data.resolve_data_config(options, pretrained_cfg=configuration)
    return timm.data.create_transform(**data, is_training=False, normalize=False)


TRANSFORMS = [
    ("timm:tf_efficientnet_lite0", None, ("crop", 256, 224)),
    ("timm:tf_efficientnet_lite0", 160, ("crop", 182, 160)),  # 160 / 0.875 = 182.9
    ("timm:inception_resnet_v2", None, ("crop", 333, 299)),
    ("timm:resnet50.a1_in1k", None, ("crop", 235, 224)),  # 288 is timm's test size
    ("timm:convnext_small.in12k_ft_in1k_384", None, ("squash", 384, 384)),
    ("timm:tf_efficientnetv2_b3", None, ("squash-crop", 266, 240)),
]


@pytest.mark.parametrize(("name", "requested", "expected"), TRANSFORMS)
def test_default_transform_equals_timm_configuration(name, requested, expected):
    transform = default_transform(name, image_size=requested)
    configuration = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    assert (transform.resize, transform.resize_size, transform.image_size) == expected
    assert transform.interpolation == configuration.interpolation
    assert (transform.mean, transform.std) == (configuration.mean, configuration.std)


def test_explicit_options_override_timm_configuration():
    transform = override_transform(
        default_transform("timm:tf_efficientnetv2_b3", image_size=112), resize="pad"
    )
    assert (transform.resize, transform.image_size) == ("pad", 112)


@pytest.mark.parametrize(("name", "requested", "expected"), TRANSFORMS)
def test_pixels_of_synthetic_photos_equal_timm(tmp_path, name, requested, expected):
    photos = sorted(draw_photos(tmp_path, 3).rglob("*.jpg"))
    assert_equal_pixels(
        photos,
        timm_transform(name, requested),
        default_transform(name, image_size=requested),
    )


@pytest.mark.parametrize(("name", "requested", "expected"), TRANSFORMS)
def test_pixels_of_real_photos_equal_timm(data, name, requested, expected):
    photos = sorted((data / "images" / "queries").glob("*.jpg"))[::20]
    assert_equal_pixels(
        photos,
        timm_transform(name, requested),
        default_transform(name, image_size=requested),
    )


def assert_equal_pixels(photos: list[Path], reference: nn.Module, transform: Transform) -> None:
    """Check that decoded pixels equal those of timm's transform, in grey levels of 255.

    If one side is enlarged and the other reduced (squash), Pillow and torchvision resize the sides
    in different order and clip different overshoots of the bicubic filter, at a few pixels.
    """
    for photo in photos:
        expected = reference(Image.open(io.BytesIO(photo.read_bytes())).convert("RGB"))
        actual = decode(photo.read_bytes(), transform, max_pixels=1 << 28).pixels
        error = (actual.int() - expected.int()).abs().float()
        assert error.mean() < 0.5
        if transform.resize == "crop":
            assert error.quantile(0.99) <= 1
        else:
            assert error.quantile(0.95) <= 1


def test_non_square_input_size_raises_usage_error(monkeypatch):
    non_square = dataclasses.replace(
        timm.get_pretrained_cfg("test_resnet"), input_size=(3, 96, 160)
    )
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: non_square)
    with pytest.raises(UsageError, match="160 x 96 pixels, not squares"):
        default_transform("timm:test_resnet", image_size=None)


def test_parameters_that_cannot_be_interpolated_are_refused_at_another_size(tmp_path):
    """An MLP over the positions has one weight per pair of positions."""
    path = tmp_path / "mixer.safetensors"
    save_file(dict(build_network("timm:mixer_s32_224").state_dict()), path)
    with pytest.raises(UsageError, match=r"do not fit .*mixer_s32_224\?img_size=160: of another"):
        resolve("timm:mixer_s32_224", weights=str(path), image_size=160)


def test_real_efficientnet_weights_are_loaded(data: Path):
    weights = data / "weights" / "tf_efficientnet_lite0.safetensors"
    bundle = resolve("timm:tf_efficientnet_lite0", weights=str(weights))
    gray = (0.5, 0.5, 0.5)
    assert bundle.dimension == 1280
    assert bundle.transform == Transform("crop", 256, 224, "bicubic", gray, gray)
    assert registry.describe_backbone(bundle.backbone).dimension == 1280


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_mambaout", "timm:test_vit3"])
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_engine_reproduces_network(name, engine):
    bundle = resolve(name, normalize=False)
    image_size = bundle.transform.image_size
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, image_size, image_size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    loaded = load_engine(bundle, EnginePlan(engine, "fp32", "cpu", 2), threads=1)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (bundle.transform.mean, bundle.transform.std)
    )
    expected = embed(build_extractor(name, bundle.state(), "avg"), (images / 255 - mean) / std)
    torch.testing.assert_close(
        torch.from_numpy(loaded.submit(images.numpy())()), expected, rtol=1e-4, atol=1e-5
    )


def test_network_unsupported_by_openvino_raises_conversion_failed():
    """The network resamples its position embeddings, an operation that OpenVINO lacks."""
    bundle = resolve("timm:test_vit")
    with pytest.raises(ConversionFailed, match="bicubic"):
        convert_bundle(bundle, EnginePlan("openvino", "fp32", "cpu", 2))
