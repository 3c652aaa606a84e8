"""A pool of Ray actors that process work items and are watched for stalls and crashes.

The actors run plain functions of the library. The driver sends each idle actor the next work item,
such as a chunk number, and receives a small result. Actors stay for the next steps of a command, so
that these start at once. With a `DriverProcess` the functions run in this process.
"""

from __future__ import annotations

import importlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Protocol

from jobs.cluster.driver_process import DriverProcess
from jobs.cluster.resources import Cluster
from jobs.cluster.stall_detector import PoolActivity, watch_for_stalls
from jobs.cluster.worker_failures import begin_item, failure_log_for_step, failure_log_of
from jobs.runtime.profile import FIRST_RESULT, FIRST_WORKER
from jobs.runtime.run_metadata import peak_memory
from retrieval.embedding.attempt import FIRST_ATTEMPT

ACTOR_CPUS = 0.5
"""CPUs reserved per worker, though it uses a whole one, so that the other nodes can take over the
workers of a lost node."""

_RETRY_SECONDS = 0.5  # before an actor that could not be restarted is waited for again

Work = Callable[..., dict[str, Any]]
"""Called with the number of an item, its `Attempt`, and the blocks that belong to the item."""

MakeWork = Callable[[Any], Work]
NameItem = Callable[[int], str]
ItemWithBlocks = tuple[int, list[Any]]
"""The number of an item, and references to the blocks that its work needs."""

_ITEMS_PER_ACTOR = 2  # if items have blocks: those of the next one arrive during the work


class BlockSource(Protocol):
    """Tasks that make the blocks of all items of a step, for instance decoded images."""

    @property
    def count(self) -> int:
        """Return the number of tasks, which the failure log numbers after the items."""
        ...

    def items_with_blocks(self, failure_log: Any) -> Iterator[ItemWithBlocks]:
        """Begin the tasks; yield each item once its blocks exist."""
        ...


class Worker:
    """A Ray actor that serves the steps of a command one after another.

    It prepares the work function of a step when the first item of the step arrives.
    """

    def __init__(self, failure_log: Any) -> None:
        self._failure_log = failure_log
        self._step: Any = None
        self._work: Work | None = None
        self._ready = 0.0

    def is_ready(self) -> bool:
        """Return True, once the actor runs."""
        return True

    def import_modules(self, names: tuple[str, ...]) -> None:
        """Import modules before the first item needs them."""
        for name in names:
            importlib.import_module(name)

    def process(self, step: tuple[Any, Any], item: int, *blocks: Any) -> dict[str, Any]:
        """Process an item of a step, given by references to (make, item_name) and `shared`."""
        import ray

        if self._work is None or self._step != step:
            self._work = None  # free the memory of the last step first
            make, self._item_name = ray.get(step[0])
            self._work, self._step = make(ray.get(step[1])), step
            self._ready = time.time()
        assert self._work is not None
        attempt = begin_item(self._failure_log, item, self._item_name(item))
        result = self._work(item, attempt, *blocks)
        self._failure_log.end.remote(item)
        return {"result": result, "peak": peak_memory(), "ready": self._ready}


