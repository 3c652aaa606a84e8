"""Some 1,640 bad and odd images, and what must become of each: a row, a line of the ledger, either.

All are drawn or damaged by seed: the same bytes every time. `python -m
tests.retrieval.images.oddities FOLDER` writes them out, to look at one.
"""

import io
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.retrieval.images.odd_files_false_claims import BEYOND, WITHIN, bombs, claims
from tests.retrieval.images.odd_files_valid import encoded, oriented, photo, sounds

ROW, LEDGER, EITHER = "row", "ledger", "either"

STRICT = ("JPEG", "PNG ", "WEBP lossy", "WEBP lossless", "WEBP alpha", "PGM", "PPM", "BMP 24 bits")
"""Of these a file that is cut off is always refused; some other decoders forgive a missing end."""


@dataclass(frozen=True)
class Oddity:
    """The bytes of an image, and what must become of it."""

    name: str
    data: bytes
    expected: str


def oddities():
    """Give all of them, lies beyond the bound of `--max-pixels` included."""
    found = [Oddity(name, data, ROW) for name, data in (sounds() | oriented()).items()]
    found += [damaged for name, data in sounds().items() for damaged in _damages(name, data)]
    found += [Oddity(f"size {w} x {h} {kind}", data, ROW) for (w, h, kind), data in _sizes()]
    found += _strangers()
    found += lies(BEYOND, LEDGER)
    return found + [Oddity(name, *rest) for name, rest in bombs().items()]


def lies(side=WITHIN, expected=EITHER):
    """Give headers that claim a square of this side."""
    return [Oddity(f"claims {side} {name}", data, expected) for name, data in claims(side).items()]


def _damages(name, data):
    generator = np.random.default_rng(list(name.encode()))
    strict = name.startswith(STRICT) and not name.startswith("JPEG2000")
    for tenths in range(10):
        cut = data[: len(data) * tenths // 10]
        # the last tenth of a small PNG is its end mark alone
        refused = not cut or (strict and (tenths < 9 or not name.startswith("PNG")))
        yield Oddity(f"{name} cut at {tenths}/10", cut, LEDGER if refused else EITHER)
    for number in range(6):
        # headers are where it hurts
        at = int(generator.integers(0, min(len(data), 60) if number % 2 else len(data)))
        flipped = bytearray(data)
        flipped[at] ^= int(generator.integers(1, 256))
        yield Oddity(f"{name} flip {number} at {at}", bytes(flipped), EITHER)
    noise = generator.bytes(len(data))
    yield Oddity(f"{name} with a random body", data[:40] + noise[40:], EITHER)
    reads_on = name.startswith(("AVIF", "ICO BMP", "JPEG2000")) or name.endswith("text")
    yield Oddity(f"{name} and rubbish", data + noise, EITHER if reads_on else ROW)
    yield Oddity(f"rubbish and {name}", noise[:50] + data, EITHER)


def _sizes():
    for width, height in [(1, 1), (1, 999), (3000, 2), (2, 3000), (65_535, 1), (1, 65_535)]:
        image = Image.new("RGB", (width, height), "#456789")
        for kind in ("PNG", "JPEG", "TIFF", "PPM", "GIF", "BMP"):
            if kind == "JPEG" and max(width, height) > 65_500:  # libjpeg's own bound
                continue
            yield (width, height, kind), encoded(image, kind)


def _strangers():
    """What is no image, or another than its name says."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("photo.jpg", encoded(photo(), "JPEG"))
    random = np.random.default_rng(0)
    pdf = encoded(photo(), "PDF")
    none = {
        "empty": b"",
        "one byte": b"\xff",
        "HTML": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "text": b"no image at all\n" * 99,
        "zip": archive.getvalue(),
        "PDF": pdf,
        "EPS": encoded(photo(), "EPS"),
        "PostScript": b"%!PS-Adobe-3.0\n(/etc/passwd) (r) file\n%%EOF\n",
        "DOS EPS": b"\xc5\xd0\xd3\xc6" + b"\x20\0\0\0" * 7 + encoded(photo(), "EPS"),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "MPEG": b"\0\0\1\xb3" + b"\x14\0\xf0\x13" * 99,
        "PSD": b"8BPS\0\1" + b"\0" * 99,
        "zeros": b"\0" * 5000,
    }
    found = [Oddity(f"{name} named .jpg", data, LEDGER) for name, data in none.items()]
    found.append(Oddity("PNG named .jpg", encoded(photo(), "PNG"), ROW))
    found += [Oddity(f"random {n}", random.bytes(10 + 40 * n), EITHER) for n in range(60)]
    return found


if __name__ == "__main__":
    for number, oddity in enumerate(oddities() + lies()):
        Path(sys.argv[1], f"{number:04d}.jpg").write_bytes(oddity.data)
