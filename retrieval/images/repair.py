"""Whole pictures in bytes that decoders refuse, brought to bytes that they take.

A JPEG after a line break, or without its end mark, as some cameras write them; a PNG with more text
or a larger colour profile than Pillow reads. A JPEG that is cut off stays refused.
"""

from __future__ import annotations

import io
import random
import re
import zlib
from collections.abc import Iterator

from PIL import Image

END = b"\xff\xd9"
_START = re.compile(rb"(?:[\s\0]{1,4096}|.{1,16}?)(?=\xff\xd8\xff)", re.DOTALL)
"""What may stand before a JPEG: more than that is rather another kind of file, that holds one."""

_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""In a JPEG: neither a stuffed nor a fill byte nor a restart."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_SCAN = 0xDA

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT, _TEXTS = 1 << 20, 1 << 25
"""Bytes of one text or profile of a PNG, and of all of them, that are kept: below what Pillow takes
(an orientation may stand in one)."""


def from_start(data: bytes) -> bytes | None:
    """Return a JPEG without the bytes before it; None where there are none, or it is no JPEG."""
    before = _START.match(data)
    return data[before.end() :] if before else None


def with_end(data: bytes) -> bytes:
    """Return a JPEG that lacks its end mark with one; OSError if it lacks more than that.

    It is whole if its headers announce all coefficients of all components, and if what is put
    behind it changes no pixel: the samples of a picture that is cut off are read from there.
    """
    body = data.rstrip(b"\0")
    if body.endswith(b"\xff"):  # a stuffed byte, or the first half of the mark
        body = body + b"\0" if len(body) < len(data) else body[:-1]
    announced = _announced(body)
    if announced is None:
        return data
    restart = _next_restart(body)
    fillers = (_filler(seed, restart) for seed in range(3))
    if not announced or len({_pixels(body + filler + END) for filler in fillers}) > 1:
        raise OSError("the JPEG ends before its picture does")
    return body + END


def _announced(data: bytes) -> bool | None:
    """Return whether the scans of a JPEG hold all it consists of; None where its end mark is there.

    A progressive one is whole when the last bit of each of its 64 coefficients was sent.
    """
    missing: dict[int, set[int]] = {}  # of each component: coefficients that are still to come
    progressive, at = False, 2
    while found := _MARKER.search(data, at):
        code, at = found[1][0], found.end()
        if code == END[1]:
            return None
        if code in (0x01, 0xD8):  # these have no length
            continue
        body = data[at + 2 : at + int.from_bytes(data[at : at + 2], "big")]
        at += 2 + len(body)
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
    """Return what a decoder may take for samples, and for the restarts that are due then."""
    drawn = random.Random(seed)  # noqa: S311 - nothing is hidden
    made = b""
    for number in range(restart, restart + 8):
        made += bytes(drawn.randrange(255) for _ in range(64)) + bytes([0xFF, 0xD0 + number % 8])
    return made


def _next_restart(data: bytes) -> int:
    """Return the number that the next restart has in the last scan of a JPEG."""
    marks = re.findall(rb"\xff([\xd0-\xd7])", data[data.rfind(b"\xff\xda") :])
    return (marks[-1][0] - 0xD0 + 1) % 8 if marks else 0


def _pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.load()
        return image.tobytes()


def without_large_texts(data: bytes) -> bytes | None:
    """Return a PNG without texts and profiles that are too large; None where it has none such."""
    if not data.startswith(_PNG):
        return None
    kept, left, dropped = [_PNG], _TEXTS, False
    for name, chunk in _chunks(data):
        size = _text_size(name, chunk[8:-4])
        if size > min(_TEXT, left):
            dropped = True
            continue
        left -= size
        kept.append(chunk)
    return b"".join(kept) if dropped else None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Cut a PNG into chunks, each with its name; what cannot be cut is the last one."""
    at = len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at:end]
        at = end


def _text_size(name: bytes, body: bytes) -> int:
    """Return the bytes of a text or profile, or one more than is kept; 0 of other chunks."""
    if name == b"tEXt":
        return len(body)
    packed = body.partition(b"\0")[2]
    if name in (b"zTXt", b"iCCP"):
        packed = packed[1:]  # the method
    elif name == b"iTXt":
        if packed[:1] != b"\1":
            return len(body)
        packed = packed[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        return 0
    try:
        return len(body) + len(zlib.decompressobj().decompress(packed, _TEXT + 1))
    except zlib.error:
        return len(body)
