"""Progress and messages on stderr: a bar on a terminal, a line per interval in a log."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from jobs.runtime.metrics import Counters

INTERVAL = 10.0  # seconds between lines in a log

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # except tabs and newlines


class HasBusyWorkers(Protocol):
    """Object with the number of busy workers, such as a Cluster."""

    busy_workers: int


class Progress:
    """Progress of a stage of `total` units, printed as lines in a log."""

    def __init__(
        self, stage: str, total: int, unit: str, cluster: HasBusyWorkers | None = None
    ) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self._cluster, self._counters = cluster, Counters(stage, unit, total)
        self.done = 0
        self.failed = 0
        self._started = self._last_line = time.monotonic()
        self._first: tuple[float, int] | None = None

    def advance(self, done: int, failed: int = 0) -> None:
        """Count `done` finished units; print a line if the last one is `INTERVAL` seconds old."""
        self._count(done, failed)
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


class _ProgressBar(Progress):
    """Progress of a stage, drawn as a bar on a terminal."""

    def __init__(
        self, stage: str, total: int, unit: str, cluster: HasBusyWorkers | None = None
    ) -> None:
        super().__init__(stage, total, unit, cluster)
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        # a name may contain [brackets], which are not markup
        description = TextColumn("{task.description}", markup=False)
        columns = (BarColumn(bar_width=24), description)
        self.bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task(visible(stage), total=total)

    def advance(self, done: int, failed: int = 0) -> None:
        """Count finished units and redraw the bar."""
        self._count(done, failed)
        self.bar.update(self.task, completed=self.done, description=visible(self.format_line()))


@contextmanager
def progress(
    stage: str, total: int, unit: str, cluster: HasBusyWorkers | None = None
) -> Iterator[Progress]:
    """Show the progress of a stage while it runs, and print one line at the end.

    `unit` is a plural noun; `cluster` provides the number of busy workers.
    """
    if sys.stderr.isatty():
        bar = _ProgressBar(stage, total, unit, cluster)
        with bar.bar:
            yield bar
        shown: Progress = bar
    else:
        shown = Progress(stage, total, unit, cluster)
        yield shown
    if shown.done:
        print_message(shown.format_line())


def print_message(message: str) -> None:
    """Print one message on stderr."""
    with suppress(OSError):  # the job continues if stderr is closed
        print(visible(message), file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """Return text with control characters escaped, which names of files may contain."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
