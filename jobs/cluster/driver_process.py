"""Small work on vectors in the process of the command, without Ray.

Starting Ray and importing libraries in its workers takes about `DRIVER_SECONDS`, so work that one
core does in less is done here. `DriverProcess` takes the place of a `Cluster`: `run_tasks` and
`stream` call their functions in this process, one after another, in one thread as in a worker, so
that the output has the same bytes. Images are never decoded here, since a decoder may crash.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_limits

from jobs.cluster.resources import Cluster
from jobs.cluster.stall_detector import DriverActivity, watch_for_stalls
from jobs.runtime.run_metadata import peak_memory

DRIVER_SECONDS = 5.0
"""Largest estimated time of work that is done in the process of the command."""

_BYTES_PER_SECOND = 50e6  # of vectors that one core reads, checks and writes
_PRODUCTS_PER_SECOND = 10e9  # multiplications and additions of one core


def estimate_seconds(vector_bytes: float, products: float = 0.0) -> float:
    """Estimate the seconds of one core for work on vectors, from its size alone.

    Args:
        vector_bytes: Bytes of the vectors that are read, counted once for each time.
        products: Products of two components that are computed.
    """
    return vector_bytes / _BYTES_PER_SECOND + products / _PRODUCTS_PER_SECOND


class DriverProcess(Cluster):
    """This process in place of a cluster of one worker; never connects to Ray."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__("local", 1)
        self._cluster = cluster
        self.profile, self.quarantined_images = cluster.profile, cluster.quarantined_images

    def connect(self) -> None:
        """Do nothing: there is no connection."""

    def _nodes(self) -> list[dict[str, float]]:
        return [{"CPU": 1.0}]

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Call `function` on each item and yield the results in order.

        Another thread does the work, so that the main thread receives signals at once and detects
        stalls. Raises the errors of `function`, and Stalled.
        """
        yield from watch_for_stalls(self._call(function, items), DriverActivity())

    def _call(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        with _one_thread():
            for item in items:
                result = function(item)
                self._cluster.peak = max(self._cluster.peak, peak_memory())
                yield result


def choose_process(cluster: Cluster, seconds: float) -> Cluster:
    """Return this process for work on vectors of at most `DRIVER_SECONDS`, else the cluster.

    A running cluster that the user named does all work: the driver may be on a small head node.
    """
    if cluster.is_named or seconds > DRIVER_SECONDS:
        return cluster
    return DriverProcess(cluster)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit the numerical libraries to one thread in this thread, as they are in a worker."""
    torch = sys.modules.get("torch")
    torch_threads = torch.get_num_threads() if torch else 0
    if torch:  # it sets the threads of OpenMP when it first computes in a thread
        torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        if torch:
            torch.set_num_threads(torch_threads)
