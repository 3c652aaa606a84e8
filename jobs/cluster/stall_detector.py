"""Detection of stalled jobs, and the heartbeats by which long tasks show that they go on.

`watch_for_stalls` passes on the answers of a pool or of tasks and raises Stalled when neither an
answer nor any activity was seen for `STALL_SECONDS`, with a sentence on what each worker is waiting
for. The workers of a pool show activity by their messages to the failure log; single tasks call
`send_heartbeat`, since one shard may take longer than a stall is waited for.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from jobs.cluster.resources import Cluster
from jobs.cluster.worker_failures import AttemptSummary, RunningItem, WorkerDeath
from jobs.runtime.progress import say
from retrieval.core.errors import LookalikeError, Stalled

STALL_SECONDS = 300.0
"""Seconds without an answer or any sign of activity after which a job counts as stalled."""

ANSWER_THREAD = "answers"
"""Name of the thread that waits for answers; after a stall it may still be waiting."""

_LOOK_INTERVAL = 2.0  # seconds between checks of the workers' activity
_REPLY_TIMEOUT = 10.0  # seconds to wait for the reply to such a check

_HEARTBEAT_ACTOR = "lookalike heartbeat"
_HEARTBEAT_INTERVAL = 20.0  # seconds between the heartbeats of one worker
_last_heartbeat = [time.monotonic()]


class Activity(Protocol):
    """Signs of activity other than answers."""

    def moved(self) -> bool:
        """Return whether there was any activity since the last call."""
        ...

    def waiting(self) -> str:
        """Return what the job is waiting for, as part of a sentence."""
        ...


def watch_for_stalls(answers: Iterator[Any], activity: Activity) -> Iterator[Any]:
    """Iterate over answers; raise Stalled after `STALL_SECONDS` without answers or activity."""
    events = _read_in_thread(answers)
    last_activity = last_look = time.monotonic()
    while True:
        event, value = _next_event(events)
        now = time.monotonic()
        if event != "nothing":
            last_activity = now
        if event in ("end", "error") or now - last_look >= min(_LOOK_INTERVAL, STALL_SECONDS / 4):
            last_activity = now if activity.moved() else last_activity
            last_look = now
        if event == "end":
            return
        if event == "error":
            raise _unwrap_error(value)
        if event == "answer":
            yield value
        elif now - last_activity > STALL_SECONDS:
            raise Stalled(
                f"nothing has moved for {now - last_activity:.0f} s: {activity.waiting()}; what is "
                "finished is kept, run the same command again"
            )


def _read_in_thread(answers: Iterator[Any]) -> queue.Queue[tuple[str, Any]]:
    """Read answers in a thread; return its queue of (answer, end or error; value)."""
    events: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=64)

    def read() -> None:
        try:
            for answer in answers:
                events.put(("answer", answer))
            events.put(("end", None))
        except BaseException as error:  # noqa: BLE001 - handed to the reader
            events.put(("error", error))

    threading.Thread(target=read, name=ANSWER_THREAD, daemon=True).start()
    return events


def _next_event(events: queue.Queue[tuple[str, Any]]) -> tuple[str, Any]:
    try:
        return events.get(timeout=min(_LOOK_INTERVAL, STALL_SECONDS / 4))
    except queue.Empty:
        return "nothing", None


def _unwrap_error(error: BaseException) -> BaseException:
    """Return the LookalikeError that a worker raised, without Ray's wrapping, if it is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LookalikeError):
            # Ray mixes its own class in, whose text is a traceback
            inner = getattr(cause, "cause", None)
            return inner if isinstance(inner, LookalikeError) else cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error


class TaskActivity:
    """Activity of single tasks: the heartbeats of those that take long."""

    def __init__(self, cluster: Cluster, cpus: float) -> None:
        self._cluster, self._cpus = cluster, cpus
        self._heartbeats = 0

    def moved(self) -> bool:
        """Return whether any task has sent a heartbeat since the last call."""
        before = self._heartbeats
        self._heartbeats = count_heartbeats(min(_REPLY_TIMEOUT, STALL_SECONDS))
        return self._heartbeats != before

    def waiting(self) -> str:
        """Return what the tasks are waiting for."""
        return (
            f"tasks of {self._cpus:g} CPU wait for a place or for an input that does not answer "
            f"({self._cluster.format_usage()})"
        )


