"""What may happen to photos in a batch."""

import math

import pytest
import torch

from retrieval.training import augmentation as augment_of
from retrieval.training.augmentation import VARIATIONS, augment

SIDE = 32


def batch(count: int = 6, side: int = 36) -> torch.Tensor:
    drawn = torch.randint(0, 256, (count, 3, side, side), generator=torch.manual_seed(0))
    return drawn.to(torch.uint8)


def varied_by(pixels, *names, side=36, seed=0):
    return augment(pixels, side, torch.Generator().manual_seed(seed), names)


def test_a_batch_is_varied_within_its_range_and_by_its_generator_alone():
    before = batch()
    varied = [augment(before, SIDE, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert varied[0].shape == (6, 3, SIDE, SIDE)
    assert varied[0].dtype == torch.float32
    assert 0 <= varied[0].min() < varied[0].max() <= 255
    assert torch.equal(varied[0], varied[1])
    assert not torch.equal(varied[0], varied[2])
    assert torch.equal(before, batch())
    same = augment(before[:1].expand(6, -1, -1, -1), SIDE, torch.Generator().manual_seed(0))
    assert not torch.equal(same[0], same[1])  # each photo by draws of its own


def test_with_nothing_to_vary_the_middle_is_cut_out():
    """Of 36 pixels the 32 in the middle: what a bundle sees of the photo."""
    pixels = batch()
    cut = varied_by(pixels, side=SIDE)
    assert torch.allclose(cut, pixels[:, :, 2:-2, 2:-2].float(), atol=0.05)


@pytest.mark.parametrize("name", VARIATIONS)
def test_each_variation_changes_photos_alone_and_nothing_else_does(name):
    pixels = batch(8)
    plain = varied_by(pixels, side=SIDE)
    changed = (varied_by(pixels, name, side=SIDE) - plain).abs().amax((1, 2, 3)) > 1
    if name == "flip":
        assert 0 < changed.sum() < 8
    elif name == "crop":
        assert changed.all()
    else:
        assert changed.all()
    others = [other for other in VARIATIONS if other != name]
    assert not torch.equal(varied_by(pixels, side=SIDE), varied_by(pixels, *others, side=SIDE))


def test_a_flip_mirrors():
    pixels = batch(16)
    plain, flipped = varied_by(pixels, side=SIDE), varied_by(pixels, "flip", side=SIDE)
    mirrored = [
        torch.allclose(f, p.flip(-1), atol=0.1) for f, p in zip(flipped, plain, strict=True)
    ]
    kept = [torch.allclose(f, p, atol=0.1) for f, p in zip(flipped, plain, strict=True)]
    assert all(a or b for a, b in zip(mirrored, kept, strict=True))
    assert 0 < sum(mirrored) < 16


def test_a_shear_leans_and_keeps_the_middle():
    """A vertical line leans; where it crosses the middle it stays."""
    pixels = torch.zeros(8, 3, 36, 36, dtype=torch.uint8)
    pixels[..., 17:19] = 255
    leaning = varied_by(pixels, "shear", side=SIDE)[:, 0]
    top, middle, bottom = (leaning[:, row].argmax(-1) for row in (2, 16, 29))
    assert ((middle - 16).abs() <= 1).all()
    assert ((top - middle).abs() > 0).any() or ((bottom - middle).abs() > 0).any()


def test_turning_colours_keeps_greys_and_how_bright_a_colour_looks(monkeypatch):
    for name in ("BRIGHTNESS", "CONTRAST", "SATURATION"):
        monkeypatch.setattr(augment_of, name, 0.0)
    monkeypatch.setattr(augment_of, "HUE", math.pi)
    generator = torch.Generator().manual_seed(0)
    grey = torch.full((4, 3, 2, 2), 90.0)
    colour = torch.tensor([120.0, 100.0, 110.0]).view(1, 3, 1, 1).expand(4, 3, 2, 2)

    def coloured(images):
        return augment_of._shift_colours(
            images, augment_of._BatchRandom(4, generator, images.device), True
        )

    assert torch.allclose(coloured(grey), grey, atol=0.1)
    turned = coloured(colour)
    luma = torch.tensor(augment_of._YIQ[0]).view(1, 3, 1, 1)
    assert torch.allclose((turned * luma).sum(1), (colour * luma).sum(1), atol=0.1)
    assert (turned - colour).abs().amax((1, 2, 3)).min() > 0.5
