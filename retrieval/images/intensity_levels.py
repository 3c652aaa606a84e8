"""Samples of more than 8 bits to 8 bits: which of their values become black and white.

A file may say so (levels or bits in a TIFF, the maximum of a PGM). Many do not: 12 bits lie in
samples of 16, floats run from 0 to 1, to 255 or to anything. Then the largest sample decides. Whole
numbers get the least even number of bits that holds it, 8 at least. Floats get 1, 255 or 65535 as
white where it lies between a quarter of that and that, and else itself. Where there are negative
samples, the smallest is black and the largest white.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BAND = 2**20
"""Pixels that are looked at together."""

_WHITES = (1.0, 255.0, 65535.0)
_BITS, _PHOTOMETRIC, _FORMAT = 258, 262, 339  # tags of a TIFF: BitsPerSample, …, SampleFormat
_LEVELS = ((340, 341), (280, 281))  # (S)MinSampleValue and (S)MaxSampleValue
_UNSIGNED = 1
_COLOURS = re.compile("(RGB|RGBA|RGBX);16([LBN])")
"""How Pillow reads colours of 16 bits, a letter for the order of their bytes (N: the machine's)."""

ReadAs = Callable[[str, str], Image.Image]
"""Reads an image again with one way of reading replaced by another."""


@dataclass(frozen=True)
class Levels:
    """How the samples of one image become 8 bits."""

    black: float
    white: float
    whole: bool  # whether samples are whole numbers
    unsigned: bool = False  # whether 32 bits that Pillow takes as signed are not
    inverted: bool = False  # whether the file calls black white

    def to_bytes(self, image: Image.Image) -> NDArray[np.uint8]:
        """Scale the samples of a part of the image, (height, width)."""
        return self.scaled(_samples(image, unsigned=self.unsigned))

    def scaled(self, samples: NDArray[Any]) -> NDArray[np.uint8]:
        """Scale samples of any shape; NaN becomes black."""
        numbers = samples.astype(np.float64)
        with np.errstate(invalid="ignore"):
            numbers -= self.black
            if self.whole:  # black to white are 2^n numbers, of which the upper 8 bits stay
                numbers = np.floor(numbers * (256 / (self.white - self.black + 1)))
            else:
                numbers = np.round(numbers * (255 / (self.white - self.black)))
        numbers = np.clip(np.nan_to_num(numbers, nan=0.0), 0, 255)
        return (255 - numbers if self.inverted else numbers).astype(np.uint8)


def is_deep(image: Image.Image) -> bool:
    """Return whether Pillow holds an image in one band of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def levels_of(image: Image.Image) -> Levels:
    """Return the levels of a loaded image; ValueError where nothing tells them."""
    whole = image.mode != "F"
    tags = _tags(image)
    first = {number: _first(tags.get(number)) for number in (_BITS, _PHOTOMETRIC, _FORMAT)}
    unsigned = image.mode == "I" and first[_BITS] == 32 and first[_FORMAT] in (None, _UNSIGNED)
    black, white = _stated(image, tags) or _measured(image, whole=whole, unsigned=unsigned)
    return Levels(black, white, whole, unsigned, inverted=first[_PHOTOMETRIC] == 0)


def colours_of(image: Image.Image, raw: str, read_as: ReadAs) -> Image.Image:
    """Return a loaded image with what its samples of 16 bits hold, if that is less than 15 bits.

    Of colours Pillow keeps the upper 8 bits, which are nearly black where the file has 12. The
    lower ones come by reading it as of the other byte order: `raw` is how Pillow reads it, from
    before it was loaded, and `read_as` reads it again another way.
    """
    found = _COLOURS.fullmatch(raw)
    if found is None or max(top for _, top in image.getextrema()[:3]) >= 64:  # type: ignore[misc]
        return image
    order = {"N": "L" if sys.byteorder == "little" else "B"}.get(found[2], found[2])
    lower = read_as(raw, f"{found[1]};16{'B' if order == 'L' else 'L'}")
    black, white = _stated(image, _tags(image)) or (0.0, 0.0)
    if not white:
        largest = max(int(_joined(*pair).max()) for pair in _pairs(image, lower))
        white = 2.0 ** bits_for(largest) - 1
    levels = Levels(black, white, whole=True)
    rows = [levels.scaled(_joined(*pair)) for pair in _pairs(image, lower)]
    made = Image.fromarray(np.concatenate(rows))
    if image.mode == "RGBA":
        made.putalpha(image.getchannel("A"))
    return made


def _pairs(upper: Image.Image, lower: Image.Image) -> Iterator[tuple[Image.Image, Image.Image]]:
    return zip(bands(upper), bands(lower), strict=True)


def _joined(upper: Image.Image, lower: Image.Image) -> NDArray[np.uint16]:
    high, low = (np.asarray(image)[..., :3].astype(np.uint16) for image in (upper, lower))
    high <<= 8
    high |= low
    return high


def bits_for(largest: int) -> int:
    """Return the least even number of bits, 8 at least, that hold a whole number."""
    return max(8, (largest.bit_length() + 1) // 2 * 2)


def _stated(image: Image.Image, tags: dict[int, Any]) -> tuple[float, float] | None:
    """Return black and white as the file has them, if it does."""
    for least, most in _LEVELS:
        low, high = _first(tags.get(least)), _first(tags.get(most))
        if low is not None and high is not None and math.isfinite(high - low) and low < high:
            return low, high
    if image.mode.startswith("I") and image.format in ("PPM", "JPEG2000"):
        return 0.0, 65535.0  # to which Pillow scales what the file says
    bits = _first(tags.get(_BITS))
    if image.mode.startswith("I;16") and bits is not None and bits < 16:
        return 0.0, 2.0**bits - 1
    return None


def _measured(image: Image.Image, *, whole: bool, unsigned: bool) -> tuple[float, float]:
    """Return black and white by the smallest and the largest sample."""
    low, high = math.inf, -math.inf
    for band in bands(image):
        numbers = _samples(band, unsigned=unsigned)
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size:
            low, high = min(low, float(numbers.min())), max(high, float(numbers.max()))
    if low > high:
        raise ValueError("none of the samples is a finite number")
    if low < 0:
        return low, high if high > low else low + 1
    if whole:
        return 0.0, 2.0 ** bits_for(int(high)) - 1
    return 0.0, next((w for w in _WHITES if w / 4 <= high <= w), high or 1.0)


def bands(image: Image.Image) -> Iterator[Image.Image]:
    """Cut an image into parts of some rows, from the top: a whole copy may be too large."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(image.height, top + rows)))


def _samples(image: Image.Image, *, unsigned: bool) -> NDArray[Any]:
    numbers = np.asarray(image)
    return numbers.view(np.uint32) if unsigned else numbers


def _tags(image: Image.Image) -> dict[int, Any]:
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def _first(value: Any) -> float | None:
    """Return the number of a tag, or the first of its numbers."""
    if isinstance(value, tuple):
        value = value[0] if value else None
    return float(value) if isinstance(value, int | float) else None
