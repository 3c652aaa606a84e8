"""Detection of stalled jobs, and heartbeats of long tasks.

`watch_for_stalls` yields the results of a pool or of tasks and raises Stalled if there was neither
a result nor any activity for `STALL_SECONDS`; the message states what the workers are waiting for.
The activity of a pool is the messages of its workers to the failure log. Single tasks call
`send_heartbeat`, since one shard may take longer than `STALL_SECONDS`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from jobs.cluster.connection import is_connected
from jobs.cluster.resources import Cluster
from jobs.cluster.worker_failures import AttemptSummary, RunningItem, WorkerDeath
from jobs.runtime.progress import print_message
from retrieval.core.errors import LookalikeError, Stalled

STALL_SECONDS = 300.0
"""Seconds without a result or any activity after which a job counts as stalled."""

ANSWER_THREAD = "answers"
"""Name of the thread that waits for results; after a stall it may still be waiting."""

_CHECK_INTERVAL = 2.0  # seconds between checks of the activity of the workers
_REPLY_TIMEOUT = 10.0  # seconds to wait for the reply to such a check

_HEARTBEAT_ACTOR = "lookalike heartbeat"
_HEARTBEAT_INTERVAL = 20.0  # seconds between the heartbeats of one worker
_last_heartbeat = [time.monotonic()]


class Activity(Protocol):
    """Activity of workers other than results."""

    def has_activity(self) -> bool:
        """Return whether there was any activity since the last call."""
        ...

    def describe_wait(self) -> str:
        """Return what the job is waiting for, as a clause for the message of Stalled."""
        ...


def watch_for_stalls(results: Iterator[Any], activity: Activity) -> Iterator[Any]:
    """Iterate over results; raise Stalled after `STALL_SECONDS` without results or activity.

    Raises the errors of `results`; a LookalikeError without Ray's wrapper.
    """
    events = _read_in_thread(results)
    last_activity = last_check = time.monotonic()
    while True:
        event, value = _next_event(events)
        now = time.monotonic()
        if event != "nothing":
            last_activity = now
        if event in ("end", "error") or now - last_check >= min(_CHECK_INTERVAL, STALL_SECONDS / 4):
            last_activity = now if activity.has_activity() else last_activity
            last_check = now
        if event == "end":
            return
        if event == "error":
            raise _unwrap_error(value)
        if event == "result":
            yield value
        elif now - last_activity > STALL_SECONDS:
            raise Stalled(
                f"no progress for {now - last_activity:.0f} s: {activity.describe_wait()}; "
                "finished work is kept, run the same command again"
            )


def _read_in_thread(results: Iterator[Any]) -> queue.Queue[tuple[str, Any]]:
    """Read results in a thread; return its queue of ("result", "end" or "error", value)."""
    events: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=64)

    def read() -> None:
        try:
            for result in results:
                events.put(("result", result))
            events.put(("end", None))
        except BaseException as error:  # noqa: BLE001 - raised by `watch_for_stalls`
            events.put(("error", error))

    threading.Thread(target=read, name=ANSWER_THREAD, daemon=True).start()
    return events


def _next_event(events: queue.Queue[tuple[str, Any]]) -> tuple[str, Any]:
    try:
        return events.get(timeout=min(_CHECK_INTERVAL, STALL_SECONDS / 4))
    except queue.Empty:
        return "nothing", None


def _unwrap_error(error: BaseException) -> BaseException:
    """Return the LookalikeError of a worker without Ray's wrapper, and other errors unchanged."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LookalikeError):
            # Ray derives its class from RayTaskError too, whose text is a traceback
            inner = getattr(cause, "cause", None)
            return inner if isinstance(inner, LookalikeError) else cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error


class TaskActivity:
    """Activity of single tasks: the heartbeats of long ones."""

    def __init__(self, cluster: Cluster, cpus: float) -> None:
        self._cluster, self._cpus = cluster, cpus
        self._heartbeats = 0

    def has_activity(self) -> bool:
        """Return whether any task has sent a heartbeat since the last call."""
        previous = self._heartbeats
        self._heartbeats = count_heartbeats(min(_REPLY_TIMEOUT, STALL_SECONDS))
        return self._heartbeats != previous

    def describe_wait(self) -> str:
        """Return what the tasks are waiting for."""
        return (
            f"tasks of {self._cpus:g} CPU wait for resources or for an input that does not answer "
            f"({self._cluster.format_usage()})"
        )


