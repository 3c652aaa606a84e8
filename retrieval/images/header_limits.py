"""Limits on decoding costs, checked on the header of an image before it is decoded.

The number of pixels is not the only cost: a JPEG of 1 MB may need ten thousand passes over its
pixels, a JPEG 2000 of 250 x 250 pixels 700 MB for its tiles, a TIFF of 40 x 30 a tile of 3 GB.
Images beyond these limits either cannot be decoded or are not genuine.
"""

from __future__ import annotations

import re
import struct

from PIL import Image

MAX_SCANS = 100
"""Largest number of scans (passes over the pixels) of a JPEG; encoders use some ten, 64 at most. At
178 million pixels a hundred empty scans take libjpeg 3 s."""

_MAX_PIXELS_PER_BYTE = 1024
"""Largest number of pixels per byte of a Huffman-coded JPEG: one bit per block of 64 pixels makes
512, and twice that allows for any subsampling. Arithmetic coding has no such bound."""
_ARITHMETIC = re.compile(rb"\xff[\xc9-\xcb]")
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""JPEG markers other than stuffed bytes, fill bytes and restarts."""

_MIN_TILE_BYTES = 14
"""Least size of a JPEG 2000 tile in the file: two markers (SOT, SOD)."""
_FREE_TILES, _MIN_TILE_PIXELS = 4096, 1024
"""OpenJPEG allocates 11 kB per tile before decoding. `_FREE_TILES` tiles are always allowed; more
only if each has `_MIN_TILE_PIXELS` pixels, so that tiles cost no more memory than pixels do."""

_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # tags of a TIFF


def check_header(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Raise DecompressionBombError or OSError for an opened image that is too costly to decode.

    `data` are the encoded bytes of `image`, which has not been decoded yet.
    """
    _check_pixels(image.width, image.height, max_pixels, "pixels")
    if image.format in ("JPEG", "MPO"):
        _check_jpeg(image, data)
    elif image.format == "JPEG2000":
        _check_jpeg_2000(image, data)
    elif image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0)
        if isinstance(width, int) and isinstance(height, int):
            _check_pixels(width, height, max_pixels, "pixels in a tile")


def _check_pixels(width: int, height: int, limit: int, unit: str) -> None:
    if width * height > limit:
        raise Image.DecompressionBombError(f"{width} x {height} {unit} exceed the limit of {limit}")


def _check_jpeg(image: Image.Image, data: bytes) -> None:
    max_pixels = _MAX_PIXELS_PER_BYTE * len(data)
    if image.width * image.height > max_pixels and not _ARITHMETIC.search(data):
        raise OSError(f"{len(data)} bytes cannot hold a JPEG of {image.width} x {image.height}")
    # counting bytes is fast, but too high where thumbnails or other files are embedded
    if data.count(b"\xff\xda") > MAX_SCANS and _count_scans(data) > MAX_SCANS:
        raise Image.DecompressionBombError(
            f"a JPEG of more than {MAX_SCANS} scans is too costly to decode"
        )


def _count_scans(data: bytes) -> int:
    """Count the scans of the first picture in a JPEG, marker by marker."""
    count, position = 0, 2
    while match := _MARKER.search(data, position):
        code, position = match[1][0], match.end()
        if code == 0xD9:  # end of the picture
            break
        count += code == 0xDA
        if code not in (0x01, 0xD8):  # all others have a length
            position += int.from_bytes(data[position : position + 2], "big")
    return count


def _check_jpeg_2000(image: Image.Image, data: bytes) -> None:
    tiles = _count_tiles(data)
    if tiles * _MIN_TILE_BYTES > len(data):
        raise OSError(f"{len(data)} bytes cannot hold a JPEG 2000 of {tiles} tiles")
    if tiles > max(_FREE_TILES, image.width * image.height // _MIN_TILE_PIXELS):
        raise Image.DecompressionBombError(
            f"a JPEG 2000 of {image.width} x {image.height} pixels in {tiles} tiles is too costly "
            "to decode"
        )


def _count_tiles(data: bytes) -> int:
    """Return the number of tiles of a JPEG 2000, from the SIZ segment of its codestream."""
    start = _find_codestream(data)
    if start is None or data[start : start + 4] != b"\xff\x4f\xff\x51" or len(data) < start + 42:
        raise OSError("a JPEG 2000 without a codestream")
    numbers: tuple[int, ...] = struct.unpack_from(">8I", data, start + 8)
    right, bottom, _, _, tile_width, tile_height, left, top = numbers
    if not tile_width or not tile_height:
        raise OSError("a JPEG 2000 with tiles of size 0")
    columns = max(0, -(-(right - left) // tile_width))
    return columns * max(0, -(-(bottom - top) // tile_height))


def _find_codestream(data: bytes) -> int | None:
    """Return the offset of the codestream (0, or that in the first jp2c box), or None."""
    if data.startswith(b"\xff\x4f"):
        return 0
    position = 0
    while position + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        header = 8
        if size == 1:
            header, size = 16, int.from_bytes(data[position + 8 : position + 16], "big")
        if name == b"jp2c":
            return position + header
        if size < header:  # 0: until the end of the file
            break
        position += size
    return None
