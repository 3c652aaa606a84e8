"""Submission of a command as a job of a Ray cluster through its dashboard.

With `--ray-address http://HEAD:8265` the command runs on the head node. Its log is printed on
stderr, its result on stdout, and its exit code is returned. Since a job has only one log, it gets a
random mark and writes its result as one line after that mark (`result.py`). No files, environment
variables or secrets of this machine are sent.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shlex
import time
from collections.abc import Callable
from typing import Any, TextIO

from jobs.cluster.connection import (
    describe_address_source,
    is_refused_token,
    resolve_address,
    token_advice,
)
from jobs.runtime.interrupts import (
    CONTINUE_HINT,
    INTERRUPTED,
    TERMINATED,
    describe_interrupt,
    exit_code,
)
from jobs.runtime.progress import print_message
from jobs.runtime.result import RESULT_MARK_VARIABLE
from retrieval.core.errors import InputError, LookalikeError, UsageError

CONNECTION_TIMEOUT = 60.0  # seconds that a dashboard may be unreachable while a job runs
REPLY_TIMEOUT = 20.0  # seconds for the first reply of a dashboard
_EXIT_CODES = {*range(9), INTERRUPTED, TERMINATED}  # those of the command itself
_COMMAND_NOT_FOUND = 127  # exit code of a shell


def dashboard_address(settings: Any) -> str | None:
    """Return the URL of the dashboard if --ray-address is one, else None.

    Raises UsageError for ray:// addresses.
    """
    if not hasattr(settings, "ray_address"):
        return None
    address = resolve_address(settings.ray_address) or ""
    if address.startswith("ray://"):
        raise UsageError(
            f"{describe_address_source(settings.ray_address)}: Ray's client is not supported; "
            "http://HEAD:8265 submits the command as a job of that cluster"
        )
    return address if address.startswith(("http://", "https://")) else None


def submit(dashboard: str, verb: str, settings: Any, stdout: TextIO) -> int:
    """Run a verb as a job of a cluster, and return its exit code.

    Prints the log of the job on stderr and writes its result to `stdout`. After Ctrl-C the job goes
    on. Raises InputError if the dashboard cannot be reached or rejects the job, and LookalikeError
    if the job fails without an exit code of lookalike.
    """
    arguments = ["lookalike", verb, *_arguments(settings)]
    log = _Log(f"answer-{os.urandom(8).hex()}-")
    job = f"lookalike-{verb}-{os.urandom(4).hex()}"
    source = describe_address_source(settings.ray_address)
    client = _client(dashboard, source)
    try:
        mark = f"{RESULT_MARK_VARIABLE}={log.mark}"
        entrypoint = shlex.join(["exec", "env", mark, *arguments])
        _request(source, lambda: client.submit_job(entrypoint=entrypoint, submission_id=job))
        print_message(f"{job} runs on {dashboard}")
        details = _follow(client, job, log, source)
    except KeyboardInterrupt as error:
        print_message(
            f"error: {describe_interrupt(error)}, but the job goes on; to stop it: "
            f"ray job stop {job} --address {shlex.quote(dashboard)}"
        )
        return exit_code(error)
    return _finish(job, details, log, stdout)


def _arguments(settings: Any) -> list[str]:
    """Return the settings as command-line arguments, except --ray-address."""
    arguments = []
    for field in dataclasses.fields(settings):
        option, value = field.metadata["option"], getattr(settings, field.name)
        if value == field.default or value is None or option.name == "ray_address":
            continue
        if option.type == "path" and not _is_portable(option.name, value):
            raise UsageError(
                f"{option.flag} {value}: relative paths have no meaning on another machine; write "
                "a URI, or an absolute path that exists on all nodes of the cluster"
            )
        if option.type is bool:
            arguments.append(option.flag if value else f"--no-{option.flag[2:]}")
        else:
            arguments.append(f"{option.flag}={value}")
    return arguments


def _is_portable(name: str, path: str) -> bool:
    """Return whether a path means the same on another machine."""
    return os.path.isabs(path) or "://" in path or (name, path) == ("weights", "random")


def _client(dashboard: str, source: str) -> Any:
    os.environ["RAY_API_SERVER_ADDRESS"] = dashboard  # takes precedence over the argument
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)  # has its own level
    _request(source, lambda: _wait_for_reply(dashboard))
    return _request(source, lambda: JobSubmissionClient(dashboard))


def _wait_for_reply(dashboard: str) -> None:
    """Wait for any reply of a dashboard; Ray's client would wait forever."""
    import requests

    requests.get(f"{dashboard.rstrip('/')}/api/version", timeout=REPLY_TIMEOUT, stream=True).close()


