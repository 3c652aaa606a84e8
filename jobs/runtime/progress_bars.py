"""Bars that draw the progress of one stage: on a terminal, in a notebook, or by a parent process.

A log has no bar; `progress.py` prints lines to it instead.
"""

from __future__ import annotations

import html
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

_REDRAW_SECONDS = 0.1  # between two drawings of a bar that take a message each

Send = Callable[[dict[str, Any]], None]
"""Function that sends an event, a JSON object, to another process."""


class Bar(Protocol):
    """Bar of one stage."""

    def draw(self, done: int, line: str) -> None:
        """Draw the number of finished units, and a line that describes the progress."""
        ...

    def close(self) -> None:
        """Remove the bar."""
        ...


def shows_bars() -> bool:
    """Return whether bars can be drawn here: stderr is a terminal, or this is a notebook."""
    return sys.stderr.isatty() or _in_notebook()


def open_bar(stage: str, total: int) -> Bar | None:
    """Return a bar of `total` units on the terminal or in the notebook; None in a log."""
    if sys.stderr.isatty():
        return _TerminalBar(stage, total)
    return _NotebookBar(total) if _in_notebook() else None


def _in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel")


class _TerminalBar:
    """Bar that rich draws on stderr."""

    def __init__(self, stage: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        # a name may contain [brackets], which are not markup
        description = TextColumn("{task.description}", markup=False)
        columns = (BarColumn(bar_width=24), description)
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(stage, total=total)
        self._progress.start()

    def draw(self, done: int, line: str) -> None:
        self._progress.update(self._task, completed=done, description=line)

    def close(self) -> None:
        self._progress.stop()


class _NotebookBar:
    """Bar in the output of a notebook cell, as HTML that needs no widgets."""

    def __init__(self, total: int) -> None:
        from IPython.display import display

        self._total, self._last_drawing = total, 0.0
        self._display = display(_html(""), display_id=True)

    def draw(self, done: int, line: str) -> None:
        now = time.monotonic()
        if now - self._last_drawing < _REDRAW_SECONDS:
            return
        self._last_drawing = now
        bar = f'<progress max="{self._total}" value="{done}" style="width: 14em"></progress>'
        self._display.update(_html(f"{bar} <code>{html.escape(line)}</code>"))

    def close(self) -> None:
        self._display.update(_html(""))


def _html(text: str) -> Any:
    from IPython.display import HTML

    return HTML(text)


class RelayedBar:
    """Bar whose drawings are sent to the parent process, at most ten per second."""

    _numbers = itertools.count()

    def __init__(self, send: Send, stage: str, total: int) -> None:
        self._send, self._last_drawing = send, 0.0
        self._bar = {"bar": next(self._numbers), "stage": stage, "total": total}

    def draw(self, done: int, line: str) -> None:
        """Send the state of the bar."""
        now = time.monotonic()
        if now - self._last_drawing >= _REDRAW_SECONDS:
            self._last_drawing = now
            self._send({**self._bar, "done": done, "line": line})

    def close(self) -> None:
        """Send that the bar is to be removed."""
        self._send({**self._bar, "closed": True})


class RelayedBars:
    """The bars of a child process, drawn here from the events that it sends."""

    def __init__(self) -> None:
        self._bars: dict[int, Bar | None] = {}

    def draw(self, event: dict[str, Any]) -> None:
        """Draw, or remove, the bar that an event of a RelayedBar describes."""
        number = event["bar"]
        if event.get("closed"):
            if bar := self._bars.pop(number, None):
                bar.close()
            return
        if number not in self._bars:
            self._bars[number] = open_bar(event["stage"], event["total"])
        if bar := self._bars[number]:
            bar.draw(event["done"], event["line"])

    def close(self) -> None:
        """Remove all bars, as after the end of the child process."""
        for bar in self._bars.values():
            if bar is not None:
                bar.close()
        self._bars.clear()
