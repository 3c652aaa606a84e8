"""Interpolate queries per second at a recall from measured (recall, rate) points.

Search methods are compared at equal recall. Each is measured at some settings of its search
parameters; its frontier is the points that no other point beats in both recall and rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """Recall and queries per second of one setting."""

    recall: float
    rate: float


def frontier(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other one reaches in both recall and rate, by ascending recall."""
    best: list[Point] = []
    for point in sorted(points, reverse=True):  # descending recall, then descending rate
        if not best or point.rate > best[-1].rate:
            best.append(point)
    return best[::-1]


def rate_at_recall(points: Iterable[Point], recall: float) -> float | None:
    """Return the rate at a recall, by linear interpolation of the logarithm of the rate.

    Below the lowest recall that was measured it is the rate of that point, a lower bound: nothing
    is extrapolated. Above the highest it is None.
    """
    best = frontier(points)
    above = next((number for number, point in enumerate(best) if point.recall >= recall), None)
    if above is None:
        return None
    high = best[above]
    if above == 0 or high.recall == recall:
        return high.rate
    low = best[above - 1]
    weight = (recall - low.recall) / (high.recall - low.recall)
    return math.exp((1 - weight) * math.log(low.rate) + weight * math.log(high.rate))


def fastest_at_recall(
    points_by_variant: dict[str, Sequence[Point]], recall: float
) -> tuple[str, float] | None:
    """Return the variant with the highest rate at a recall, and that rate; None if none reaches it.

    Each variant is interpolated alone, since no index lies between two that were built apart.
    """
    rates = {
        name: rate
        for name, points in points_by_variant.items()
        if (rate := rate_at_recall(points, recall)) is not None
    }
    return max(rates.items(), key=lambda item: item[1]) if rates else None
