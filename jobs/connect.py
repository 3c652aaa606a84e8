"""How Ray is reached, or started on this machine alone."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from retrieval.entry import claim_packages
from retrieval.errors import InputError

_ALONE = {
    "RAY_enable_metrics_collection": "false",
    "RAY_prestart_worker_first_driver": "false",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
}
"""For a Ray that is started here and ends with us: it need not gather metrics that nobody reads,
nor start workers of a kind that the pool does not use, nor report ten times a second what is free.
On two cores that is 3 to 5 % of a worker's time (benchmarks/README.md)."""


def named(address: str | None) -> str | None:
    """Give the running cluster that is meant, by --ray-address or as Ray's own tools take it."""
    return address or os.environ.get("RAY_ADDRESS") or None


def connect(address: str | None) -> None:
    """Reach the cluster at an address, or start one here; refused in one sentence."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False}
    options["runtime_env"] = {"worker_process_setup_hook": claim_packages}
    options["logging_level"] = "ERROR"
    if not address:
        os.environ |= {name: os.environ.get(name, value) for name, value in _ALONE.items()}
        options |= {"include_dashboard": False, "_temp_dir": _short_folder()}
    # workers cannot import the hook before it has run: it travels by value
    ray.cloudpickle.register_pickle_by_value(sys.modules[claim_packages.__module__])
    try:
        with _quiet():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"--ray-address {address or 'local'}: Ray cannot be reached or started ({error})"
        ) from error


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


def _short_folder() -> str:
    """Give a folder for Ray's sockets, whose paths may not be longer than 107 bytes."""
    folder = os.path.join(tempfile.gettempdir(), f"lookalike-{os.getuid()}")
    return folder if len(folder) < 40 else f"/tmp/lookalike-{os.getuid()}"  # noqa: S108
