"""Steps of training spread over the cluster: ordered answers, and values the workers keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jobs.cluster import tasks
from jobs.cluster.resources import Cluster
from jobs.cluster.stall_detector import TaskSigns, watched


class Spread:
    """The workers of `retrieval/index/workers.py` as Ray tasks."""

    def __init__(self, where: Cluster) -> None:
        self._where = where

    def keep(self, value: Any) -> Any:
        """Put a value into the object store, once for all workers of a machine."""
        import ray

        self._where.connect()
        return _Kept(ray.put(value))

    def map(self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Call the function with each item's values, in tasks; answers in the items' order."""

        def call(numbered: tuple[int, tuple[Any, ...]]) -> tuple[int, Any]:
            number, item = numbered
            return number, function(*map(_value, item))

        waiting: dict[int, Any] = {}
        wanted = 0
        for number, answer in tasks.tasks(self._where, call, enumerate(items)):
            waiting[number] = answer
            while wanted in waiting:
                yield waiting.pop(wanted)
                wanted += 1

    def hold(
        self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]
    ) -> list[tuple[Any, Any]]:
        """Call the function; the large half of its answer stays in the object store."""
        import ray

        self._where.require(1)

        def call(*item: Any) -> tuple[Any, Any]:
            return function(*map(_value, item))  # type: ignore[no-any-return]

        remote = ray.remote(num_cpus=1, max_retries=3, num_returns=2)(call)

        def answers() -> Iterator[tuple[Any, Any]]:
            for large, small in [remote.remote(*item) for item in items]:
                yield _Kept(large), ray.get(small)

        return list(watched(answers(), TaskSigns(self._where, 1)))


class _Kept:
    """Stands for a value in the object store."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference


def _value(given: Any) -> Any:
    if isinstance(given, _Kept):
        import ray

        return ray.get(given.reference)
    return given
