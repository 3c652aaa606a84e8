"""Tests of decoding training photos, splitting them, and caching the pixels."""

import io
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from retrieval.core.errors import InputError, StorageFailure, UsageError
from retrieval.images.decode import decode
from retrieval.training import photos as photos_module
from retrieval.training.photos import decode_photos
from retrieval.training.split import choose_validation
from tests.retrieval.training.sample_photos import CLASSES, TRANSFORM, draw_shapes, training_items

NO_PIXEL_LIMIT = 10**8


@contextmanager
def load_split(root, *, seed=0, by="image", max_pixels=NO_PIXEL_LIMIT, cache=None, items=None):
    items = training_items(root) if items is None else items
    with decode_photos(items, TRANSFORM, max_pixels=max_pixels, cache=cache, threads=2) as decoded:
        yield decoded.split(by=by, share=0.3, seed=seed)


def test_split_takes_share_of_each_class_for_validation(tmp_path):
    with load_split(draw_shapes(tmp_path / "shapes", 2, 5, 20)) as photos:
        assert photos.training.names == photos.validation.names == CLASSES
        assert photos.same_classes
        assert photos.failures == ()
        assert Counter(photos.validation.classes.tolist()) == {0: 1, 1: 2, 2: 6}
        assert Counter(photos.training.classes.tolist()) == {0: 1, 1: 3, 2: 14}
        for subset in (photos.training, photos.validation):
            expected_labels = [CLASSES[number] for number in subset.classes]
            assert expected_labels == [image_id.split("/")[0] for image_id in subset.image_ids]
        training, validation = set(photos.training.image_ids), set(photos.validation.image_ids)
        assert not training & validation
        assert training | validation == {
            item.image_id for item in training_items(tmp_path / "shapes")
        }


def test_split_by_class_holds_out_complete_classes():
    labels = [f"k{n % 10}" for n in range(50)]
    validation_mask = choose_validation(labels, by="class", share=0.3, seed=0)
    validation_classes = {
        label for label, is_validation in zip(labels, validation_mask, strict=True) if is_validation
    }
    assert len(validation_classes) == 3
    assert not validation_classes & {
        label
        for label, is_validation in zip(labels, validation_mask, strict=True)
        if not is_validation
    }
    assert (
        validation_mask.tolist()
        == choose_validation(labels, by="class", share=0.3, seed=0).tolist()
    )
    assert (
        validation_mask.tolist()
        != choose_validation(labels, by="class", share=0.3, seed=1).tolist()
    )
    with pytest.raises(InputError, match="--split-by class needs four classes"):
        choose_validation(labels[:3], by="class", share=0.3, seed=0)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_both_subsets_are_non_empty_for_any_count(share):
    for count in range(2, 60):
        validation_mask = choose_validation(["a"] * count, by="image", share=share, seed=0)
        assert 1 <= validation_mask.sum() < count
        assert abs(validation_mask.sum() - share * count) <= 1


def test_split_depends_on_seed_but_not_on_other_classes(tmp_path):
    root = draw_shapes(tmp_path / "shapes", 12, 12, 12)
    with load_split(root) as first, load_split(root) as second, load_split(root, seed=1) as other:
        assert first.validation.image_ids == second.validation.image_ids
        assert set(first.validation.image_ids) != set(other.validation.image_ids)
        positions = torch.arange(len(first.training))
        assert torch.equal(first.training.take(positions), second.training.take(positions))
    fewer_items = tuple(item for item in training_items(root) if item.label != "disc")
    with load_split(root, items=fewer_items) as fewer:
        assert fewer.validation.image_ids == tuple(
            image_id for image_id in first.validation.image_ids if not image_id.startswith("disc")
        )


