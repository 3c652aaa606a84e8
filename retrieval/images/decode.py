"""Decoding of encoded images to the uint8 arrays that networks read.

JPEG is decoded by libjpeg-turbo in torchvision, about twice as fast as by Pillow, with practically
equal pixels; all other formats, and JPEGs that it rejects, are decoded by Pillow. The header is
checked before anything is decoded. Resizing is antialiased, on uint8.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch.nn import functional

from retrieval.core.records import Transform
from retrieval.images.box import Box
from retrieval.images.header_limits import check_header
from retrieval.images.heic import INSTALL, can_decode_heic, is_heic, open_heic
from retrieval.images.intensity_levels import (
    find_levels,
    is_deep,
    rescale_deep_colours,
    split_into_bands,
)
from retrieval.images.repair import JPEG_END, add_end_mark, drop_large_texts, strip_leading_bytes

Image.init()  # registers the formats beyond the first few
FORMATS = tuple(name for name in (
    "JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "ICO", "TGA", "PPM",
    "JPEG2000",
) if name in Image.OPEN)  # fmt: skip
"""Formats that Pillow may try, as far as this build supports them. Others are excluded: the EPS
reader, for example, would start an external program. A JPEG of several pictures (MPO) is opened as
a JPEG."""

MAX_ASPECT = 8
"""Above this aspect ratio only the centre that the crop covers is resized: a photo of 3000 x 2
pixels would otherwise be resized to 384,000 x 256 (295 MB)."""

Pixels = torch.Tensor  # uint8 (3, H, W)
_RGB = 3
"""torchvision.io.ImageReadMode.RGB"""


@dataclass(frozen=True)
class Decoded:
    """Preprocessed pixels of an image or crop, and its size in pixels, upright and not resized."""

    pixels: Pixels
    width: int
    height: int


def decode(
    data: bytes, transform: Transform, *, max_pixels: int, box: Box | None = None
) -> Decoded:
    """Decode an image, apply its orientation, and resize it to uint8 (3, image_size, image_size).

    Args:
        data: The encoded bytes.
        transform: The preprocessing of the network.
        max_pixels: Largest accepted width x height of the whole image, as stated by the header.
        box: The part of the upright image to use; the whole image by default.

    Raises:
        PIL.Image.DecompressionBombError: If the image is larger, or too costly to decode.
        ValueError: If the box contains no pixel of the image.
        Exception: Any error of a decoder on damaged data (OSError, ValueError, SyntaxError, …);
            callers record it in the ledger.
    """
    pixels = decode_full(data, max_pixels=max_pixels)
    if box is not None:
        pixels = crop_pixels(pixels, box)
    return resize_decoded(pixels, transform)


def resize_decoded(pixels: Pixels, transform: Transform) -> Decoded:
    """Resize uint8 (3, H, W) pixels to (3, image_size, image_size); keep their size."""
    height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    return Decoded(apply_transform(pixels, transform), width, height)


def decode_full(data: bytes, *, max_pixels: int) -> Pixels:
    """Decode an image to uint8 (3, H, W) and apply its orientation; raise as `decode` does."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    # Pillow raises above twice this; below it only warns, and check_header decides
    Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _decode_oriented(data, max_pixels)
        except UnidentifiedImageError:
            if is_heic(data):
                return _decode_heic(data, max_pixels)
            repaired = strip_leading_bytes(data)
            if repaired is None:
                raise
        except ValueError:
            repaired = drop_large_texts(data)
            if repaired is None:
                raise
        return _decode_oriented(repaired, max_pixels)


def crop_pixels(pixels: Pixels, box: Box) -> Pixels:
    """Return a copy of the pixels (3, H, W) in a box; raise ValueError if it contains none."""
    left, top, right, bottom = box.edges(int(pixels.shape[-1]), int(pixels.shape[-2]))
    return pixels[:, top:bottom, left:right].clone()  # a view would keep the photo in memory


def _decode_oriented(data: bytes, max_pixels: int) -> Pixels:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        check_header(image, data, max_pixels)
        if image.format == "JPEG" and not data.endswith(JPEG_END):
            completed = add_end_mark(data)
            if completed is not data:
                return _decode_oriented(completed, max_pixels)
        pixels = (
            _decode_jpeg(data) if image.format == "JPEG" and image.mode in ("L", "RGB") else None
        )
        raw_mode = _raw_mode(image)
        if pixels is None:
            image.load()  # before EXIF is read, which in a PNG loads and hides the error
        orientation = _orientation(image)
        if pixels is None:
            pixels = _to_rgb_pixels(rescale_deep_colours(image, raw_mode, partial(_read_as, data)))
    return _orient(pixels, orientation)


def _decode_heic(data: bytes, max_pixels: int) -> Pixels:
    """Decode a HEIC image; raise UnidentifiedImageError if pillow-heif is not installed."""
    if not can_decode_heic():
        raise UnidentifiedImageError(f"this is a HEIC image; {INSTALL}")
    with open_heic(data, max_pixels) as image:
        check_header(image, data, max_pixels)
        image.load()
        return _to_rgb_pixels(image)


