"""Tests of image augmentation: range, determinism, and the effect of each variation."""

import math

import pytest
import torch

from retrieval.training import augmentation
from retrieval.training.augmentation import VARIATIONS, augment

IMAGE_SIZE = 32


def random_batch(count: int = 6, side: int = 36) -> torch.Tensor:
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=torch.manual_seed(0))
    return pixels.to(torch.uint8)


def augment_with(pixels, *names, side=36, seed=0):
    return augment(pixels, side, torch.Generator().manual_seed(seed), names)


def test_augmentation_keeps_range_and_is_determined_by_generator():
    before = random_batch()
    augmented = [
        augment(before, IMAGE_SIZE, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert augmented[0].shape == (6, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert augmented[0].dtype == torch.float32
    assert 0 <= augmented[0].min() < augmented[0].max() <= 255
    assert torch.equal(augmented[0], augmented[1])
    assert not torch.equal(augmented[0], augmented[2])
    assert torch.equal(before, random_batch())
    repeated = augment(
        before[:1].expand(6, -1, -1, -1), IMAGE_SIZE, torch.Generator().manual_seed(0)
    )
    assert not torch.equal(repeated[0], repeated[1])  # each photo has its own random numbers


def test_without_variations_batch_is_center_cropped():
    """The central 32 of 36 pixels are what a bundle's transform keeps."""
    pixels = random_batch()
    cropped = augment_with(pixels, side=IMAGE_SIZE)
    assert torch.allclose(cropped, pixels[:, :, 2:-2, 2:-2].float(), atol=0.05)


@pytest.mark.parametrize("name", VARIATIONS)
def test_each_variation_changes_photos(name):
    pixels = random_batch(8)
    plain = augment_with(pixels, side=IMAGE_SIZE)
    changed = (augment_with(pixels, name, side=IMAGE_SIZE) - plain).abs().amax((1, 2, 3)) > 1
    if name == "flip":
        assert 0 < changed.sum() < 8
    elif name == "crop":
        assert changed.all()
    else:
        assert changed.all()
    others = [other for other in VARIATIONS if other != name]
    assert not torch.equal(
        augment_with(pixels, side=IMAGE_SIZE), augment_with(pixels, *others, side=IMAGE_SIZE)
    )


def test_flip_mirrors_some_photos():
    pixels = random_batch(16)
    plain, flipped = (
        augment_with(pixels, side=IMAGE_SIZE),
        augment_with(pixels, "flip", side=IMAGE_SIZE),
    )
    mirrored = [
        torch.allclose(f, p.flip(-1), atol=0.1) for f, p in zip(flipped, plain, strict=True)
    ]
    unchanged = [torch.allclose(f, p, atol=0.1) for f, p in zip(flipped, plain, strict=True)]
    assert all(a or b for a, b in zip(mirrored, unchanged, strict=True))
    assert 0 < sum(mirrored) < 16


def test_shear_tilts_vertical_line_around_center():
    """The line is tilted, but keeps its position in the central row."""
    pixels = torch.zeros(8, 3, 36, 36, dtype=torch.uint8)
    pixels[..., 17:19] = 255
    sheared = augment_with(pixels, "shear", side=IMAGE_SIZE)[:, 0]
    top, middle, bottom = (sheared[:, row].argmax(-1) for row in (2, 16, 29))
    assert ((middle - 16).abs() <= 1).all()
    assert ((top - middle).abs() > 0).any() or ((bottom - middle).abs() > 0).any()


def test_hue_rotation_keeps_greys_and_luma(monkeypatch):
    for name in ("BRIGHTNESS", "CONTRAST", "SATURATION"):
        monkeypatch.setattr(augmentation, name, 0.0)
    monkeypatch.setattr(augmentation, "HUE", math.pi)
    generator = torch.Generator().manual_seed(0)
    grey = torch.full((4, 3, 2, 2), 90.0)
    colour = torch.tensor([120.0, 100.0, 110.0]).view(1, 3, 1, 1).expand(4, 3, 2, 2)

    def shift_colours(images):
        return augmentation._shift_colours(
            images, augmentation._BatchRandom(4, generator, images.device), True
        )

    assert torch.allclose(shift_colours(grey), grey, atol=0.1)
    rotated = shift_colours(colour)
    luma = torch.tensor(augmentation._YIQ[0]).view(1, 3, 1, 1)
    assert torch.allclose((rotated * luma).sum(1), (colour * luma).sum(1), atol=0.1)
    assert (rotated - colour).abs().amax((1, 2, 3)).min() > 0.5
