"""What earlier attempts at a piece of work tell the next one: which images may kill a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _unnoted(_: str | None) -> None:
    """Keep no note."""


@dataclass(frozen=True)
class Attempt:
    """The first attempt goes at full speed; later ones take one image at a time and note it.

    Images are named by their path, which is the same in each step that reads them.
    """

    number: int = 1
    given_up: frozenset[str] = frozenset()
    """Images that killed their worker twice in this run; they go to the ledger unread."""
    note: Callable[[str | None], None] = _unnoted
    """Called with an image before it is touched, and with None when no image is at hand any more.
    From the second attempt on it has returned only when the note is safe; in the first, where
    images are read ahead, it is no more than a sign of life and may be lost."""

    @property
    def singly(self) -> bool:
        """Tell whether one image at a time is to be read, decoded and embedded."""
        return self.number > 1


FIRST = Attempt()
