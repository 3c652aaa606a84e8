"""The only file that knows how Ray is reached, sized and shut down."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from retrieval.entry import claim_packages
from retrieval.errors import InputError, Stalled

Answer = TypeVar("Answer")

_ALONE = {
    "RAY_enable_metrics_collection": "false",
    "RAY_prestart_worker_first_driver": "false",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
}
"""For a Ray that is started here and ends with us: it need not gather metrics that nobody reads,
nor start workers of a kind that the pool does not use, nor report ten times a second what is free.
On two cores that is 3 to 5 % of a worker's time (benchmarks/README.md)."""


class Cluster:
    """A cluster that is reached when the first work is given to it.

    So a job that finds everything done never starts Ray.
    """

    def __init__(self, address: str | None, workers: int | None) -> None:
        self._address = _named(address)
        self.asked = workers
        self._connected = False
        self.given_up: set[str] = set()
        """Images that killed their worker twice in this run, whichever step had them at hand."""
        self.book: Any = None
        """The actor that counts attempts (`attempts.py`), once the first step has started it."""
        self.at_work = 0
        """Workers that had something at hand when they were last looked at."""
        self.peak = 0
        """Memory in bytes that a worker has held at most, since a stage has set this to 0."""

    @property
    def workers(self) -> int:
        """Count the workers that may run at once; reaches the cluster."""
        return self.asked or self.cpus

    @property
    def cpus(self) -> int:
        """Count the cluster's CPUs; reaches the cluster."""
        return max(1, self._resource("CPU"))

    @property
    def gpus(self) -> int:
        """Count the cluster's GPUs; reaches the cluster."""
        return self._resource("GPU")

    def _resource(self, name: str) -> int:
        import ray

        self.connect()
        return int(ray.cluster_resources().get(name, 0))

    def require(self, cpus: float, gpus: int = 0) -> None:
        """Refuse work of this size if no node could ever take it; Ray would wait in silence."""
        import ray

        self.connect()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes):
            most = max((n.get("CPU", 0) for n in nodes), default=0)
            wanted = f"{cpus:g} CPU" + (" and a GPU" if gpus else "")
            raise Stalled(
                f"a worker wants {wanted} of one node, and no node of the cluster has that: of "
                f"{len(nodes)} nodes the largest has {most:g} CPUs, and all together {self.gpus} "
                "GPUs; add nodes, or start them with more --num-cpus"
            )

    def room(self) -> str:
        """Say how much of the cluster is booked, by whomever."""
        import ray

        free = ray.available_resources()
        said = []
        for name, there in (("CPU", ray.cluster_resources().get("CPU", 0)), ("GPU", self.gpus)):
            if there or name == "CPU":
                booked = there - free.get(name, 0)
                said.append(f"of the cluster's {there:g} {name}s {booked:g} are booked")
        return ", ".join(said)

    def connect(self) -> None:
        """Reach the cluster, or start one here.

        To be called by the main thread: Linux ends what Ray starts here with the thread that
        started it.
        """
        import ray

        if not ray.is_initialized():  # a notebook or a test may have its own
            _connect(self._address)
            self._connected = True

    def connect_while(self, action: Callable[[], Answer]) -> Answer:
        """Reach the cluster while another thread does `action`, and give what that answers.

        Ray's start mostly waits for its processes, while importing torch computes: beside each
        other they take less than after each other.
        """
        with ThreadPoolExecutor(1) as beside:
            doing = beside.submit(action)
            self.connect()
            import ray.data  # noqa: F401 - half a second that the pool will need

            return doing.result()

    def close(self) -> None:
        """Let go of the cluster; one that was started here ends."""
        if self.book is None and not self._connected:
            return
        import ray

        if self.book is not None:
            ray.kill(self.book)
            self.book = None
        if self._connected:
            ray.shutdown()
            self._connected = False


def is_named(address: str | None) -> bool:
    """Tell whether a running cluster is meant, by --ray-address or as Ray's own tools take it."""
    return _named(address) is not None


def _named(address: str | None) -> str | None:
    return address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def cluster(address: str | None, workers: int | None) -> Iterator[Cluster]:
    """Give the cluster at `address` ($RAY_ADDRESS, or one started here) and let go of it after.

    Not after an error: a thread may still be waiting for an answer, and Ray's native code ends the
    process with 1, without a word, when it is let go under it. What was started here ends with us.
    """
    where = Cluster(address, workers)
    yield where
    where.close()


def _connect(address: str | None) -> None:
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
