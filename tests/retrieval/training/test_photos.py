"""Photos are decoded once, parted in two, and kept where they can be read again."""

import io
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from retrieval.core.errors import InputError, StorageFailure, UsageError
from retrieval.images.decode import decode
from retrieval.training import photos as photos_of
from retrieval.training.photos import decode_photos
from retrieval.training.split import choose_validation
from tests.retrieval.training.shapes import CLASSES, TRANSFORM, draw, items_of

LARGE = 10**8


@contextmanager
def loaded(root, *, seed=0, by="image", max_pixels=LARGE, cache=None, items=None):
    items = items_of(root) if items is None else items
    with decode_photos(items, TRANSFORM, max_pixels=max_pixels, cache=cache, threads=2) as found:
        yield found.parted(by=by, share=0.3, seed=seed)


def test_three_tenths_of_each_class_validate(tmp_path):
    with loaded(draw(tmp_path / "shapes", 2, 5, 20)) as photos:
        assert photos.training.names == photos.validation.names == CLASSES
        assert photos.same_classes
        assert photos.failures == ()
        assert Counter(photos.validation.classes.tolist()) == {0: 1, 1: 2, 2: 6}
        assert Counter(photos.training.classes.tolist()) == {0: 1, 1: 3, 2: 14}
        for part in (photos.training, photos.validation):
            own = [CLASSES[number] for number in part.classes]
            assert own == [image_id.split("/")[0] for image_id in part.image_ids]
        training, validation = set(photos.training.image_ids), set(photos.validation.image_ids)
        assert not training & validation
        assert training | validation == {i.image_id for i in items_of(tmp_path / "shapes")}


def test_whole_classes_may_validate():
    labels = [f"k{n % 10}" for n in range(50)]
    held = choose_validation(labels, by="class", share=0.3, seed=0)
    out = {label for label, validating in zip(labels, held, strict=True) if validating}
    assert len(out) == 3
    assert not out & {label for label, v in zip(labels, held, strict=True) if not v}
    assert held.tolist() == choose_validation(labels, by="class", share=0.3, seed=0).tolist()
    assert held.tolist() != choose_validation(labels, by="class", share=0.3, seed=1).tolist()
    with pytest.raises(InputError, match="--split-by class needs four classes"):
        choose_validation(labels[:3], by="class", share=0.3, seed=0)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_any_number_of_photos_has_both_parts(share):
    for count in range(2, 60):
        held = choose_validation(["a"] * count, by="image", share=share, seed=0)
        assert 1 <= held.sum() < count
        assert abs(held.sum() - share * count) <= 1


def test_the_seed_parts_and_other_classes_do_not(tmp_path):
    root = draw(tmp_path / "shapes", 12, 12, 12)
    with loaded(root) as first, loaded(root) as again, loaded(root, seed=1) as other:
        assert first.validation.image_ids == again.validation.image_ids
        assert set(first.validation.image_ids) != set(other.validation.image_ids)
        every = torch.arange(len(first.training))
        assert torch.equal(first.training.take(every), again.training.take(every))
    fewer_items = tuple(i for i in items_of(root) if i.label != "disc")
    with loaded(root, items=fewer_items) as fewer:
        assert fewer.validation.image_ids == tuple(
            image_id for image_id in first.validation.image_ids if not image_id.startswith("disc")
        )


def test_validation_photos_are_what_a_bundle_sees_and_training_ones_have_a_margin(tmp_path):
    root = draw(tmp_path / "shapes", 3, 3)
    with loaded(root) as photos:
        assert photos.training.pixels.shape[1:] == (3, 36, 36)
        for part in (photos.validation, photos.plain):
            seen = part.take(torch.arange(len(part)))
            for image_id, pixels in zip(part.image_ids, seen, strict=True):
                once = decode((root / image_id).read_bytes(), TRANSFORM, max_pixels=LARGE).pixels
                assert torch.equal(pixels, once)
        assert photos.plain.image_ids == photos.training.image_ids


def test_unreadable_photos_are_counted_and_cost_their_class_no_share(tmp_path):
    root = draw(tmp_path / "shapes", 8, 4)
    for number in range(4):
        (root / "disc" / f"{number:02d}.png").write_bytes(b"no photo")
    whole = io.BytesIO()
    Image.new("RGB", (200, 200)).save(whole, "PNG")
    (root / "square" / "large.png").write_bytes(whole.getvalue())
    with loaded(root, max_pixels=200 * 199) as photos:
        assert [failure.split(":")[0] for failure in photos.failures] == [
            "disc/00.png", "disc/01.png", "disc/02.png", "disc/03.png", "square/large.png",
        ]  # fmt: skip
        assert Counter(photos.training.classes.tolist()) == {0: 3, 1: 3}
        assert Counter(photos.validation.classes.tolist()) == {0: 1, 1: 1}


def test_a_class_that_cannot_be_read_is_refused_by_name(tmp_path):
    root = draw(tmp_path / "shapes", 2, 2)
    (root / "square" / "00.png").write_bytes(b"no photo")
    said = "of class square of --data 1 image can be read"
    with pytest.raises(InputError, match=said), loaded(root):
        pass


def test_a_cache_spares_decoding_until_anything_changes(tmp_path, monkeypatch):
    root, cache = draw(tmp_path / "shapes", 4, 4), str(tmp_path / "cache")
    with loaded(root, cache=cache) as first:
        pixels = first.training.take(torch.arange(len(first.training)))
    decodings = []
    real = photos_of.decode_full
    monkeypatch.setattr(
        photos_of, "decode_full", lambda *a, **k: decodings.append(1) or real(*a, **k)
    )
    with loaded(root, cache=cache) as again:
        assert torch.equal(again.training.take(torch.arange(len(again.training))), pixels)
    assert decodings == []
    (wide,) = (tmp_path / "cache").glob("*/wide.npy")
    flipped = bytearray(wide.read_bytes())
    flipped[-1] ^= 1
    wide.write_bytes(flipped)
    with loaded(root, cache=cache):
        assert len(decodings) == 8, "an altered cache is not trusted"
    with loaded(root, cache=cache, max_pixels=10**7):
        assert len(decodings) == 16, "nor one of other settings"


def test_without_a_cache_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with loaded(draw(tmp_path / "shapes", 2, 2)):
        assert list(tmp_path.glob("lookalike-photos-*"))
    assert not list(tmp_path.glob("lookalike-photos-*"))


def test_a_full_disk_is_said_before_it_is_written_to(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    shapes = draw(tmp_path / "shapes", 2, 2)
    with pytest.raises(StorageFailure, match=r"No space left.*--cache"), loaded(shapes):
        pass


def test_where_room_cannot_be_reserved_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.delattr("os.posix_fallocate")
    with loaded(draw(tmp_path / "shapes", 2, 2)) as photos:
        assert len(photos.training) == 2


def test_a_cache_that_cannot_be_made_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    cache, shapes = str(tmp_path / "file"), draw(tmp_path / "shapes", 2, 2)
    with pytest.raises(UsageError, match=f"--cache {cache} cannot be"), loaded(shapes, cache=cache):
        pass


def test_rows_of_both_parts_are_rows_of_one_array(tmp_path):
    with loaded(draw(tmp_path / "shapes", 5, 5)) as photos:
        both = np.concatenate([photos.training.rows, photos.validation.rows])
        assert sorted(both.tolist()) == list(range(10))
