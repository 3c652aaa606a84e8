"""Run one command in a child process; started by `lookalike/run_command.py`, its parent.

The parent sends the verb and its settings as one line of JSON on stdin, then the bytes of a model
in its memory if the verb uses one (`model_transfer.py`), and keeps stdin open. This process sends
events back through a pipe, one JSON object per line: messages, the state of progress bars, and at
the end a result or an error. If the parent ends, stdin is closed, and the command is terminated;
finished work is kept.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from typing import Any

from jobs.cli import connection_errors, describe_error, run_and_exit, run_verb
from jobs.cluster.submit import dashboard_address, submit
from jobs.config.verbs import VERBS
from jobs.runtime.progress import relay_progress
from jobs.runtime.result import Result
from lookalike.model_transfer import add_pickled_model
from retrieval.core.errors import LookalikeError
from retrieval.entry import import_own_packages


def main(descriptor: int) -> None:
    """Run the command that the parent requests, send its outcome, and exit.

    `descriptor` is that of the pipe to the parent.
    """
    os.set_inheritable(descriptor, False)
    os.dup2(2, 1)  # Ray and its workers print to stdout, which belongs to the parent
    import_own_packages()
    request = json.loads(sys.stdin.buffer.readline())
    model = sys.stdin.buffer.read(request["model_size"])
    channel = _Channel(descriptor)
    relay_progress(channel.send, bars=request["bars"])
    threading.Thread(target=_terminate_without_parent, daemon=True).start()

    def run() -> int:
        if model:
            add_pickled_model(model)
        result = _run(request["verb"], request["settings"])
        channel.send({"result": dataclasses.asdict(result)})
        return 0

    def report_error(error: BaseException) -> int:
        message, code = describe_error(error)
        channel.send({
            "error": type(error).__name__, "exit_code": code,
            "message": message.removesuffix(" (--debug shows where)"),
            "traceback": "".join(traceback.format_exception(error)),
        })  # fmt: skip
        return code

    run_and_exit(run, report_error)


class _Channel:
    """Pipe to the parent; several threads may send."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape")
        self._lock = threading.Lock()

    def send(self, event: dict[str, Any]) -> None:
        """Send one event; do nothing if the parent has ended."""
        with self._lock, suppress(BrokenPipeError):
            self._file.write(json.dumps(event, default=str) + "\n")
            self._file.flush()


def _terminate_without_parent() -> None:
    """Terminate this process when the parent closes stdin or ends."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _run(verb: str, values: dict[str, Any]) -> Result:
    """Run a verb here, or submit it to the cluster that its settings name; return the result."""
    settings = VERBS[verb].settings(**values)
    dashboard = dashboard_address(settings)
    if dashboard is None:
        return run_verb(verb, settings)
    output = io.StringIO()
    with connection_errors():
        code = submit(dashboard, verb, dataclasses.replace(settings, json=True), output)
    if not output.getvalue():
        error = LookalikeError(
            f"the submitted job ended with exit code {code}; its log above has the reason"
        )
        error.exit_code = code
        raise error
    return Result(json.loads(output.getvalue()), (output.getvalue().strip(),), code)
