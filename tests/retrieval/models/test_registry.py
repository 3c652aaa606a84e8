"""Every family of torchvision, its classifier removed, gives what that classifier would read."""

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

# one small member of each family: its dimension, and the side of its own images
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


def pictures(count: int, side: int) -> Tensor:
    """Draw normalised images; the first ones are the same for any count."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randn(3, side, side, generator=generator) for _ in range(count)])


def whole(name: str) -> nn.Module:
    """Make a network of a few classes whose normalisations are not those of a new one."""
    torch.manual_seed(0)
    made = build_network(name, num_classes=3)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return made.eval()


def classifier_prefix(model: nn.Module, name: str) -> str:
    """Give how the keys of a network's first or only classifier begin."""
    return provider_of(name).classifier_prefixes(model, name)[0]


@torch.inference_mode()
def read_by_classifier(model: nn.Module, name: str, images: Tensor) -> Tensor:
    """Give what a network's own classifier is given, by a hook and without our walk."""
    seen: list[Tensor] = []
    child = model.get_submodule(classifier_prefix(model, name)[:-1])
    hook = child.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    model(images)
    hook.remove()
    return seen[0]


@torch.inference_mode()
def embed(body: nn.Module, images: Tensor) -> Tensor:
    return body(images)


class BackboneTests(ABC):
    """What holds for any backbone; a subclass says which."""

    @pytest.fixture(scope="class")
    @abstractmethod
    def case(self, request: pytest.FixtureRequest) -> tuple[str, int, int]:
        """Give name, dimension and the side of an image."""

    @pytest.fixture(scope="class")
    def places(self, case) -> int:
        """Give the channels of the last map; the dimension, where no layer comes between."""
        return case[1]

    @pytest.fixture(scope="class")
    def model(self, case) -> nn.Module:
        return whole(case[0])

    @pytest.fixture(scope="class")
    def state(self, case, model) -> State:
        return fit_state(model.state_dict(), case[0])

    @pytest.fixture(scope="class")
    def body(self, case, state) -> nn.Module:
        return build_extractor(case[0], state, "avg")

    @pytest.fixture(scope="class")
    def embedded(self, case, body) -> Tensor:
        return embed(body, pictures(2, case[2]))

    def test_the_dimension_is_that_of_the_features(self, case, embedded):
        assert embedded.shape == (2, case[1])
        assert embedded.dtype == torch.float32
        assert (embedded.std(1) > 0).all()  # else nothing below could fail
        assert not torch.equal(embedded[0], embedded[1])

    def test_avg_is_what_the_own_classifier_reads(self, case, model, embedded):
        """Where that is not pooled yet (AlexNet, VGG, SqueezeNet), it is the mean over places."""
        read = read_by_classifier(model, case[0], pictures(2, case[2]))
        expected = read.reshape(2, case[1], -1).mean(-1)
        torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-6)

    def test_the_same_images_give_the_same_bits(self, case, state, embedded):
        again = build_extractor(case[0], state, "avg")
        assert torch.equal(embed(again, pictures(2, case[2])), embedded)

    def test_an_image_alone_gives_what_it_gives_in_company(self, case, body, embedded):
        alone = embed(body, pictures(1, case[2]))
        torch.testing.assert_close(alone, embedded[:1], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("pooling", ["max", "gem"])
    def test_other_poolings_have_the_dimension_of_the_map_and_other_values(
        self, case, state, places, embedded, pooling
    ):
        pooled = embed(build_extractor(case[0], state, pooling), pictures(1, case[2]))
        assert pooled.shape == (1, places)
        assert torch.isfinite(pooled).all()
        if places == case[1]:
            assert not torch.allclose(pooled, embedded[:1], rtol=0.01, atol=0)

    def test_nothing_of_the_classifier_is_kept(self, case, model, state, body):
        child = classifier_prefix(model, case[0])
        assert not [key for key in state if key.startswith(child)]
        assert not [p for p in (*body.parameters(), *body.buffers()) if p.is_meta]
        assert {key.split(".", 1)[1] for key, _ in body.named_parameters()} <= set(state)

    def test_its_card_gives_the_same_dimension(self, case, embedded):
        known = describe_backbone(case[0])
        assert (known.backbone, known.dimension) == (case[0], embedded.shape[1])


LONG = (
    "maxvit_t", "swin_v2_t", "wide_resnet50_2", "densenet121", "efficientnet_v2_s", "inception_v3",
    "resnext50_32x4d", "vit_b_32",
)  # fmt: skip
"""Large, for the night; each has a smaller one of its make beside it."""


class TestTorchvision(BackboneTests):
    @pytest.fixture(
        scope="class",
        params=[
            pytest.param(f, marks=[pytest.mark.nightly] if f in LONG else []) for f in FAMILIES
        ],
    )
    def case(self, request):
        return (request.param, *FAMILIES[request.param])


class TestScratch(BackboneTests):
    @pytest.fixture(scope="class")
    def case(self):
        return (SCRATCH, 192, 128)


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "densenet121", SCRATCH])
def test_images_of_another_side_than_was_traced_are_embedded_as_the_network_would(name):
    model = whole(name)
    images = pictures(1, 160)
    read = read_by_classifier(model, name, images)
    embedded = embed(build_extractor(name, fit_state(model.state_dict(), name), "avg"), images)
    torch.testing.assert_close(embedded, read.flatten(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "side"), [("googlenet", 224), ("inception_v3", 75)])
