"""Tests of timm's networks with arguments: input sizes, projections, and models of hubs."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from retrieval.core.errors import InputError, UsageError
from retrieval.core.records import Transform
from retrieval.models import registry
from retrieval.models.embedder import Embedder
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.resolve import is_same_backbone, resolve_bundle
from tests.retrieval.models.test_registry import embed, random_images
from tests.retrieval.sample_vectors import one_thread  # noqa: F401 - a fixture

timm = pytest.importorskip("timm", reason="timm is not installed (pip install 'lookalike[timm]')")

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = EnginePlan("torch", "fp32", "cpu", 1)
CLIP = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def resolve(backbone, **changes):
    defaults = {
        "weights": None, "bundle": None, "pooling": "avg", "normalize": True, "image_size": None,
        "resize": None, "seed": 0,
    }  # fmt: skip
    return resolve_bundle(backbone=backbone, **{**defaults, **changes})


def random_state(name, **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, **arguments).state_dict()


# --- input sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "network"),
    [
        ("timm:test_vit", 160, "timm:test_vit"),
        ("timm:test_vit", 96, "timm:test_vit?img_size=96"),
        ("timm:test_resnet", 96, "timm:test_resnet"),  # takes images of any size
        ("timm:swin_s3_tiny_224", 112, "timm:swin_s3_tiny_224?img_size=112"),
        ("timm:vit_small_patch14_dinov2", 224, "timm:vit_small_patch14_dinov2?img_size=224"),
        ("timm:vit_small_patch14_dinov2", None, "timm:vit_small_patch14_dinov2"),
    ],
)  # fmt: skip
def test_transformer_is_named_with_another_input_size(name, size, network):
    assert registry.name_for_size(name, size) == network
    assert is_same_backbone(name, network)


@pytest.mark.parametrize("size", [96, 160, 224])
def test_transformer_embeds_images_of_another_size(size):
    bundle = resolve("timm:test_vit", weights="random", image_size=size)
    images = list(torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8))
    assert bundle.transform.image_size == size
    assert Embedder(bundle, PLAN).embed(images).shape == (1, 64)


def test_position_embeddings_of_a_file_are_interpolated_as_timm_does(tmp_path):
    """The reference loads the same file by timm itself, into a network of the other size."""
    state = random_state("test_vit")
    path = tmp_path / "vit.safetensors"
    save_file(state, path)
    reference = timm.create_model(
        "test_vit", pretrained=True, img_size=96, pretrained_cfg_overlay={"file": str(path)}
    ).eval()
    bundle = resolve("timm:test_vit", weights=str(path), image_size=96)
    extractor = registry.build_extractor(bundle.backbone, bundle.state(), "avg")
    images = random_images(2, 96)
    with torch.inference_mode():
        expected = reference.forward_head(reference.forward_features(images), pre_logits=True)
    torch.testing.assert_close(embed(extractor, images), expected, rtol=1e-5, atol=1e-6)
    assert bundle.state()["pos_embed"].shape != state["pos_embed"].shape


@pytest.mark.parametrize(
    "argument",
    ["pretrained=true", "checkpoint_path=%22/tmp/x.pth%22", "pretrained_cfg=%22x%22",
     "features_only=true", "img_size={}", "img_size=null", "device=%22cuda%22"],
)  # fmt: skip
def test_arguments_that_load_files_are_refused(argument):
    """They could come from a bundle of unknown origin."""
    with pytest.raises(UsageError, match="is not allowed"):
        registry.build_extractor(f"timm:test_vit?{argument}", {}, "avg")


def test_argument_that_is_not_json_is_refused():
    with pytest.raises(UsageError, match="img_size=big is not a JSON value"):
        registry.find_provider("timm:test_vit?img_size=big")


# --- projections ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dimension"),
    [
        (f"timm:{CLIP}", 512),  # a linear projection after the class token
        ("timm:resnet50_clip.openai", 1024),  # attention pooling with a projection
        ("timm:vit_base_patch32_clip_224.openai", 512),
        ("timm:vit_base_patch32_clip_224.laion2b_ft_in1k", 768),  # a classifier of 1000 classes
        ("timm:vit_base_patch16_siglip_224.v2_webli", 768),  # its attention pooling is the tower's
    ],
)
def test_tower_returns_the_projected_embedding(name, dimension):
    network = registry.name_for_size(name, None)
    model = registry.build_network(network).eval()
    state = registry.fit_state(model.state_dict(), network)
    size = registry.default_transform(network, image_size=None).image_size
    images = random_images(1, size)
    embedded = embed(registry.build_extractor(network, state, "avg"), images)
    with torch.inference_mode():
        is_tower = network != name or "siglip" in name
        expected = (
            model(images) if is_tower
            else model.forward_head(model.forward_features(images), pre_logits=True)
        )  # fmt: skip
    assert embedded.shape == (1, dimension)
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-5)


def test_projection_of_a_file_is_kept(tmp_path):
    state = random_state(CLIP)
    save_file(state, tmp_path / "clip.safetensors")
    bundle = resolve(f"timm:{CLIP}", weights=str(tmp_path / "clip.safetensors"))
    assert bundle.backbone == f"timm:{CLIP}?num_classes=512"
    assert torch.equal(bundle.state()["head.weight"], state["head.weight"])


def test_bundle_without_projection_stays_readable():
    """Bundles of earlier versions name the tower without arguments, and hold no projection."""
    state = registry.fit_state(random_state(CLIP), f"timm:{CLIP}")
    assert "head.weight" not in state
    vectors = embed(registry.build_extractor(f"timm:{CLIP}", state, "avg"), random_images(1, 224))
    assert vectors.shape == (1, 256)


# --- hubs and folders -----------------------------------------------------------------------------


def write_model(folder, *, weights="model.safetensors", state=None, **config):
    """Write a model in timm's form: the smallest transformer, for images of 96 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "architecture": "test_vit", "num_classes": 5, "model_args": {"img_size": 96},
        "pretrained_cfg": {
            "tag": "own", "input_size": [3, 96, 96], "crop_pct": 1.0, "crop_mode": "squash",
            "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 5,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values | config))
    state = state or random_state("test_vit", img_size=96, num_classes=5)
    save_file(state, folder / weights)
    return state


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Use an empty cache of the hub's client, which is offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache" / "models--owner--animals"


def test_local_folder_defines_network_transform_and_weights(tmp_path):
    state = write_model(tmp_path / "animals")
    bundle = resolve(f"timm:local-dir:{tmp_path / 'animals'}")
    half = (0.5, 0.5, 0.5)
    assert bundle.backbone == "timm:test_vit?img_size=96"
    assert bundle.transform == Transform("squash", 96, 96, "bicubic", half, half)
    assert torch.equal(bundle.state()["pos_embed"], state["pos_embed"])
    assert not any(key.startswith("head.") for key in bundle.state())
    images = list(torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8))
    expected = Embedder(bundle, PLAN).embed(images)
    for path in (tmp_path / "animals").iterdir():
        path.unlink()
    assert (Embedder(bundle, PLAN).embed(images) == expected).all()


