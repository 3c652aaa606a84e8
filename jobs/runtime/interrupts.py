"""Handling of Ctrl-C and SIGTERM: both end a job at once and keep what is finished."""

from __future__ import annotations

import signal
from typing import Any

INTERRUPTED = 130
TERMINATED = 143

CONTINUE_HINT = "finished work is kept, run the same command again to continue"


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM, for instance from a scheduler or a stopped container."""


class Interrupts:
    """Signal handlers that record the signal: an error of a worker may be raised before it."""

    def __init__(self) -> None:
        self.noticed: KeyboardInterrupt | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._notice)

    def _notice(self, number: int, _: Any) -> None:
        self.noticed = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        raise self.noticed

    @staticmethod
    def ignore() -> None:
        """Ignore further signals during the exit, which takes seconds at most."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def exit_code(error: KeyboardInterrupt) -> int:
    """Return the exit code of a process that was ended by the signal: 130 or 143."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def describe_interrupt(error: KeyboardInterrupt) -> str:
    """Return "interrupted" (Ctrl-C) or "terminated" (SIGTERM)."""
    return "terminated" if isinstance(error, Terminated) else "interrupted"
