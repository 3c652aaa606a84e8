"""A folder of images, local or behind an fsspec URI, at any depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from retrieval.errors import InputError
from retrieval.images.sources.names import is_image, parent
from retrieval.images.sources.source import Source
from retrieval.images.sources.walk import walk
from retrieval.images.unread import CONVERT_HEIC, HEIC
from retrieval.records import Item


@dataclass
class FolderSource(Source):
    """The images of a folder; an image's label is the name of its parent folder, if it has one."""

    root: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    others: int = field(default=0, init=False, compare=False)

    def items(self) -> Iterator[Item]:
        """Give every image below the root, in no particular order."""
        self.others = 0
        for file in walk(self.root, self.options):
            if is_image(file.name):
                label = parent(file.name)
                yield Item(file.name, file.path, file.size, file.mtime_ns, label)
            else:
                self.others += 1

    def nothing(self) -> InputError:
        """Return the refusal of a folder without images, naming HEIC files if it has some."""
        found = sum(file.name.lower().endswith(HEIC) for file in walk(self.root, self.options))
        if not found:
            return super().nothing()
        return InputError(
            f"{self.root} holds {found} HEIC files and no images that are read; {CONVERT_HEIC}"
        )
