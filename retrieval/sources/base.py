"""Interface of input sources: each lists its images once, in no particular order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import pyarrow as pa

from retrieval.core.errors import InputError
from retrieval.core.records import Item
from retrieval.sources.walk import PassedOver


class Source(ABC):
    """Images (or vectors) to be listed; only what the listing needs is read of them."""

    root: str
    """Path or URI as the user gave it."""

    unit: str = "images"
    """Plural noun for the listed items, for messages."""

    others: int = 0
    """Number of other files that `items` met; a folder passed over counts once."""

    passed_over: PassedOver | None = None
    """The hidden files, and outputs of lookalike, among them; None where no folder is searched."""

    column_notes: tuple[str, ...] = ()
    """Sentences on columns that `columns` left out, for the user."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Iterate over all images, streamed, in no particular order."""

    def columns(self) -> pa.Schema:
        """Return names and types of the metadata columns, whose values are in `Item.more`."""
        return pa.schema([])

    def check(self) -> None:
        """Raise InputError where the source is missing or holds no image."""
        if next(self.items(), None) is None:
            raise self.empty_error()

    def empty_error(self) -> InputError:
        """Return the error of a source that has nothing to list."""
        remedy = "a folder with photos" if self.unit == "images" else "a file that has some"
        passed = self.passed_over
        left_out = f" (passed over: {passed})" if passed and passed.total else ""
        return InputError(f"{self.root} holds no {self.unit}{left_out}; name {remedy}")

    def notes(self) -> tuple[str, ...]:
        """Return sentences on what `items` passed over, for the user."""
        if self.passed_over is None or not self.passed_over.total:
            return ()
        return (f"passed over in {self.root}: {self.passed_over}",)
