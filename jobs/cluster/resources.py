"""The Ray cluster of a run: its resources, the late connection to it, and its release."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from jobs.cluster import session
from jobs.cluster.connection import connect, is_connected, limit_connection_retries, resolve_address
from jobs.cluster.shared_paths import SharedPath, check_shared_paths, list_shared_paths
from jobs.config.options import AUTO
from jobs.runtime.profile import START_RAY, Profile
from retrieval.core.errors import InputError, Stalled

if TYPE_CHECKING:
    from jobs.config.settings import RayOptions

Value = TypeVar("Value")


class Cluster:
    """A Ray cluster that is connected, or started, when it is first used.

    So a command that has nothing to do never starts Ray.
    """

    def __init__(
        self,
        address: str | None,
        workers: int | None,
        *,
        gpus_per_worker: float = 1.0,
        decoding: str = AUTO,
        shared_paths: Sequence[SharedPath] = (),
    ) -> None:
        self._option, self._address = address, resolve_address(address)
        limit_connection_retries(address)
        self._shared_paths = shared_paths  # that all nodes must see
        self.requested_workers = workers
        self.gpu_share = gpus_per_worker
        self._decoding = decoding
        self._connected = self._paths_checked = False
        self._connection_error: InputError | None = None
        self.quarantined_images: set[str] = set()
        """Quarantined images: each crashed its worker twice in this run, in any step."""
        self.failure_log: Any = None
        """Handle of the actor that counts attempts (`worker_failures.py`), once it is started."""
        self.pool: Any = None
        """The actors that stay for the next steps (`actor_pool.py`), once some are started."""
        self.busy_workers = 0
        """Number of busy workers at the last check."""
        self.peak = 0
        """Largest memory of a worker in bytes since a stage reset this to 0."""

        self.profile = Profile()
        """Times of the steps of the command."""

    @property
    def is_named(self) -> bool:
        """Return whether the user named a cluster, by --ray-address or $RAY_ADDRESS."""
        return self._address is not None

    @property
    def workers(self) -> int:
        """Return the number of workers that may run at once; connects to the cluster."""
        return self.requested_workers or self.cpus

    @property
    def cpus(self) -> int:
        """Return the number of CPUs; connects to the cluster."""
        return max(1, self._resource("CPU"))

    @property
    def gpus(self) -> int:
        """Return the number of GPUs; connects to the cluster."""
        return self._resource("GPU")

    def _resource(self, name: str) -> int:
        return int(sum(node.get(name, 0) for node in self._nodes()))

    def _nodes(self) -> list[dict[str, float]]:
        """Return the resources of each node that is currently alive."""
        import ray

        self.connect()
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def threads_beside(self, device: str) -> int:
        """Return the number of threads that decode images ahead of one worker.

        0 on CPUs, which the worker uses itself. On GPUs it is the number of CPUs per worker on the
        node with the fewest.
        """
        if device != "cuda":
            return 0
        ratios = [n.get("CPU", 0) / n["GPU"] for n in self._nodes() if n.get("GPU", 0)]
        return max(1, int(min(ratios, default=1) * self.gpu_share))

    def decodes_separately(self, device: str) -> bool:
        """Return whether tasks on any node decode the images of workers on `device`.

        By default only if the workers use GPUs and there are nodes without a GPU, whose CPUs would
        be idle otherwise.
        """
        if self._decoding != AUTO:
            return self._decoding == "separate"
        return device == "cuda" and any(
            node.get("CPU", 0) >= 1 and not node.get("GPU", 0) for node in self._nodes()
        )

    @property
    def may_grow(self) -> bool:
        """Return whether nodes may still join: a named cluster with --workers may be autoscaling.

        An autoscaler starts nodes for workers that wait for resources. Such a request ends with the
        job, while one of `ray.autoscaler.sdk.request_resources` would outlive a killed job.
        """
        return self.requested_workers is not None and self._address not in (None, "local")

    def require(self, cpus: float, gpus: float = 0) -> None:
        """Raise Stalled if no node can run such a worker, for which Ray would wait silently."""
        nodes = self._nodes()
        fits = any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes)
        if not fits and not self.may_grow:
            max_cpus = max((n.get("CPU", 0) for n in nodes), default=0)
            required = f"{cpus:g} CPU" + (" and a GPU" if gpus else "")
            raise Stalled(
                f"a worker needs {required} on one node, and no node of the cluster has that: of "
                f"{len(nodes)} nodes the largest has {max_cpus:g} CPUs, and all together "
                f"{self.gpus} GPUs; add nodes, or start them with more --num-cpus"
            )

    def format_usage(self) -> str:
        """Format how many of the CPUs and GPUs are booked by any job."""
        import ray

        free = ray.available_resources()
        parts = []
        for name, total in (("CPU", ray.cluster_resources().get("CPU", 0)), ("GPU", self.gpus)):
            if total or name == "CPU":
                booked = total - free.get(name, 0)
                parts.append(f"of the cluster's {total:g} {name}s {booked:g} are booked")
        return ", ".join(parts)

    def connect(self) -> None:
        """Connect to the cluster, or start one on this machine.

        Must be called by the main thread: when the thread that started the processes of a local Ray
        ends, Linux ends these as well. Raises InputError if the cluster cannot be reached or
        started, and UsageError if a node does not see a shared path.
        """
        if not is_connected():  # a notebook or a test may have connected already
            if self._connection_error:  # do not wait a second time
                raise self._connection_error
            try:
                with self.profile.step(START_RAY):
                    connect(self._option)
            except InputError as error:
                self._connection_error = error
                raise
            self._connected = True
        if not self._paths_checked:
            self._paths_checked = True
            check_shared_paths(self._shared_paths)

    def connect_while(
        self, action: Callable[[], Value], when_connected: Callable[[], None] = lambda: None
    ) -> Value:
        """Connect to the cluster while another thread runs `action`; return its result.

        `when_connected` is called after the connection, possibly before the end of `action`.

        Starting Ray mostly waits for its processes, while importing torch uses the CPU, so that
        doing both at once takes less time.
        """
        with ThreadPoolExecutor(1) as executor:
            future = executor.submit(action)
            self.connect()
            when_connected()
            return future.result()

    def release_pool(self) -> None:
        """End the actors that stay for the next steps, so that tasks may use their resources."""
        if self.pool is not None:
            self.pool.release()

    def close(self) -> None:
        """Disconnect from the cluster; end it if it was started here."""
        if self.failure_log is None and not self._connected:
            return
        import ray

        self.release_pool()
        if self.failure_log is not None:
            ray.kill(self.failure_log)
            self.failure_log = None
        if self._connected:
            if local_session := session.running_session():
                local_session.end(ray.shutdown)
            else:
                ray.shutdown()
            self._connected = False


@contextmanager
def open_cluster(settings: RayOptions) -> Iterator[Cluster]:
    """Yield the cluster of --ray-address, $RAY_ADDRESS or this machine, and close it afterwards.

    It is not closed after an error: a thread may still wait for a result, and Ray's native code
    would then end the process with exit code 1. Processes that were started here are killed at the
    end of the command line instead (`session.py`).
    """
    cluster = Cluster(
        settings.ray_address, settings.workers, gpus_per_worker=settings.gpus_per_worker,
        decoding=settings.decoding, shared_paths=list_shared_paths(settings),
    )  # fmt: skip
    yield cluster
    cluster.close()
