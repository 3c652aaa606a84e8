"""HEIC, which phones write: recognised always, decoded if pillow-heif (extra `heic`) is installed.

libheif is given only files whose stated size is within the limit. Its plugin is not registered with
Pillow, which would pass it files that were not checked.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

from PIL import Image

SUFFIXES = (".heic", ".heif", ".hif")
INSTALL = "install pillow-heif (pip install 'lookalike[heic]'), or convert HEIC to JPEG"

_BRANDS = re.compile(rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)
_MAX_BOXES = 1 << 16  # in one box; a large photo has some hundred tiles


def is_heic(data: bytes) -> bool:
    """Return whether the bytes of a file begin with the signature of HEIC."""
    return _BRANDS.match(data) is not None


@cache
def can_decode_heic() -> bool:
    """Return whether pillow-heif is installed, without importing it."""
    return find_spec("pillow_heif") is not None


def open_heic(data: bytes, max_pixels: int) -> Image.Image:
    """Open a HEIC image whose largest stated size is at most `max_pixels`; nothing is decoded.

    The orientation is applied by its decoder. Raises DecompressionBombError for a larger image, and
    OSError or SyntaxError for a damaged one.
    """
    sizes = list(_stated_sizes(data))
    if not sizes:
        raise OSError("a HEIC image without a stated size")
    for width, height in sizes:
        if width * height > max_pixels:
            raise Image.DecompressionBombError(
                f"{width} x {height} pixels exceed the limit of {max_pixels}"
            )
    image: Image.Image = _image_class()(io.BytesIO(data))
    return image


@cache
def _image_class() -> Any:
    import pillow_heif

    pillow_heif.options.DECODE_THREADS = 1  # as all decoders of a worker
    return pillow_heif.HeifImageFile


def _stated_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the sizes (property `ispe`) of the image, its tiles, and its further images."""
    for start, end in _boxes(data, 0, len(data), b"meta"):
        for properties in _boxes(data, start + 4, end, b"iprp"):  # after version and flags
            for container in _boxes(data, *properties, b"ipco"):
                for position, _ in _boxes(data, *container, b"ispe"):
                    if position + 12 > len(data):
                        raise OSError("a HEIC image whose size is cut off")
                    yield struct.unpack_from(">2I", data, position + 4)


def _boxes(data: bytes, start: int, end: int, name: bytes) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the contents of the boxes of a name, up to the first damaged box."""
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        size, box = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1 and start + 16 <= end:
            header, size = 16, int.from_bytes(data[start + 8 : start + 16], "big")
        elif size == 0:  # until the end of the file
            size = end - start
        if size < header or start + size > end:
            return
        if box == name:
            yield start + header, start + size
        start += size
    raise OSError(f"a HEIC image of more than {_MAX_BOXES} boxes")
