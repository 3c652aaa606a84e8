"""Which photos are trained on, how they are parted, and what may happen to them in a batch."""

import io
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from retrieval.errors import InputError, LookalikeError, UsageError
from retrieval.images.decode import decode
from retrieval.images.sources.folder import FolderSource
from retrieval.model import backbones
from retrieval.records import Item
from retrieval.training import data

SIDE = 32
TRANSFORM = backbones.first_preset("scratch", image_size=SIDE, resize="crop")
LARGE = 10**8
CLASSES = ("disc", "square", "triangle")


def draw(root: Path, *counts: int) -> Path:
    """Draw coloured shapes, a folder a class; `counts` says how many of each."""
    rng = np.random.default_rng(0)
    for name, count in zip(CLASSES, counts, strict=False):
        (root / name).mkdir(parents=True)
        for number in range(count):
            ground, colour = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in "ab")
            image = Image.new("RGB", (40, 36), ground)
            x, y, r = (int(v) for v in rng.integers((12, 12, 6), (28, 24, 11)))
            pen = ImageDraw.Draw(image)
            if name == "disc":
                pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
            else:
                sides = 4 if name == "square" else 3
                pen.regular_polygon((x, y, r), sides, fill=colour)
            image.save(root / name / f"{number:02d}.png")
    return root


def items_of(root: Path) -> list[Item]:
    return data.labelled(FolderSource(str(root)).items(), None, ())


def load(root: Path, seed: int = 0) -> data.Photos:
    return data.load(items_of(root), TRANSFORM, seed=seed, max_pixels=LARGE)


def item(image_id: str, label: str | None) -> Item:
    return Item(image_id, f"/{image_id}", 1, 1, label)


FOUR = [item("b/2", "b"), item("a/1", "a"), item("b/1", "b"), item("a/2", "a")]


def test_items_are_sorted_and_those_left_out_are_gone():
    more = [*FOUR, item("c/1", "c"), item("c/2", "c"), item("at the root", None)]
    assert [i.image_id for i in data.labelled(more, None, ["c"])] == ["a/1", "a/2", "b/1", "b/2"]


def test_labels_stand_instead_of_folders():
    labels = {"a/1": "x", "b/1": "x", "b/2": "y", "a/2": "y", "not there": "z"}
    found = {i.image_id: i.label for i in data.labelled([*FOUR, item("c/1", "c")], labels, ())}
    assert found == {"a/1": "x", "a/2": "y", "b/1": "x", "b/2": "y"}