@cache
def _libjpeg() -> Any:
    """Return torchvision's JPEG decoder, loaded without importing torchvision.

    Importing it costs each worker 1.5 s and 170 MB (it imports torch.compile). It is imported only
    where its library is not in the expected place.
    """
    spec = find_spec("torchvision")
    folders = (spec and spec.submodule_search_locations) or []
    libraries = [file for folder in folders for file in Path(folder).glob("image*.so")]
    if len(libraries) == 1:
        torch.ops.load_library(libraries[0])  # type: ignore[no-untyped-call]
    else:
        import torchvision.io  # noqa: F401 - loads it
    return torch.ops.image.decode_jpeg


def _decode_jpeg(data: bytes) -> Pixels | None:
    """Decode a JPEG by torchvision; None where it rejects it."""
    try:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels: Pixels = _libjpeg()(buffer, _RGB, False)
    except RuntimeError:  # Pillow accepts some of these, and describes the error of the others
        return None
    return pixels


def _raw_mode(image: Image.Image) -> str:
    """Return the raw mode in which Pillow will read the samples; empty where it has none."""
    args = getattr(image, "tile", None) and image.tile[0].args  # type: ignore[attr-defined]
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def _read_as(data: bytes, old: str, new: str) -> Image.Image:
    """Load an image with raw mode `new` in place of `old`."""
    image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
    image.tile = [
        tile._replace(args=new if tile.args == old else (new, *tile.args[1:]))
        for tile in image.tile
    ]
    image.load()
    return image  # type: ignore[no-any-return]


def _to_rgb_pixels(image: Image.Image) -> Pixels:
    """Convert a loaded image of any mode to RGB, in bands: whole copies take 20 bytes per pixel."""
    pixels = torch.empty((image.height, image.width, 3), dtype=torch.uint8)
    levels = find_levels(image) if is_deep(image) else None
    top = 0
    for band in split_into_bands(image):
        band_8_bits = band if levels is None else Image.fromarray(levels.to_bytes(band))
        pixels[top : top + band.height] = torch.from_numpy(np.array(_to_rgb(band_8_bits)))
        top += band.height
    return pixels.permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, transparent pixels on white."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 - a valid photo with broken EXIF is kept, unrotated
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(-2, -1)
    flips = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}.get(orientation)
    return pixels.flip(flips) if flips else pixels


def apply_transform(pixels: Pixels, transform: Transform) -> Pixels:
    """Resize (3, H, W) pixels and crop, squash or pad them to (3, image_size, image_size)."""
    side = transform.image_size
    if transform.resize == "squash":
        return _resize(pixels, side, side, transform)
    if transform.resize == "squash-crop":
        squashed = _resize(pixels, transform.resize_size, transform.resize_size, transform)
        return _center_crop(squashed, side, side)
    height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    if transform.resize == "pad":
        scale = side / max(height, width)
        new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
        square = torch.empty((3, side, side), dtype=torch.uint8)
        square[:] = torch.tensor([round(255 * value) for value in transform.mean])[:, None, None]
        top, left = (side - new_height) // 2, (side - new_width) // 2
        resized = _resize(pixels, new_height, new_width, transform)
        square[:, top : top + new_height, left : left + new_width] = resized
        return square
    return _resize_and_crop(pixels, transform)


def _resize_and_crop(pixels: Pixels, transform: Transform) -> Pixels:
    """Resize the shorter side to `resize_size` and crop the centre to `image_size`."""
    short, side = transform.resize_size, transform.image_size
    height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    if max(height, width) > MAX_ASPECT * min(height, width):
        max_side = MAX_ASPECT * min(height, width)
        pixels = _center_crop(pixels, min(height, max_side), min(width, max_side))
        height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    # as torchvision rounds: the longer side is truncated to a whole number
    new_height = short if height <= width else int(short * height / width)
    new_width = short if width <= height else int(short * width / height)
    return _center_crop(_resize(pixels, new_height, new_width, transform), side, side)


def _center_crop(pixels: Pixels, height: int, width: int) -> Pixels:
    """Crop the centre as torchvision's CenterCrop does; smaller images are padded with black."""
    old_height, old_width = int(pixels.shape[-2]), int(pixels.shape[-1])
    if old_height < height or old_width < width:
        left, top = max(0, (width - old_width) // 2), max(0, (height - old_height) // 2)
        right = max(0, (width - old_width + 1) // 2)
        bottom = max(0, (height - old_height + 1) // 2)
        pixels = functional.pad(pixels, [left, right, top, bottom])
        old_height, old_width = int(pixels.shape[-2]), int(pixels.shape[-1])
    top, left = round((old_height - height) / 2), round((old_width - width) / 2)
    return pixels[:, top : top + height, left : left + width]


def _resize(pixels: Pixels, height: int, width: int, transform: Transform) -> Pixels:
    """Resize as torchvision.transforms.v2 does, on uint8; the memory layout is kept for speed."""
    if (height, width) == tuple(pixels.shape[-2:]):
        return pixels
    resized: Pixels = functional.interpolate(
        pixels[None], [height, width], mode=transform.interpolation, antialias=True
    )[0]
    return resized
