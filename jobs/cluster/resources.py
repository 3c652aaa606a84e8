"""What a cluster has, how it is reached when work comes, and when it is let go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from jobs.cluster import session
from jobs.cluster.connection import ask_once, connect, is_connected, named
from jobs.cluster.shared_paths import Local, local_places, refuse_unshared
from retrieval.core.errors import InputError, Stalled

if TYPE_CHECKING:
    from jobs.config.settings import OnRay

Answer = TypeVar("Answer")


class Cluster:
    """A cluster that is reached when the first work is given to it.

    So a job that finds everything done never starts Ray.
    """

    def __init__(
        self,
        address: str | None,
        workers: int | None,
        *,
        gpus_per_worker: float = 1.0,
        places: Sequence[Local] = (),
    ) -> None:
        self._option, self._address = address, named(address)
        ask_once(address)
        self._places = places  # that all nodes must see
        self.asked = workers
        self.gpu_share = gpus_per_worker
        self._connected = self._looked = False
        self._refused: InputError | None = None
        self.given_up: set[str] = set()
        """Images that killed their worker twice in this run, whichever step had them at hand."""
        self.book: Any = None
        """The actor that counts attempts (`book.py`), once the first step has started it."""
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
        return int(sum(node.get(name, 0) for node in self._nodes()))

    def _nodes(self) -> list[dict[str, float]]:
        """Give the resources of each node that is there now."""
        import ray

        self.connect()
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def threads_beside(self, device: str) -> int:
        """Count the threads that decode ahead of a worker; none on CPUs, which it takes itself.

        On the device cuda the CPUs beside its share of a GPU, on the node where these are fewest.
        """
        if device != "cuda":
            return 0
        ratios = [n.get("CPU", 0) / n["GPU"] for n in self._nodes() if n.get("GPU", 0)]
        return max(1, int(min(ratios, default=1) * self.gpu_share))

    @property
    def may_grow(self) -> bool:
        """Tell whether nodes may still come: of a named cluster --workers says how many workers.

        Workers that wait for a place are what an autoscaler starts nodes for; they end with the
        job, while what `ray.autoscaler.sdk.request_resources` asks for would outlive a killed one.
        """
        return self.asked is not None and self._address not in (None, "local")

    def require(self, cpus: float, gpus: float = 0) -> None:
        """Refuse work of this size if no node could ever take it; Ray would wait in silence."""
        nodes = self._nodes()
        fits = any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes)
        if not fits and not self.may_grow:
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
        if not is_connected():  # a notebook or a test may have its own
            if self._refused:  # a step that looks again at what there is need not wait again
                raise self._refused
            try:
                connect(self._option)
            except InputError as refusal:
                self._refused = refusal
                raise
            self._connected = True
        if not self._looked:
            self._looked = True
            refuse_unshared(self._places)

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
            if started := session.running():
                started.end(ray.shutdown)
            else:
                ray.shutdown()
            self._connected = False


@contextmanager
def cluster(settings: OnRay) -> Iterator[Cluster]:
    """Give the cluster of `--ray-address`, $RAY_ADDRESS, or one started here; let go of it after.

    Not after an error: a thread may still be waiting for an answer, and Ray's native code ends the
    process with 1, without a word, when it is let go under it. What was started here is then ended
    by force (`session.py`), as the last that the command line does.
    """
    where = Cluster(
        settings.ray_address, settings.workers, gpus_per_worker=settings.gpus_per_worker,
        places=local_places(settings),
    )  # fmt: skip
    yield where
    where.close()
