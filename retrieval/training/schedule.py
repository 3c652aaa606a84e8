"""Learning-rate schedules and early stopping, as pure functions of steps and history.

A resumed run therefore needs no scheduler state. (The original project multiplied
its rate by 0.85^epoch at each epoch, which compounds to 0.85^(n(n+1)/2): a slip that stops learning
after some ten epochs. Here a plateau multiplies it by 0.85 once.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Schedule = Literal["cosine", "plateau"]

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises to its highest."""

DECAY, PLATEAU = 0.85, 2
"""What the rate is multiplied by, each time so many epochs have passed without a better one."""


def learning_rate_factor(
    schedule: Schedule, step: int, steps: int, qualities: Sequence[float]
) -> float:
    """Return the factor of the learning rate for a step, counted from 0, of all `steps`.

    A straight rise, then a cosine to 0 (Loshchilov, Hutter, "SGDR", 2017, without restarts), or a
    level that falls at each plateau of the `qualities` of the epochs so far.
    """
    rise = max(1, round(steps * WARM_UP))
    if step < rise:
        return (step + 1) / rise
    if schedule == "plateau":
        return float(DECAY ** count_plateaus(qualities))
    return (1 + math.cos(math.pi * (step + 1 - rise) / max(1, steps - rise))) / 2


def count_plateaus(qualities: Sequence[float]) -> int:
    """Count how often `PLATEAU` epochs in a row were no better than the best before them."""
    best, since, found = -math.inf, 0, 0
    for quality in qualities:
        since = 0 if quality > best else since + 1
        best = max(best, quality)
        if since == PLATEAU:
            since, found = 0, found + 1
    return found


def should_stop_early(qualities: Sequence[float], patience: int | None) -> bool:
    """Return whether the last `patience` epochs were no better than the best before them."""
    if patience is None or not qualities:
        return False
    best = max(range(len(qualities)), key=lambda place: qualities[place])
    return len(qualities) - 1 - best >= patience
