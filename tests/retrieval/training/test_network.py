"""Tests of trainable backbones: layers, unfreezing, and the trained state."""

import pytest
import torch

from retrieval.core.errors import UsageError
from retrieval.models import registry
from retrieval.training.layers import list_layers, unfreeze
from retrieval.training.network import build_trainable_backbone


def make_backbone(name, *, pretrained=True):
    torch.manual_seed(0)
    state = registry.build_network(name).state_dict()
    transform = registry.default_transform(name, image_size=None)
    return build_trainable_backbone(
        registry.WeightSource(name, state, transform), "avg", pretrained=pretrained
    )


@pytest.mark.parametrize(
    ("name", "layer_count", "last_shape"),
    [
        ("scratch", 8, (192, 192, 3, 3)),
        ("vgg16", 13, (512, 512, 3, 3)),  # its three linear layers are the classifier
        ("resnet50", 53, (2048, 512, 1, 1)),  # 49 convolutions and four downsampling layers
        ("mobilenet_v2", 52, (1280, 320, 1, 1)),
        ("squeezenet1_0", 25, (256, 64, 3, 3)),
    ],
)
def test_listed_layers_are_convolutions_and_linear_layers(name, layer_count, last_shape):
    layers = list_layers(make_backbone(name).extractor)
    assert len(layers) == layer_count
    assert last_shape in {tuple(parameter.shape) for parameter in layers[-1]}
    parameter_ids = [id(parameter) for layer in layers for parameter in layer]
    assert sorted(parameter_ids) == sorted(id(parameter) for parameter in unique_parameters(layers))


@pytest.mark.parametrize(
    ("name", "layer_count", "last_shape"),
    [("timm:resnet50", 53, (2048, 512, 1, 1)), ("timm:test_vit", 26, (64, 192))],
)
def test_listed_layers_of_timm_networks(name, layer_count, last_shape):
    pytest.importorskip("timm", reason="timm is not installed")
    layers = list_layers(make_backbone(name).extractor)
    assert (len(layers), tuple(layers[-1][0].shape)) == (layer_count, last_shape)


def unique_parameters(layers):
    """Return the parameters of all layers, each once."""
    return {id(parameter): parameter for layer in layers for parameter in layer}.values()


def test_unfreeze_last_layers_includes_their_norms():
    backbone = make_backbone("resnet50")
    assert unfreeze(backbone.extractor, "last:2") == 2
    trainable = {n for n, p in backbone.extractor.named_parameters() if p.requires_grad}
    assert trainable == {
        f"body.layer4.2.{name}"
        for name in ("conv2.weight", "bn2.weight", "bn2.bias", "conv3.weight", "bn3.weight",
                     "bn3.bias")
    }  # fmt: skip
    assert unfreeze(backbone.extractor, "none") == 0
    assert list(backbone.parameters()) == []
    assert unfreeze(backbone.extractor, "all") == 53
    assert all(parameter.requires_grad for parameter in backbone.extractor.parameters())


@pytest.mark.parametrize("selection", ["last:0", "last:", "first:2", "last:9", "some"])
def test_invalid_unfreeze_selection_raises_usage_error(selection):
    with pytest.raises(UsageError, match=f"--unfreeze '?{selection}"):
        unfreeze(make_backbone("scratch").extractor, selection)


@pytest.mark.parametrize("name", ["scratch", "mobilenet_v2", "timm:test_resnet"])
def test_trained_state_round_trip(name):
    if ":" in name:
        pytest.importorskip("timm", reason="timm is not installed")
    backbone = make_backbone(name)
    before = registry.fit_state(backbone.state, name)
    after = backbone.trained_state()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    with torch.no_grad():
        next(backbone.extractor.parameters()).add_(1)
    changed = [
        key for key, value in backbone.trained_state().items() if not value.equal(before[key])
    ]
    assert len(changed) == 1


@pytest.mark.parametrize(("pretrained", "updated"), [(True, False), (False, True)])
def test_pretrained_batch_norm_statistics_are_frozen(pretrained, updated):
    backbone = make_backbone("scratch", pretrained=pretrained)
    before = {k: v.clone() for k, v in backbone.extractor.state_dict().items() if "running" in k}
    backbone.set_training_mode()
    backbone.extractor(torch.randn(4, 3, 32, 32))
    after = backbone.extractor.state_dict()
    assert any(not after[key].equal(before[key]) for key in before) == updated
