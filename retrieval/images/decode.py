"""The bytes of an image to a uint8 array of the shape a network reads.

JPEG goes through libjpeg-turbo in torchvision and its uint8 antialiased resize, about twice as fast
as Pillow with pixels that are equal in practice; all other formats, and JPEGs it does not take, go
through Pillow. The header is judged before anything is decoded.
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
from retrieval.images.header_limits import judge
from retrieval.images.intensity_levels import bands, colours_of, is_deep, levels_of
from retrieval.images.repair import END, from_start, with_end, without_large_texts
from retrieval.images.unsupported import CONVERT_HEIC, is_heic

Image.init()  # the formats beyond the first few are registered by this
FORMATS = tuple(name for name in (
    "JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "ICO", "TGA", "PPM",
    "JPEG2000",
) if name in Image.OPEN)  # fmt: skip
"""What Pillow may try, of what this build has: its EPS reader would start a program. A JPEG of
several pictures (MPO) is opened as a JPEG."""

MAX_ASPECT = 8
"""Beyond this ratio of the sides only the middle that the crop can see is resized: a photo of
3000 x 2 pixels would otherwise become 384,000 x 256 on the way (295 MB)."""

Pixels = torch.Tensor  # uint8 (3, H, W)
_RGB = 3
"""torchvision.io.ImageReadMode.RGB"""


@dataclass(frozen=True)
class Decoded:
    """An image ready for the network, and its true size in pixels after EXIF orientation."""

    pixels: Pixels
    width: int
    height: int


def decode(data: bytes, transform: Transform, *, max_pixels: int) -> Decoded:
    """Decode, orient, and bring to uint8 (3, image_size, image_size).

    Raises whatever the decoders raise on broken bytes (OSError, ValueError, SyntaxError, …) and
    DecompressionBombError, judged by the header; the caller writes it into the ledger.
    """
    pixels = decode_full(data, max_pixels=max_pixels)
    height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    return Decoded(apply(pixels, transform), width, height)


def decode_full(data: bytes, *, max_pixels: int) -> Pixels:
    """Decode and orient, without resizing: uint8 (3, H, W)."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    # Pillow raises from twice this on; it warns before, and what it then opens is judged below
    Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _decode_oriented(data, max_pixels)
        except UnidentifiedImageError:
            repaired = from_start(data)
            if repaired is None and is_heic(data):
                raise UnidentifiedImageError(f"this is a HEIC image; {CONVERT_HEIC}") from None
            if repaired is None:
                raise
        except ValueError:
            repaired = without_large_texts(data)
            if repaired is None:
                raise
        return _decode_oriented(repaired, max_pixels)


def _decode_oriented(data: bytes, max_pixels: int) -> Pixels:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        judge(image, data, max_pixels)
        if image.format == "JPEG" and not data.endswith(END):
            ended = with_end(data)
            if ended is not data:
                return _decode_oriented(ended, max_pixels)
        pixels = _jpeg(data) if image.format == "JPEG" and image.mode in ("L", "RGB") else None
        raw = _raw_mode(image)
        if pixels is None:
            image.load()  # before EXIF is asked for, which in a PNG loads and hides the error
        orientation = _orientation(image)
        if pixels is None:
            pixels = _pillow(colours_of(image, raw, partial(_read_as, data)))
    return _orient(pixels, orientation)


@cache
def _libjpeg() -> Any:
    """Give torchvision's decoder without importing torchvision.

    Its Python costs each worker 1.5 s and 170 MB (it brings torch.compile), and none of it is
    needed here. Where its library is not where it was, it is imported after all.
    """
    spec = find_spec("torchvision")
    places = (spec and spec.submodule_search_locations) or []
    libraries = [file for place in places for file in Path(place).glob("image*.so")]
    if len(libraries) == 1:
        torch.ops.load_library(libraries[0])  # type: ignore[no-untyped-call]
    else:
        import torchvision.io  # noqa: F401 - loads it
    return torch.ops.image.decode_jpeg


