"""A folder of images, local or behind an fsspec URI, at any depth."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec

from retrieval.errors import InputError
from retrieval.storage.files import is_remote, local_path
from retrieval.tables import Item

SUFFIXES = frozenset(
    (
        "jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "webp", "avif", "bmp", "tif", "tiff",
        "ico", "tga", "mpo", "ppm", "pgm", "pbm", "jp2",
    )
)  # fmt: skip
"""A file is an image if its name ends in one of these, in any case; content tells its format."""


@dataclass(frozen=True)
class FolderSource:
    """The images of a folder; an image's label is the name of its parent folder, if it has one."""

    root: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def items(self) -> Iterator[Item]:
        """Give every image below the root, in no particular order."""
        return self._remote() if is_remote(self.root) else self._local()

    def check(self) -> None:
        """Refuse a root that is missing or holds no image, before anything is written."""
        if next(self.items(), None) is None:
            raise InputError(f"{self.root} holds no images; name a folder with photos")

    def _local(self) -> Iterator[Item]:
        root = local_path(self.root)
        if not os.path.exists(root):
            raise InputError(f"{self.root} does not exist; name a folder with images")
        if not os.path.isdir(root):
            raise InputError(f"{self.root} is not a folder; name a folder with images")
        for path, info in _files(root, frozenset()):
            if is_image(path):
                name = readable(os.path.relpath(path, root)).replace(os.sep, "/")
                yield Item(name, readable(path), info.st_size, info.st_mtime_ns, parent(name))

    def _remote(self) -> Iterator[Item]:
        try:
            system, root = fsspec.core.url_to_fs(self.root, **self.options)
            found = system.find(root, detail=True)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"{self.root} cannot be listed ({error})") from error
        if not found and not system.exists(root):
            raise InputError(f"{self.root} does not exist; name a folder with images")
        if root in found:
            raise InputError(f"{self.root} is not a folder; name a folder with images")
        for path, info in found.items():
            if is_image(path):
                name = path.removeprefix(root.rstrip("/") + "/")
                yield Item(name, system.unstrip_protocol(path), info["size"], None, parent(name))


def _files(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.stat_result]]:
    """Walk a local folder, following links to folders, but never into one that is above."""
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError as error:
        raise InputError(f"{readable(folder)} cannot be listed ({error.strerror})") from error
    here = above | {(status.st_dev, status.st_ino)}
    for entry in entries:
        try:
            info = entry.stat()
        except OSError:  # a link to nothing: only its target could have been an image
            if entry.is_symlink() and is_image(entry.name):
                yield entry.path, entry.stat(follow_symlinks=False)
            continue
        if entry.is_dir():
            if (info.st_dev, info.st_ino) not in here:
                yield from _files(entry.path, here)
        elif entry.is_file():
            yield entry.path, info


def is_image(path: str) -> bool:
    """Tell by the suffix, in any case, whether a file is listed as an image."""
    _, dot, suffix = path.rsplit("/", 1)[-1].rpartition(".")
    return bool(dot) and suffix.lower() in SUFFIXES


def parent(image_id: str) -> str | None:
    """Give the name of the folder an image lies in; None at the root."""
    return image_id.split("/")[-2] if "/" in image_id else None


def readable(path: str) -> str:
    """Write a name that is not UTF-8 with %XX for the bytes that are not."""
    return "".join(
        f"%{ord(char) - 0xDC00:02X}" if 0xDC80 <= ord(char) <= 0xDCFF else char for char in path
    )
