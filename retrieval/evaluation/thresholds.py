"""Which `--min-score` gives which precision: right matches among all that are as close."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.confidence import score_intervals
from retrieval.core.schemas import Metric
from retrieval.vectors.scoring import Float64, keys_of

WANTED = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Threshold:
    """The loosest score that gives the precision `wanted`, and what is then kept.

    `precision` is over matches, not over queries; its interval is over the queries that keep any,
    each weighing what it keeps, and nan where they are too few. `kept` is the share of all matches,
    `matches` their number, `found` the share of the right ones. All were measured on the matches
    that the score was chosen by, so expect a little less of others.
    """

    wanted: float
    score: float
    precision: float
    low: float
    high: float
    kept: float
    matches: int
    found: float


def thresholds(
    scored: pa.Table, metric: Metric, *, wanted: Sequence[float] = WANTED
) -> tuple[Threshold, ...]:
    """Find the thresholds of matches SCORED; a precision that no score gives is left out.

    Of several that the same score gives, the highest stands.
    """
    right = scored["right"].to_numpy()
    keys = keys_of(scored["score"].to_numpy(), metric)
    order = np.argsort(-keys)  # of equal keys any is last
    sorted_keys = keys[order]
    cuts = np.flatnonzero(np.diff(sorted_keys, append=-np.inf))  # the last of equal keys
    kept = cuts + 1
    hits = np.cumsum(right[order])[cuts]
    chosen: dict[int, float] = {}
    for share in sorted(wanted):
        enough = np.flatnonzero(hits >= share * kept)
        if len(enough):
            chosen[int(enough[-1])] = share
    if not chosen:
        return ()
    places = np.array(list(chosen))
    least = sorted_keys[cuts[places]]
    low, high = _intervals(scored, keys, right, least)
    nexts = np.append(sorted_keys[cuts], -np.inf)[places + 1]
    return tuple(
        Threshold(
            chosen[place], _score(float(least[i]), float(nexts[i]), metric),
            float(hits[place] / kept[place]), float(low[i]), float(high[i]),
            float(kept[place] / len(keys)),
            int(kept[place]), float(hits[place] / max(1, hits[-1])),
        )
        for i, place in enumerate(chosen)
    )  # fmt: skip


def _intervals(
    scored: pa.Table, keys: Float64, right: NDArray[np.bool_], least: Float64
) -> tuple[Float64, Float64]:
    query = scored["query"].to_numpy()
    count = int(query.max(initial=-1)) + 1
    kept, hits = (
        np.stack(
            [np.bincount(query[chosen & (keys >= key)], minlength=count) for key in least], axis=1
        ).astype(np.float64)
        for chosen in (np.ones(len(keys), np.bool_), right)
    )
    return score_intervals(hits / np.maximum(kept, 1), kept)


def _score(key: float, following: float, metric: Metric) -> float:
    """Give the shortest decimal that keeps what `key` keeps, and not the `following` one."""
    short = key
    for places in range(2, 17):
        power = 10.0**places
        rounded = math.floor(key * power) / power
        if following < rounded <= key:
            short = rounded
            break
    return float(keys_of(np.array([short]), metric)[0])
