"""Tests that each torchvision family, without its classifier, returns the classifier's input."""

from __future__ import annotations

import re
import subprocess
import sys
from abc import ABC, abstractmethod

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from retrieval.core.errors import UsageError
from retrieval.models.feature_extractor import find_classifier
from retrieval.models.providers.torchvision_dimensions import DIMENSIONS
from retrieval.models.registry import (
    SCRATCH,
    State,
    build_extractor,
    build_network,
    describe_backbone,
    find_provider,
    fit_state,
    provider_of,
)
from tests.retrieval.sample_vectors import one_thread  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("one_thread")

# one small member of each family: (dimension, image size)
FAMILIES = {
    "alexnet": (256, 224),
    "convnext_tiny": (768, 224),
    "densenet121": (1024, 224),
    "efficientnet_b0": (1280, 224),
    "efficientnet_v2_s": (1280, 224),
    "googlenet": (1024, 224),
    "inception_v3": (2048, 299),
    "maxvit_t": (512, 224),
    "mnasnet0_5": (1280, 224),
    "mobilenet_v2": (1280, 224),
    "mobilenet_v3_small": (576, 224),
    "regnet_y_400mf": (440, 224),
    "resnet18": (512, 224),
    "resnext50_32x4d": (2048, 224),
    "shufflenet_v2_x0_5": (1024, 224),
    "squeezenet1_0": (512, 224),
    "swin_t": (768, 224),
    "swin_v2_t": (768, 256),
    "vgg11": (512, 224),
    "vit_b_32": (768, 224),
    "wide_resnet50_2": (2048, 224),
}


def random_images(count: int, image_size: int) -> Tensor:
    """Return random normalized images; image i is the same for every count."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack(
        [torch.randn(3, image_size, image_size, generator=generator) for _ in range(count)]
    )


def random_network(name: str) -> nn.Module:
    """Return a network of three classes with random weights and batch-norm statistics."""
    torch.manual_seed(0)
    network = build_network(name, num_classes=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def classifier_prefix(model: nn.Module, name: str) -> str:
    """Return the key prefix of a network's first or only classifier."""
    return provider_of(name).classifier_prefixes(model, name)[0]


@torch.inference_mode()
def classifier_input(model: nn.Module, name: str, images: Tensor) -> Tensor:
    """Return the input of a network's classifier, captured by a forward hook."""
    inputs: list[Tensor] = []
    classifier = model.get_submodule(classifier_prefix(model, name)[:-1])
    hook = classifier.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    model(images)
    hook.remove()
    return inputs[0]


@torch.inference_mode()
def embed(extractor: nn.Module, images: Tensor) -> Tensor:
    return extractor(images)


