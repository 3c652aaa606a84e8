"""What every source answers: which images are there, in no particular order, each once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import pyarrow as pa

from retrieval.core.errors import InputError
from retrieval.core.records import Item
from retrieval.sources.walk import PassedOver


class Source(ABC):
    """Images to be listed; nothing is read of them but what their listing needs."""

    root: str
    """What a person typed for it."""

    unit: str = "images"
    """What is listed, in the plural."""

    others: int = 0
    """Files that `items` has met and that are not images; folders passed over count once."""

    passed_over: PassedOver | None = None
    """Those of them that are hidden or lookalike's own, where files are looked for."""

    column_notes: tuple[str, ...] = ()
    """Sentences on what `columns` met and left out, for a person."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Give every image, in no particular order, streamed."""

    def columns(self) -> pa.Schema:
        """Give name and type of the further columns, whose values stand in `Item.more`."""
        return pa.schema([])

    def check(self) -> None:
        """Refuse a source that is missing or holds no image, before anything is written."""
        if next(self.items(), None) is None:
            raise self.nothing()

    def nothing(self) -> InputError:
        """Give the refusal of a source that has nothing to list."""
        way = "a folder with photos" if self.unit == "images" else "a file that has some"
        passed = self.passed_over
        left_out = f" (passed over: {passed})" if passed and passed.total else ""
        return InputError(f"{self.root} holds no {self.unit}{left_out}; name {way}")

    def notes(self) -> tuple[str, ...]:
        """Return sentences on what `items` passed over."""
        if self.passed_over is None or not self.passed_over.total:
            return ()
        return (f"passed over in {self.root}: {self.passed_over}",)