def test_local_folder_of_a_tower_keeps_its_projection(tmp_path):
    state = random_state(CLIP)
    cfg = timm.get_pretrained_cfg(CLIP).to_dict()
    write_model(
        tmp_path / "clip", state=state, architecture=CLIP.partition(".")[0], num_classes=512,
        model_args=None, pretrained_cfg={**cfg, "custom_field": 1},
    )  # fmt: skip
    bundle = resolve(f"timm:local-dir:{tmp_path / 'clip'}")
    assert bundle.backbone == f"timm:{CLIP.partition('.')[0]}?num_classes=512"
    assert bundle.dimension == 512


def test_configuration_at_the_top_of_an_older_file_is_read(tmp_path):
    values = {"input_size": [3, 160, 160], "mean": [0.4] * 3, "std": [0.3] * 3}
    write_model(
        tmp_path / "old", state=random_state("test_resnet"), architecture="test_resnet",
        model_args=None, pretrained_cfg=None, **values,
    )  # fmt: skip
    config = json.loads((tmp_path / "old/config.json").read_text())
    del config["pretrained_cfg"]
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    bundle = resolve(f"timm:local-dir:{tmp_path / 'old'}")
    assert bundle.transform.mean == (0.4, 0.4, 0.4)
    assert bundle.transform.image_size == 160


