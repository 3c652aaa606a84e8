"""The book of a run: which item was begun how often, and which image was at hand at a death.

Ray does an item again when its worker dies, without end and without a word. So workers tell an
actor of ours what they begin, which image they touch, and when they are done. It keeps that in
memory: a run that is killed as a whole leaves no count behind, and if only this actor is lost, the
run counts anew from its first attempt.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from retrieval.errors import Stalled
from retrieval.model.attempt import Attempt

MOST_DEATHS = 10
"""Of one item since an image was last found to blame; after them it is not an image."""

_GUILTY = 2  # deaths that name an image
_NO_SURVIVOR = 3  # images found to blame while not one has been embedded: it is not the images
_QUIET = 1.0  # seconds between notes of a first attempt, which are only signs of life


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
        item.running, item.image = False, None
        self._survived = True

    def told(self) -> Told:
        """Give what the watchdog asks for."""
        now = time.monotonic()
        at_hand = [
            AtHand(number, item.image, now - item.heard_at)
            for number, item in self._items.items()
            if item.running
        ]
        given_up = frozenset(self._given_up)
        return Told(self._heard, len(self._items), at_hand, list(self._deaths), given_up)

    def _hear(self, number: int) -> _Item:
        self._heard += 1
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


def begin(book: Any, number: int, called: str) -> Attempt:
    """Tell the book, an actor, that a worker begins an item; refuses one that is hopeless."""
    import ray

    begun: Begun = ray.get(book.begin.remote(number))
    if begun.refused:
        raise Stalled(_hopeless(begun, called))
    note = _safely(book, number) if begun.attempt > 1 else _now_and_then(book, number)
    return Attempt(begun.attempt, begun.given_up, note)


def _hopeless(begun: Begun, called: str) -> str:
    if begun.deaths < MOST_DEATHS:
        found = f"{called}: the first images all killed their worker, so it is hardly the images"
    else:
        found = f"{called} killed its worker {begun.deaths} times, and no single image is to blame"
    return (
        f"{found}; most likely memory is short: give fewer --workers or more memory, or lower "
        "--max-pixels, and run the same command again, which keeps what is finished"
    )


def _safely(book: Any, number: int) -> Callable[[str | None], None]:
    """Give a note that is kept when it returns."""
    import ray

    def note(image: str | None) -> None:
        ray.get(book.note.remote(number, image))

    return note


def _now_and_then(book: Any, number: int) -> Callable[[str | None], None]:
    """Give a note that costs nothing, and is told once a second."""
    last = [0.0]

    def note(image: str | None) -> None:
        now = time.monotonic()
        if now - last[0] >= _QUIET:
            last[0] = now
            book.note.remote(number, image)

    return note
