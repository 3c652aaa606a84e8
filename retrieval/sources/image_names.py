"""Rules on file names: which are listed as images, and which label the parent folder gives."""

from __future__ import annotations

SUFFIXES = frozenset(
    (
        "jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "webp", "avif", "bmp", "tif", "tiff",
        "ico", "tga", "mpo", "ppm", "pgm", "pbm", "jp2",
    )
)  # fmt: skip
"""Suffixes of image files, in any case; the format is detected from the content."""


def is_image(path: str) -> bool:
    """Return whether a file is listed as an image, by its suffix in any case."""
    _, dot, suffix = path.rsplit("/", 1)[-1].rpartition(".")
    return bool(dot) and suffix.lower() in SUFFIXES


def parent_folder_name(image_id: str) -> str | None:
    """Return the name of an image's parent folder; None at the root or directly below a host."""
    scheme, separator, rest = image_id.partition("://")
    folders = (rest if separator and "/" not in scheme else image_id).split("/")
    first = 1 if separator and "/" not in scheme else 0  # a host or bucket is no folder
    return (folders[first:-1] or [""])[-1] or None