class BackboneTests(ABC):
    """Tests of any backbone; a subclass provides the backbones in `case`."""

    @pytest.fixture(scope="class")
    @abstractmethod
    def case(self, request: pytest.FixtureRequest) -> tuple[str, int, int]:
        """Return the name, the dimension and the image size of a backbone."""

    @pytest.fixture(scope="class")
    def map_channels(self, case) -> int:
        """Return the channels of the last feature map; by default the embedding dimension."""
        return case[1]

    @pytest.fixture(scope="class")
    def model(self, case) -> nn.Module:
        return random_network(case[0])

    @pytest.fixture(scope="class")
    def state(self, case, model) -> State:
        return fit_state(model.state_dict(), case[0])

    @pytest.fixture(scope="class")
    def extractor(self, case, state) -> nn.Module:
        return build_extractor(case[0], state, "avg")

    @pytest.fixture(scope="class")
    def embedded(self, case, extractor) -> Tensor:
        return embed(extractor, random_images(2, case[2]))

    def test_embedding_has_feature_dimension(self, case, embedded):
        assert embedded.shape == (2, case[1])
        assert embedded.dtype == torch.float32
        assert (embedded.std(1) > 0).all()  # otherwise the tests below are vacuous
        assert not torch.equal(embedded[0], embedded[1])

    def test_avg_embedding_equals_classifier_input(self, case, model, embedded):
        """Unpooled inputs (AlexNet, VGG, SqueezeNet) are averaged over positions first."""
        features = classifier_input(model, case[0], random_images(2, case[2]))
        expected = features.reshape(2, case[1], -1).mean(-1)
        torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-6)

    def test_rebuilt_extractor_gives_identical_embeddings(self, case, state, embedded):
        rebuilt = build_extractor(case[0], state, "avg")
        assert torch.equal(embed(rebuilt, random_images(2, case[2])), embedded)

    def test_embedding_does_not_depend_on_batch(self, case, extractor, embedded):
        single = embed(extractor, random_images(1, case[2]))
        torch.testing.assert_close(single, embedded[:1], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("pooling", ["max", "gem"])
    def test_other_poolings_have_map_channels_and_other_values(
        self, case, state, map_channels, embedded, pooling
    ):
        pooled = embed(build_extractor(case[0], state, pooling), random_images(1, case[2]))
        assert pooled.shape == (1, map_channels)
        assert torch.isfinite(pooled).all()
        if map_channels == case[1]:
            assert not torch.allclose(pooled, embedded[:1], rtol=0.01, atol=0)

    def test_classifier_parameters_are_removed(self, case, model, state, extractor):
        prefix = classifier_prefix(model, case[0])
        assert not [key for key in state if key.startswith(prefix)]
        assert not [p for p in (*extractor.parameters(), *extractor.buffers()) if p.is_meta]
        assert {key.split(".", 1)[1] for key, _ in extractor.named_parameters()} <= set(state)

    def test_backbone_description_has_embedding_dimension(self, case, embedded):
        description = describe_backbone(case[0])
        assert (description.backbone, description.dimension) == (case[0], embedded.shape[1])


LARGE_FAMILIES = (
    "maxvit_t", "swin_v2_t", "wide_resnet50_2", "densenet121", "efficientnet_v2_s", "inception_v3",
    "resnext50_32x4d", "vit_b_32", "vgg11", "convnext_tiny", "googlenet", "mnasnet0_5",
)  # fmt: skip
"""Large networks for the nightly tests; each has a smaller relative in the default tests."""


class TestTorchvision(BackboneTests):
    @pytest.fixture(
        scope="class",
        params=[
            pytest.param(name, marks=[pytest.mark.nightly] if name in LARGE_FAMILIES else [])
            for name in FAMILIES
        ],
    )
    def case(self, request):
        return (request.param, *FAMILIES[request.param])


class TestScratch(BackboneTests):
    @pytest.fixture(scope="class")
    def case(self):
        return (SCRATCH, 192, 128)


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "densenet121", SCRATCH])
def test_extractor_handles_other_image_size_than_traced(name):
    model = random_network(name)
    images = random_images(1, 160)
    expected = classifier_input(model, name, images)
    embedded = embed(build_extractor(name, fit_state(model.state_dict(), name), "avg"), images)
    torch.testing.assert_close(embedded, expected.flatten(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "image_size"), [("googlenet", 224), ("inception_v3", 75)])
def test_input_scaling_of_torchvision_weights_is_kept(name, image_size):
    """Torchvision sets `transform_input` only when it loads pretrained weights."""
    options = {"num_classes": 3, "init_weights": False, "aux_logits": True}
    torch.manual_seed(0)
    scaling_model = models.get_model(name, transform_input=True, **options).eval()
    state = fit_state(scaling_model.state_dict(), name)
    embedded = embed(build_extractor(name, state, "avg"), random_images(1, image_size))
    expected = classifier_input(scaling_model, name, random_images(1, image_size))
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-6)
    scaling_model.transform_input = False
    unscaled = classifier_input(scaling_model, name, random_images(1, image_size))
    assert not torch.allclose(expected, unscaled, rtol=1e-3)


# --- state dicts of other programs ----------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> State:
    return dict(random_network("resnet18").state_dict())


