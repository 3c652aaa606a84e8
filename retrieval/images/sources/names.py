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
    """Give the name of the folder an image lies in; None at the root."""
    return image_id.split("/")[-2] or None if "/" in image_id else None
