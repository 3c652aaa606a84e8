"""Attempts at each work item, and quarantine of images that crash their worker.

The item of a worker that died is given to another. Workers report to an actor, the `FailureLog`,
when they begin an item, which image they are about to read, and when they finish. An
item that begins again without having ended counts as a worker death. From the second attempt on
images are processed one at a time, and an image at which two workers died is quarantined: it is
recorded in the ledger without being read. The log is in memory only: a killed run leaves no counts,
and if only this actor is lost, counting starts again at the first attempt.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from jobs.cluster.resources import Cluster
from retrieval.core.errors import Stalled
from retrieval.embedding.attempt import Attempt

MAX_DEATHS = 10
"""Largest number of worker deaths of one item since its last quarantined image."""

_QUARANTINE_DEATHS = 2  # deaths at an image after which it is quarantined
_MAX_QUARANTINED_WITHOUT_SUCCESS = 3  # from this number on, the images are probably not the cause
_NOTE_INTERVAL = 1.0  # seconds between the notes of a first attempt, which only show progress


@dataclass(frozen=True)
class AttemptStart:
    """Reply of the failure log to a worker that begins an item."""

    attempt: int  # 1 for the first
    quarantined_images: frozenset[str]  # quarantined images
    deaths: int = 0  # of this item since its last quarantined image
    refused: bool = False  # the item must not be tried again


@dataclass(frozen=True)
class WorkerDeath:
    """Death of a worker at an item: the item began again although it had not ended."""

    item: int
    image: str | None  # that was being processed; None if unknown
    quarantined: bool  # this death quarantined the image


@dataclass(frozen=True)
class RunningItem:
    """An item that a worker has begun."""

    item: int
    image: str | None  # in a first attempt possibly a slightly earlier one
    seconds: float  # since the worker's last message


@dataclass(frozen=True)
class AttemptSummary:
    """Messages, running items, deaths and quarantined images of a step, for the stall detector."""

    messages: int  # received from workers
    begun: int  # items that were begun
    running: list[RunningItem]
    deaths: list[WorkerDeath]
    quarantined_images: frozenset[str]  # quarantined images


@dataclass
class _Item:
    attempt: int = 0
    running: bool = False
    image: str | None = None
    last_message: float = 0.0
    deaths: int = 0
    deaths_by_image: Counter[str] = field(default_factory=Counter)


class FailureLog:
    """Counter of attempts and worker deaths; runs as a Ray actor, in tests without Ray."""

    def __init__(self, quarantined_images: Iterable[str] = ()) -> None:
        self._messages = 0
        self.start(quarantined_images)

    def start(self, quarantined_images: Iterable[str]) -> None:
        """Begin a step of the run with new items; keep the quarantined images of earlier steps."""
        self._items: dict[int, _Item] = {}
        self._ended: set[int] = set()  # items that ended in their first attempt
        self._quarantined_images = set(quarantined_images)
        self._deaths: list[WorkerDeath] = []
        self._any_success = bool(
            self._quarantined_images
        )  # of an earlier step, which then has finished

    def begin(self, number: int) -> AttemptStart:
        """Count an attempt at an item, and a worker death if the last attempt did not end."""
        item = self._update(number)
        if item.running:
            self._count_death(number, item)
        if item.running or not item.attempt:  # an ended item begins again if its result was lost
            item.attempt += 1
        item.running, item.image = True, None
        without_success = (
            len(self._quarantined_images) >= _MAX_QUARANTINED_WITHOUT_SUCCESS
            and not self._any_success
        )
        refused = item.deaths >= MAX_DEATHS or (without_success and item.attempt > 1)
        return AttemptStart(item.attempt, frozenset(self._quarantined_images), item.deaths, refused)

    def note(self, number: int, image: str | None) -> None:
        """Record the image that is processed next, or None between images."""
        item = self._update(number)
        if item.attempt > 1 and item.image not in (None, image):
            self._any_success = True
        item.image = image

    def end(self, number: int) -> None:
        """Record that an item is done."""
        item = self._update(number)
        item.running, item.image, self._any_success = False, None, True
        if item.attempt == 1:
            del self._items[number]
            self._ended.add(number)

    def summary(self) -> AttemptSummary:
        """Return the state that the stall detector needs."""
        now, quarantined_images = time.monotonic(), frozenset(self._quarantined_images)
        running = [
            RunningItem(number, item.image, now - item.last_message)
            for number, item in self._items.items()
            if item.running
        ]
        begun = len(self._items) + len(self._ended)
        return AttemptSummary(
            self._messages, begun, running, list(self._deaths), quarantined_images
        )

    def _update(self, number: int) -> _Item:
        """Count a message about an item and return its state."""
        self._messages += 1
        self._ended.discard(number)
        item = self._items.setdefault(number, _Item())
        item.last_message = time.monotonic()
        return item

    def _count_death(self, number: int, item: _Item) -> None:
        """Count a death for the current image, except in a first attempt, which reads ahead."""
        image = item.image if item.attempt > 1 else None
        item.deaths += 1
        quarantined = False
        if image is not None:
            item.deaths_by_image[image] += 1
            quarantined = item.deaths_by_image[image] >= _QUARANTINE_DEATHS
        if quarantined:
            self._quarantined_images.add(str(image))
            item.deaths = 0
        self._deaths.append(WorkerDeath(number, image, quarantined))


def begin_item(failure_log: Any, number: int, item_name: str) -> Attempt:
    """Report that a worker begins an item, and return its attempt.

    `failure_log` is the actor's handle. Raises Stalled if the item must not be tried again.
    """
    import ray

    start: AttemptStart = ray.get(failure_log.begin.remote(number))
    if start.refused:
        raise Stalled(_format_refusal(start, item_name))
    note = _note_and_wait if start.attempt > 1 else _throttled_note
    return Attempt(start.attempt, start.quarantined_images, note(failure_log, number))


def _format_refusal(start: AttemptStart, item_name: str) -> str:
    if start.deaths < MAX_DEATHS:
        reason = (
            f"{item_name}: workers died at each of the first images, so the images are probably "
            "not the cause"
        )
    else:
        reason = (
            f"{item_name}: the worker died {start.deaths} times, and not because of a single image"
        )
    return (
        f"{reason}; memory is probably short: use fewer --workers, more memory, or a lower "
        "--max-pixels, and run the same command again; finished work is kept"
    )


def _note_and_wait(failure_log: Any, number: int) -> Callable[[str | None], None]:
    """Return a function that records an image and waits for the confirmation."""
    import ray

    def note(image: str | None) -> None:
        ray.get(failure_log.note.remote(number, image))

    return note


def _throttled_note(failure_log: Any, number: int) -> Callable[[str | None], None]:
    """Return a function that records an image at most once a second, without waiting."""
    last_note = [0.0]

    def note(image: str | None) -> None:
        now = time.monotonic()
        if now - last_note[0] >= _NOTE_INTERVAL:
            last_note[0] = now
            failure_log.note.remote(number, image)

    return note


def failure_log_of(cluster: Cluster) -> Any:
    """Return the handle of the failure log of the run, started if necessary."""
    if cluster.failure_log is None:
        cluster.failure_log = start_failure_log(cluster.quarantined_images)
    return cluster.failure_log


def failure_log_for_step(cluster: Cluster) -> Any:
    """Return the handle of the failure log of the run, reset for the next step."""
    import ray

    failure_log = failure_log_of(cluster)
    ray.get(failure_log.start.remote(frozenset(cluster.quarantined_images)))
    return failure_log


def start_failure_log(quarantined_images: Iterable[str]) -> Any:
    """Start the actor of a failure log, which lives as long as the returned handle.

    It runs on the node of the driver, so that the loss of another node does not affect it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(FailureLog)
    return actor.options(scheduling_strategy=driver_node).remote(frozenset(quarantined_images))
