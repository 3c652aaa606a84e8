"""What is counted for whoever watches the cluster: Ray's agents serve it to Prometheus."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

DONE, FAILED, TO_DO = "lookalike_done", "lookalike_failed", "lookalike_to_do"
_TAGS = ("stage", "unit")


class Counters:
    """Counts what a stage has done and failed, beside how much there is to do.

    The driver counts, so that nothing is told twice where a worker died. Without Ray it is nothing.
    """

    def __init__(self, stage: str, unit: str, total: int) -> None:
        self._tags = {"stage": stage, "unit": unit}
        self._total = total

    def add(self, done: int, failed: int) -> None:
        """Count what was finished, and how much of that failed."""
        if not _is_connected():
            return
        counters = _counters()
        counters[TO_DO].set(self._total, tags=self._tags)
        for name, count in ((DONE, done), (FAILED, failed)):
            if count:  # Ray refuses to count nothing
                counters[name].inc(count, tags=self._tags)


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@cache
def _counters() -> dict[str, Any]:
    from ray.util.metrics import Counter, Gauge

    return {
        DONE: Counter(DONE, "images, queries, shards or blocks that a stage is done with", _TAGS),
        FAILED: Counter(FAILED, "those of them that stand in the ledger", _TAGS),
        TO_DO: Gauge(TO_DO, "how many there are to do", _TAGS),
    }