@pytest.mark.parametrize(
    ("items", "labels", "leave_out", "error", "names"),
    [
        ([], None, (), InputError, "none of the 0 images"),
        ([item("a", None)], None, (), InputError, "a folder a class"),
        (FOUR, {}, (), InputError, "--labels"),
        (FOUR, {"a/1": None}, (), InputError, "--labels"),
        (FOUR[:1] * 2, None, (), InputError, "leaves 1"),
        (FOUR, None, ("a",), InputError, "leaves 1"),
        (FOUR, None, ("a", "b"), InputError, "leaves 0"),
        ([*FOUR, item("owl/1", "owl")], None, (), InputError, "class owl"),
        (FOUR, None, ("c",), UsageError, "--leave-out c is not a class"),
        ([*FOUR, item("owl/1", "owl")], None, ("owls",), UsageError, "did you mean owl?"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_sentence(
    items, labels, leave_out, error, names
):
    with pytest.raises(error) as refused:
        data.labelled(items, labels, leave_out)
    assert names in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_digest_tells_any_change_of_a_listing():
    changed = [
        FOUR[1:],
        [item("b/3", "b"), *FOUR[1:]],
        [item("b/2", "a"), *FOUR[1:]],
        [Item("b/2", "/b/2", 2, 1, "b"), *FOUR[1:]],
        [Item("b/2", "/b/2", 1, None, "b"), *FOUR[1:]],
    ]
    digests = {data.digest(items) for items in (FOUR, *changed)}
    assert len(digests) == 1 + len(changed)
    elsewhere = [Item(i.image_id, "/elsewhere", i.size, i.mtime_ns, i.label) for i in FOUR]
    assert data.digest(elsewhere) == data.digest(FOUR)


def test_three_tenths_of_each_class_validate(tmp_path):
    photos = load(draw(tmp_path / "shapes", 2, 5, 20))
    assert photos.names == CLASSES
    assert photos.failures == ()
    assert Counter(photos.validation.classes.tolist()) == {0: 1, 1: 1, 2: 6}
    assert Counter(photos.training.classes.tolist()) == {0: 1, 1: 4, 2: 14}
    for part in (photos.training, photos.validation):
        own = [photos.names[number] for number in part.classes]
        assert own == [image_id.split("/")[0] for image_id in part.image_ids]
    training, validation = set(photos.training.image_ids), set(photos.validation.image_ids)
    assert not training & validation
    assert training | validation == {i.image_id for i in items_of(tmp_path / "shapes")}


def test_any_number_of_photos_has_both_parts():
    for count in range(2, 300):
        validating = sum(data._validates(seen) for seen in range(count))
        assert validating == (3 * count + 4) // 10
        assert 1 <= validating < count


def test_the_seed_parts_and_other_classes_do_not(tmp_path):
    root = draw(tmp_path / "shapes", 12, 12, 12)
    first, again, other = load(root), load(root), load(root, seed=1)
    assert first.validation.image_ids == again.validation.image_ids
    assert torch.equal(first.training.pixels, again.training.pixels)
    assert set(first.validation.image_ids) != set(other.validation.image_ids)
    fewer = data.load(
        [i for i in items_of(root) if i.label != "disc"], TRANSFORM, seed=0, max_pixels=LARGE
    )
    assert fewer.validation.image_ids == tuple(
        image_id for image_id in first.validation.image_ids if not image_id.startswith("disc")
    )


def test_validation_photos_are_what_a_bundle_sees_and_training_ones_have_a_margin(tmp_path):
    root = draw(tmp_path / "shapes", 3, 3)
    photos = load(root)
    assert photos.training.pixels.shape[1:] == (3, 36, 36)
    for image_id, pixels in zip(photos.validation.image_ids, photos.validation.pixels, strict=True):
        seen = decode((root / image_id).read_bytes(), TRANSFORM, max_pixels=LARGE).pixels
        assert torch.equal(pixels, seen)


def test_unreadable_photos_are_counted_and_cost_their_class_no_share(tmp_path):
    root = draw(tmp_path / "shapes", 8, 4)
    for number in range(4):
        (root / "disc" / f"{number:02d}.png").write_bytes(b"no photo")
    whole = io.BytesIO()
    Image.new("RGB", (200, 200)).save(whole, "PNG")
    (root / "square" / "large.png").write_bytes(whole.getvalue())
    photos = data.load(items_of(root), TRANSFORM, seed=0, max_pixels=200 * 199)
    assert [failure.split(":")[0] for failure in photos.failures] == [
        "disc/00.png", "disc/01.png", "disc/02.png", "disc/03.png", "square/large.png",
    ]  # fmt: skip
    assert Counter(photos.training.classes.tolist()) == {0: 3, 1: 3}
    assert Counter(photos.validation.classes.tolist()) == {0: 1, 1: 1}


def test_a_class_that_cannot_be_read_is_refused_by_name(tmp_path):
    root = draw(tmp_path / "shapes", 2, 2)
    (root / "square" / "00.png").write_bytes(b"no photo")
    with pytest.raises(LookalikeError, match=r"class square .*square/00\.png"):
        load(root)


def batch(count: int = 6, side: int = 36) -> torch.Tensor:
    drawn = torch.randint(0, 256, (count, 3, side, side), generator=torch.manual_seed(0))
    return drawn.to(torch.uint8)


def test_a_batch_is_varied_within_its_range_and_by_its_generator_alone():
    before = batch()
    varied = [data.augment(before, SIDE, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert varied[0].shape == (6, 3, SIDE, SIDE)
    assert varied[0].dtype == torch.float32
    assert 0 <= varied[0].min() < varied[0].max() <= 255
    assert torch.equal(varied[0], varied[1])
    assert not torch.equal(varied[0], varied[2])
    assert torch.equal(before, batch())
    same = data.augment(before[:1].expand(6, -1, -1, -1), SIDE, torch.Generator().manual_seed(0))
    assert not torch.equal(same[0], same[1])  # each photo by draws of its own


def test_without_room_to_vary_a_photo_stays_or_is_mirrored(monkeypatch):
    monkeypatch.setattr(data, "ZOOM", (1.0, 1.0))
    for name in ("ROTATION", "BRIGHTNESS", "CONTRAST", "SATURATION", "HUE"):
        monkeypatch.setattr(data, name, 0.0)
    pixels = batch(16)
    varied = data.augment(pixels, 36, torch.Generator().manual_seed(0))
    mirrored = 0
    for was, now in zip(pixels.float(), varied, strict=True):
        flipped = torch.allclose(now, was.flip(-1), atol=0.05)
        assert flipped or torch.allclose(now, was, atol=0.05)
        mirrored += flipped
    assert 0 < mirrored < 16


def test_turning_colours_keeps_greys_and_how_bright_a_colour_looks(monkeypatch):
    for name in ("BRIGHTNESS", "CONTRAST", "SATURATION"):
        monkeypatch.setattr(data, name, 0.0)
    monkeypatch.setattr(data, "HUE", math.pi)
    generator = torch.Generator().manual_seed(0)
    grey = torch.full((4, 3, 2, 2), 90.0)
    colour = torch.tensor([120.0, 100.0, 110.0]).view(1, 3, 1, 1).expand(4, 3, 2, 2)
    assert torch.allclose(data._coloured(grey, data._Draw(4, generator)), grey, atol=0.1)
    turned = data._coloured(colour, data._Draw(4, generator))
    luma = torch.tensor(data._YIQ[0]).view(1, 3, 1, 1)
    assert torch.allclose((turned * luma).sum(1), (colour * luma).sum(1), atol=0.1)
    assert (turned - colour).abs().amax((1, 2, 3)).min() > 0.5