def assert_equal_states(actual: State, expected: State) -> None:
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[key], expected[key]) for key in actual)


def test_fitted_state_keeps_values_sorted_by_key(resnet):
    fitted = fit_state(resnet, "resnet18")
    assert list(fitted) == sorted(key for key in resnet if not key.startswith("fc."))
    assert all(torch.equal(fitted[key], resnet[key]) for key in fitted)


def export_state(state: State, layout: str) -> State:
    """Return a state dict in the layout of another program."""
    if layout == "module prefix":
        return {f"module.{key}": value for key, value in state.items()}
    if layout == "compiled and parallel":
        return {f"module._orig_mod.{key}": value for key, value in state.items()}
    if layout == "Lightning":
        metrics = {"loss.weight": torch.ones(3), "accuracy.total": torch.ones(1)}
        return {f"model.{key}": value for key, value in state.items()} | metrics
    if layout == "compiled Lightning":
        return {f"model._orig_mod.module.{key}": value for key, value in state.items()}
    if layout == "no classifier":
        return {key: value for key, value in state.items() if not key.startswith("fc.")}
    if layout == "classifier of another size":
        return {**state, "fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}
    if layout == "classifier of another structure":
        backbone = export_state(state, "no classifier")
        return {**backbone, "fc.0.weight": torch.zeros(7, 512), "fc.1.scale": torch.zeros(1)}
    if layout == "other key order":
        return dict(reversed(state.items()))
    return {key: value.double() for key, value in state.items()}


@pytest.mark.parametrize(
    "layout",
    [
        "module prefix",
        "compiled and parallel",
        "Lightning",
        "compiled Lightning",
        "no classifier",
        "classifier of another size",
        "classifier of another structure",
        "other key order",
        "float64",
    ],
)
def test_state_dict_layouts_of_other_programs_are_loaded(resnet, layout):
    fitted = fit_state(export_state(resnet, layout), "resnet18")
    assert_equal_states(fitted, fit_state(resnet, "resnet18"))


def test_missing_batch_counters_are_zero(resnet):
    """Files older than PyTorch 0.4.1 lack the counters, which inference does not read."""
    old = {key: v for key, v in resnet.items() if not key.endswith("num_batches_tracked")}
    fitted = fit_state(old, "resnet18")
    assert set(fitted) == set(fit_state(resnet, "resnet18"))
    assert fitted["bn1.num_batches_tracked"].item() == 0


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_training_heads_are_removed(name):
    state = dict(random_network(name).state_dict())
    fitted = fit_state(state, name)
    removed = {key.split(".")[0] for key in state.keys() - fitted.keys()}
    assert removed == ({"aux1", "aux2", "fc"} if name == "googlenet" else {"AuxLogits", "fc"})


def test_vision_transformer_image_size_follows_its_weights():
    """Torchvision's default weights of vit_h_14 are for 518 pixels, its networks for 224."""
    torch.manual_seed(0)
    model = models.vit_b_32(image_size=96, num_classes=3).eval()
    state = fit_state({f"module.{k}": v for k, v in model.state_dict().items()}, "vit_b_32")
    extractor, images = build_extractor("vit_b_32", state, "avg"), random_images(2, 96)
    expected = classifier_input(model, "vit_b_32", images)
    torch.testing.assert_close(embed(extractor, images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (1, 0, 768), (1, 1, 768), (1, 47, 768), (2, 50, 768)])
def test_invalid_position_embeddings_raise_usage_error(shape):
    with torch.device("meta"):
        state = dict(build_network("vit_b_32").state_dict())
    state["encoder.pos_embedding"] = torch.zeros(shape)
    with pytest.raises(UsageError, match=r"another shape encoder\.pos_embedding"):
        fit_state(state, "vit_b_32")


def without(state: State, *keys: str) -> State:
    return {key: value for key, value in state.items() if key not in keys}


def test_missing_unknown_and_misshapen_parameters_are_named(resnet):
    state = without(resnet, "conv1.weight", "bn1.bias")
    state |= {"head7.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(2, 2)}
    with pytest.raises(UsageError) as error:
        fit_state(state, "resnet18")
    assert str(error.value) == (
        "--weights do not fit --backbone resnet18: missing bn1.bias, conv1.weight; "
        "unknown head7.weight; of another shape layer1.0.conv1.weight"
    )


def test_message_names_at_most_three_parameters(resnet):
    with pytest.raises(UsageError, match=r"missing bn1\.bias, .* and \d+ more; unknown"):
        fit_state({"features.0.weight": torch.zeros(1)}, "resnet18")


def test_weights_of_another_depth_raise_usage_error(resnet):
    with pytest.raises(UsageError, match=r"--backbone resnet34: missing layer1\.2\."):
        fit_state(resnet, "resnet34")


# --- names ----------------------------------------------------------------------------------------


def family_of(name: str) -> str:
    """Return the name without its size: resnext of resnext50_32x4d, swin_v2 of swin_v2_t."""
    match = re.match(r"(?:wide_)?[a-z]+(?:_v\d+)?", name)
    assert match
    return match[0]


def test_every_torchvision_family_is_tested():
    families = {family_of(name) for name in models.list_models(module=models)}
    untested = sorted(families - {family_of(name) for name in FAMILIES})
    assert not untested, (
        f"torchvision has families that no test runs ({', '.join(untested)}): "
        "add one small member of each to FAMILIES"
    )
    assert len(families) == len(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_recorded_dimension_equals_measured_one(name):
    assert DIMENSIONS[name] == FAMILIES[name][0]


@pytest.mark.nightly
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_recorded_dimension_of_every_network_equals_measured_one(name):
    assert DIMENSIONS.get(name) == provider_of(name).measure_dimension(name, 224)


def test_missing_dimension_is_measured(monkeypatch):
    monkeypatch.delitem(DIMENSIONS, "mobilenet_v3_small")
    assert describe_backbone("mobilenet_v3_small").dimension == 576


def test_description_equals_torchvision_metadata():
    weights = models.MobileNet_V2_Weights.DEFAULT
    description = describe_backbone("mobilenet_v2")
    assert (description.parameters, description.gflops) == (
        weights.meta["num_params"],
        weights.meta["_ops"],
    )
    assert (description.image_size, description.imagenet_top1, description.imagenet_top5) == (
        224,
        0.72154,
        0.90822,
    )


def test_description_of_scratch_network_has_no_accuracy():
    description = describe_backbone(SCRATCH)
    assert description.parameters == sum(p.numel() for p in build_network(SCRATCH).parameters())
    assert (description.image_size, description.gflops, description.imagenet_top1) == (
        128,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("unknown", "suggestion"),
    [
        ("resnet-50", "resnet50"),
        ("mobilenetv2", "mobilenet_v2"),
        ("scrach", "scratch"),
        ("tim:resnet50", "resnet50"),
    ],
)
def test_unknown_name_suggests_similar_names(unknown, suggestion):
    with pytest.raises(
        UsageError, match=f"--backbone {unknown} is not known; did you mean .*{suggestion}"
    ):
        find_provider(unknown)


def test_unknown_name_without_similar_names_suggests_common_ones():
    with pytest.raises(UsageError, match="did you mean resnet50, mobilenet_v2"):
        find_provider("###")


def test_network_without_classifier_raises_usage_error():
    with pytest.raises(UsageError, match="no classifier"):
        find_classifier(nn.Sequential(nn.Linear(1, 1)), "odd")


def test_timm_name_without_timm_raises_with_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"needs timm; pip install 'lookalike\[timm\]'$"):
        find_provider("timm:resnet50")


def test_timm_is_imported_for_timm_names_only():
    """Importing timm takes seconds."""
    code = (
        "import sys; from retrieval.models import registry;"
        "registry.find_provider('resnet18'); registry.list_backbones();"
        "registry.describe_backbone('scratch');"
        "print('timm' in sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "False"