class PoolActivity:
    """Activity of a pool: the messages of its workers to the failure log."""

    def __init__(
        self, cluster: Cluster, failure_log: Any, item_name: Callable[[int], str], items: int,
        workers: str,
    ) -> None:  # fmt: skip
        self._cluster, self._failure_log, self._item_name = cluster, failure_log, item_name
        self._items, self._workers = items, workers
        self._summary: AttemptSummary | None = None

    def moved(self) -> bool:
        """Read the failure log, print new worker deaths, and return whether messages came."""
        import ray

        before = self._summary
        try:
            summary = ray.get(
                self._failure_log.summary.remote(), timeout=min(_REPLY_TIMEOUT, STALL_SECONDS)
            )
        except (ray.exceptions.RayError, TimeoutError):
            return False
        reported = len(before.deaths) if before else 0
        for death in summary.deaths[reported:]:
            say(format_worker_death(death, self._item_name(death.item)))
        self._cluster.given_up |= summary.given_up
        self._cluster.at_work = len(summary.running)
        self._summary = summary
        return before is None or summary.messages != before.messages

    def waiting(self) -> str:
        """Return what the workers are waiting for."""
        return format_wait(
            self._summary, self._item_name, self._items, self._workers,
            self._cluster.format_usage(),
        )  # fmt: skip


def format_worker_death(death: WorkerDeath, item_name: str) -> str:
    """Return a sentence on where a worker died and what follows."""
    if death.quarantined:
        return (
            f"a worker died again at {death.image} ({item_name}): the image is skipped and "
            "recorded in the ledger"
        )
    place = f"at {death.image} ({item_name})" if death.image else f"in {item_name}"
    return f"a worker died {place}: trying again, one image at a time"


def format_wait(
    summary: AttemptSummary | None, item_name: Callable[[int], str], items: int, workers: str,
    usage: str,
) -> str:  # fmt: skip
    """Return what a pool waits for: workers for resources, an item for an image, or Ray.

    `items` is the number of work items, `workers` describes the workers asked for, and `usage` how
    much of the cluster is booked.
    """
    if summary is None or not summary.begun:
        return (
            f"no worker has begun, {workers} wait for a place ({usage}), or die of too little "
            "memory before they begin"
        )
    if summary.running:
        slowest = max(summary.running, key=lambda running: running.seconds)
        return f"{_format_running(slowest, item_name)} since {slowest.seconds:.0f} s ({usage})"
    return f"{items - summary.begun} of {items} work items wait for {workers} ({usage})"


def _format_running(running: RunningItem, item_name: Callable[[int], str]) -> str:
    if running.image is None:
        return f"{item_name(running.item)} is being processed and does not answer"
    return f"{item_name(running.item)} waits for {running.image}, or an image soon after it,"


class HeartbeatCounter:
    """Counts the heartbeats of all tasks; runs as a Ray actor started by the first of them."""

    def __init__(self) -> None:
        self._count = 0

    def beat(self) -> None:
        """Count one heartbeat."""
        self._count += 1

    def count(self) -> int:
        """Return the number of heartbeats so far."""
        return self._count


def send_heartbeat() -> None:
    """Show that a task goes on; costs nothing when called often, does nothing without Ray."""
    now = time.monotonic()
    if now - _last_heartbeat[0] < _HEARTBEAT_INTERVAL:
        return
    _last_heartbeat[0] = now
    import ray

    if ray.is_initialized():
        actor: Any = ray.remote(num_cpus=0)(HeartbeatCounter)
        actor.options(name=_HEARTBEAT_ACTOR, get_if_exists=True).remote().beat.remote()


def count_heartbeats(timeout: float) -> int:
    """Return the heartbeats of all tasks so far; 0 if there are none or no reply in `timeout` s."""
    import ray

    try:
        count: int = ray.get(ray.get_actor(_HEARTBEAT_ACTOR).count.remote(), timeout=timeout)
    except (ValueError, TimeoutError, ray.exceptions.RayError):
        return 0
    return count
