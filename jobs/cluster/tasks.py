"""Single tasks on the cluster: shards, blocks and copies, each done once and watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jobs.cluster.resources import Cluster
from jobs.cluster.stall_detector import TaskSigns, watched
from jobs.runtime.run_metadata import peak_memory

_CPUS = 1


def tasks(
    where: Cluster, function: Callable[[Any], Any], items: Iterable[Any], *, gpu: bool = False
) -> Iterator[Any]:
    """Do items as Ray tasks, as many at once as there are workers; answers in any order.

    Answers should be small: what is large belongs into a file. With `gpu` each has one, or the
    share of one that a worker has.
    """
    where.require(_CPUS, where.gpu_share if gpu else 0)
    yield from watched(_tasks(where, function, items, gpu), TaskSigns(where, _CPUS))


def _tasks(
    where: Cluster, function: Callable[[Any], Any], items: Iterable[Any], gpu: bool
) -> Iterator[Any]:
    import ray

    options = {"num_gpus": where.gpu_share} if gpu else {}
    remote = ray.remote(num_cpus=_CPUS, max_retries=3, **options)(_measured)
    kept = ray.put(function)  # a remote function may not hold 100 MB, as 65,536 centroids are
    running: list[Any] = []

    def next_answer() -> Any:
        nonlocal running
        where.at_work = len(running)
        ready, running = ray.wait(running, num_returns=1)
        answer, peak = ray.get(ready[0])
        where.peak = max(where.peak, peak)
        return answer

    for item in items:
        running.append(remote.remote(kept, item))
        if len(running) >= where.workers:
            yield next_answer()
    while running:
        yield next_answer()


def _measured(function: Callable[[Any], Any], item: Any) -> tuple[Any, int]:
    """Also answer how much memory this process has held at most, in bytes."""
    return function(item), peak_memory()
