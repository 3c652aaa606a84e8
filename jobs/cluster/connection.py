"""Connection to a running Ray cluster, or start of Ray on this machine alone.

The port of a running cluster is checked first, because Ray itself tries silently for many minutes
to reach a cluster that no longer exists.
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

from jobs.cluster import session
from jobs.runtime.interrupts import Terminated
from retrieval.core.errors import InputError
from retrieval.entry import holds_packages, import_own_packages

_LOCAL_ENVIRONMENT = {
    "RAY_enable_metrics_collection": "false",
    "RAY_prestart_worker_first_driver": "false",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
}
"""Environment of a Ray that is started here: no collection of metrics, no workers of a kind that
the pool does not use, and resource reports once a second instead of ten times. On two cores this
saves 3 to 5 % of a worker's time (benchmarks/README.md)."""

_CLUSTER_ENVIRONMENT = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": "20"}
"""Environment for a running cluster: one connection attempt of half a minute instead of 20 of 40 s.
Ray reads it when it is imported."""

_PORT_TIMEOUT = 10.0  # seconds for the port of a starting cluster to open
_TOKEN_FILE = os.path.join("~", ".ray", "auth_token")
_SLOW_START = "timed out during startup"  # in Ray's message if the machine was too busy


def resolve_address(option: str | None) -> str | None:
    """Return the address of a running cluster from --ray-address or $RAY_ADDRESS, or None."""
    variable = os.environ.get("RAY_ADDRESS") or None
    return variable if option in (None, "", "auto") and variable else option or None


def describe_address_source(option: str | None) -> str:
    """Return the option or variable that sets the address, for an error message."""
    address = resolve_address(option)
    return f"--ray-address {address}" if address == option else f"RAY_ADDRESS={address}"


def limit_connection_retries(option: str | None) -> None:
    """Limit Ray's connection attempts to half a minute; call it before Ray is imported.

    By default Ray tries for many minutes.
    """
    address = resolve_address(option) or "local"
    if address == "auto" or ":" in address:
        for name, value in _CLUSTER_ENVIRONMENT.items():
            os.environ.setdefault(name, value)


def is_connected() -> bool:
    """Return whether Ray is connected; do not import Ray, which reads its settings on import."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def connect(option: str | None) -> None:
    """Connect to the cluster of --ray-address, or start one here; raise InputError on failure."""
    address = resolve_address(option) or "local"
    is_local = address == "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if is_local:
        for name, value in _LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        _choose_token()
    elif address != "auto":
        _check_port(address, describe_address_source(option))
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    # the hook is pickled by value, since workers cannot import it before it has run
    ray.cloudpickle.register_pickle_by_value(sys.modules[import_own_packages.__module__])
    try:
        with _hidden_stderr(), _restored_sigterm_handler():
            _start(ray.init) if is_local else ray.init(**_options(address))
    except InputError:
        raise
    except Exception as error:
        raise InputError(_describe_failure(error, address, option)) from error


def _options(address: str) -> dict[str, Any]:
    """Return the arguments of `ray.init` for any cluster."""
    from ray.job_config import JobConfig

    job = JobConfig()
    job._py_driver_sys_path = _PackageFolders()  # noqa: SLF001 - Ray has no setting for it
    return {
        "address": address, "log_to_driver": False, "logging_level": "ERROR", "job_config": job,
        "runtime_env": {"worker_process_setup_hook": import_own_packages},
    }  # fmt: skip


class _PackageFolders(list[str]):
    """Folders that Ray puts first on the workers' import path: only those with our packages.

    Ray would also add the current folder, where a user's own `torch.py` may lie.
    """

    def extend(self, folders: Iterable[str]) -> None:
        """Add the folders that contain our packages, as a checkout does."""
        super().extend(filter(holds_packages, folders))


def _start(init: Callable[..., Any]) -> None:
    """Start Ray here; retry once if the machine was too busy."""
    for is_last_attempt in (False, True):
        new_session = session.start_session()
        try:
            init(**_options("local"), include_dashboard=False, _temp_dir=new_session.folder)
            return
        except BaseException as error:
            new_session.end()
            if is_last_attempt or _SLOW_START not in str(error):
                raise


def _describe_failure(error: Exception, address: str, option: str | None) -> str:
    """Return the message of a failed connection or start: the reason, and what to do."""
    reason = " ".join(str(error).split())
    if address == "local":
        return f"Ray cannot be started on this machine ({reason}); run the same command again"
    if is_refused_token(error):
        return f"{describe_address_source(option)}: {token_advice()}"
    return (
        f"{describe_address_source(option)}: Ray cannot be reached ({reason}); specify a running "
        "cluster, or omit the address and RAY_ADDRESS to start Ray on this machine"
    )


def is_refused_token(error: Exception) -> bool:
    """Return whether a cluster rejected a missing or wrong token."""
    text = f"{type(error).__name__} {error} {error.__cause__}".lower()
    return "authentication" in text or "unauthorized" in text


def token_advice() -> str:
    """Return how to pass the token that a cluster requires."""
    return (
        "the cluster requires a token, and none or a wrong one was sent: set RAY_AUTH_MODE=token, "
        "and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the token of the cluster, unless "
        f"{_TOKEN_FILE} contains it"
    )


def _choose_token() -> None:
    """Set a random token, stored in no file, for a Ray that is started here.

    Ray itself would write a token into the home folder, which may be read-only, and later clusters
    of this user would then require it too. A token that the user has set or stored takes
    precedence.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    named_token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    has_token_file = os.access(os.path.expanduser(_TOKEN_FILE), os.R_OK)
    if mode == "token" and not named_token and not has_token_file:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _check_port(address: str, source: str) -> None:
    """Raise InputError if nothing listens at an address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return  # Ray reports invalid addresses
    deadline = time.monotonic() + _PORT_TIMEOUT
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _PORT_TIMEOUT).close()
            return
        except (OSError, OverflowError) as error:
            if isinstance(error, ConnectionRefusedError) and time.monotonic() < deadline:
                time.sleep(0.5)
                continue
            raise InputError(
                f"{source}: nothing answers there ({error}); specify a running cluster, or omit "
                "the address and RAY_ADDRESS to start Ray on this machine"
            ) from error


@contextmanager
def _restored_sigterm_handler() -> Iterator[None]:
    """Restore the SIGTERM handler afterwards: Ray's exits with 15 or dumps native stacks."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as request:  # raised by Ray's own handler meanwhile
        if request.code == signal.SIGTERM:
            raise Terminated from request
        raise
    finally:
        with suppress(ValueError):  # outside the main thread Ray sets no handler
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _hidden_stderr() -> Iterator[None]:
    """Discard what Ray's native code prints at the start; errors are raised as well."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
