"""Test what a recipe means for each class of networks, and the average over mirrored images."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from retrieval.models import registry
from retrieval.models.bundle import read_bundle, write_bundle
from retrieval.models.embedder import Embedder
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.own_model import Model
from retrieval.models.recipes import PLAIN, RECIPES, min_projection_images
from retrieval.models.resolve import resolve_bundle
from retrieval.storage.local import open_folder
from retrieval.vectors.normalize import normalize_rows
from tests.retrieval.models import onnx_writer as onnx


def resolve(backbone="scratch", *, recipe="default", **options):
    defaults = {
        "weights": "random", "bundle": None, "pooling": None, "normalize": True, "image_size": 32,
        "resize": None, "seed": 0,
    }  # fmt: skip
    return resolve_bundle(backbone=backbone, recipe=RECIPES[recipe], **{**defaults, **options})


@pytest.mark.parametrize(
    ("recipe", "resize", "pooling"),
    [("default", "squash", "gem"), ("original", "squash", "max"), ("plain", "crop", "avg")],
)
def test_recipe_sets_resize_and_pooling_of_a_convolutional_network(recipe, resize, pooling):
    bundle = resolve(recipe=recipe)
    assert (bundle.transform.resize, bundle.pooling) == (resize, pooling)


def test_options_override_the_parts_of_a_recipe():
    bundle = resolve(resize="pad", pooling="avg")
    assert (bundle.transform.resize, bundle.pooling) == ("pad", "avg")


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_convnext"])
def test_tokens_and_signed_features_keep_their_own_output(name):
    pytest.importorskip("timm", reason="timm is not installed")
    bundle = resolve(name, image_size=None)
    assert (bundle.transform.resize, bundle.pooling) == ("squash", "avg")


@pytest.mark.parametrize(
    ("layers", "pooling"),
    [
        ((nn.Conv2d(3, 4, 3), nn.ReLU()), "gem"),
        ((nn.Conv2d(3, 4, 3), nn.Hardswish()), "gem"),
        ((nn.Conv2d(3, 4, 3), nn.Identity()), "avg"),
        ((nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "avg"),
    ],
)
def test_own_model_keeps_its_transform_and_is_pooled_where_it_ends_in_a_rectifier(layers, pooling):
    torch.manual_seed(1)
    transform = {"image_size": 16, "resize": "pad"}
    model = Model(nn.Sequential(*layers), transform, name="net", version="1")
    registry.add_model(model)
    try:
        bundle = resolve("model:net", weights=None, image_size=None)
    finally:
        registry.remove_model("model:net")
    assert (bundle.transform.resize, bundle.pooling) == ("pad", pooling)


def test_onnx_network_keeps_its_output(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx.small_network(np.ones((5, 3, 4, 4), np.float32)))
    bundle = resolve(f"onnx:{path}", weights=None)
    assert (bundle.transform.resize, bundle.pooling) == ("squash", "avg")


def test_bundle_wins_over_the_recipe(tmp_path):
    stored = resolve(recipe="plain")
    write_bundle(open_folder(str(tmp_path)), stored)
    assert resolve(bundle=str(tmp_path), weights=None) == stored


def test_projection_needs_more_images_than_dimensions():
    assert [min_projection_images(recipe.pca) for recipe in RECIPES.values()] == [308, 600, 0]


# --- mirrored images ---


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_flip_averages_the_vectors_of_image_and_mirror_image(engine):
    single = resolve(normalize=False)
    mirrored = dataclasses.replace(single, normalize=True, augment_inference="flip")
    generator = torch.Generator().manual_seed(0)
    images = list(torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator))
    plan = EnginePlan(engine, "fp32", "cpu", 2)
    alone, both = Embedder(single, plan), Embedder(mirrored, plan)
    for first in range(0, 3, 2):
        batch = images[first : first + 2]
        parts = [alone.embed(batch), alone.embed([image.flip(-1) for image in batch])]
        expected = normalize_rows(np.mean(parts, axis=0, dtype=np.float64))
        np.testing.assert_allclose(both.embed(batch), expected, atol=1e-6)


def test_flip_is_part_of_the_bundle(tmp_path):
    plain, mirrored = resolve(), resolve(augment_inference="flip")
    assert plain.digest != mirrored.digest
    assert plain.digest == resolve(augment_inference="none").digest
    write_bundle(open_folder(str(tmp_path)), mirrored)
    assert read_bundle(open_folder(str(tmp_path))) == mirrored


def test_flip_is_added_to_a_given_bundle(tmp_path):
    write_bundle(open_folder(str(tmp_path)), resolve())
    flipped = resolve(bundle=str(tmp_path), weights=None, augment_inference="flip")
    assert flipped == resolve(augment_inference="flip")


def test_plain_is_the_default_of_the_library():
    options = {
        "weights": "random", "bundle": None, "pooling": None, "normalize": True, "image_size": 32,
        "resize": None, "seed": 0,
    }  # fmt: skip
    assert resolve_bundle(backbone="scratch", **options) == resolve(recipe="plain")
    assert RECIPES["plain"] == PLAIN
