"""Steps of index training as tasks, on Ray or in this process.

Both classes implement the interface of `retrieval.index.workers`: results are in the order of the
inputs. On Ray large values stay in the object store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jobs.cluster import tasks
from jobs.cluster.driver_process import DriverProcess
from jobs.cluster.resources import Cluster
from jobs.cluster.stall_detector import TaskActivity, watch_for_stalls
from retrieval.index.workers import Workers


def training_workers(cluster: Cluster) -> Workers:
    """Return the workers that train an index on a cluster."""
    return DriverWorkers(cluster) if isinstance(cluster, DriverProcess) else RayWorkers(cluster)


class DriverWorkers:
    """Implementation of `retrieval.index.workers` in this process."""

    def __init__(self, process: DriverProcess) -> None:
        self._process = process

    def broadcast(self, value: Any) -> Any:
        """Return the value itself."""
        return value

    def map(self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Call the function with the arguments in each item; yield results in order."""
        return self._process.map(lambda item: function(*item), items)

    def map_stored(
        self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]
    ) -> list[tuple[Any, Any]]:
        """Return all results of the function, which returns a large and a small value."""
        return list(self.map(function, items))


class RayWorkers:
    """Implementation of `retrieval.index.workers` with Ray tasks."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def broadcast(self, value: Any) -> Any:
        """Put a value into the object store, once for all workers of a machine.

        The returned reference may be passed in place of the value to `map` and `map_stored`.
        """
        import ray

        self._cluster.connect()
        return _StoredValue(ray.put(value))

    def map(self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Call the function with the arguments in each item as tasks; yield results in order."""

        def call(numbered: tuple[int, tuple[Any, ...]]) -> tuple[int, Any]:
            number, item = numbered
            return number, function(*map(_resolve, item))

        pending: dict[int, Any] = {}
        next_number = 0
        for number, result in tasks.run_tasks(self._cluster, call, enumerate(items)):
            pending[number] = result
            while next_number in pending:
                yield pending.pop(next_number)
                next_number += 1

    def map_stored(
        self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]
    ) -> list[tuple[Any, Any]]:
        """Call the function, which returns a large and a small value, as tasks, in order.

        The large values stay in the object store; the small ones are fetched.
        """
        import ray

        self._cluster.release_pool()
        self._cluster.require(1)

        def call(*item: Any) -> tuple[Any, Any]:
            return function(*map(_resolve, item))  # type: ignore[no-any-return]

        remote = ray.remote(num_cpus=1, max_retries=3, num_returns=2)(call)

        def results() -> Iterator[tuple[Any, Any]]:
            for large, small in [remote.remote(*item) for item in items]:
                yield _StoredValue(large), ray.get(small)

        return list(watch_for_stalls(results(), TaskActivity(self._cluster, 1)))


class _StoredValue:
    """A reference to a value in the object store."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference


def _resolve(argument: Any) -> Any:
    if isinstance(argument, _StoredValue):
        import ray

        return ray.get(argument.reference)
    return argument
