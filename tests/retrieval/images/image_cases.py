"""Some 1,640 unusual and damaged images with the expected outcome: row, ledger entry, or either.

All are generated from fixed seeds, so their bytes do not change. `python -m
tests.retrieval.images.image_cases FOLDER` writes them to a folder for inspection.
"""

import io
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.retrieval.images.hostile_images import BEYOND, WITHIN, images_claiming, resource_bombs
from tests.retrieval.images.valid_images import encoded, oriented_images, photo, valid_images

ROW, LEDGER, EITHER = "row", "ledger", "either"

STRICT = ("JPEG", "PNG ", "WEBP lossy", "WEBP lossless", "WEBP alpha", "PGM", "PPM", "BMP 24 bits")
"""Formats whose truncated files are always refused; other decoders may accept a missing end."""


@dataclass(frozen=True)
class ImageCase:
    """An image file and the expected outcome of embedding it."""

    name: str
    data: bytes
    expected: str


def image_cases():
    """Return all cases; headers with false sizes claim more than `--max-pixels`."""
    cases = [
        ImageCase(name, data, ROW) for name, data in (valid_images() | oriented_images()).items()
    ]
    cases += [
        damaged
        for name, data in valid_images().items()
        for damaged in _damaged_variants(name, data)
    ]
    cases += [
        ImageCase(f"size {width} x {height} {image_format}", data, ROW)
        for (width, height, image_format), data in _sizes()
    ]
    cases += _non_images()
    cases += claim_cases(BEYOND, LEDGER)
    return cases + [
        ImageCase(name, *data_and_expected) for name, data_and_expected in resource_bombs().items()
    ]


def claim_cases(side=WITHIN, expected=EITHER):
    """Return cases whose headers claim a square of `side` pixels."""
    return [
        ImageCase(f"claims {side} {name}", data, expected)
        for name, data in images_claiming(side).items()
    ]


def _damaged_variants(name, data):
    """Yield cases of truncated, altered and padded copies of a valid image."""
    generator = np.random.default_rng(list(name.encode()))
    is_strict = name.startswith(STRICT) and not name.startswith("JPEG2000")
    for tenths in range(10):
        truncated = data[: len(data) * tenths // 10]
        # the last tenth of a small PNG contains its end chunk only
        refused = not truncated or (is_strict and (tenths < 9 or not name.startswith("PNG")))
        yield ImageCase(f"{name} cut at {tenths}/10", truncated, LEDGER if refused else EITHER)
    for number in range(6):
        # every other flip is in the header, where decoders are most sensitive
        position = int(generator.integers(0, min(len(data), 60) if number % 2 else len(data)))
        flipped = bytearray(data)
        flipped[position] ^= int(generator.integers(1, 256))
        yield ImageCase(f"{name} flip {number} at {position}", bytes(flipped), EITHER)
    noise = generator.bytes(len(data))
    yield ImageCase(f"{name} with a random body", data[:40] + noise[40:], EITHER)
    may_fail = name.startswith(("AVIF", "ICO BMP", "JPEG2000")) or name.endswith("text")
    yield ImageCase(f"{name} with trailing garbage", data + noise, EITHER if may_fail else ROW)
    yield ImageCase(f"{name} with leading garbage", noise[:50] + data, EITHER)


def _sizes():
    for width, height in [(1, 1), (1, 999), (3000, 2), (2, 3000), (65_535, 1), (1, 65_535)]:
        image = Image.new("RGB", (width, height), "#456789")
        for image_format in ("PNG", "JPEG", "TIFF", "PPM", "GIF", "BMP"):
            if image_format == "JPEG" and max(width, height) > 65_500:  # the limit of libjpeg
                continue
            yield (width, height, image_format), encoded(image, image_format)


def _non_images():
    """Return cases of files that are no images, or of another format than their suffix."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("photo.jpg", encoded(photo(), "JPEG"))
    generator = np.random.default_rng(0)
    pdf = encoded(photo(), "PDF")
    files = {
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
    cases = [ImageCase(f"{name} named .jpg", data, LEDGER) for name, data in files.items()]
    cases.append(ImageCase("PNG named .jpg", encoded(photo(), "PNG"), ROW))
    cases += [
        ImageCase(f"random {number}", generator.bytes(10 + 40 * number), EITHER)
        for number in range(60)
    ]
    return cases


if __name__ == "__main__":
    for number, case in enumerate(image_cases() + claim_cases()):
        Path(sys.argv[1], f"{number:04d}.jpg").write_bytes(case.data)
