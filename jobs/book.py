"""Where the book of attempts is kept on the cluster: by one actor for all steps of a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jobs.attempts import Attempts
from jobs.cluster import Cluster


def book_of(where: Cluster) -> Any:
    """Give the book of a run, ready for a step; one actor keeps it for all steps."""
    import ray

    if where.book is None:
        where.book = open_book(where.given_up)
    else:
        ray.get(where.book.start.remote(frozenset(where.given_up)))
    return where.book


def open_book(given_up: Iterable[str]) -> Any:
    """Start the actor that keeps the book, for as long as its handle is held.

    It lives on the node of whoever drives the run, so that no other node takes it along.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts)
    return actor.options(scheduling_strategy=here).remote(frozenset(given_up))
