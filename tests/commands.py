"""Run the command line, in a process of its own or in the process of the test."""

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
class CommandResult:
    """Exit code and output of a command."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def values(self) -> dict[str, Any]:
        """Return the JSON object that `--json` prints."""
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """Return the only error line on stderr."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.stderr
        return lines[0]


def run_command(
    *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
) -> CommandResult:
    """Run the console script in a subprocess and return its result."""
    completed = subprocess.run(
        [LOOKALIKE, *map(str, arguments)], capture_output=True, text=True, timeout=300, cwd=cwd,
        env={**os.environ, **(env or {})}, check=False,
    )  # fmt: skip
    return CommandResult(completed.returncode, completed.stdout, completed.stderr)


class _ProcessExit(BaseException):
    """Replaces the exit of the process."""


def run_command_in_process(*arguments: object) -> CommandResult:
    """Run the command line in this process, which is faster and shares the Ray of the tests."""
    from jobs import cli

    def raise_exit(code: int) -> None:
        raise _ProcessExit(code)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with ExitStack() as stack:
        out, err = (stack.enter_context(_redirect_descriptor(number)) for number in (1, 2))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(sys, "argv", ["lookalike", *map(str, arguments)])
        patch.setattr(cli.os, "_exit", raise_exit)
        try:
            cli.main()
        except _ProcessExit as end:
            code = end.args[0]
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return CommandResult(code, out.read_text(), err.read_text())


@contextmanager
def _redirect_descriptor(number: int) -> Iterator[Path]:
    """Redirect a file descriptor (1 or 2) to a file, and yield its path.

    Native code writes to the descriptor directly, so replacing `sys.stdout` is not enough.
    """
    name = {1: "stdout", 2: "stderr"}[number]
    saved = os.dup(number)
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        path = Path(scratch, name)
        try:
            with open(path, "w", buffering=1) as sink:
                os.dup2(sink.fileno(), number)
                with open(number, "w", buffering=1, closefd=False) as stream:
                    patch.setattr(sys, name, stream)
                    yield path
        finally:
            os.dup2(saved, number)
            os.close(saved)


SMALL_MODEL_OPTIONS = ("--backbone", "scratch", "--weights", "random", "--image-size", "32")
"""Options of a network that embeds a photo in a millisecond."""