def _request(source: str, call: Callable[[], Any]) -> Any:
    """Return the result of `call`; raise InputError if the dashboard rejects it or is silent."""
    from ray.exceptions import RayError

    try:
        return call()
    except (OSError, RuntimeError, ValueError, KeyError, RayError) as error:
        if is_refused_token(error):
            raise InputError(f"{source}: {token_advice()}") from error
        raise InputError(
            f"{source}: no dashboard of a Ray cluster accepts jobs there ({error})"
        ) from error


class _Log:
    """Log of a job: prints its lines on stderr and stores the result, the text after the mark."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.result: str | None = None
        self._processed = 0  # characters
        self._partial_line = ""

    def add(self, text: str, position: int) -> None:
        """Process the text at a position of the log, except what was processed before."""
        new = text[max(0, self._processed - position) :]
        self._processed += len(new)
        *lines, self._partial_line = (self._partial_line + new).split("\n")
        for line in lines:
            self._add_line(line)

    def end(self) -> None:
        """Process the last line, which may have no newline."""
        if self._partial_line:
            self._add_line(self._partial_line)
        self._partial_line = ""

    def _add_line(self, line: str) -> None:
        # with the quote: the command line, which may be in the log, contains the mark as well
        message, mark, result = line.partition(f'{self.mark}"')
        if mark:
            self.result = json.loads(f'"{result}')
        if message or not mark:
            print_message(message)


def _follow(client: Any, job: str, log: _Log, source: str) -> Any:
    """Print the log of a job until it ends, reconnecting if necessary; return its details.

    Raises InputError if the connection is lost for `CONNECTION_TIMEOUT` s or the job is unknown.
    """
    import asyncio

    import aiohttp
    from ray.exceptions import RayError

    connection_errors = (OSError, RuntimeError, aiohttp.ClientError, RayError)
    continue_hint = "run the same command again to continue with what is finished"
    last_contact = time.monotonic()
    while True:
        connection_error: Exception | None = None
        try:
            asyncio.run(_tail(client, job, log))
        except connection_errors as error:
            connection_error = error
        try:
            details = client.get_job_info(job)
            if details.status.is_terminal() and connection_error is None:
                return details
        except connection_errors as error:
            connection_error = error
        if "does not exist" in str(connection_error):
            raise InputError(
                f"{source}: the cluster does not know {job} any more, so its head was probably "
                f"restarted; {continue_hint}"
            )
        if connection_error is None:
            last_contact = time.monotonic()
        elif time.monotonic() - last_contact > CONNECTION_TIMEOUT:
            raise InputError(
                f"{source}: no connection to {job} for {CONNECTION_TIMEOUT:.0f} s "
                f"({connection_error}); the job may still run; {continue_hint}"
            )
        time.sleep(1)


async def _tail(client: Any, job: str, log: _Log) -> None:
    position = 0
    async for text in client.tail_job_logs(job):
        log.add(text, position)
        position += len(text)


def _finish(job: str, details: Any, log: _Log, stdout: TextIO) -> int:
    """Write the result and return the exit code; raise LookalikeError if the job failed."""
    log.end()
    code = details.driver_exit_code
    if log.result is not None:
        stdout.write(log.result)
        stdout.flush()
    if details.status == "STOPPED":
        print_message(f"error: {job} was stopped; {CONTINUE_HINT}")
        return INTERRUPTED
    if code not in _EXIT_CODES:
        message = str(details.message).partition("\n")[0]
        reason = message if code is None else f"it ended with {code}"
        if code == _COMMAND_NOT_FOUND:
            reason = "the head node does not find the command lookalike; install it on all nodes"
        raise LookalikeError(f"{job}: {reason}; {CONTINUE_HINT}")
    return int(code)
