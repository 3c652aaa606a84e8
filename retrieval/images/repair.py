"""Repair of complete images that decoders reject.

These are JPEGs after a line break, or without an end mark, as some cameras write them, and PNGs
with more text or a larger colour profile than Pillow reads. Truncated JPEGs are still rejected.
"""

from __future__ import annotations

import io
import random
import re
import zlib
from collections.abc import Iterator

from PIL import Image

JPEG_END = b"\xff\xd9"
_START = re.compile(rb"(?:[\s\0]{1,4096}|.{1,16}?)(?=\xff\xd8\xff)", re.DOTALL)
"""Bytes that may precede a JPEG; a longer prefix means a file of another kind that contains one."""

_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""JPEG markers other than stuffed bytes, fill bytes and restarts."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_SCAN = 0xDA

_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_TEXT_BYTES, _MAX_TOTAL_TEXT_BYTES = 1 << 20, 1 << 25
"""Largest text or profile of a PNG that is kept, and largest total: below the limits of Pillow.
Small texts are kept, since one may hold the orientation."""


def strip_leading_bytes(data: bytes) -> bytes | None:
    """Return a JPEG without the bytes before it; None where there are none or it is no JPEG."""
    prefix = _START.match(data)
    return data[prefix.end() :] if prefix else None


def add_end_mark(data: bytes) -> bytes:
    """Return a JPEG with an end mark added where it is missing; raise OSError if it is truncated.

    A JPEG counts as complete if its scans cover all coefficients of all components, and if random
    bytes appended to it change no pixel: of a truncated JPEG a decoder would take the missing
    samples from these bytes.
    """
    body = data.rstrip(b"\0")
    if body.endswith(b"\xff"):  # a stuffed byte, or the first half of the mark
        body = body + b"\0" if len(body) < len(data) else body[:-1]
    complete = _covers_all_coefficients(body)
    if complete is None:
        return data
    restart = _next_restart(body)
    fillers = (_filler(seed, restart) for seed in range(3))
    if not complete or len({_pixels(body + filler + JPEG_END) for filler in fillers}) > 1:
        raise OSError("the JPEG is truncated")
    return body + JPEG_END


def _covers_all_coefficients(data: bytes) -> bool | None:
    """Return whether the scans of a JPEG cover all its data; None where it has an end mark.

    A progressive JPEG is complete if some scan contains the last bit of each of the 64 coefficients
    of each component.
    """
    missing: dict[int, set[int]] = {}  # coefficients not covered yet, per component
    progressive, position = False, 2
    while match := _MARKER.search(data, position):
        code, position = match[1][0], match.end()
        if code == JPEG_END[1]:
            return None
        if code in (0x01, 0xD8):  # these have no length
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        body = data[position + 2 : position + length]
        position += 2 + len(body)
        if code in _FRAMES and len(body) > 5:
            progressive = code in _PROGRESSIVE
            missing = {number: set(range(64)) for number in body[6 : 6 + 3 * body[5] : 3]}
        elif code == _SCAN and body and len(body) >= 4 + 2 * body[0]:
            first, last, bits = body[1 + 2 * body[0] :][:3]
            if not progressive:
                first, last, bits = 0, 63, 0
            for number in body[1 : 1 + 2 * body[0] : 2]:
                if bits & 0xF == 0:
                    missing.get(number, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())


def _filler(seed: int, restart: int) -> bytes:
    """Return random bytes that decode as samples, with the restart markers that are due."""
    generator = random.Random(seed)  # noqa: S311 - not for security
    filler = b""
    for number in range(restart, restart + 8):
        samples = bytes(generator.randrange(255) for _ in range(64))
        filler += samples + bytes([0xFF, 0xD0 + number % 8])
    return filler


def _next_restart(data: bytes) -> int:
    """Return the number of the next restart marker in the last scan of a JPEG."""
    marks = re.findall(rb"\xff([\xd0-\xd7])", data[data.rfind(b"\xff\xda") :])
    return (marks[-1][0] - 0xD0 + 1) % 8 if marks else 0


def _pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.load()
        return image.tobytes()


def drop_large_texts(data: bytes) -> bytes | None:
    """Return a PNG without its too large texts and profiles; None if it has none or is no PNG."""
    if not data.startswith(_PNG):
        return None
    kept, remaining, dropped = [_PNG], _MAX_TOTAL_TEXT_BYTES, False
    for name, chunk in _chunks(data):
        size = _text_size(name, chunk[8:-4])
        if size > min(_MAX_TEXT_BYTES, remaining):
            dropped = True
            continue
        remaining -= size
        kept.append(chunk)
    return b"".join(kept) if dropped else None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Iterate over the chunks of a PNG as (name, bytes); malformed bytes form the last chunk."""
    start = len(_PNG)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : start + 8], data[start:end]
        start = end


def _text_size(name: bytes, body: bytes) -> int:
    """Return the uncompressed size of a text or profile in bytes; 0 for other chunks.

    Decompression stops at `_MAX_TEXT_BYTES`, so that larger sizes are inexact.
    """
    if name == b"tEXt":
        return len(body)
    packed = body.partition(b"\0")[2]
    if name in (b"zTXt", b"iCCP"):
        packed = packed[1:]  # the compression method
    elif name == b"iTXt":
        if packed[:1] != b"\1":
            return len(body)
        packed = packed[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        return 0
    try:
        return len(body) + len(zlib.decompressobj().decompress(packed, _MAX_TEXT_BYTES + 1))
    except zlib.error:
        return len(body)