class DriverActivity:
    """Activity of work in this process: the heartbeats of long steps."""

    def __init__(self) -> None:
        self._last_heartbeat = _last_heartbeat[0]

    def has_activity(self) -> bool:
        """Return whether there was a heartbeat since the last call."""
        previous, self._last_heartbeat = self._last_heartbeat, _last_heartbeat[0]
        return self._last_heartbeat != previous

    def describe_wait(self) -> str:
        """Return what the work is waiting for."""
        return "the work in this process waits for an input or output that does not answer"


class PoolActivity:
    """Activity of a pool: the messages of its workers to the failure log."""

    def __init__(
        self, cluster: Cluster, failure_log: Any, item_name: Callable[[int], str], items: int,
        workers: str,
    ) -> None:  # fmt: skip
        self._cluster, self._failure_log, self._item_name = cluster, failure_log, item_name
        self._items, self._workers = items, workers
        self._summary: AttemptSummary | None = None

    def has_activity(self) -> bool:
        """Read the failure log, print new worker deaths, and return whether there were messages."""
        import ray

        previous = self._summary
        try:
            summary = ray.get(
                self._failure_log.summary.remote(), timeout=min(_REPLY_TIMEOUT, STALL_SECONDS)
            )
        except (ray.exceptions.RayError, TimeoutError):
            return False
        reported = len(previous.deaths) if previous else 0
        for death in summary.deaths[reported:]:
            print_message(format_worker_death(death, self._item_name(death.item)))
        self._cluster.quarantined_images |= summary.quarantined_images
        self._cluster.busy_workers = len(summary.running)
        self._summary = summary
        return previous is None or summary.messages != previous.messages

    def describe_wait(self) -> str:
        """Return what the workers are waiting for."""
        return format_wait(
            self._summary, self._item_name, self._items, self._workers,
            self._cluster.format_usage(),
        )  # fmt: skip


def format_worker_death(death: WorkerDeath, item_name: str) -> str:
    """Format where a worker died and how the job continues."""
    if death.quarantined:
        return (
            f"a worker died again at {death.image} ({item_name}): the image is skipped and "
            "recorded in the ledger"
        )
    location = f"at {death.image} ({item_name})" if death.image else f"in {item_name}"
    return f"a worker died {location}: trying again, one image at a time"


def format_wait(
    summary: AttemptSummary | None, item_name: Callable[[int], str], items: int, workers: str,
    usage: str,
) -> str:  # fmt: skip
    """Format what a pool is waiting for: resources for workers, an image of an item, or Ray.

    `items` is the number of work items, `workers` describes the requested workers, and `usage`
    states how much of the cluster is booked.
    """
    if summary is None or not summary.begun:
        return (
            f"no worker has begun, {workers} wait for resources ({usage}), or die of too little "
            "memory before they begin"
        )
    if summary.running:
        slowest = max(summary.running, key=lambda running: running.seconds)
        return f"{_format_running(slowest, item_name)} for {slowest.seconds:.0f} s ({usage})"
    return f"{items - summary.begun} of {items} work items wait for {workers} ({usage})"


def _format_running(running: RunningItem, item_name: Callable[[int], str]) -> str:
    if running.image is None:
        return f"{item_name(running.item)} has sent no message"
    return f"{item_name(running.item)} has waited for {running.image}, or an image soon after it,"


class HeartbeatCounter:
    """Counter of the heartbeats of all tasks; a Ray actor that the first heartbeat starts."""

    def __init__(self) -> None:
        self._count = 0

    def beat(self) -> None:
        """Count one heartbeat."""
        self._count += 1

    def count(self) -> int:
        """Return the number of heartbeats so far."""
        return self._count


def send_heartbeat() -> None:
    """Send a heartbeat of a task, at most one every 20 s; do nothing without Ray."""
    now = time.monotonic()
    if now - _last_heartbeat[0] < _HEARTBEAT_INTERVAL:
        return
    _last_heartbeat[0] = now
    if is_connected():
        import ray

        actor: Any = ray.remote(num_cpus=0)(HeartbeatCounter)
        actor.options(name=_HEARTBEAT_ACTOR, get_if_exists=True).remote().beat.remote()


def count_heartbeats(timeout: float) -> int:
    """Return the number of heartbeats so far; 0 if there are none, or no reply in `timeout` s."""
    import ray

    try:
        count: int = ray.get(ray.get_actor(_HEARTBEAT_ACTOR).count.remote(), timeout=timeout)
    except (ValueError, TimeoutError, ray.exceptions.RayError):
        return 0
    return count
