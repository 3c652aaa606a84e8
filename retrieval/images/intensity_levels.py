"""Conversion of samples of more than 8 bits to 8 bits: choice of the black and white levels.

A file may state its levels (a TIFF its levels or bits, a PGM its maximum). Otherwise they are
derived from the samples: for integers black is 0 and white the largest value of the least even
number of bits (8 at least) that holds the largest sample; for floats white is 1, 255 or 65535 if
the largest sample lies between a quarter of that value and the value, else that sample itself. With
negative samples the smallest is black and the largest white.
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
"""Pixels that are processed at a time."""

_WHITES = (1.0, 255.0, 65535.0)
_BITS, _PHOTOMETRIC, _FORMAT = 258, 262, 339  # tags of a TIFF: BitsPerSample, …, SampleFormat
_LEVELS = ((340, 341), (280, 281))  # (S)MinSampleValue and (S)MaxSampleValue
_UNSIGNED = 1
_COLOURS = re.compile("(RGB|RGBA|RGBX);16([LBN])")
"""Pillow's raw modes of 16-bit colours; the last letter is the byte order (N: the machine's)."""

ReadAs = Callable[[str, str], Image.Image]
"""Function (old, new) that reads the image again with raw mode `new` in place of `old`."""


@dataclass(frozen=True)
class Levels:
    """Black and white levels by which the samples of an image are scaled to 8 bits."""

    black: float
    white: float
    integer: bool  # whether samples are integers
    unsigned: bool = False  # whether 32-bit samples, which Pillow reads as signed, are unsigned
    inverted: bool = False  # whether the smallest value is white

    def to_bytes(self, image: Image.Image) -> NDArray[np.uint8]:
        """Scale the samples of a band of the image to uint8 (height, width)."""
        return self.scale(_samples(image, unsigned=self.unsigned))

    def scale(self, samples: NDArray[Any]) -> NDArray[np.uint8]:
        """Scale samples of any shape to uint8; NaN becomes black."""
        numbers = samples.astype(np.float64)
        with np.errstate(invalid="ignore"):
            numbers -= self.black
            if self.integer:  # black to white are 2^n values, of which the upper 8 bits are kept
                numbers = np.floor(numbers * (256 / (self.white - self.black + 1)))
            else:
                numbers = np.round(numbers * (255 / (self.white - self.black)))
        numbers = np.clip(np.nan_to_num(numbers, nan=0.0), 0, 255)
        return (255 - numbers if self.inverted else numbers).astype(np.uint8)


def is_deep(image: Image.Image) -> bool:
    """Return whether an image has a single channel of more than 8 bits in Pillow."""
    return image.mode.startswith("I") or image.mode == "F"


def find_levels(image: Image.Image) -> Levels:
    """Return the levels of a loaded image; raise ValueError if it has no finite sample."""
    integer = image.mode != "F"
    tags = _tags(image)
    values = {tag: _first_number(tags.get(tag)) for tag in (_BITS, _PHOTOMETRIC, _FORMAT)}
    unsigned = image.mode == "I" and values[_BITS] == 32 and values[_FORMAT] in (None, _UNSIGNED)
    black, white = _levels_in_file(image, tags) or _levels_of_samples(
        image, integer=integer, unsigned=unsigned
    )
    return Levels(black, white, integer, unsigned, inverted=values[_PHOTOMETRIC] == 0)


def rescale_deep_colours(image: Image.Image, raw_mode: str, read_as: ReadAs) -> Image.Image:
    """Return a loaded image with its 16-bit colours rescaled if they use less than 15 bits.

    Pillow keeps only the upper 8 bits of 16-bit colours, which are nearly black where the file uses
    12 bits. The lower bits are obtained by reading it again in the other byte order with `read_as`;
    `raw_mode` is the raw mode that the image had before it was loaded.
    """
    match = _COLOURS.fullmatch(raw_mode)
    if match is None or max(top for _, top in image.getextrema()[:3]) >= 64:  # type: ignore[misc]
        return image
    order = {"N": "L" if sys.byteorder == "little" else "B"}.get(match[2], match[2])
    lower = read_as(raw_mode, f"{match[1]};16{'B' if order == 'L' else 'L'}")
    black, white = _levels_in_file(image, _tags(image)) or (0.0, 0.0)
    if not white:
        largest = max(int(_combine_bytes(*pair).max()) for pair in _band_pairs(image, lower))
        white = 2.0 ** bits_for(largest) - 1
    levels = Levels(black, white, integer=True)
    rows = [levels.scale(_combine_bytes(*pair)) for pair in _band_pairs(image, lower)]
    rescaled = Image.fromarray(np.concatenate(rows))
    if image.mode == "RGBA":
        rescaled.putalpha(image.getchannel("A"))
    return rescaled


def _band_pairs(
    upper: Image.Image, lower: Image.Image
) -> Iterator[tuple[Image.Image, Image.Image]]:
    return zip(split_into_bands(upper), split_into_bands(lower), strict=True)


def _combine_bytes(upper: Image.Image, lower: Image.Image) -> NDArray[np.uint16]:
    high, low = (np.asarray(image)[..., :3].astype(np.uint16) for image in (upper, lower))
    high <<= 8
    high |= low
    return high


def bits_for(largest: int) -> int:
    """Return the least even number of bits, 8 at least, that holds a non-negative integer."""
    return max(8, (largest.bit_length() + 1) // 2 * 2)


def _levels_in_file(image: Image.Image, tags: dict[int, Any]) -> tuple[float, float] | None:
    """Return the black and white levels that the file states, or None if it states none."""
    for low_tag, high_tag in _LEVELS:
        low, high = _first_number(tags.get(low_tag)), _first_number(tags.get(high_tag))
        if low is not None and high is not None and math.isfinite(high - low) and low < high:
            return low, high
    if image.mode.startswith("I") and image.format in ("PPM", "JPEG2000"):
        return 0.0, 65535.0  # Pillow has scaled the samples to this range
    bits = _first_number(tags.get(_BITS))
    if image.mode.startswith("I;16") and bits is not None and bits < 16:
        return 0.0, 2.0**bits - 1
    return None


def _levels_of_samples(image: Image.Image, *, integer: bool, unsigned: bool) -> tuple[float, float]:
    """Return the black and white levels derived from the smallest and the largest sample."""
    low, high = math.inf, -math.inf
    for band in split_into_bands(image):
        numbers = _samples(band, unsigned=unsigned)
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size:
            low, high = min(low, float(numbers.min())), max(high, float(numbers.max()))
    if low > high:
        raise ValueError("none of the samples is a finite number")
    if low < 0:
        return low, high if high > low else low + 1
    if integer:
        return 0.0, 2.0 ** bits_for(int(high)) - 1
    return 0.0, next((w for w in _WHITES if w / 4 <= high <= w), high or 1.0)


def split_into_bands(image: Image.Image) -> Iterator[Image.Image]:
    """Iterate over bands of rows from the top, since a copy of the whole image may be too large."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(image.height, top + rows)))


def _samples(image: Image.Image, *, unsigned: bool) -> NDArray[Any]:
    numbers = np.asarray(image)
    return numbers.view(np.uint32) if unsigned else numbers


def _tags(image: Image.Image) -> dict[int, Any]:
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def _first_number(value: Any) -> float | None:
    """Return the value of a TIFF tag, or the first of its values; None where it is no number."""
    if isinstance(value, tuple):
        value = value[0] if value else None
    return float(value) if isinstance(value, int | float) else None
