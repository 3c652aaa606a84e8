"""Handling of Ctrl-C and SIGTERM: both end a job at once and keep what is finished."""

from __future__ import annotations

import signal
from typing import Any

INTERRUPTED = 130
TERMINATED = 143

CONTINUE_HINT = "what is finished is kept, the same command goes on"


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM, as from a scheduler or when a container is stopped."""


class Interrupts:
    """Signal handlers that record a signal, since its effect on workers may be raised first."""

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
    """Return the exit code that a shell reports for a process ended by the signal."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def describe_interrupt(error: KeyboardInterrupt) -> str:
    """Return how the job was ended: interrupted or terminated."""
    return "terminated" if isinstance(error, Terminated) else "interrupted"
