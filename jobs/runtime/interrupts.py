"""Ctrl-C and SIGTERM: both end the job where it is, and keep what is finished."""

from __future__ import annotations

import signal
from typing import Any

INTERRUPTED = 130
TERMINATED = 143

GOES_ON = "what is finished is kept, the same command goes on"


class Terminated(KeyboardInterrupt):
    """Somebody ended the process by SIGTERM, as a scheduler or a container's stop does."""


class Interrupts:
    """Remembers that a signal came: its effect on workers may be raised before our own error."""

    def __init__(self) -> None:
        self.noticed: KeyboardInterrupt | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._notice)

    def _notice(self, number: int, _: Any) -> None:
        self.noticed = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        raise self.noticed

    @staticmethod
    def ignore() -> None:
        """Let nothing disturb the end, which takes seconds at most."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def exit_code(error: KeyboardInterrupt) -> int:
    """Return the code that a shell has for a process which such a signal ended."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def sentence(error: KeyboardInterrupt) -> str:
    """Name what ended the job."""
    return "terminated" if isinstance(error, Terminated) else "interrupted"
