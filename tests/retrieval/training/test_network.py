"""What learns of a network, and that the rest stays as it was."""

import pytest
import torch

from retrieval.core.errors import UsageError
from retrieval.models import registry
from retrieval.training.layers import list_layers, unfreeze
from retrieval.training.network import build_trainable_backbone


def body_of(name, *, pretrained=True):
    torch.manual_seed(0)
    state = registry.build_network(name).state_dict()
    transform = registry.default_transform(name, image_size=None, resize=None)
    return build_trainable_backbone(
        name, registry.WeightSource(state, transform), "avg", pretrained=pretrained
    )


@pytest.mark.parametrize(
    ("name", "layers", "last"),
    [
        ("scratch", 8, (192, 192, 3, 3)),
        ("vgg16", 13, (512, 512, 3, 3)),  # its three linear ones classify
        ("resnet50", 53, (2048, 512, 1, 1)),  # 49 convolutions and four beside the blocks
        ("mobilenet_v2", 52, (1280, 320, 1, 1)),
        ("squeezenet1_0", 25, (256, 64, 3, 3)),
    ],
)
def test_layers_are_counted_as_a_person_reads_them(name, layers, last):
    found = list_layers(body_of(name).extractor)
    assert len(found) == layers
    assert last in {tuple(one.shape) for one in found[-1]}
    every = [id(one) for layer in found for one in layer]
    assert sorted(every) == sorted(id(one) for one in body_of_parameters(found))


@pytest.mark.parametrize(
    ("name", "layers", "last"),
    [("timm:resnet50", 53, (2048, 512, 1, 1)), ("timm:test_vit", 26, (64, 192))],
)
def test_so_are_those_of_timm(name, layers, last):
    pytest.importorskip("timm", reason="timm is not installed")
    found = list_layers(body_of(name).extractor)
    assert (len(found), tuple(found[-1][0].shape)) == (layers, last)


def body_of_parameters(layers):
    return {id(one): one for layer in layers for one in layer}.values()


def test_the_last_layers_learn_and_their_norms_with_them():
    body = body_of("resnet50")
    assert unfreeze(body.extractor, "last:2") == 2
    learning = {n for n, p in body.extractor.named_parameters() if p.requires_grad}
    assert learning == {
        f"body.layer4.2.{name}"
        for name in ("conv2.weight", "bn2.weight", "bn2.bias", "conv3.weight", "bn3.weight",
                     "bn3.bias")
    }  # fmt: skip
    assert unfreeze(body.extractor, "none") == 0
    assert list(body.parameters()) == []
    assert unfreeze(body.extractor, "all") == 53
    assert all(one.requires_grad for one in body.extractor.parameters())


@pytest.mark.parametrize("which", ["last:0", "last:", "first:2", "last:9", "some"])
def test_what_names_no_layers_is_refused(which):
    with pytest.raises(UsageError, match=f"--unfreeze '?{which}"):
        unfreeze(body_of("scratch").extractor, which)


@pytest.mark.parametrize("name", ["scratch", "mobilenet_v2", "timm:test_resnet"])
def test_a_body_goes_back_into_a_bundle_as_it_came(name):
    if ":" in name:
        pytest.importorskip("timm", reason="timm is not installed")
    body = body_of(name)
    before = registry.fit_state(body.state, name)
    after = body.trained_state()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    with torch.no_grad():
        next(body.extractor.parameters()).add_(1)
    changed = [key for key, value in body.trained_state().items() if not value.equal(before[key])]
    assert len(changed) == 1


@pytest.mark.parametrize(("pretrained", "moves"), [(True, False), (False, True)])
def test_statistics_of_norms_stay_those_of_pretraining(pretrained, moves):
    body = body_of("scratch", pretrained=pretrained)
    before = {k: v.clone() for k, v in body.extractor.state_dict().items() if "running" in k}
    body.learn()
    body.extractor(torch.randn(4, 3, 32, 32))
    after = body.extractor.state_dict()
    assert any(not after[key].equal(before[key]) for key in before) == moves
