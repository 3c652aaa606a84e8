"""Rules on file names: which files are listed as images, and the label from the parent folder."""

from __future__ import annotations

from retrieval.images.heic import SUFFIXES as HEIC_SUFFIXES
from retrieval.images.heic import can_decode_heic

SUFFIXES = frozenset(
    (
        "jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "webp", "avif", "bmp", "tif", "tiff",
        "ico", "tga", "mpo", "ppm", "pgm", "pbm", "jp2",
    )
)  # fmt: skip
"""Suffixes of image files, in any case; the format is detected from the content. HEIC is in
`images/heic.py`, since it needs another package."""


def is_image(path: str) -> bool:
    """Return whether a file is listed as an image, by its suffix in any case.

    HEIC is listed if it can be decoded.
    """
    _, dot, suffix = path.rsplit("/", 1)[-1].rpartition(".")
    if not dot:
        return False
    suffix = suffix.lower()
    return suffix in SUFFIXES or (f".{suffix}" in HEIC_SUFFIXES and can_decode_heic())


def parent_folder_name(image_id: str) -> str | None:
    """Return the name of an image's parent folder; None at the root or directly below a host."""
    scheme, separator, location = image_id.partition("://")
    folders = (location if separator and "/" not in scheme else image_id).split("/")
    first = (
        1 if separator and "/" not in scheme else 0
    )  # the first part is a host or bucket, not a folder
    return (folders[first:-1] or [""])[-1] or None
