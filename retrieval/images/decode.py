"""The bytes of an image to a uint8 array of the shape a network reads.

JPEG goes through libjpeg-turbo in torchvision and its uint8 antialiased resize, about twice as fast
as Pillow with pixels that are equal in practice; all other formats, and JPEGs it does not take, go
through Pillow. The header is judged before anything is decoded.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFile
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from retrieval.tables import Transform

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
    Image.MAX_IMAGE_PIXELS = max_pixels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Pillow warns from the bound on and raises from twice that: make the bound exact
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _decode_oriented(data, max_pixels)
        except Image.DecompressionBombWarning as warning:
            raise Image.DecompressionBombError(str(warning)) from warning


def _decode_oriented(data: bytes, max_pixels: int) -> Pixels:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:  # filters of warnings do not hold in threads
            raise Image.DecompressionBombError(
                f"{image.width} x {image.height} pixels exceed the limit of {max_pixels}"
            )
        pixels = _jpeg(data) if image.format == "JPEG" and image.mode in ("L", "RGB") else None
        if pixels is None:
            image.load()  # before EXIF is asked for, which in a PNG loads and hides the error
        orientation = _orientation(image)
        if pixels is None:
            pixels = _pillow(image)
    return _orient(pixels, orientation)


def _jpeg(data: bytes) -> Pixels | None:
    try:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels: Pixels = decode_jpeg(buffer, ImageReadMode.RGB)
    except RuntimeError:  # Pillow decides: it forgives leading rubbish, and refuses what is cut off
        return None
    return pixels


def _pillow(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "I":  # 32 bits hold 16-bit samples
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.clip(np.nan_to_num(np.asarray(image)), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    array = np.array(image.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)


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
        middle: Pixels = functional.center_crop(squashed, [side, side])
        return middle
    height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    if transform.resize == "pad":
        scale = side / max(height, width)
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        resized = _resize(pixels, tall, wide, transform)
        top, left = (side - tall) // 2, (side - wide) // 2
        fill = [round(255 * value) for value in transform.mean]
        right, bottom = side - wide - left, side - tall - top
        padded: Pixels = functional.pad(resized, [left, top, right, bottom], fill=fill)
        return padded
    return _crop(pixels, transform)


def _crop(pixels: Pixels, transform: Transform) -> Pixels:
    short = transform.resize_size
    height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    if max(height, width) > MAX_ASPECT * min(height, width):
        keep = MAX_ASPECT * min(height, width)
        pixels = functional.center_crop(pixels, [min(height, keep), min(width, keep)])
        height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    # torchvision's own rounding: the longer side is cut to a whole number
    tall = short if height <= width else int(short * height / width)
    wide = short if width <= height else int(short * width / height)
    resized = _resize(pixels, tall, wide, transform)
    cropped: Pixels = functional.center_crop(resized, [transform.image_size, transform.image_size])
    return cropped


def _resize(pixels: Pixels, height: int, width: int, transform: Transform) -> Pixels:
    if (height, width) == tuple(pixels.shape[-2:]):
        return pixels.contiguous()
    mode = InterpolationMode(transform.interpolation)
    resized: Pixels = functional.resize(
        pixels.contiguous(), [height, width], interpolation=mode, antialias=True
    )
    return resized
