"""Counters of each stage's progress, which Ray's agents export to Prometheus."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

DONE, FAILED, TO_DO = "lookalike_done", "lookalike_failed", "lookalike_to_do"
_TAGS = ("stage", "unit")


class Counters:
    """Counters of the done and failed items of a stage, and of the total.

    Only the driver counts, so that nothing is counted twice after the death of a worker. Without a
    connection to Ray nothing is counted.
    """

    def __init__(self, stage: str, unit: str, total: int) -> None:
        self._tags = {"stage": stage, "unit": unit}
        self._total = total

    def add(self, done: int, failed: int) -> None:
        """Add `done` finished items, of which `failed` failed."""
        if not _is_connected():
            return
        counters = _counters()
        counters[TO_DO].set(self._total, tags=self._tags)
        for name, count in ((DONE, done), (FAILED, failed)):
            if count:  # Ray does not accept 0
                counters[name].inc(count, tags=self._tags)


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@cache
def _counters() -> dict[str, Any]:
    from ray.util.metrics import Counter, Gauge

    return {
        DONE: Counter(DONE, "images, queries, shards or blocks that a stage has finished", _TAGS),
        FAILED: Counter(FAILED, "finished items that failed and are in the ledger", _TAGS),
        TO_DO: Gauge(TO_DO, "total number of items of the stage", _TAGS),
    }
