"""Is anything moving? Who has waited too long is told what waits for what."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from jobs.cluster.heartbeat import beats
from jobs.cluster.resources import Cluster
from jobs.cluster.worker_failures import AtHand, Death, Told
from jobs.runtime.progress import say
from retrieval.core.errors import LookalikeError, Stalled

STALL_SECONDS = 300.0
"""Without an answer, and without a word of any worker that it goes on."""

THREAD = "answers"
"""The name of the thread that waits for them; after a stall it may wait on."""

_LOOK = 2.0  # seconds between looks at what the workers tell
_PATIENCE = 10.0  # seconds for an answer to that


class Signs(Protocol):
    """What tells of life beside the answers."""

    def moved(self) -> bool:
        """Tell whether anything has moved since the last look."""
        ...

    def waiting(self) -> str:
        """Say what waits for what."""
        ...


def watched(answers: Iterator[Any], signs: Signs) -> Iterator[Any]:
    """Pass answers on, and refuse to wait longer than `STALL_SECONDS` for a sign of life."""
    passed = _pumped(answers)
    alive = looked = time.monotonic()
    while True:
        kind, value = _next(passed)
        now = time.monotonic()
        if kind != "nothing":
            alive = now
        if kind in ("end", "error") or now - looked >= min(_LOOK, STALL_SECONDS / 4):
            alive = now if signs.moved() else alive
            looked = now
        if kind == "end":
            return
        if kind == "error":
            raise _cause(value)
        if kind == "answer":
            yield value
        elif now - alive > STALL_SECONDS:
            raise Stalled(
                f"nothing has moved for {now - alive:.0f} s: {signs.waiting()}; what is finished "
                "is kept, run the same command again"
            )


def _pumped(answers: Iterator[Any]) -> queue.Queue[tuple[str, Any]]:
    """Let a thread of its own wait for the answers."""
    passed: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=64)

    def pump() -> None:
        try:
            for answer in answers:
                passed.put(("answer", answer))
            passed.put(("end", None))
        except BaseException as error:  # noqa: BLE001 - handed to the reader
            passed.put(("error", error))

    threading.Thread(target=pump, name=THREAD, daemon=True).start()
    return passed


def _next(passed: queue.Queue[tuple[str, Any]]) -> tuple[str, Any]:
    try:
        return passed.get(timeout=min(_LOOK, STALL_SECONDS / 4))
    except queue.Empty:
        return "nothing", None


def _cause(error: BaseException) -> BaseException:
    """Give the refusal that a worker raised, without Ray's wrapping, if it was one of ours."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, LookalikeError):
            # Ray mixes its own class in, whose text is a traceback
            inner = getattr(seen, "cause", None)
            return inner if isinstance(inner, LookalikeError) else seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error


class TaskSigns:
    """Single tasks tell only that they go on, and only where they take long."""

    def __init__(self, where: Cluster, cpus: float) -> None:
        self._where, self._cpus = where, cpus
        self._beats = 0

    def moved(self) -> bool:
        """Tell whether any task went on since the last look."""
        before, self._beats = self._beats, beats(min(_PATIENCE, STALL_SECONDS))
        return self._beats != before

    def waiting(self) -> str:
        """Say what there is to wait for: a place, or an input."""
        return (
            f"tasks of {self._cpus:g} CPU wait for a place or for an input that does not answer "
            f"({self._where.room()})"
        )


class PoolSigns:
    """What the workers of a pool tell the book; each death is said as it becomes known."""

    def __init__(
        self, where: Cluster, book: Any, called: Callable[[int], str], items: int, asked: str
    ) -> None:
        self._where, self._book, self._called = where, book, called
        self._items, self._asked = items, asked
        self._told: Told | None = None

    def moved(self) -> bool:
        """Ask the book, say which workers died, and tell whether anything was told."""
        import ray

        before = self._told
        try:
            told = ray.get(self._book.told.remote(), timeout=min(_PATIENCE, STALL_SECONDS))
        except (ray.exceptions.RayError, TimeoutError):
            return False
        known = len(before.deaths) if before else 0
        for death in told.deaths[known:]:
            say(said_of(death, self._called(death.item)))
        self._where.given_up |= told.given_up
        self._where.at_work = len(told.at_hand)
        self._told = told
        return before is None or told.heard != before.heard

    def waiting(self) -> str:
        """Say what waits for what."""
        return waiting(self._told, self._called, self._items, self._asked, self._where.room())


def said_of(death: Death, called: str) -> str:
    """Say of what a worker died, as far as is known."""
    if death.guilty:
        return f"a worker died again at {death.image} ({called}): it goes to the ledger unread"
    at = f"at {death.image} ({called})" if death.image else f"in {called}"
    return f"a worker died {at}: trying again, one image at a time"


def waiting(
    told: Told | None, called: Callable[[int], str], items: int, asked: str, room: str
) -> str:
    """Say what waits for what: a worker for a place, an item for an image, or Ray for itself."""
    if told is None or not told.begun:
        return (
            f"no worker has begun, {asked} wait for a place ({room}), or die of too little memory "
            "before they begin"
        )
    if told.at_hand:
        slowest = max(told.at_hand, key=lambda one: one.seconds)
        return f"{_at(slowest, called)} since {slowest.seconds:.0f} s ({room})"
    return f"{items - told.begun} of {items} pieces of work wait for {asked} ({room})"


def _at(one: AtHand, called: Callable[[int], str]) -> str:
    """Name the image as exactly as it is known."""
    if one.image is None:
        return f"{called(one.item)} is at hand and does not answer"
    return f"{called(one.item)} waits for {one.image}, or an image soon after it,"
