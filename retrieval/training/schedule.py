"""Learning-rate schedules and early stopping, as pure functions of steps and history.

So a resumed run needs no scheduler state. (The original project multiplied its rate by 0.85^epoch
at each epoch, which compounds to 0.85^(n(n+1)/2) and stops training after some ten epochs. Here
each plateau multiplies the rate by 0.85 once.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Schedule = Literal["cosine", "plateau"]

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises linearly to its maximum."""

DECAY, PLATEAU = 0.85, 2
"""Factor of the rate at each plateau, and the epochs without improvement that are a plateau."""


def learning_rate_factor(
    schedule: Schedule, step: int, steps: int, qualities: Sequence[float]
) -> float:
    """Return the factor, 0 to 1, of the learning rate at a step (from 0) of all `steps`.

    After a linear warm-up: a cosine decay to 0 (Loshchilov, Hutter, "SGDR", 2017, without
    restarts), or a constant rate that falls at each plateau of the `qualities` of previous epochs.
    """
    warm_up_steps = max(1, round(steps * WARM_UP))
    if step < warm_up_steps:
        return (step + 1) / warm_up_steps
    if schedule == "plateau":
        return float(DECAY ** count_plateaus(qualities))
    return (1 + math.cos(math.pi * (step + 1 - warm_up_steps) / max(1, steps - warm_up_steps))) / 2


def count_plateaus(qualities: Sequence[float]) -> int:
    """Count how often `PLATEAU` epochs in a row were no better than the best before them."""
    best, epochs_since_best, plateaus = -math.inf, 0, 0
    for quality in qualities:
        epochs_since_best = 0 if quality > best else epochs_since_best + 1
        best = max(best, quality)
        if epochs_since_best == PLATEAU:
            epochs_since_best, plateaus = 0, plateaus + 1
    return plateaus


def should_stop_early(qualities: Sequence[float], patience: int | None) -> bool:
    """Return whether the last `patience` epochs were no better than the best before them."""
    if patience is None or not qualities:
        return False
    best = max(range(len(qualities)), key=lambda epoch: qualities[epoch])
    return len(qualities) - 1 - best >= patience
