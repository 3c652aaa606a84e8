"""Description of an attempt at a piece of work, after workers crashed in earlier attempts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _ignore_note(_: str | None) -> None:
    """Do nothing (default callback)."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a piece of work; workers may have crashed in earlier attempts.

    The first attempt runs at full speed; later ones note and process one image at a time. Images
    are identified by their path.
    """

    number: int = 1
    quarantined_images: frozenset[str] = frozenset()
    """Paths of images whose worker crashed twice in this run; they go to the ledger unread."""
    note: Callable[[str | None], None] = _ignore_note
    """Called with the path of an image before it is read, and with None after the last image.
    From the second attempt on it returns once the note is stored durably; in the first, where
    images are read ahead, it is only a heartbeat and may be lost."""

    @property
    def one_at_a_time(self) -> bool:
        """Return whether images must be read, decoded and embedded one at a time."""
        return self.number > 1


FIRST_ATTEMPT = Attempt()
