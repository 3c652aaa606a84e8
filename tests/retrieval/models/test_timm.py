"""timm's models: the same promises as torchvision's, and timm's own word on pooling and pixels."""

from __future__ import annotations

import dataclasses
import io
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
from retrieval.storage.local import open_folder
from tests.conftest import draw_photos
from tests.retrieval.models.test_registry import BackboneTests, embed, pictures, whole
from tests.retrieval.sample_vectors import one_thread  # noqa: F401 - a fixture

timm = pytest.importorskip("timm", reason="timm is not installed (pip install 'lookalike[timm]')")

pytestmark = pytest.mark.usefixtures("one_thread")

# one small member of several families: its dimension, the side of its own images, and the channels
# of its last map where a layer comes between that and the classifier
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
PLAIN = ["timm:test_resnet", "timm:test_byobnet", "timm:test_efficientnet", "timm:test_nfnet"]


def resolve(backbone: str, **changes: object) -> Bundle:
    asked = {
        "weights": RANDOM,
        "bundle": None,
        "pooling": "avg",
        "normalize": True,
        "image_size": None,
        "resize": None,
        "seed": 0,
    }
    return resolve_bundle(backbone=backbone, **{**asked, **changes})


class TestTimm(BackboneTests):
    @pytest.fixture(scope="class", params=FAMILIES)
    def case(self, request):
        return (request.param, *FAMILIES[request.param][:2])

    @pytest.fixture(scope="class")
    def places(self, case):
        return FAMILIES[case[0]][2]

    def test_an_image_alone_gives_what_it_gives_among_eight(self, case, body):
        among = embed(body, pictures(8, case[2]))
        alone = embed(body, pictures(1, case[2]))
        torch.testing.assert_close(alone, among[:1], rtol=1e-4, atol=1e-5)

    def test_avg_is_what_timm_gives_to_a_classifier(self, case, model, embedded):
        with torch.inference_mode():
            features = model.forward_features(pictures(2, case[2]))
            expected = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_avg_of_a_plain_cnn_is_the_mean_over_its_map(name):
    model, images = whole(name), pictures(2, 160)
    with torch.inference_mode():
        expected = model.forward_features(images).mean((-2, -1))
    embedded = embed(build_extractor(name, fit_state(model.state_dict(), name), "avg"), images)
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("timm:test_resnet", lambda features: features.flatten(2)),
        ("timm:test_mambaout", lambda features: features.flatten(1, 2).transpose(1, 2)),
        ("timm:test_vit", lambda features: features[:, 1:].transpose(1, 2)),
    ],
    ids=["channels first", "channels last", "tokens after a class token"],
)
def test_max_is_taken_over_the_places_alone(name, places):
    model, images = whole(name), pictures(2, 160)
    with torch.inference_mode():
        expected = places(model.forward_features(images)).amax(-1)
    embedded = embed(build_extractor(name, fit_state(model.state_dict(), name), "max"), images)
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["timm:pit_ti_distilled_224", "timm:crossvit_tiny_240"])
def test_a_network_without_one_map_takes_avg_only(name):
    """One keeps nothing but its class tokens, the other has two grids of patches."""
    assert resolve(name).dimension > 0
    with pytest.raises(
        UsageError, match=f"--backbone {name} ends without one map .* --pooling avg"
    ):
        resolve(name, pooling="gem")


@pytest.mark.parametrize("pooling", ["avg", "gem"])
@pytest.mark.parametrize(
    "name", ["timm:test_resnet", "timm:test_mambaout", "timm:test_vit", "timm:mobilevit_xxs"]
)
def test_an_extractor_can_be_exported(name, pooling):
    body = build_extractor(name, fit_state(whole(name).state_dict(), name), pooling)
    images = pictures(4, 160)
    with torch.no_grad():
        exported = torch.export.export(body, (images,)).module()
        torch.testing.assert_close(exported(images), body(images), rtol=1e-5, atol=1e-6)


# --- parameters ---------------------------------------------------------------------------------


def test_weights_from_a_file_make_a_bundle_that_embeds(tmp_path):
    state = dict(build_network("timm:test_efficientnet", num_classes=7).state_dict())
    path = tmp_path / "trained.safetensors"
    save_file({f"module.{key}": value for key, value in state.items()}, path)
    made = resolve("timm:test_efficientnet", weights=str(path))
    assert made.weights == serialize_state(fit_state(state, "timm:test_efficientnet"))
    folder = open_folder(str(tmp_path / "stored"))
    write_bundle(folder, made)
    images = list(torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8))
    embedded = Embedder(read_bundle(folder), PLAN).embed(images)
    assert embedded.shape == (2, made.dimension)
    assert (embedded == Embedder(made, PLAN).embed(images)).all()


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:vit_small_patch14_dinov2"])
def test_a_classifier_in_the_file_is_left_out(name):
    """The second has none of its own: its weights were made without classes."""
    state = dict(build_network(name).state_dict())
    kept = fit_state(state, name)
    child = "fc" if name == "timm:test_resnet" else "head"
    given = {**state, f"{child}.weight": torch.zeros(7, 9), f"{child}.bias": torch.zeros(7)}
    assert list(fit_state(given, name)) == list(kept)


