"""What the name of a file says: whether it is listed as an image, and its label."""

from __future__ import annotations

SUFFIXES = frozenset(
    (
        "jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "webp", "avif", "bmp", "tif", "tiff",
        "ico", "tga", "mpo", "ppm", "pgm", "pbm", "jp2",
    )
)  # fmt: skip
"""A file is an image if its name ends in one of these, in any case; content tells its format."""


def is_image(path: str) -> bool:
    """Tell by the suffix, in any case, whether a file is listed as an image."""
    _, dot, suffix = path.rsplit("/", 1)[-1].rpartition(".")
    return bool(dot) and suffix.lower() in SUFFIXES


def parent(image_id: str) -> str | None:
    """Return the name of the folder an image lies in; None at the root, or below a host alone."""
    scheme, separator, rest = image_id.partition("://")
    folders = (rest if separator and "/" not in scheme else image_id).split("/")
    first = 1 if separator and "/" not in scheme else 0  # a host or bucket is no folder
    return (folders[first:-1] or [""])[-1] or None
