"""How Ray is reached, or started on this machine alone.

A running cluster is asked whether it is there before Ray is: Ray itself tries for many minutes,
without a word, to reach what is gone.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jobs import session
from jobs.interrupts import Terminated
from retrieval.entry import claim_packages, holds_packages
from retrieval.errors import InputError

_ALONE = {
    "RAY_enable_metrics_collection": "false",
    "RAY_prestart_worker_first_driver": "false",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
}
"""For a Ray that is started here and ends with us: it need not gather metrics that nobody reads,
nor start workers of a kind that the pool does not use, nor report ten times a second what is free.
On two cores that is 3 to 5 % of a worker's time (benchmarks/README.md)."""

_ONCE = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": "20"}
"""For a running cluster: one attempt of half a minute, instead of 20 of 40 s. Ray reads them when
it is imported."""

_PATIENCE = 10.0  # seconds for a cluster's port to open, which may be starting
_TOKEN_FILE = os.path.join("~", ".ray", "auth_token")
_SLOW_START = "timed out during startup"  # what Ray says where the machine was too busy


def named(option: str | None) -> str | None:
    """Return the running cluster that is meant, by --ray-address or as Ray's own tools take it."""
    variable = os.environ.get("RAY_ADDRESS") or None
    return variable if option in (None, "", "auto") and variable else option or None


def origin(option: str | None) -> str:
    """Name what has said where Ray is, for an error."""
    address = named(option)
    return f"--ray-address {address}" if address == option else f"RAY_ADDRESS={address}"


def ask_once(option: str | None) -> None:
    """Let Ray give up soon on a cluster that does not answer; to be called before Ray is imported.

    Its own way is to try for many minutes, with warnings that nobody sees.
    """
    address = named(option) or "local"
    if address == "auto" or ":" in address:
        for name, value in _ONCE.items():
            os.environ.setdefault(name, value)


def is_connected() -> bool:
    """Return whether Ray is connected, without importing it: the import reads its settings."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def connect(option: str | None) -> None:
    """Reach the cluster that `--ray-address` means, or start one here; refused in one sentence."""
    address = named(option) or "local"
    alone = address == "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if alone:
        for name, value in _ALONE.items():
            os.environ.setdefault(name, value)
        _choose_token()
    elif address != "auto":
        _refuse_silent(address, origin(option))
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    # workers cannot import the hook before it has run: it travels by value
    ray.cloudpickle.register_pickle_by_value(sys.modules[claim_packages.__module__])
    try:
        with _quiet(), _sigterm_as_it_was():
            _start(ray.init) if alone else ray.init(**_options(address))
    except InputError:
        raise
    except Exception as error:
        raise InputError(_refusal(error, address, option)) from error


def _options(address: str) -> dict[str, Any]:
    """Return what `ray.init` is given for any cluster."""
    from ray.job_config import JobConfig

    job = JobConfig()
    job._py_driver_sys_path = _OurFolders()  # noqa: SLF001 - Ray has no setting for it
    return {
        "address": address, "log_to_driver": False, "logging_level": "ERROR", "job_config": job,
        "runtime_env": {"worker_process_setup_hook": claim_packages},
    }  # fmt: skip


class _OurFolders(list[str]):
    """Folders that Ray puts before all others on the workers' path: those of this project alone.

    It would add the current folder, where a user's own `torch.py` may lie.
    """

    def extend(self, folders: Iterable[str]) -> None:
        """Add those that hold our packages, as a checkout does."""
        super().extend(filter(holds_packages, folders))


def _start(init: Callable[..., Any]) -> None:
    """Start a Ray here; once more where the machine was too busy the first time."""
    for last in (False, True):
        started = session.start()
        try:
            init(**_options("local"), include_dashboard=False, _temp_dir=started.folder)
            return
        except BaseException as error:
            started.end()
            if last or _SLOW_START not in str(error):
                raise


def _refusal(error: Exception, address: str, option: str | None) -> str:
    """Write why Ray could not be reached or started, and the way out."""
    reason = " ".join(str(error).split())
    if address == "local":
        return f"Ray cannot be started on this machine ({reason}); run the same command again"
    if is_refused_token(error):
        return f"{origin(option)}: {token_advice()}"
    return (
        f"{origin(option)}: Ray cannot be reached ({reason}); name a running cluster, or none: "
        "without an address (nor RAY_ADDRESS) a Ray is started on this machine"
    )


def is_refused_token(error: Exception) -> bool:
    """Return whether a cluster refused a command because its token is wrong or missing."""
    words = f"{type(error).__name__} {error} {error.__cause__}".lower()
    return "authentication" in words or "unauthorized" in words


def token_advice() -> str:
    """Write what lets a command into a cluster that wants a token."""
    return (
        "the cluster wants a token, and none or another one was sent: set RAY_AUTH_MODE=token, and "
        f"RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's where {_TOKEN_FILE} is not it"
    )


def _choose_token() -> None:
    """Let a Ray that is started here want a token that is its own, and in no file.

    By itself Ray writes one into the home folder, which may be read-only, and which makes later
    clusters of this user want it too. What a person has set, or a token that is there, is used.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    named_token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    written = os.access(os.path.expanduser(_TOKEN_FILE), os.R_OK)
    if mode == "token" and not named_token and not written:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _refuse_silent(address: str, where: str) -> None:
    """Refuse an address where nothing listens."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return  # what that means is Ray's to say
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
            return
        except (OSError, OverflowError) as error:
            if isinstance(error, ConnectionRefusedError) and time.monotonic() < until:
                time.sleep(0.5)
                continue
            raise InputError(
                f"{where}: nothing answers there ({error}); name a running cluster, or none: "
                "without an address (nor RAY_ADDRESS) a Ray is started on this machine"
            ) from error


@contextmanager
def _sigterm_as_it_was() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray's ends the process with 15, or dumps native stacks."""
    kept = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as end:  # how Ray's own handler ends us meanwhile
        if end.code == signal.SIGTERM:
            raise Terminated from end
        raise
    finally:
        with suppress(ValueError):  # in another thread than the main one Ray sets no handler either
            signal.signal(signal.SIGTERM, kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray's native code says at start off a person's screen; errors are raised anyway."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
