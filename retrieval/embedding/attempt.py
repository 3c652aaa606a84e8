"""What a worker must know of earlier attempts at the same work: which images may kill it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _ignore_note(_: str | None) -> None:
    """Do nothing (default callback)."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a piece of work, for which workers may have died before.

    The first attempt works at full speed; later ones process and note one image at a time. Images
    are identified by their path.
    """

    number: int = 1
    given_up: frozenset[str] = frozenset()
    """Paths of images that killed their worker twice in this run; they go to the ledger unread."""
    note: Callable[[str | None], None] = _ignore_note
    """Called with a path before the image is read, and with None when none is in work any more.
    From the second attempt on it returns when the note is safely stored; in the first, where images
    are read ahead, it is only a heartbeat and may be lost."""

    @property
    def one_at_a_time(self) -> bool:
        """Return whether images must be read, decoded and embedded one at a time."""
        return self.number > 1


FIRST_ATTEMPT = Attempt()
