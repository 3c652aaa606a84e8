"""Whether the vectors of an index still lie where those did that it had when it was trained.

spread.json holds how far these lay from their centroids: it is put when the index is finished for
the first time, and stays. Vectors that trained the centroids lie closer to them than others of the
same kind do, so both sides are measured on the vectors of shards. They are measured on samples: the
ratio differs from 1 by chance, the more, the fewer vectors there are and the more single ones lie
far away. A new training is advised only where the lower end of its interval is above a bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.records import Spread
from retrieval.core.schemas import Metric
from retrieval.storage import transaction
from retrieval.storage.checksum import read_json, sealed_json
from retrieval.storage.local import Folder

SPREAD = "spread.json"
_ERRORS = 3.0  # standard errors that both means may be off
_FEW = 30  # vectors, of fewer of which the deviation tells nothing
_ON_CENTROIDS = 1e-12  # 1 - cosine below which vectors lie on their centroids, up to rounding
_MOST = 1e6  # the largest ratio that is said, and that of vectors which left their centroids


def spread_from(parts: Sequence[NDArray[np.float64]]) -> Spread:
    """Return the spread of a shard, from the distances of some of its vectors, (n,) a part."""
    measured = np.concatenate([np.empty(0), *parts])
    if len(measured) == 0:
        return Spread(0.0, 0.0, 0)
    return Spread(float(measured.mean()), float(measured.std()), len(measured))


def merged_spread(shards: Sequence[tuple[int, Spread]]) -> Spread:
    """Return the spread of all vectors of an index, from the rows and spreads of its shards."""
    rows = np.array([count for count, _ in shards], float)
    weight = rows / max(1.0, rows.sum())
    mean, deviation, count = (
        np.array([getattr(spread, name) for _, spread in shards], float)
        for name in ("mean", "deviation", "count")
    )
    whole = float(weight @ mean)
    variance = float(weight @ (deviation**2 + (mean - whole) ** 2))
    error = float((weight**2 * deviation**2 / np.maximum(1, count)).sum())  # squared, of the mean
    return Spread(whole, variance**0.5, variance / error if error > 0 else float(count.sum()))


def first_spread(folder: Folder, spread: Spread) -> Spread:
    """Read the spread that an index had first; put `spread` where it has none yet."""
    transaction.put_once(folder, SPREAD, sealed_json(dataclasses.asdict(spread)))
    values = read_json(folder.read(SPREAD))
    if values is None:
        raise Damaged(f"{folder.uri(SPREAD)} was altered; make the index again")
    return Spread(values["mean"], values["deviation"], values["count"])


def drift_of(first: Spread, now: Spread, metric: Metric) -> dict[str, float]:
    """Return how many times as far from their centroids vectors lie now as they did first.

    `drift` is the ratio of the means, and `drift_low` its lower end: the mean of now less three
    standard errors, over the first one and three of its own. These are of the larger deviation,
    since a small sample seldom holds the single vectors that lie far away; where nothing has
    changed both deviations are the same anyway. Of few vectors it is 0: nothing is known.
    """
    least = 0.0 if metric == "l2" else _ON_CENTROIDS
    deviation = max(first.deviation, now.deviation)
    low = now.mean - _ERRORS * now.deviation / max(1.0, now.count) ** 0.5
    reference = first.mean + _ERRORS * deviation / max(1.0, first.count) ** 0.5
    drift = _ratio(now.mean, first.mean, least)
    drift_low = min(drift, _ratio(max(0.0, low), reference, least))
    if min(first.count, now.count) < _FEW:
        drift_low = 0.0
    return {"drift": round(drift, 4), "drift_low": round(drift_low, 4)}


def _ratio(now: float, first: float, least: float) -> float:
    """Divide spreads; 1 where both are of vectors that lie on their centroids."""
    now, first = max(now, least), max(first, least)
    return 1.0 if now == first else now / max(first, now / _MOST)
