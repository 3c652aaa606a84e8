"""The same command as a job of a cluster that is reached by its dashboard alone.

`--ray-address http://HEAD:8265` runs the command on the head. Its log goes to stderr as it is
written, its answer to stdout, and its exit code is ours. In the log of a job both are one text, so
the job is told a random mark and writes its answer as one line after that mark (`result.py`).
Nothing else of this machine travels: no files, no environment, no secrets.
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

from jobs.cluster.connection import is_refused_token, named, origin, token_advice
from jobs.runtime.interrupts import INTERRUPTED, TERMINATED, exit_code, sentence
from jobs.runtime.progress import say
from jobs.runtime.result import MARK
from retrieval.core.errors import InputError, LookalikeError, UsageError

PATIENCE = 60.0  # seconds that a dashboard may be away while a job runs
ANSWER = 20.0  # seconds that a dashboard may take to say that it is one
_OURS = {*range(9), INTERRUPTED, TERMINATED}  # exit codes that say what came of the work
_ABSENT = 127  # what a shell says of a command that it does not find


def dashboard_of(settings: Any) -> str | None:
    """Give the dashboard that a command is to be submitted to, if that is what its address is."""
    if not hasattr(settings, "ray_address"):
        return None
    address = named(settings.ray_address) or ""
    if address.startswith("ray://"):
        raise UsageError(
            f"{origin(settings.ray_address)}: Ray's client is not supported; http://HEAD:8265 "
            "submits the command as a job of that cluster"
        )
    return address if address.startswith(("http://", "https://")) else None


def submit(dashboard: str, verb: str, settings: Any, answers: TextIO) -> int:
    """Run the verb as a job, pass its log and its answer on, and give its exit code."""
    words = ["lookalike", verb, *_arguments(settings)]
    log = _Log(f"answer-{os.urandom(8).hex()}-")
    job = f"lookalike-{verb}-{os.urandom(4).hex()}"
    where = origin(settings.ray_address)
    client = _client(dashboard, where)
    try:
        _unless_refused(where, lambda: client.submit_job(
            entrypoint=shlex.join(["exec", "env", f"{MARK}={log.mark}", *words]), submission_id=job
        ))  # fmt: skip
        say(f"{job} runs on {dashboard}")
        details = _follow(client, job, log, where)
    except KeyboardInterrupt as error:
        say(
            f"error: {sentence(error)}, but the job goes on; to stop it: ray job stop {job} "
            f"--address {shlex.quote(dashboard)}"
        )
        return exit_code(error)
    return _ended(job, details, log, answers)


def _arguments(settings: Any) -> list[str]:
    """Write the settings as they are typed, but for where Ray is: a job knows its cluster."""
    words = []
    for field in dataclasses.fields(settings):
        option, value = field.metadata["option"], getattr(settings, field.name)
        if value == field.default or value is None or option.name == "ray_address":
            continue
        if option.type == "path" and not _travels(option.name, value):
            raise UsageError(
                f"{option.flag} {value}: a job of another machine does not know this folder; "
                "write a URI, or an absolute path that all nodes of the cluster have"
            )
        if option.type is bool:
            words.append(option.flag if value else f"--no-{option.flag[2:]}")
        else:
            words.append(f"{option.flag}={value}")
    return words


def _travels(name: str, path: str) -> bool:
    """Tell whether a path means the same to another machine as it does here."""
    return os.path.isabs(path) or "://" in path or (name, path) == ("weights", "random")


def _client(dashboard: str, where: str) -> Any:
    os.environ["RAY_API_SERVER_ADDRESS"] = dashboard  # Ray's client heeds it before what is given
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)  # it sets its own
    _unless_refused(where, lambda: _ask(dashboard))
    return _unless_refused(where, lambda: JobSubmissionClient(dashboard))


def _ask(dashboard: str) -> None:
    """Wait for any answer of a dashboard; Ray's client would wait for ever."""
    import requests

    requests.get(f"{dashboard.rstrip('/')}/api/version", timeout=ANSWER, stream=True).close()


def _unless_refused(where: str, ask: Callable[[], Any]) -> Any:
    from ray.exceptions import RayError

    try:
        return ask()
    except (OSError, RuntimeError, ValueError, KeyError, RayError) as error:
        if is_refused_token(error):
            raise InputError(f"{where}: {token_advice()}") from error
        raise InputError(
            f"{where}: no dashboard of a Ray cluster takes a job there ({error})"
        ) from error


class _Log:
    """What a job writes: lines for stderr, and one with its answer after the mark."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.answer: str | None = None
        self._taken = 0
        self._rest = ""

    def take(self, text: str, at: int) -> None:
        """Take what stands at a place of the log, unless it was taken before."""
        new = text[max(0, self._taken - at) :]
        self._taken += len(new)
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._take_line(line)

    def end(self) -> None:
        """Take the last line, which may lack its end."""
        if self._rest:
            self._take_line(self._rest)
        self._rest = ""

    def _take_line(self, line: str) -> None:
        before, mark, answer = line.partition(f'{self.mark}"')  # the command has a space there
        if mark:
            self.answer = json.loads(f'"{answer}')
        if before or not mark:
            say(before)


def _follow(client: Any, job: str, log: _Log, where: str) -> Any:
    """Pass on what a job writes until it has ended; a lost connection is made anew."""
    import asyncio

    import aiohttp
    from ray.exceptions import RayError

    away = (OSError, RuntimeError, aiohttp.ClientError, RayError)
    goes_on = "the same command goes on with what is finished"
    heard = time.monotonic()
    while True:
        trouble: Exception | None = None
        try:
            asyncio.run(_tail(client, job, log))
        except away as error:
            trouble = error
        try:
            details = client.get_job_info(job)
            if details.status.is_terminal() and trouble is None:
                return details
        except away as error:
            trouble = error
        if "does not exist" in str(trouble):
            raise InputError(
                f"{where}: it knows nothing of {job} any more, as if its head "
                f"had been started anew; {goes_on}"
            )
        if trouble is None:
            heard = time.monotonic()
        elif time.monotonic() - heard > PATIENCE:
            raise InputError(
                f"{where}: it has told nothing of {job} for {PATIENCE:.0f} s "
                f"({trouble}); the job may go on, and {goes_on}"
            )
        time.sleep(1)


async def _tail(client: Any, job: str, log: _Log) -> None:
    at = 0
    async for text in client.tail_job_logs(job):
        log.take(text, at)
        at += len(text)


def _ended(job: str, details: Any, log: _Log, answers: TextIO) -> int:
    """Pass the answer on; give the exit code, or say what else the job ended of."""
    log.end()
    code = details.driver_exit_code
    if log.answer is not None:
        answers.write(log.answer)
        answers.flush()
    if details.status == "STOPPED":
        say(f"error: {job} was stopped; what is finished is kept, the same command goes on")
        return INTERRUPTED
    if code not in _OURS:
        told = str(details.message).partition("\n")[0]
        why = told if code is None else f"it ended with {code}"
        if code == _ABSENT:
            why = "the head node does not find the command lookalike; install it on all nodes"
        raise LookalikeError(f"{job}: {why}; what is finished is kept, the same command goes on")
    return int(code)