def test_validation_photos_are_transformed_and_training_photos_have_margin(tmp_path):
    root = draw_shapes(tmp_path / "shapes", 3, 3)
    with load_split(root) as photos:
        assert photos.training.pixels.shape[1:] == (3, 36, 36)
        for subset in (photos.validation, photos.plain):
            stacked = subset.take(torch.arange(len(subset)))
            for image_id, pixels in zip(subset.image_ids, stacked, strict=True):
                expected = decode(
                    (root / image_id).read_bytes(), TRANSFORM, max_pixels=NO_PIXEL_LIMIT
                ).pixels
                assert torch.equal(pixels, expected)
        assert photos.plain.image_ids == photos.training.image_ids


def test_unreadable_photos_are_reported_and_readable_ones_split(tmp_path):
    root = draw_shapes(tmp_path / "shapes", 8, 4)
    for number in range(4):
        (root / "disc" / f"{number:02d}.png").write_bytes(b"not an image")
    png = io.BytesIO()
    Image.new("RGB", (200, 200)).save(png, "PNG")
    (root / "square" / "large.png").write_bytes(png.getvalue())
    with load_split(root, max_pixels=200 * 199) as photos:
        assert [failure.split(":")[0] for failure in photos.failures] == [
            "disc/00.png", "disc/01.png", "disc/02.png", "disc/03.png", "square/large.png",
        ]  # fmt: skip
        assert Counter(photos.training.classes.tolist()) == {0: 3, 1: 3}
        assert Counter(photos.validation.classes.tolist()) == {0: 1, 1: 1}


def test_class_with_too_few_readable_images_raises_input_error(tmp_path):
    root = draw_shapes(tmp_path / "shapes", 2, 2)
    (root / "square" / "00.png").write_bytes(b"not an image")
    message = "of class square of --data 1 image can be read"
    with pytest.raises(InputError, match=message), load_split(root):
        pass


def test_cache_is_reused_until_content_or_settings_change(tmp_path, monkeypatch):
    root, cache = draw_shapes(tmp_path / "shapes", 4, 4), str(tmp_path / "cache")
    with load_split(root, cache=cache) as first:
        pixels = first.training.take(torch.arange(len(first.training)))
    decodings = []
    original = photos_module.decode_full
    monkeypatch.setattr(
        photos_module,
        "decode_full",
        lambda *args, **kwargs: decodings.append(1) or original(*args, **kwargs),
    )
    with load_split(root, cache=cache) as second:
        assert torch.equal(second.training.take(torch.arange(len(second.training))), pixels)
    assert decodings == []
    (cached_array,) = (tmp_path / "cache").glob("*/wide.npy")
    flipped = bytearray(cached_array.read_bytes())
    flipped[-1] ^= 1
    cached_array.write_bytes(flipped)
    with load_split(root, cache=cache):
        assert len(decodings) == 8, "an altered cache is decoded again"
    with load_split(root, cache=cache, max_pixels=10**7):
        assert len(decodings) == 16, "other settings need another cache"


def test_temporary_folder_is_removed_without_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with load_split(draw_shapes(tmp_path / "shapes", 2, 2)):
        assert list(tmp_path.glob("lookalike-photos-*"))
    assert not list(tmp_path.glob("lookalike-photos-*"))


def test_full_disk_raises_before_decoding(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", no_space)
    shapes = draw_shapes(tmp_path / "shapes", 2, 2)
    with pytest.raises(StorageFailure, match=r"No space left.*--cache"), load_split(shapes):
        pass


def test_missing_posix_fallocate_is_tolerated(tmp_path, monkeypatch):
    monkeypatch.delattr("os.posix_fallocate")
    with load_split(draw_shapes(tmp_path / "shapes", 2, 2)) as photos:
        assert len(photos.training) == 2


def test_invalid_cache_folder_raises_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    cache, shapes = str(tmp_path / "file"), draw_shapes(tmp_path / "shapes", 2, 2)
    with (
        pytest.raises(UsageError, match=f"--cache {cache} cannot be"),
        load_split(shapes, cache=cache),
    ):
        pass


def test_subset_rows_partition_all_rows(tmp_path):
    with load_split(draw_shapes(tmp_path / "shapes", 5, 5)) as photos:
        rows = np.concatenate([photos.training.rows, photos.validation.rows])
        assert sorted(rows.tolist()) == list(range(10))