def test_parameters_that_do_not_fit_are_named():
    state = dict(build_network("timm:test_resnet").state_dict())
    state = {k: v for k, v in state.items() if k != "bn1.bias"} | {"neck.weight": torch.zeros(1)}
    with pytest.raises(UsageError) as refused:
        fit_state(state, "timm:test_resnet")
    assert str(refused.value) == (
        "--weights do not fit --backbone timm:test_resnet: missing bn1.bias; unknown neck.weight"
    )


def test_parameters_of_another_timm_are_refused():
    """Or a network would embed with random numbers where its layers have other names now."""
    state = fit_state(build_network("timm:test_resnet").state_dict(), "timm:test_resnet")
    state["bn1.elsewhere"] = state.pop("bn1.bias")
    with pytest.raises(
        Mismatch, match=f"not those of timm {timm.__version__}; install the version"
    ):
        build_extractor("timm:test_resnet", state, "avg")


def test_fetched_weights_are_timms_own(monkeypatch):
    made: list[nn.Module] = []
    create = timm.create_model

    def fetch(name: str, *, pretrained: bool = False, **options: object) -> nn.Module:
        model = create(name, **options)
        if pretrained:
            made.append(model)
        return model

    monkeypatch.setattr(timm, "create_model", fetch)
    bundle = resolve("timm:test_resnet.r160_in1k", weights=None)
    [model] = made
    assert bundle.weights == serialize_state(fit_state(model.state_dict(), "timm:test_resnet"))


def test_without_the_hub_the_two_ways_out_are_named_at_once(monkeypatch, tmp_path):
    from huggingface_hub import constants, utils

    def no_network() -> None:
        raise ConnectionError

    monkeypatch.setattr(utils, "get_session", no_network)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    offline, started = constants.HF_HUB_OFFLINE, time.monotonic()
    with pytest.raises(InputError, match=r"no answer from its hub\); .*--weights, or .*--bundle"):
        resolve("timm:test_resnet", weights=None)
    assert time.monotonic() - started < 10  # its client would ask again for a minute
    assert offline == constants.HF_HUB_OFFLINE


def test_a_network_that_nobody_trained_has_nothing_to_fetch():
    with pytest.raises(UsageError, match="no weights of its own; name a file with --weights"):
        resolve("timm:resnetblur18", weights=None)


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("timm:resnet_50", "timm:resnet50"),
        ("timm:inception_resnetv2", "timm:inception_resnet_v2"),
        ("timm:resnet50.a4_in1k", r"timm:resnet50\."),
        ("timm:hf-hub:timm/resnet50", "timm:"),
    ],
)
def test_an_unknown_name_names_near_ones(wrong, near):
    with pytest.raises(UsageError, match=f"--backbone {wrong} is not known; did you mean .*{near}"):
        find_provider(wrong)


@pytest.mark.parametrize("name", ["inception_resnet_v2", "tf_efficientnetv2_b3", "resnetv2_50"])
def test_the_names_of_a_well_known_project_are_known(name):
    find_provider(f"timm:{name}")


def test_a_network_without_classifier_is_refused(monkeypatch):
    """Some are encoders of language models."""
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: nn.Linear(1, 1))
    with pytest.raises(UsageError, match="no classifier that can be removed"):
        build_network("timm:test_resnet")


def test_a_card_counts_what_timm_makes():
    known = describe_backbone("timm:test_resnet")
    made = timm.create_model("test_resnet")
    assert known.parameters == sum(p.numel() for p in made.parameters())
    assert (known.dimension, known.image_size) == (96, 160)
    assert (known.gflops, known.imagenet_top1) == (None, None)


# --- pixels -------------------------------------------------------------------------------------


def timms_own(name: str, image_size: int | None) -> nn.Module:
    """Make timm's transform of a name, to uint8."""
    configuration = timm.get_pretrained_cfg(name.removeprefix("timm:")).to_dict()
    asked = {} if image_size is None else {"img_size": image_size}
    data = timm.data.resolve_data_config(asked, pretrained_cfg=configuration)
    return timm.data.create_transform(**data, is_training=False, normalize=False)


