"""Find the loosest `--min-score` that reaches each of several precision targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.confidence import score_intervals
from retrieval.core.schemas import Metric
from retrieval.vectors.scoring import Float64, keys_to_scores, scores_to_keys

PRECISION_TARGETS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Threshold:
    """The loosest score that reaches the precision `wanted`, and the matches that it keeps.

    `precision` is over matches, not over queries; its 95 % interval is over the queries that keep
    any match, each weighted by the number it keeps, and nan where they are too few. `kept` is the
    share of all matches that are kept, `matches` their number, `found` the share of the right ones.
    All are measured on the matches that the score was chosen on, so they are slightly optimistic.
    """

    wanted: float
    score: float
    precision: float
    low: float
    high: float
    kept: float
    matches: int
    found: float


def find_thresholds(
    scored: pa.Table, metric: Metric, *, wanted: Sequence[float] = PRECISION_TARGETS
) -> tuple[Threshold, ...]:
    """Return the thresholds of a table SCORED_MATCHES, one per precision target that is reached.

    Of several targets that the same score reaches, only the highest is returned.
    """
    right = scored["right"].to_numpy()
    keys = scores_to_keys(scored["score"].to_numpy(), metric)
    order = np.argsort(-keys)
    sorted_keys = keys[order]
    cuts = np.flatnonzero(np.diff(sorted_keys, append=-np.inf))  # the last of equal keys
    kept = cuts + 1
    hits = np.cumsum(right[order])[cuts]
    chosen: dict[int, float] = {}
    for share in sorted(wanted):
        reached = np.flatnonzero(hits >= share * kept)
        if len(reached):
            chosen[int(reached[-1])] = share
    if not chosen:
        return ()
    positions = np.array(list(chosen))
    min_keys = sorted_keys[cuts[positions]]
    low, high = _intervals(scored, keys, right, min_keys)
    next_keys = np.append(sorted_keys[cuts], -np.inf)[positions + 1]
    return tuple(
        Threshold(
            chosen[position], _score(float(min_keys[i]), float(next_keys[i]), metric),
            float(hits[position] / kept[position]), float(low[i]), float(high[i]),
            float(kept[position] / len(keys)),
            int(kept[position]), float(hits[position] / max(1, hits[-1])),
        )
        for i, position in enumerate(chosen)
    )  # fmt: skip


def _intervals(
    scored: pa.Table, keys: Float64, right: NDArray[np.bool_], min_keys: Float64
) -> tuple[Float64, Float64]:
    query = scored["query"].to_numpy()
    count = int(query.max(initial=-1)) + 1
    kept, hits = (
        np.stack(
            [np.bincount(query[chosen & (keys >= key)], minlength=count) for key in min_keys],
            axis=1,
        ).astype(np.float64)
        for chosen in (np.ones(len(keys), np.bool_), right)
    )
    return score_intervals(hits / np.maximum(kept, 1), kept)


def _score(key: float, next_key: float, metric: Metric) -> float:
    """Return the shortest decimal score that keeps `key` and drops `next_key`."""
    shortest = key
    for decimals in range(2, 17):
        power = 10.0**decimals
        rounded = math.floor(key * power) / power
        if next_key < rounded <= key:
            shortest = rounded
            break
    return float(keys_to_scores(np.array([shortest]), metric)[0])
