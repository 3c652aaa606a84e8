"""Attempts at each work item, and quarantine of images that crash their worker.

Ray silently retries an item for ever when its worker dies. So workers report to an actor, the
`FailureLog`, when they begin an item, which image they are about to read, and when they are done.
An item that begins again without having ended counts as a worker death; from the second attempt on
images are processed one at a time, and an image that is named by two deaths is quarantined: it goes
to the ledger unread. The log lives in memory only: a run that is killed leaves no count behind, and
if just this actor is lost, counting starts again at the first attempt.
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
"""Worker deaths of one item since its last quarantined image; after them no image is to blame."""

_QUARANTINE_DEATHS = 2  # deaths that name an image
_MAX_QUARANTINED_WITHOUT_SUCCESS = 3  # then it is not the images that kill the workers
_NOTE_INTERVAL = 1.0  # seconds between the notes of a first attempt, which only show progress


@dataclass(frozen=True)
class AttemptStart:
    """Reply to a worker that begins an item."""

    attempt: int  # 1 for the first
    given_up: frozenset[str]  # quarantined images
    deaths: int = 0  # of this item since its last quarantined image
    refused: bool = False  # the item must not be tried again


@dataclass(frozen=True)
class WorkerDeath:
    """A worker died at an item: the item began again though it had not ended."""

    item: int
    image: str | None  # being processed; None if unknown
    quarantined: bool  # this death quarantined the image


@dataclass(frozen=True)
class RunningItem:
    """An item that a worker has begun."""

    item: int
    image: str | None  # in a first attempt possibly one a little before
    seconds: float  # since the worker's last message


@dataclass(frozen=True)
class AttemptSummary:
    """State of a failure log."""

    messages: int  # received from workers
    begun: int  # items that were begun
    running: list[RunningItem]
    deaths: list[WorkerDeath]
    given_up: frozenset[str]  # quarantined images


@dataclass
class _Item:
    attempt: int = 0
    running: bool = False
    image: str | None = None
    last_message: float = 0.0
    deaths: int = 0
    deaths_by_image: Counter[str] = field(default_factory=Counter)


class FailureLog:
    """Counts attempts and worker deaths; runs as a Ray actor, and in tests without Ray."""

    def __init__(self, given_up: Iterable[str] = ()) -> None:
        self._messages = 0
        self.start(given_up)

    def start(self, given_up: Iterable[str]) -> None:
        """Begin a step of the run with its own items; quarantined images are kept from before."""
        self._items: dict[int, _Item] = {}
        self._ended: set[int] = set()  # in their first attempt; nothing else is kept of them
        self._given_up = set(given_up)
        self._deaths: list[WorkerDeath] = []
        self._any_success = bool(self._given_up)  # then an earlier step has finished

    def begin(self, number: int) -> AttemptStart:
        """Count an attempt at an item; if the last one did not end, count a worker death."""
        item = self._update(number)
        if item.running:
            self._count_death(number, item)
        if item.running or not item.attempt:  # done twice because its answer was lost: no death
            item.attempt += 1
        item.running, item.image = True, None
        without_success = (
            len(self._given_up) >= _MAX_QUARANTINED_WITHOUT_SUCCESS and not self._any_success
        )
        refused = item.deaths >= MAX_DEATHS or (without_success and item.attempt > 1)
        return AttemptStart(item.attempt, frozenset(self._given_up), item.deaths, refused)

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
        now, given_up = time.monotonic(), frozenset(self._given_up)
        running = [
            RunningItem(number, item.image, now - item.last_message)
            for number, item in self._items.items()
            if item.running
        ]
        begun = len(self._items) + len(self._ended)
        return AttemptSummary(self._messages, begun, running, list(self._deaths), given_up)

    def _update(self, number: int) -> _Item:
        """Return the item that a message is about."""
        self._messages += 1
        self._ended.discard(number)
        item = self._items.setdefault(number, _Item())
        item.last_message = time.monotonic()
        return item

    def _count_death(self, number: int, item: _Item) -> None:
        """Blame the current image, except in a first attempt, where images are read ahead."""
        image = item.image if item.attempt > 1 else None
        item.deaths += 1
        quarantined = False
        if image is not None:
            item.deaths_by_image[image] += 1
            quarantined = item.deaths_by_image[image] >= _QUARANTINE_DEATHS
        if quarantined:
            self._given_up.add(str(image))
            item.deaths = 0
        self._deaths.append(WorkerDeath(number, image, quarantined))


def begin_item(failure_log: Any, number: int, item_name: str) -> Attempt:
    """Report that a worker begins an item, and return its attempt.

    `failure_log` is the actor's handle. Raises Stalled if the item must not be tried again.
    """
    import ray

    started: AttemptStart = ray.get(failure_log.begin.remote(number))
    if started.refused:
        raise Stalled(_format_refusal(started, item_name))
    note = _blocking_note if started.attempt > 1 else _occasional_note
    return Attempt(started.attempt, started.given_up, note(failure_log, number))


def _format_refusal(started: AttemptStart, item_name: str) -> str:
    if started.deaths < MAX_DEATHS:
        reason = (
            f"{item_name}: the first images all killed their worker, so it is hardly the images"
        )
    else:
        reason = (
            f"{item_name} killed its worker {started.deaths} times, and no single image is to blame"
        )
    return (
        f"{reason}; most likely memory is short: give fewer --workers or more memory, or lower "
        "--max-pixels, and run the same command again, which keeps what is finished"
    )


def _blocking_note(failure_log: Any, number: int) -> Callable[[str | None], None]:
    """Return a function that records an image and returns when the record is safe."""
    import ray

    def note(image: str | None) -> None:
        ray.get(failure_log.note.remote(number, image))

    return note


def _occasional_note(failure_log: Any, number: int) -> Callable[[str | None], None]:
    """Return a function that records an image at most once a second, without waiting."""
    last = [0.0]

    def note(image: str | None) -> None:
        now = time.monotonic()
        if now - last[0] >= _NOTE_INTERVAL:
            last[0] = now
            failure_log.note.remote(number, image)

    return note


def failure_log_for_step(cluster: Cluster) -> Any:
    """Return the handle of the run's one failure log, reset for the next step."""
    import ray

    if cluster.failure_log is None:
        cluster.failure_log = start_failure_log(cluster.given_up)
    else:
        ray.get(cluster.failure_log.start.remote(frozenset(cluster.given_up)))
    return cluster.failure_log


def start_failure_log(given_up: Iterable[str]) -> Any:
    """Start the actor of a failure log, which lives as long as the returned handle.

    It is placed on the driver's node, so that the loss of another node cannot end it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(FailureLog)
    return actor.options(scheduling_strategy=driver_node).remote(frozenset(given_up))
