"""Test that model options that contradict `--bundle` are refused."""

import pytest

from jobs.config.settings import EmbedSettings
from jobs.embedding.prepare_model import load_bundle
from retrieval.core.errors import UsageError
from retrieval.models.bundle import write_bundle
from retrieval.models.resolve import resolve_bundle
from retrieval.storage.local import open_folder


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle")
    bundle = resolve_bundle(
        backbone="scratch", weights="random", bundle=None, pooling="gem", normalize=True,
        image_size=64, resize="pad", seed=0,
    )  # fmt: skip
    write_bundle(open_folder(str(path)), bundle)
    return path


def load(bundle_path, **options):
    return load_bundle(EmbedSettings(input="x", output="y", bundle=str(bundle_path), **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vgg16"}, "--backbone vgg16 contradicts --bundle .*, which has scratch"),
        ({"pooling": "max"}, "--pooling max contradicts --bundle .*, which has gem"),
        ({"image_size": 96}, "--image-size 96 contradicts"),
        ({"resize": "squash"}, "--resize squash contradicts"),
        ({"normalize": False}, "--no-normalize contradicts"),
    ],
)
def test_options_that_contradict_the_bundle_are_refused(bundle_path, options, message):
    with pytest.raises(UsageError, match=message):
        load(bundle_path, **options)


def test_equal_options_and_defaults_are_accepted(bundle_path):
    options = {"backbone": "scratch", "pooling": "gem", "image_size": 64, "resize": "pad"}
    assert load(bundle_path, **options).digest == load(bundle_path).digest
