"""Interface of input sources: each lists its items once, in no particular order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import pyarrow as pa

from retrieval.core.errors import InputError
from retrieval.core.records import Item
from retrieval.sources.walk import SkippedFiles


class Source(ABC):
    """Images (or vectors) to be listed; listing reads no more than file status and metadata."""

    root: str
    """Path or URI as the user typed it."""

    unit: str = "images"
    """Plural noun for the listed items, for messages."""

    skipped_count: int = 0
    """Number of files that `items` skipped; a skipped folder counts once."""

    skipped: SkippedFiles | None = None
    """Those of them that are hidden or outputs of lookalike; None where no folder is searched."""

    column_notes: tuple[str, ...] = ()
    """Log messages on columns that `columns` left out."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Iterate over all items, streamed, in no particular order."""

    def columns(self) -> pa.Schema:
        """Return names and types of the metadata columns, whose values are in `Item.more`."""
        return pa.schema([])

    def check(self) -> None:
        """Raise InputError if the source is missing or has no items."""
        if next(self.items(), None) is None:
            raise self.empty_error()

    def empty_error(self) -> InputError:
        """Return the error of a source that has nothing to list."""
        remedy = "a folder with photos" if self.unit == "images" else "a file that has some"
        skipped = self.skipped
        note = f" (skipped: {skipped})" if skipped and skipped.total else ""
        return InputError(f"{self.root} contains no {self.unit}{note}; specify {remedy}")

    def notes(self) -> tuple[str, ...]:
        """Return log messages on the files and folders that `items` skipped."""
        if self.skipped is None or not self.skipped.total:
            return ()
        return (f"skipped in {self.root}: {self.skipped}",)
