"""The command line as a person starts it, a process of its own; or all of it but the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LOOKALIKE = str(Path(sys.executable).with_name("lookalike"))


@dataclass(frozen=True)
class Ended:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def values(self) -> dict[str, Any]:
        """The one JSON object that --json prints."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one sentence of the error."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


def lookalike(*words: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Ended:
    """Run the console script and wait for it."""
    ended = subprocess.run(
        [LOOKALIKE, *map(str, words)], capture_output=True, text=True, timeout=300, cwd=cwd,
        env={**os.environ, **(env or {})}, check=False,
    )  # fmt: skip
    return Ended(ended.returncode, ended.stdout, ended.stderr)


class _Exited(BaseException):
    """Stands for the end of the process."""


def lookalike_here(*words: object) -> Ended:
    """Do all the command line does, but end the process: quick, and with the Ray of the tests."""
    from jobs import cli

    def exited(code: int) -> None:
        raise _Exited(code)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with ExitStack() as stack:
        out, err = (stack.enter_context(_descriptor(number)) for number in (1, 2))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(sys, "argv", ["lookalike", *map(str, words)])
        patch.setattr(cli.os, "_exit", exited)
        try:
            cli.main()
        except _Exited as end:
            code = end.args[0]
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return Ended(code, out.read_text(), err.read_text())


@contextmanager
def _descriptor(number: int) -> Iterator[Path]:
    """Give the file that takes what is written to a descriptor, by Python or by native code."""
    name = {1: "stdout", 2: "stderr"}[number]
    kept = os.dup(number)
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        path = Path(scratch, name)
        try:
            with open(path, "w", buffering=1) as sink:
                os.dup2(sink.fileno(), number)
                with open(number, "w", buffering=1, closefd=False) as seen:
                    patch.setattr(sys, name, seen)
                    yield path
        finally:
            os.dup2(kept, number)
            os.close(kept)


SMALL = ("--backbone", "scratch", "--weights", "random", "--image-size", "32")
"""A network that embeds a photo in a millisecond."""
