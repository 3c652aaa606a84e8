"""A folder of images, local or behind an fsspec URI, at any depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from retrieval.core.errors import InputError
from retrieval.core.records import Item
from retrieval.images.heic import INSTALL, SUFFIXES
from retrieval.sources.base import Source
from retrieval.sources.image_names import is_image, parent_folder_name
from retrieval.sources.walk import SkippedFiles, walk_files


@dataclass
class FolderSource(Source):
    """The images of a folder; the parent folder of an image, below the root, is its label."""

    root: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    skipped_count: int = field(default=0, init=False, compare=False)
    skipped: SkippedFiles = field(
        default_factory=SkippedFiles, init=False, compare=False, repr=False
    )

    def items(self) -> Iterator[Item]:
        """Iterate over all images below the root, in no particular order."""
        self.skipped_count, self.skipped = 0, SkippedFiles()
        for file in walk_files(self.root, self.options, self.skipped):
            if file.problem is not None and (file.is_folder or is_image(file.name)):
                yield file.unreadable_item()
            elif is_image(file.name):
                label = parent_folder_name(file.name)
                yield Item(file.name, file.path, file.size, file.mtime_ns, label)
            else:
                self.skipped_count += 1
        self.skipped_count += self.skipped.total

    def empty_error(self) -> InputError:
        """Return the error of a folder without images; it counts HEIC files if there are some."""
        count = sum(
            file.name.lower().endswith(SUFFIXES) for file in walk_files(self.root, self.options)
        )
        if not count:
            return super().empty_error()
        return InputError(
            f"{self.root} holds {count} HEIC files and no images that are read; {INSTALL}"
        )
