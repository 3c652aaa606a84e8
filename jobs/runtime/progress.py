"""Progress and messages on stderr: a bar on a terminal or in a notebook, else a line per interval.

A command that runs in a child process (`lookalike/child_process.py`) sends both to its parent.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from jobs.runtime.metrics import Counters
from jobs.runtime.progress_bars import Bar, RelayedBar, Send, open_bar

INTERVAL = 10.0  # seconds between lines in a log

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # except tabs and newlines


class HasBusyWorkers(Protocol):
    """Object with the number of busy workers, such as a Cluster."""

    busy_workers: int


class Progress:
    """Progress of a stage of `total` units, drawn as a bar, or printed as lines in a log."""

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str,
        cluster: HasBusyWorkers | None = None,
        bar: Bar | None = None,
    ) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self._cluster, self._counters, self._bar = cluster, Counters(stage, unit, total), bar
        self.done = 0
        self.failed = 0
        self._started = self._last_line = time.monotonic()
        self._first: tuple[float, int] | None = None

    def advance(self, done: int, failed: int = 0) -> None:
        """Count `done` finished units; redraw the bar, or print a line every `INTERVAL` seconds."""
        self._count(done, failed)
        if self._bar is not None:
            self._bar.draw(self.done, visible(self.format_line()))
            return
        now = time.monotonic()
        if now - self._last_line >= INTERVAL and self.done < self.total:
            self._last_line = now
            print_message(self.format_line())

    def _count(self, done: int, failed: int) -> None:
        if self._first is None:  # the time before it is start-up, and distorts the estimate
            self._first = (time.monotonic(), done)
        self.done += done
        self.failed += failed
        self._counters.add(done, failed)

    def format_line(self) -> str:
        """Format a line with stage, done of total, rate, remaining time, failures and workers."""
        now = time.monotonic()
        rate = self.done / max(now - self._started, 1e-9)
        duration = f"{now - self._started:.0f} s"
        if self.done < self.total:
            first_time, first_done = self._first or (now, 0)
            current_rate = (self.done - first_done) / max(now - first_time, 1e-9)
            remaining = self.total - self.done
            duration = f"{remaining / current_rate:.0f} s left" if current_rate else "starting"
        failures = f", {self.failed} failed" if self.failed else ""
        busy_workers = self._cluster.busy_workers if self._cluster and self.done < self.total else 0
        workers = f", {busy_workers} at work" if busy_workers else ""
        done = f"{self.done}/{self.total} {self.unit}"
        return f"{self.stage}: {done}, {rate:.1f}/s, {duration}{failures}{workers}"


@dataclass(frozen=True)
class _Relay:
    """Where messages and bars of this process go instead of stderr."""

    send: Send
    bars: bool


_relays: list[_Relay] = []  # empty, or the one in use


def relay_progress(send: Send, *, bars: bool) -> None:
    """Send all messages from now on as events {"message": text}, and bars too if `bars`."""
    _relays[:] = [_Relay(send, bars)]


def _open_bar(stage: str, total: int) -> Bar | None:
    if not _relays:
        return open_bar(stage, total)
    return RelayedBar(_relays[0].send, stage, total) if _relays[0].bars else None


@contextmanager
def progress(
    stage: str, total: int, unit: str, cluster: HasBusyWorkers | None = None
) -> Iterator[Progress]:
    """Show the progress of a stage while it runs, and print one line at the end.

    `unit` is a plural noun; `cluster` provides the number of busy workers.
    """
    bar = _open_bar(visible(stage), total)
    shown = Progress(stage, total, unit, cluster, bar)
    try:
        yield shown
    finally:
        if bar is not None:
            bar.close()
    if shown.done:
        print_message(shown.format_line())


def print_message(message: str) -> None:
    """Print one message on stderr, or send it to the parent process."""
    if _relays:
        _relays[0].send({"message": message})
        return
    with suppress(OSError):  # the job continues if stderr is closed
        print(visible(message), file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """Return text with control characters escaped, which names of files may contain."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