def test_image_size_of_a_hub_model_is_interpolated(tmp_path):
    write_model(tmp_path / "animals")
    bundle = resolve(f"timm:local-dir:{tmp_path / 'animals'}", image_size=160)
    assert bundle.backbone == "timm:test_vit?img_size=160"
    assert bundle.transform.image_size == 160


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_cached_copy_of_a_commit_is_used_offline(hub_cache, revision):
    write_model(hub_cache / "snapshots" / COMMIT)
    (hub_cache / "refs").mkdir()
    (hub_cache / "refs" / "main").write_text(COMMIT)
    bundle = resolve(f"timm:hf-hub:owner/animals{revision}")
    assert bundle.backbone == "timm:test_vit?img_size=96"
    card = registry.describe_backbone(f"timm:hf-hub:owner/animals{revision}")
    assert (card.dimension, card.image_size) == (64, 96)


def test_offline_without_a_copy_names_the_folder_form(hub_cache):
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE is set.*hf download.*timm:local-dir:"):
        resolve("timm:hf-hub:owner/animals")


def test_unreachable_hub_without_a_copy_is_refused_at_once(hub_cache, monkeypatch):
    from huggingface_hub import constants, utils

    def no_network() -> None:
        raise ConnectionError

    monkeypatch.setattr(utils, "get_session", no_network)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(InputError, match="the hub gives no answer, and its cache has no copy"):
        resolve("timm:hf-hub:owner/animals")


def test_hub_is_asked_for_two_files_of_one_revision(hub_cache, tmp_path, monkeypatch):
    import huggingface_hub

    from retrieval.models.providers import timm_hub

    write_model(tmp_path / "fetched")
    requests = []

    def fetch(repository, **options):
        requests.append((repository, options))
        return str(tmp_path / "fetched")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    timm_hub.open_hub_model("hf-hub:owner/animals@v1")
    [(repository, options)] = requests
    assert repository == "owner/animals"
    assert options["revision"] == "v1"
    assert options["allow_patterns"] == ["config.json", "model.safetensors"]


def test_pickled_weights_are_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    write_model(tmp_path / "animals")
    (tmp_path / "animals/model.safetensors").unlink()
    torch.save({"x": Evil()}, tmp_path / "animals/pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"has no model\.safetensors.*--backbone timm:test_vit with"
    ):
        resolve(f"timm:local-dir:{tmp_path / 'animals'}")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:hf-hub:animals", "write timm:hf-hub:OWNER/NAME"),
        ("timm:hf-hub:a/b/c", "write timm:hf-hub:OWNER/NAME"),
        ("timm:hf-hub:../x", "cannot be fetched|write timm:hf-hub:OWNER/NAME"),
    ],
)
def test_other_names_of_repositories_are_refused(hub_cache, name, message):
    with pytest.raises((UsageError, InputError), match=message):
        resolve(name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": None}, "is not a model of timm: its config.json names no architecture"),
        ({"architecture": "vit_from_the_future"}, "does not have; install a newer timm"),
        ({"model_args": {"checkpoint_path": "x.pth"}}, "checkpoint_path of its network is not"),
        ({"pretrained_cfg": {"input_size": [3, 96]}}, "describes no transform of timm"),
        ({"pretrained_cfg": {"crop_pct": 0}}, "describes no transform of timm"),
        ({"pretrained_cfg": {"mean": [0.5]}}, "needs mean and std of three channels"),
        ({"pretrained_cfg": {"interpolation": "box"}}, "has interpolation 'box'"),
        ({"pretrained_cfg": {"input_size": [3, 96, 160]}}, "160 x 96 pixels, not squares"),
    ],
    ids=str,
)
def test_unusable_configuration_is_refused(tmp_path, config, message):
    write_model(tmp_path / "animals", **config)
    with pytest.raises(UsageError, match=message):
        resolve(f"timm:local-dir:{tmp_path / 'animals'}")


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_damaged_configuration_is_refused(tmp_path, text):
    write_model(tmp_path / "animals")
    (tmp_path / "animals/config.json").write_text(text)
    with pytest.raises((InputError, UsageError), match=r"config.json"):
        resolve(f"timm:local-dir:{tmp_path / 'animals'}")


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json; name a folder in timm's form"):
        resolve(f"timm:local-dir:{tmp_path / 'missing'}")


def test_weights_file_is_refused_beside_the_weights_of_a_hub(tmp_path):
    write_model(tmp_path / "animals")
    with pytest.raises(UsageError, match="brings its own weights; omit --weights"):
        resolve(f"timm:local-dir:{tmp_path / 'animals'}", weights="random")


def test_bundle_cannot_make_a_worker_fetch(hub_cache):
    with pytest.raises(UsageError, match="has no network before it is fetched"):
        registry.build_extractor("timm:hf-hub:owner/animals", {}, "avg")
