"""How workers reach the book of attempts: an actor that is told what they begin and touch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from jobs.cluster.resources import Cluster
from jobs.cluster.worker_failures import MOST_DEATHS, Attempts, Begun
from retrieval.core.errors import Stalled
from retrieval.embedding.attempt import Attempt

_QUIET = 1.0  # seconds between notes of a first attempt, which are only signs of life


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


def book_of(where: Cluster) -> Any:
    """Give the book of a run, ready for a step; one actor keeps it for all steps."""
    import ray

    if where.book is None:
        where.book = open_book(where.given_up)
    else:
        ray.get(where.book.start.remote(frozenset(where.given_up)))
    return where.book


def open_book(given_up: Iterable[str]) -> Any:
    """Start the actor that keeps the book, for as long as its handle is held.

    It lives on the node of whoever drives the run, so that no other node takes it along.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts)
    return actor.options(scheduling_strategy=here).remote(frozenset(given_up))
