"""What an image claims of itself, judged before anything is decoded.

The count of pixels is not all that costs: a JPEG of 1 MB may want ten thousand passes over its
pixels, a JPEG 2000 of 250 x 250 pixels 700 MB for its tiles, a TIFF of 40 x 30 a tile of 3 GB.
What is refused here either could not be decoded anyway or is no picture that anybody made.
"""

from __future__ import annotations

import re
import struct

from PIL import Image

MAX_SCANS = 100
"""Passes over the pixels of a JPEG; encoders make some ten, and never more than 64 with tricks.
At 178 million pixels a hundred empty ones take libjpeg 3 s."""

_MOST_PER_BYTE = 1024
"""Pixels in a byte of a JPEG with Huffman codes: one bit for a block of 64 makes 512, and twice
that allows for the oddest subsampling. Arithmetic codes know no such bound."""
_ARITHMETIC = re.compile(rb"\xff[\xc9-\xcb]")
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""In a JPEG: neither a stuffed nor a fill byte nor a restart."""

_TILE_BYTES = 14
"""The least a tile of a JPEG 2000 takes in the file: two markers (SOT, SOD)."""
_TILES, _TILE_PIXELS = 4096, 1024
"""OpenJPEG takes 11 kB a tile before it decodes: so many are always let through, and more where
tiles have this many pixels, so that they cost no more than the pixels do."""

_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # tags of a TIFF


def judge(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Refuse an image, opened but not decoded, that wants more than its pixels may cost."""
    _bounded(image.width, image.height, max_pixels, "pixels")
    if image.format in ("JPEG", "MPO"):
        _judge_jpeg(image, data)
    elif image.format == "JPEG2000":
        _judge_jpeg_2000(image, data)
    elif image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0)
        if isinstance(width, int) and isinstance(height, int):
            _bounded(width, height, max_pixels, "pixels in a tile")


def _bounded(width: int, height: int, most: int, what: str) -> None:
    if width * height > most:
        raise Image.DecompressionBombError(f"{width} x {height} {what} exceed the limit of {most}")


def _judge_jpeg(image: Image.Image, data: bytes) -> None:
    if image.width * image.height > _MOST_PER_BYTE * len(data) and not _ARITHMETIC.search(data):
        raise OSError(f"{len(data)} bytes cannot hold a JPEG of {image.width} x {image.height}")
    # the count is quick, and too high where thumbnails or other files hang on the photo
    if data.count(b"\xff\xda") > MAX_SCANS and _scans(data) > MAX_SCANS:
        raise Image.DecompressionBombError(f"a JPEG of more than {MAX_SCANS} scans")


def _scans(data: bytes) -> int:
    """Count the scans of the first picture in a JPEG, marker by marker."""
    count, at = 0, 2
    while found := _MARKER.search(data, at):
        code, at = found[1][0], found.end()
        if code == 0xD9:  # the end; what follows is no part of the picture
            break
        count += code == 0xDA
        if code not in (0x01, 0xD8):  # all others have a length
            at += int.from_bytes(data[at : at + 2], "big")
    return count


def _judge_jpeg_2000(image: Image.Image, data: bytes) -> None:
    tiles = _tiles(data)
    if tiles * _TILE_BYTES > len(data):
        raise OSError(f"{len(data)} bytes cannot hold a JPEG 2000 of {tiles} tiles")
    if tiles > max(_TILES, image.width * image.height // _TILE_PIXELS):
        raise Image.DecompressionBombError(
            f"a JPEG 2000 of {image.width} x {image.height} pixels in {tiles} tiles"
        )


def _tiles(data: bytes) -> int:
    """Count the tiles that the codestream of a JPEG 2000 announces (its SIZ segment)."""
    at = _codestream(data)
    if at is None or data[at : at + 4] != b"\xff\x4f\xff\x51" or len(data) < at + 42:
        raise OSError("a JPEG 2000 without a codestream")
    numbers: tuple[int, ...] = struct.unpack_from(">8I", data, at + 8)
    right, bottom, _, _, wide, tall, left, top = numbers
    if not wide or not tall:
        raise OSError("a JPEG 2000 with tiles of no size")
    return max(0, -(-(right - left) // wide)) * max(0, -(-(bottom - top) // tall))


def _codestream(data: bytes) -> int | None:
    """Find where the codestream begins: at once, or in the first box of its name."""
    if data.startswith(b"\xff\x4f"):
        return 0
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            head, size = 16, int.from_bytes(data[at + 8 : at + 16], "big")
        if name == b"jp2c":
            return at + head
        if size < head:  # 0: to the end
            break
        at += size
    return None