def _jpeg(data: bytes) -> Pixels | None:
    try:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels: Pixels = _libjpeg()(buffer, _RGB, False)
    except RuntimeError:  # Pillow decides: it takes some that this does not, and says what is wrong
        return None
    return pixels


def _raw_mode(image: Image.Image) -> str:
    """Return how Pillow is going to read the samples; nothing where that has no name."""
    args = getattr(image, "tile", None) and image.tile[0].args  # type: ignore[attr-defined]
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def _read_as(data: bytes, old: str, new: str) -> Image.Image:
    """Load an image with another raw mode."""
    image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
    image.tile = [
        tile._replace(args=new if tile.args == old else (new, *tile.args[1:]))
        for tile in image.tile
    ]
    image.load()
    return image  # type: ignore[no-any-return]


def _pillow(image: Image.Image) -> Pixels:
    """Bring any mode to RGB, some rows at a time: whole copies would take 20 bytes a pixel."""
    pixels = torch.empty((image.height, image.width, 3), dtype=torch.uint8)
    levels = levels_of(image) if is_deep(image) else None
    top = 0
    for band in bands(image):
        shallow = band if levels is None else Image.fromarray(levels.to_bytes(band))
        pixels[top : top + band.height] = torch.from_numpy(np.array(_rgb(shallow)))
        top += band.height
    return pixels.permute(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 - broken EXIF must not lose a sound photo: it is shown as it lies
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(-2, -1)
    flips = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}.get(orientation)
    return pixels.flip(flips) if flips else pixels


def apply(pixels: Pixels, transform: Transform) -> Pixels:
    """Resize (antialiased, on uint8) and crop, squash or pad to (3, image_size, image_size)."""
    side = transform.image_size
    if transform.resize == "squash":
        return _resize(pixels, side, side, transform)
    if transform.resize == "squash-crop":
        squashed = _resize(pixels, transform.resize_size, transform.resize_size, transform)
        return _middle(squashed, side, side)
    height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    if transform.resize == "pad":
        scale = side / max(height, width)
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        square = torch.empty((3, side, side), dtype=torch.uint8)
        square[:] = torch.tensor([round(255 * value) for value in transform.mean])[:, None, None]
        top, left = (side - tall) // 2, (side - wide) // 2
        resized = _resize(pixels, tall, wide, transform)
        square[:, top : top + tall, left : left + wide] = resized
        return square
    return _crop(pixels, transform)


def _crop(pixels: Pixels, transform: Transform) -> Pixels:
    short, side = transform.resize_size, transform.image_size
    height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    if max(height, width) > MAX_ASPECT * min(height, width):
        keep = MAX_ASPECT * min(height, width)
        pixels = _middle(pixels, min(height, keep), min(width, keep))
        height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    # torchvision's own rounding: the longer side is cut to a whole number
    tall = short if height <= width else int(short * height / width)
    wide = short if width <= height else int(short * width / height)
    return _middle(_resize(pixels, tall, wide, transform), side, side)


def _middle(pixels: Pixels, height: int, width: int) -> Pixels:
    """Cut the middle out as torchvision's centre crop does; what is smaller gets a black rim."""
    tall, wide = int(pixels.shape[-2]), int(pixels.shape[-1])
    if tall < height or wide < width:
        left, top = max(0, (width - wide) // 2), max(0, (height - tall) // 2)
        right, bottom = max(0, (width - wide + 1) // 2), max(0, (height - tall + 1) // 2)
        pixels = functional.pad(pixels, [left, right, top, bottom])
        tall, wide = int(pixels.shape[-2]), int(pixels.shape[-1])
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    return pixels[:, top : top + height, left : left + width]


def _resize(pixels: Pixels, height: int, width: int, transform: Transform) -> Pixels:
    """Resize as torchvision's v2 does, on uint8; layouts as decoders leave them are the fastest."""
    if (height, width) == tuple(pixels.shape[-2:]):
        return pixels
    resized: Pixels = functional.interpolate(
        pixels[None], [height, width], mode=transform.interpolation, antialias=True
    )[0]
    return resized
