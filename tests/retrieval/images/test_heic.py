"""Tests of HEIC: photos made here by pillow-heif, limits, orientation and damage."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from retrieval.images.decode import decode_full
from retrieval.images.heic import is_heic
from retrieval.sources.folder import FolderSource

pillow_heif = pytest.importorskip(
    "pillow_heif", reason="pillow-heif is not installed (pip install 'lookalike[heic]')"
)

LIMIT = 1 << 20


def photo(width=96, height=64):
    """Return a smooth picture, so that lossy compression changes it little."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([2 * columns, 3 * rows, columns + rows], -1).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def encoded(image, **options):
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, **options)
    return buffer.getvalue()


def pixels_of(data, max_pixels=LIMIT):
    return decode_full(data, max_pixels=max_pixels).permute(1, 2, 0).numpy()


def test_photo_is_decoded():
    data = encoded(photo())
    assert is_heic(data)
    difference = np.abs(pixels_of(data).astype(int) - np.asarray(photo()).astype(int))
    assert pixels_of(data).shape == (64, 96, 3)
    assert difference.mean() < 3


def test_decoding_is_deterministic():
    data = encoded(photo(640, 480))
    first = pixels_of(data)
    assert all((pixels_of(data) == first).all() for _ in range(3))


def test_orientation_is_applied_once():
    """A phone stores a portrait as a landscape with an orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = pixels_of(encoded(photo(), exif=exif.tobytes()))
    expected = np.asarray(photo().transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert pixels.shape == (96, 64, 3)
    assert np.abs(pixels.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_other_modes_become_rgb(mode):
    image = photo().convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.new("L", image.size, 0))  # transparent pixels become white
    pixels = pixels_of(encoded(image))
    expected = np.full((64, 96), 255) if mode == "RGBA" else np.asarray(image).astype(int)
    assert pixels.shape == (64, 96, 3)
    assert np.abs(pixels[..., 0].astype(int) - expected).mean() < 3


def test_primary_image_of_several_is_decoded():
    file = pillow_heif.from_pillow(photo(32, 32))
    file.add_from_pillow(photo(96, 64))
    buffer = io.BytesIO()
    file.save(buffer, quality=95, primary_index=1)
    assert pixels_of(buffer.getvalue()).shape == (64, 96, 3)


def test_size_is_checked_before_anything_is_decoded(monkeypatch):
    data = encoded(photo())
    with pytest.raises(Image.DecompressionBombError, match="96 x 64 pixels exceed the limit of"):
        pixels_of(data, max_pixels=96 * 64 - 1)
    assert pixels_of(data, max_pixels=96 * 64).shape == (64, 96, 3)


def test_stated_size_beyond_the_limit_allocates_no_memory(monkeypatch):
    """The header states 60,000 x 60,000 pixels; pillow-heif is not even asked."""
    data = encoded(photo())
    size = struct.pack(">2I", 96, 64)
    assert size in data
    bomb = data.replace(size, struct.pack(">2I", 60_000, 60_000))
    monkeypatch.setattr(pillow_heif, "HeifImageFile", None)
    tracemalloc.start()
    with pytest.raises(Image.DecompressionBombError, match="60000 x 60000"):
        pixels_of(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_plugin_is_not_registered():
    """Other images must not reach libheif, whose size check comes later."""
    before = dict(Image.OPEN)
    pixels_of(encoded(photo()))
    assert before == Image.OPEN


@pytest.mark.parametrize("damage", range(60))
def test_damaged_file_raises_or_decodes(damage):
    random = np.random.default_rng(damage)
    data = bytearray(encoded(photo()))
    if damage % 3 == 0:
        data = data[: random.integers(len(data))]
    else:
        for position in random.integers(0, len(data) if damage % 3 == 1 else 400, 4):
            data[position] = random.integers(256)
    with contextlib.suppress(Exception):  # callers record any error of a decoder
        assert pixels_of(bytes(data)).size <= 3 * LIMIT


def test_folder_lists_heic(tmp_path):
    (tmp_path / "a.HEIC").write_bytes(encoded(photo()))
    (tmp_path / "b.heif").write_bytes(encoded(photo()))
    assert sorted(item.image_id for item in FolderSource(str(tmp_path)).items()) == [
        "a.HEIC", "b.heif"
    ]  # fmt: skip
