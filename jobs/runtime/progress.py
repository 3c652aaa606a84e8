"""The only place that draws: a bar on a terminal, a line per interval in a log, all on stderr."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from jobs.runtime.metrics import Counters

INTERVAL = 10.0  # seconds between lines in a log

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but for tabs and ends of lines


class AtWork(Protocol):
    """Whoever knows how many workers have something at hand."""

    at_work: int


class Progress:
    """How far a stage is; the total is known before it starts."""

    def __init__(self, stage: str, total: int, unit: str, where: AtWork | None = None) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self._where, self._counters = where, Counters(stage, unit, total)
        self.done = 0
        self.failed = 0
        self._started = self._said = time.monotonic()
        self._first: tuple[float, int] | None = None

    def advance(self, done: int, failed: int = 0) -> None:
        """Count what was finished, and say so if it is time to."""
        self._count(done, failed)
        now = time.monotonic()
        if now - self._said >= INTERVAL and self.done < self.total:
            self._said = now
            say(self.line())

    def _count(self, done: int, failed: int) -> None:
        if self._first is None:  # what comes before it is start-up, and would spoil the estimate
            self._first = (time.monotonic(), done)
        self.done += done
        self.failed += failed
        self._counters.add(done, failed)

    def line(self) -> str:
        """Give one line: stage, done of total, rate, time left, failures, workers."""
        now = time.monotonic()
        rate = self.done / max(now - self._started, 1e-9)
        left = f"{now - self._started:.0f} s"
        if self.done < self.total:
            since, before = self._first or (now, 0)
            steady = (self.done - before) / max(now - since, 1e-9)
            left = f"{(self.total - self.done) / steady:.0f} s left" if steady else "starting"
        failures = f", {self.failed} failed" if self.failed else ""
        at_work = self._where.at_work if self._where and self.done < self.total else 0
        workers = f", {at_work} at work" if at_work else ""
        done = f"{self.done}/{self.total} {self.unit}"
        return f"{self.stage}: {done}, {rate:.1f}/s, {left}{failures}{workers}"


class _Bar(Progress):
    """The same, as a bar that is drawn over."""

    def __init__(self, stage: str, total: int, unit: str, where: AtWork | None = None) -> None:
        super().__init__(stage, total, unit, where)
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        said = TextColumn("{task.description}", markup=False)  # a name may hold [brackets]
        columns = (BarColumn(bar_width=24), said)
        self.bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task(visible(stage), total=total)

    def advance(self, done: int, failed: int = 0) -> None:
        """Count what was finished and draw the bar anew."""
        self._count(done, failed)
        self.bar.update(self.task, completed=self.done, description=visible(self.line()))


@contextmanager
def progress(stage: str, total: int, unit: str, where: AtWork | None = None) -> Iterator[Progress]:
    """Show a stage while it runs, and one line of what it came to."""
    if sys.stderr.isatty():
        bar = _Bar(stage, total, unit, where)
        with bar.bar:
            yield bar
        shown: Progress = bar
    else:
        shown = Progress(stage, total, unit, where)
        yield shown
    if shown.done:
        say(shown.line())


def say(message: str) -> None:
    """Say one thing a person should know, on stderr."""
    with suppress(OSError):  # whoever read it may be gone, and the job goes on without
        print(visible(message), file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """Write control characters as their codes: no name of a file or a class moves a terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