def test_networks_that_scale_their_input_for_torchvisions_weights_do_so(name, side):
    """Its builders say `transform_input` when they load weights; one made without does not."""
    options = {"num_classes": 3, "init_weights": False, "aux_logits": True}
    torch.manual_seed(0)
    scaling = models.get_model(name, transform_input=True, **options).eval()
    state = fit_state(scaling.state_dict(), name)
    embedded = embed(build_extractor(name, state, "avg"), pictures(1, side))
    read = read_by_classifier(scaling, name, pictures(1, side))
    torch.testing.assert_close(embedded, read, rtol=1e-5, atol=1e-6)
    scaling.transform_input = False
    other = read_by_classifier(scaling, name, pictures(1, side))
    assert not torch.allclose(read, other, rtol=1e-3)


# --- parameters from elsewhere ------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> State:
    return dict(whole("resnet18").state_dict())


def assert_equal_states(one: State, other: State) -> None:
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_state_is_kept_value_by_value_in_the_order_of_its_keys(resnet):
    fitted = fit_state(resnet, "resnet18")
    assert list(fitted) == sorted(key for key in resnet if not key.startswith("fc."))
    assert all(torch.equal(fitted[key], resnet[key]) for key in fitted)


def changed(state: State, what: str) -> State:
    """Give a state dict as other programs write it."""
    if what == "module. before each key":
        return {f"module.{key}": value for key, value in state.items()}
    if what == "compiled and parallel":
        return {f"module._orig_mod.{key}": value for key, value in state.items()}
    if what == "of Lightning":
        beside = {"loss.weight": torch.ones(3), "accuracy.total": torch.ones(1)}
        return {f"model.{key}": value for key, value in state.items()} | beside
    if what == "of Lightning, compiled":
        return {f"model._orig_mod.module.{key}": value for key, value in state.items()}
    if what == "no classifier":
        return {key: value for key, value in state.items() if not key.startswith("fc.")}
    if what == "a classifier of another size":
        return {**state, "fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}
    if what == "a classifier of another kind":
        rest = changed(state, "no classifier")
        return {**rest, "fc.0.weight": torch.zeros(7, 512), "fc.1.scale": torch.zeros(1)}
    if what == "another order":
        return dict(reversed(state.items()))
    return {key: value.double() for key, value in state.items()}


@pytest.mark.parametrize(
    "what",
    [
        "module. before each key",
        "compiled and parallel",
        "of Lightning",
        "of Lightning, compiled",
        "no classifier",
        "a classifier of another size",
        "a classifier of another kind",
        "another order",
        "float64",
    ],
)
def test_what_other_programs_write_is_understood(resnet, what):
    fitted = fit_state(changed(resnet, what), "resnet18")
    assert_equal_states(fitted, fit_state(resnet, "resnet18"))


def test_missing_batch_counters_are_zero(resnet):
    """Files older than PyTorch 0.4.1 have none; inference reads none."""
    old = {key: v for key, v in resnet.items() if not key.endswith("num_batches_tracked")}
    fitted = fit_state(old, "resnet18")
    assert set(fitted) == set(fit_state(resnet, "resnet18"))
    assert fitted["bn1.num_batches_tracked"].item() == 0


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_what_only_helped_training_is_left_out(name):
    state = dict(whole(name).state_dict())
    fitted = fit_state(state, name)
    left = {key.split(".")[0] for key in state.keys() - fitted.keys()}
    assert left == ({"aux1", "aux2", "fc"} if name == "googlenet" else {"AuxLogits", "fc"})


def test_a_vision_transformer_is_made_for_the_images_its_weights_are_for():
    """Torchvision's default weights of vit_h_14 are for 518 pixels, the networks for 224."""
    torch.manual_seed(0)
    model = models.vit_b_32(image_size=96, num_classes=3).eval()
    state = fit_state({f"module.{k}": v for k, v in model.state_dict().items()}, "vit_b_32")
    body, images = build_extractor("vit_b_32", state, "avg"), pictures(2, 96)
    read = read_by_classifier(model, "vit_b_32", images)
    torch.testing.assert_close(embed(body, images), read, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (1, 0, 768), (1, 1, 768), (1, 47, 768), (2, 50, 768)])
