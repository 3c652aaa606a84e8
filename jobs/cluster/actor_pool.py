"""A pool of Ray actors that process work items and are watched for stalls and crashes.

The actors run plain functions of the library. Work items (chunk numbers) and results are small, and
both are streamed through Ray Data. With a `DriverProcess` the functions run in this process.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from jobs.cluster.driver_process import DriverProcess
from jobs.cluster.resources import Cluster
from jobs.cluster.stall_detector import PoolActivity, watch_for_stalls
from jobs.cluster.worker_failures import begin_item, failure_log_for_step
from jobs.runtime.profile import FIRST_RESULT, FIRST_WORKER
from jobs.runtime.run_metadata import peak_memory
from retrieval.core import errors
from retrieval.core.errors import LookalikeError
from retrieval.embedding.attempt import FIRST_ATTEMPT, Attempt

ACTOR_CPUS = 0.5
"""CPUs reserved per worker, though it uses a whole one: Ray's own reading tasks reserve a whole CPU
and would wait forever if actors had reserved them all. It also lets the other nodes take over the
workers of a lost node."""

_MAX_BLOCKS = 4096  # of Ray Data, over which the work items are spread


Work = Callable[[int, Attempt], dict[str, Any]]
MakeWork = Callable[[Any], Work]
NameItem = Callable[[int], str]


class _Worker:
    """A Ray Data actor: prepares its work function once, then processes items one after another.

    A LookalikeError is returned as a result, since Ray Data keeps only the text of exceptions.
    """

    def __init__(self, make: MakeWork, shared: Any, failure_log: Any, item_name: NameItem) -> None:
        import ray

        self._failure_log, self._item_name = failure_log, item_name
        try:
            self._work = make(ray.get(shared))
        except LookalikeError as error:
            self._work = _raise_for_each_item(error)
        self._ready = time.time()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"answer": [json.dumps(self._answer(item)) for item in batch["item"].tolist()]}

    def _answer(self, item: int) -> dict[str, Any]:
        try:
            attempt = begin_item(self._failure_log, item, self._item_name(item))
            result = self._work(item, attempt)
        except LookalikeError as error:
            return {"error": type(error).__name__, "message": str(error)}
        self._failure_log.end.remote(item)
        return {"result": result, "peak": peak_memory(), "ready": self._ready}


def _raise_for_each_item(error: LookalikeError) -> Work:
    """Return a work function that raises the error of the preparation."""

    def work(_: int, __: Attempt) -> dict[str, Any]:
        raise error

    return work


def stream(
    cluster: Cluster,
    make: MakeWork,
    items: list[int],
    shared: Any,
    device: str,
    item_name: NameItem = "item {}".format,
) -> Iterator[dict[str, Any]]:
    """Process items on a pool of actors through Ray Data; yield the results in any order.

    Args:
        cluster: The cluster to run on.
        make: Called once in each actor with `shared`; returns the function that processes one item
            and returns JSON values. That function must be idempotent: if an actor dies, it is
            replaced and the item is processed again, as a further attempt.
        items: The numbers of the work items.
        shared: Any value; stored once per node, however many actors run there.
        device: cpu, or cuda, where each actor has a GPU or its share of one.
        item_name: Returns the name of an item in messages.

    Raises:
        LookalikeError: As the work function does.
        Stalled: If no worker makes progress, or no node can run one.
    """
    if isinstance(cluster, DriverProcess):
        work = make(shared)
        yield from cluster.map(lambda item: work(item, FIRST_ATTEMPT), items)
        return
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    gpus = cluster.gpu_share if device == "cuda" else 0
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    cluster.require(ACTOR_CPUS, gpus)
    max_size = len(items)
    if gpus and not cluster.may_grow:  # an actor that gets no GPU would wait forever
        max_size = min(max_size, int(cluster.gpus / gpus))
    size = max(1, min(cluster.requested_workers or cluster.cpus, max_size))
    failure_log = failure_log_for_step(cluster)
    dataset = ray.data.from_items(
        [{"item": item} for item in items], override_num_blocks=min(len(items), _MAX_BLOCKS)
    ).map_batches(
        _Worker,
        fn_constructor_args=(make, ray.put(shared), failure_log, item_name),
        batch_size=1,
        compute=ActorPoolStrategy(size=size),
        num_cpus=ACTOR_CPUS,
        num_gpus=gpus or None,
    )
    workers = f"{size} workers of {ACTOR_CPUS:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
    activity = PoolActivity(cluster, failure_log, item_name, len(items), workers)
    yield from watch_for_stalls(read_results(cluster, dataset), activity)


def read_results(cluster: Cluster, dataset: Any) -> Iterator[Any]:
    """Yield the results of a Ray dataset as they arrive; raise the first error among them.

    The profile of the cluster gets the times of the first of them.
    """
    is_first = True
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
        for answer in map(json.loads, batch["answer"]):
            if "error" in answer:
                raise getattr(errors, answer["error"])(answer["message"])
            cluster.peak = max(cluster.peak, answer["peak"])
            if is_first:
                cluster.profile.add_at(FIRST_WORKER, answer["ready"])
                cluster.profile.add(FIRST_RESULT, cluster.profile.now())
                is_first = False
            yield answer["result"]
