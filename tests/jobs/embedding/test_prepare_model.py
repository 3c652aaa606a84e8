"""What a bundle has decided is not asked for beside it, in silence."""

import pytest

from jobs.config.settings import EmbedSettings
from jobs.embedding.prepare_model import bundle_of
from retrieval.core.errors import UsageError
from retrieval.models.bundle import write_bundle
from retrieval.models.resolve import resolve_bundle
from retrieval.storage.local import open_folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle")
    bundle = resolve_bundle(
        backbone="scratch", weights="random", bundle=None, pooling="gem", normalize=True,
        image_size=64, resize="pad", seed=0,
    )  # fmt: skip
    write_bundle(open_folder(str(path)), bundle)
    return path


def asked(stored, **options):
    return bundle_of(EmbedSettings(input="x", output="y", bundle=str(stored), **options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backbone": "vgg16"}, "--backbone vgg16 does not go with --bundle .*, which has scratch"),
        ({"pooling": "max"}, "--pooling max does not go with --bundle .*, which has gem"),
        ({"image_size": 96}, "--image-size 96 does not go with"),
        ({"resize": "squash"}, "--resize squash does not go with"),
        ({"normalize": False}, "--no-normalize does not go with"),
    ],
)
def test_another_model_than_the_bundle_has_is_refused(stored, options, said):
    with pytest.raises(UsageError, match=said):
        asked(stored, **options)


def test_the_same_again_and_defaults_are_taken(stored):
    same = {"backbone": "scratch", "pooling": "gem", "image_size": 64, "resize": "pad"}
    assert asked(stored, **same).digest == asked(stored).digest