TRANSFORMS = [
    ("timm:tf_efficientnet_lite0", None, ("crop", 256, 224)),
    ("timm:tf_efficientnet_lite0", 160, ("crop", 182, 160)),  # 160 / 0.875 = 182.9
    ("timm:inception_resnet_v2", None, ("crop", 333, 299)),
    ("timm:resnet50.a1_in1k", None, ("crop", 235, 224)),  # 288 in timm's own tests
    ("timm:convnext_small.in12k_ft_in1k_384", None, ("squash", 384, 384)),
    ("timm:tf_efficientnetv2_b3", None, ("squash-crop", 266, 240)),
]


@pytest.mark.parametrize(("name", "asked", "becomes"), TRANSFORMS)
def test_the_transform_is_the_one_that_timm_resolves(name, asked, becomes):
    found = default_transform(name, image_size=asked, resize=None)
    configuration = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    assert (found.resize, found.resize_size, found.image_size) == becomes
    assert found.interpolation == configuration.interpolation
    assert (found.mean, found.std) == (configuration.mean, configuration.std)


def test_what_is_asked_for_goes_before_the_weights_own():
    found = default_transform("timm:tf_efficientnetv2_b3", image_size=112, resize="pad")
    assert (found.resize, found.image_size) == ("pad", 112)


@pytest.mark.parametrize(("name", "asked", "becomes"), TRANSFORMS)
def test_drawn_photos_have_the_pixels_that_timm_gives(tmp_path, name, asked, becomes):
    photos = sorted(draw_photos(tmp_path, 3).rglob("*.jpg"))
    compare(photos, timms_own(name, asked), default_transform(name, image_size=asked, resize=None))


@pytest.mark.parametrize(("name", "asked", "becomes"), TRANSFORMS)
def test_real_photos_have_the_pixels_that_timm_gives(data, name, asked, becomes):
    photos = sorted((data / "images" / "queries").glob("*.jpg"))[::20]
    compare(photos, timms_own(name, asked), default_transform(name, image_size=asked, resize=None))


def compare(photos: list[Path], theirs: nn.Module, ours: Transform) -> None:
    """Hold decoding and transform against timm's, in grey levels of 255.

    Where one side grows and the other shrinks (squash), Pillow and torchvision go in another order
    and cut off other overshoots of the bicubic filter, at a few pixels.
    """
    for photo in photos:
        image = theirs(Image.open(io.BytesIO(photo.read_bytes())).convert("RGB"))
        found = decode(photo.read_bytes(), ours, max_pixels=1 << 28).pixels
        error = (found.int() - image.int()).abs().float()
        assert error.mean() < 0.5
        assert error.quantile(0.99) <= 1 if ours.resize == "crop" else error.quantile(0.95) <= 1


def test_images_that_are_not_square_are_refused(monkeypatch):
    wide = dataclasses.replace(timm.get_pretrained_cfg("test_resnet"), input_size=(3, 96, 160))
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: wide)
    with pytest.raises(UsageError, match="160 x 96 pixels, not squares"):
        default_transform("timm:test_resnet", image_size=None, resize=None)


@pytest.mark.parametrize(
    "name", ["timm:deit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224"]
)
def test_a_network_of_one_size_refuses_others(name):
    with pytest.raises(UsageError, match=f"--backbone {name} does not take images of 96 pixels"):
        resolve(name, image_size=96)


def test_the_real_weights_are_taken(data: Path):
    weights = data / "weights" / "tf_efficientnet_lite0.safetensors"
    made = resolve("timm:tf_efficientnet_lite0", weights=str(weights))
    half = (0.5, 0.5, 0.5)
    assert made.dimension == 1280
    assert made.transform == Transform("crop", 256, 224, "bicubic", half, half)
    assert registry.describe_backbone(made.backbone).dimension == 1280


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_mambaout", "timm:test_vit3"])
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_an_engine_gives_what_the_plain_network_gives(name, engine):
    made = resolve(name, normalize=False)
    side = made.transform.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, side, side), generator=generator, dtype=torch.uint8)
    ready = load_engine(made, EnginePlan(engine, "fp32", "cpu", 2), threads=1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (made.transform.mean, made.transform.std))
    expected = embed(build_extractor(name, made.state(), "avg"), (images / 255 - mean) / std)
    torch.testing.assert_close(
        torch.from_numpy(ready.submit(images.numpy())()), expected, rtol=1e-4, atol=1e-5
    )


def test_one_that_openvino_does_not_take_is_said_to_be_so():
    """It resamples its positions in every call, an operation that OpenVINO has not."""
    made = resolve("timm:test_vit")
    with pytest.raises(ConversionFailed, match="bicubic"):
        convert_bundle(made, EnginePlan("openvino", "fp32", "cpu", 2))
