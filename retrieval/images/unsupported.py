"""Recognition of HEIC, which phones write and this program cannot read, for its error messages."""

from __future__ import annotations

import re

HEIC = (".heic", ".heif", ".hif")
CONVERT_HEIC = "convert HEIC to JPEG, for instance with Pillow and pillow-heif"

_BRANDS = re.compile(rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)


def is_heic(data: bytes) -> bool:
    """Return whether the bytes of a file begin with the signature of HEIC."""
    return _BRANDS.match(data) is not None
