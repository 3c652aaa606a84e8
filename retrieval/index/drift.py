"""Drift: how far an index's vectors lie from their centroids, relative to when it was trained.

spread.json holds the initial mean distance; it is written when the index is first finished and
stays. Training vectors lie closer to the centroids than others, so both sides are measured on
vectors of shards. They are samples, so the ratio varies by chance: retraining is advised only where
the lower end of its interval exceeds a bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.core.records import Spread
from retrieval.core.schemas import Metric
from retrieval.storage import transaction
from retrieval.storage.checksum import checksummed_json, read_checksummed_json
from retrieval.storage.local import Folder

SPREAD_FILE = "spread.json"
_ERRORS = 3.0  # standard errors allowed for each mean
_MIN_COUNT = 30  # minimum vectors for a meaningful deviation
_ON_CENTROIDS = 1e-12  # 1 - cosine below which vectors lie on their centroids, up to rounding
_MAX_RATIO = 1e6  # the largest reported ratio, used where vectors left their centroids


def measure_spread(parts: Sequence[NDArray[np.float64]]) -> Spread:
    """Return the spread of a shard from its vectors' distances to centroids, (n,) per part."""
    measured = np.concatenate([np.empty(0), *parts])
    if len(measured) == 0:
        return Spread(0.0, 0.0, 0)
    return Spread(float(measured.mean()), float(measured.std()), len(measured))


def merge_spreads(shards: Sequence[tuple[int, Spread]]) -> Spread:
    """Return the spread of all vectors of an index, from the rows and spreads of its shards."""
    rows = np.array([count for count, _ in shards], float)
    weight = rows / max(1.0, rows.sum())
    mean, deviation, count = (
        np.array([getattr(spread, name) for _, spread in shards], float)
        for name in ("mean", "deviation", "count")
    )
    overall_mean = float(weight @ mean)
    variance = float(weight @ (deviation**2 + (mean - overall_mean) ** 2))
    error = float((weight**2 * deviation**2 / np.maximum(1, count)).sum())  # squared, of the mean
    return Spread(
        overall_mean, variance**0.5, variance / error if error > 0 else float(count.sum())
    )


def load_initial_spread(folder: Folder, spread: Spread) -> Spread:
    """Return the initial spread of an index; write `spread` as such where it has none yet."""
    transaction.put_if_absent(folder, SPREAD_FILE, checksummed_json(dataclasses.asdict(spread)))
    values = read_checksummed_json(folder, SPREAD_FILE, "make the index again")
    return Spread(values["mean"], values["deviation"], values["count"])


def measure_drift(initial: Spread, current: Spread, metric: Metric) -> dict[str, float]:
    """Return how many times as far from their centroids vectors lie as initially.

    `drift` is the ratio of the mean distances. `drift_low` is its lower end: the current mean minus
    three standard errors, over the initial mean plus three standard errors. The latter use the
    larger deviation, since a small sample seldom holds outliers. It is 0 for too few vectors.
    """
    floor = 0.0 if metric == "l2" else _ON_CENTROIDS
    deviation = max(initial.deviation, current.deviation)
    low = current.mean - _ERRORS * current.deviation / max(1.0, current.count) ** 0.5
    high_initial = initial.mean + _ERRORS * deviation / max(1.0, initial.count) ** 0.5
    drift = _ratio(current.mean, initial.mean, floor)
    drift_low = min(drift, _ratio(max(0.0, low), high_initial, floor))
    if min(initial.count, current.count) < _MIN_COUNT:
        drift_low = 0.0
    return {"drift": round(drift, 4), "drift_low": round(drift_low, 4)}


def _ratio(current: float, initial: float, floor: float) -> float:
    """Return the ratio of mean distances; 1 where both are of vectors on their centroids."""
    current, initial = max(current, floor), max(initial, floor)
    return 1.0 if current == initial else current / max(initial, current / _MAX_RATIO)
