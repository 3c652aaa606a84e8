"""What earlier attempts at a piece of work tell the next one: which images may kill a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _unnoted(row: int) -> None:
    """Keep no note."""


@dataclass(frozen=True)
class Attempt:
    """The first attempt goes at full speed; later ones take one image at a time and note it."""

    number: int = 1
    given_up: frozenset[int] = frozenset()
    """Rows whose image killed its worker twice in this run; they go to the ledger unread."""
    note: Callable[[int], None] = _unnoted
    """Called with the row at hand: before each image from the second attempt on (and then it has
    returned only when the note is safe), before each batch in the first (where it may be lost)."""

    @property
    def singly(self) -> bool:
        """Tell whether one image at a time is to be read, decoded and embedded."""
        return self.number > 1


FIRST = Attempt()