class ActorPool:
    """The worker actors of a command; they stay for its next steps until they are released."""

    def __init__(self, failure_log: Any, gpus: float) -> None:
        import ray

        self._failure_log, self.gpus = failure_log, gpus
        # Tasks are not retried: a restarted actor gets no items until it runs, since it may find no
        # resources. Actors are spread over the nodes, half of which would stay idle otherwise.
        self._actor = ray.remote(
            num_cpus=ACTOR_CPUS,
            num_gpus=gpus or None,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )(Worker)
        self._actors: list[Any] = []

    def actors(self, count: int) -> list[Any]:
        """Return all actors, at least `count`; start those that are missing.

        Some may not run, for instance those of a lost node.
        """
        while len(self._actors) < count:
            self._actors.append(self._actor.remote(self._failure_log))
        return [*self._actors]

    def has(self, actor: Any) -> bool:
        """Return whether an actor was started and not released."""
        return any(actor is member for member in self._actors)

    def release(self) -> None:
        """End all actors, so that others may use their resources."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


def pool_for(cluster: Cluster, gpus: float) -> ActorPool:
    """Return the pool of a cluster whose actors have `gpus` GPUs each."""
    failure_log = failure_log_of(cluster)
    pool: ActorPool | None = cluster.pool
    if pool is not None and pool.gpus != gpus:
        pool.release()
        pool = None
    if pool is None:
        pool = cluster.pool = ActorPool(failure_log, gpus)
    return pool


def start_first_worker(cluster: Cluster, device: str, modules: tuple[str, ...]) -> None:
    """Start one actor of the pool that `stream` will use, and import modules in it.

    Raises Stalled if no node can run it, before an autoscaler starts a node for it.
    """
    gpus = cluster.gpu_share if device == "cuda" else 0
    cluster.require(ACTOR_CPUS, gpus)
    pool_for(cluster, gpus).actors(1)[0].import_modules.remote(modules)


def stream(
    cluster: Cluster,
    make: MakeWork,
    items: list[int],
    shared: Any,
    device: str,
    item_name: NameItem = "item {}".format,
    blocks: BlockSource | None = None,
) -> Iterator[dict[str, Any]]:
    """Process items on the pool of actors; yield the results in any order.

    Args:
        cluster: The cluster to run on.
        make: Called once in each actor with `shared`; returns the function that processes one item
            and returns JSON values. That function must be idempotent: if an actor dies, it is
            replaced and the item is processed again, as a further attempt.
        items: The numbers of the work items.
        shared: Any value; stored once per node, however many actors run there.
        device: cpu, or cuda, where each actor has a GPU or its share of one.
        item_name: Returns the name of an item in messages.
        blocks: The tasks on any node that make the blocks of the items, if they need any.

    Raises:
        LookalikeError: As the work function does.
        Stalled: If no worker makes progress, or no node can run one.
    """
    if isinstance(cluster, DriverProcess):
        work = make(shared)
        yield from cluster.map(lambda item: work(item, FIRST_ATTEMPT), items)
        return
    import ray

    gpus = cluster.gpu_share if device == "cuda" else 0
    cluster.require(ACTOR_CPUS, gpus)
    size = _pool_size(cluster, len(items), gpus, has_tasks=blocks is not None)
    failure_log = failure_log_for_step(cluster)
    pool = pool_for(cluster, gpus)
    actors = pool.actors(size)
    step = (ray.put((make, item_name)), ray.put(shared))
    workers = f"{size} workers of {ACTOR_CPUS:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
    count = len(items)
    inputs: Iterator[ItemWithBlocks] = ((item, []) for item in items)
    if blocks is not None:
        count, inputs = count + blocks.count, blocks.items_with_blocks(failure_log)
        actors *= _ITEMS_PER_ACTOR
    activity = PoolActivity(cluster, failure_log, item_name, count, workers)
    answers = watch_for_stalls(_process_items(pool, actors, step, inputs, len(items)), activity)
    for number, answer in enumerate(answers):
        cluster.peak = max(cluster.peak, answer["peak"])
        if number == 0:
            cluster.profile.add_at(FIRST_WORKER, answer["ready"])
            cluster.profile.add(FIRST_RESULT, cluster.profile.now())
        yield answer["result"]


def _pool_size(cluster: Cluster, items: int, gpus: float, *, has_tasks: bool) -> int:
    """Return the number of actors, of `gpus` GPUs each, for a number of items."""
    size = min(cluster.requested_workers or cluster.cpus, items)
    if gpus and not cluster.may_grow:  # an actor that gets no GPU would wait forever
        size = min(size, int(cluster.gpus / gpus))
    elif has_tasks and not gpus:  # half of the CPUs are for the tasks
        size = min(size, cluster.cpus // 2)
    return max(1, size)


def _process_items(
    pool: ActorPool,
    actors: list[Any],
    step: tuple[Any, Any],
    inputs: Iterator[ItemWithBlocks],
    count: int,
) -> Iterator[dict[str, Any]]:
    """Send `count` items to idle actors of a pool, and yield their answers as they arrive.

    An actor has as many items at once as it occurs in `actors`. The item of an actor that died goes
    to the next idle one, and so does an item whose answer was lost with its node. The actor is
    restarted by Ray and gets items again once it runs. If the pool was released meanwhile, after an
    error that this thread does not learn of, the items end.
    """
    import ray
    from ray import exceptions

    deaths = (
        exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.NodeDiedError,
        exceptions.OutOfMemoryError, exceptions.ObjectLostError,
    )  # fmt: skip
    pending = deque(islice(inputs, 1))  # its blocks are made while the actors start
    idle: deque[Any] = deque()
    starting = {_wait_until_ready(actor): actor for actor in actors}
    running: dict[Any, tuple[Any, ItemWithBlocks]] = {}
    while count:
        while idle and (pending := pending or deque(islice(inputs, 1))):
            actor, (item, blocks) = idle.popleft(), pending.popleft()
            running[actor.process.remote(step, item, *blocks)] = actor, (item, blocks)
        ((reference,), _) = ray.wait([*running, *starting], num_returns=1)
        if reference in running:
            actor, item_with_blocks = running.pop(reference)
            try:
                answer = ray.get(reference)
            except deaths:
                if not pool.has(actor):
                    return
                pending.appendleft(item_with_blocks)
                starting[_wait_until_ready(actor)] = actor
            else:
                idle.append(actor)
                count -= 1
                yield answer
        else:
            actor = starting.pop(reference)
            try:
                ray.get(reference)
                idle.append(actor)
            except deaths:  # it died again before it ran
                if not pool.has(actor):
                    return
                time.sleep(_RETRY_SECONDS)
                starting[_wait_until_ready(actor)] = actor


def _wait_until_ready(actor: Any) -> Any:
    """Return a reference whose value exists once an actor runs, possibly after a restart."""
    return actor.is_ready.options(max_task_retries=-1).remote()