def test_positions_that_no_vision_transformer_has_are_refused(shape):
    with torch.device("meta"):
        state = dict(build_network("vit_b_32").state_dict())
    state["encoder.pos_embedding"] = torch.zeros(shape)
    with pytest.raises(UsageError, match=r"another shape encoder\.pos_embedding"):
        fit_state(state, "vit_b_32")


def without(state: State, *keys: str) -> State:
    return {key: value for key, value in state.items() if key not in keys}


def test_missing_unknown_and_misshapen_parameters_are_refused_by_name(resnet):
    state = without(resnet, "conv1.weight", "bn1.bias")
    state |= {"head7.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(2, 2)}
    with pytest.raises(UsageError) as refused:
        fit_state(state, "resnet18")
    assert str(refused.value) == (
        "--weights do not fit --backbone resnet18: missing bn1.bias, conv1.weight; "
        "unknown head7.weight; of another shape layer1.0.conv1.weight"
    )


def test_of_many_wrong_parameters_three_are_named(resnet):
    with pytest.raises(UsageError, match=r"missing bn1\.bias, .* and \d+ more; unknown"):
        fit_state({"features.0.weight": torch.zeros(1)}, "resnet18")


def test_weights_of_a_larger_sibling_are_refused(resnet):
    with pytest.raises(UsageError, match=r"--backbone resnet34: missing layer1\.2\."):
        fit_state(resnet, "resnet34")


# --- names --------------------------------------------------------------------------------------


def family_of(name: str) -> str:
    """Give the name without its size: resnext of resnext50_32x4d, swin_v2 of swin_v2_t."""
    found = re.match(r"(?:wide_)?[a-z]+(?:_v\d+)?", name)
    assert found
    return found[0]


def test_all_families_of_torchvision_are_tested():
    known = {family_of(name) for name in models.list_models(module=models)}
    untested = sorted(known - {family_of(name) for name in FAMILIES})
    assert not untested, (
        f"torchvision has families that no test runs ({', '.join(untested)}): "
        "add one small member of each to FAMILIES"
    )
    assert len(known) == len(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_noted_dimension_of_a_member_of_each_family_is_the_measured_one(name):
    assert DIMENSIONS[name] == FAMILIES[name][0]


@pytest.mark.nightly
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_noted_dimension_is_the_measured_one(name):
    assert DIMENSIONS.get(name) == provider_of(name).measure_dimension(name, 224)


def test_a_dimension_that_is_not_noted_is_measured(monkeypatch):
    monkeypatch.delitem(DIMENSIONS, "mobilenet_v3_small")
    assert describe_backbone("mobilenet_v3_small").dimension == 576


def test_a_card_says_what_torchvision_says():
    weights = models.MobileNet_V2_Weights.DEFAULT
    known = describe_backbone("mobilenet_v2")
    assert (known.parameters, known.gflops) == (weights.meta["num_params"], weights.meta["_ops"])
    assert (known.image_size, known.imagenet_top1, known.imagenet_top5) == (224, 0.72154, 0.90822)


def test_a_card_of_the_scratch_network_claims_no_accuracy():
    known = describe_backbone(SCRATCH)
    assert known.parameters == sum(p.numel() for p in build_network(SCRATCH).parameters())
    assert (known.image_size, known.gflops, known.imagenet_top1) == (128, None, None)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("resnet-50", "resnet50"),
        ("mobilenetv2", "mobilenet_v2"),
        ("scrach", "scratch"),
        ("tim:resnet50", "resnet50"),
    ],
)
def test_an_unknown_name_names_near_ones(wrong, near):
    with pytest.raises(UsageError, match=f"--backbone {wrong} is not known; did you mean .*{near}"):
        find_provider(wrong)


def test_a_name_near_nothing_names_what_many_take():
    with pytest.raises(UsageError, match="did you mean resnet50, mobilenet_v2"):
        find_provider("###")


def test_a_network_without_classifier_is_refused():
    with pytest.raises(UsageError, match="no classifier"):
        find_classifier(nn.Sequential(nn.Linear(1, 1)), "odd")


def test_without_timm_its_names_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"needs timm; pip install 'lookalike\[timm\]'$"):
        find_provider("timm:resnet50")


def test_timm_is_loaded_for_its_own_names_only():
    """Its import takes seconds."""
    code = (
        "import sys; from retrieval.models import registry;"
        "registry.find_provider('resnet18'); registry.list_backbones();"
        "registry.describe_backbone('scratch');"
        "print('timm' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
