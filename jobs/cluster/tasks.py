"""Single tasks, for instance one per shard or query block, monitored for stalls.

They run on Ray, or in this process where the cluster is a `DriverProcess`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jobs.cluster.driver_process import DriverProcess
from jobs.cluster.resources import Cluster
from jobs.cluster.stall_detector import TaskActivity, watch_for_stalls
from jobs.runtime.run_metadata import peak_memory

_CPUS = 1


def run_tasks(
    cluster: Cluster, function: Callable[[Any], Any], items: Iterable[Any], *, gpu: bool = False
) -> Iterator[Any]:
    """Call `function` on each item as a task, one per worker at a time; yield the results.

    Results arrive in any order and should be small; large results belong in files. With `gpu` each
    task has a GPU, or the share of one that a worker has. Raises the errors of `function`, and
    Stalled if no task makes progress.
    """
    if isinstance(cluster, DriverProcess):
        yield from cluster.map(function, items)
        return
    cluster.release_pool()
    cluster.require(_CPUS, cluster.gpu_share if gpu else 0)
    yield from watch_for_stalls(_tasks(cluster, function, items, gpu), TaskActivity(cluster, _CPUS))


def _tasks(
    cluster: Cluster, function: Callable[[Any], Any], items: Iterable[Any], gpu: bool
) -> Iterator[Any]:
    import ray

    options = {"num_gpus": cluster.gpu_share} if gpu else {}
    remote = ray.remote(num_cpus=_CPUS, max_retries=3, **options)(_with_peak_memory)
    # stored once, since a remote function must not contain 100 MB (65,536 centroids)
    function_reference = ray.put(function)
    running: list[Any] = []

    def next_result() -> Any:
        nonlocal running
        cluster.busy_workers = len(running)
        ready, running = ray.wait(running, num_returns=1)
        result, peak = ray.get(ready[0])
        cluster.peak = max(cluster.peak, peak)
        return result

    for item in items:
        running.append(remote.remote(function_reference, item))
        if len(running) >= cluster.workers:
            yield next_result()
    while running:
        yield next_result()


def _with_peak_memory(function: Callable[[Any], Any], item: Any) -> tuple[Any, int]:
    """Return the result and the peak memory of this process in bytes."""
    return function(item), peak_memory()
