"""HEIC: what phones write, and nothing here reads. It is recognised, so that it can be named."""

from __future__ import annotations

import re

HEIC = (".heic", ".heif", ".hif")
CONVERT_HEIC = "convert HEIC to JPEG, for instance with Pillow and pillow-heif"

_BRANDS = re.compile(rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)


def is_heic(data: bytes) -> bool:
    """Return whether a file begins as HEIC does, whatever its name."""
    return _BRANDS.match(data) is not None
