"""The book of a run: which item was begun how often, and which image was at hand at a death.

Ray does an item again when its worker dies, without end and without a word. So workers tell an
actor of ours what they begin, which image they touch, and when they are done. It keeps that in
memory: a run that is killed as a whole leaves no count behind, and if only this actor is lost, the
run counts anew from its first attempt.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

MOST_DEATHS = 10
"""Of one item since an image was last found to blame; after them it is not an image."""

_GUILTY = 2  # deaths that name an image
_NO_SURVIVOR = 3  # images found to blame while not one has been embedded: it is not the images


@dataclass(frozen=True)
class Begun:
    """What a worker is told that begins an item."""

    attempt: int
    given_up: frozenset[str]
    deaths: int = 0  # of this item since an image was last found to blame
    refused: bool = False  # it is not to be tried again


@dataclass(frozen=True)
class Death:
    """An item was begun again though it had not been finished."""

    item: int
    image: str | None  # that was at hand; None where nobody can tell
    guilty: bool  # the image has killed its worker so often that it is given up


@dataclass(frozen=True)
class AtHand:
    """An item that a worker has begun."""

    item: int
    image: str | None  # in a first attempt it may be one a little before
    seconds: float  # since it last told anything


@dataclass(frozen=True)
class Told:
    """What was told so far."""

    heard: int  # times that anything was told
    begun: int  # items
    at_hand: list[AtHand]
    deaths: list[Death]
    given_up: frozenset[str]


@dataclass
class _Item:
    attempt: int = 0
    running: bool = False
    image: str | None = None
    heard_at: float = 0.0
    deaths: int = 0
    named: Counter[str] = field(default_factory=Counter)


class Attempts:
    """The book that is kept; runs as an actor, and without Ray as it is."""

    def __init__(self, given_up: Iterable[str] = ()) -> None:
        self._heard = 0
        self.start(given_up)

    def start(self, given_up: Iterable[str]) -> None:
        """Begin a step of the run, with items of its own."""
        self._items: dict[int, _Item] = {}
        self._ended: set[int] = set()  # at a first attempt; nothing else is kept of them
        self._given_up = set(given_up)
        self._deaths: list[Death] = []
        self._survived = bool(self._given_up)  # any image; the step before this one was finished

    def begin(self, number: int) -> Begun:
        """Count an attempt; one that was not finished was a death."""
        item = self._hear(number)
        if item.running:
            self._count_death(number, item)
        if item.running or not item.attempt:  # an answer that was lost is no death
            item.attempt += 1
        item.running, item.image = True, None
        nothing_works = len(self._given_up) >= _NO_SURVIVOR and not self._survived
        refused = item.deaths >= MOST_DEATHS or (nothing_works and item.attempt > 1)
        return Begun(item.attempt, frozenset(self._given_up), item.deaths, refused)

    def note(self, number: int, image: str | None) -> None:
        """Remember the image that is touched next, or that none is at hand any more."""
        item = self._hear(number)
        if item.attempt > 1 and item.image not in (None, image):
            self._survived = True
        item.image = image

    def end(self, number: int) -> None:
        """Remember that an item was done."""
        item = self._hear(number)
        item.running, item.image, self._survived = False, None, True
        if item.attempt == 1:
            del self._items[number]
            self._ended.add(number)

    def told(self) -> Told:
        """Give what the watchdog asks for."""
        now, given_up = time.monotonic(), frozenset(self._given_up)
        running = ((number, item) for number, item in self._items.items() if item.running)
        at_hand = [AtHand(number, item.image, now - item.heard_at) for number, item in running]
        begun = len(self._items) + len(self._ended)
        return Told(self._heard, begun, at_hand, list(self._deaths), given_up)

    def _hear(self, number: int) -> _Item:
        self._heard += 1
        self._ended.discard(number)
        item = self._items.setdefault(number, _Item())
        item.heard_at = time.monotonic()
        return item

    def _count_death(self, number: int, item: _Item) -> None:
        """Blame the image at hand, if one at a time was: ahead of a batch nobody can tell."""
        image = item.image if item.attempt > 1 else None
        item.deaths += 1
        guilty = False
        if image is not None:
            item.named[image] += 1
            guilty = item.named[image] >= _GUILTY
        if guilty:
            self._given_up.add(str(image))
            item.deaths = 0
        self._deaths.append(Death(number, image, guilty))
