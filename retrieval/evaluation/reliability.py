"""How far probabilities agree with what came true: Brier score, calibration error and their curve.

Sources: Brier, "Verification of forecasts expressed in terms of probability" (1950); for the
expected calibration error over ten bins of equal width: Naeini, Cooper, Hauskrecht, "Obtaining well
calibrated probabilities using Bayesian binning" (2015).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.core.confidence import score_intervals

BINS = 10
"""Bins of equal width between 0 and 1."""


@dataclass(frozen=True)
class ReliabilityBin:
    """The matches whose probability is in one bin.

    `predicted` is their mean probability and `right` the share that is right; `low` and `high` are
    the ends of its 95 % interval over queries, None where too few queries have such a match.
    """

    matches: int
    predicted: float
    right: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Reliability:
    """The agreement of the probabilities of matches with whether they are right.

    `brier` is the mean squared difference of probability and outcome (0 is the best), `low` and
    `high` the ends of its 95 % interval over queries, None for too few. `constant_brier` is the
    score of the best constant probability, which knows nothing of a match. `calibration_error` is
    the expected calibration error: the mean over matches of |predicted - right| of their bin.
    `chance_error` is its mean for perfect probabilities on as many queries, as the spread over
    queries implies. `first_*` are the same of the first matches only.
    """

    queries: int
    matches: int
    brier: float
    low: float | None
    high: float | None
    constant_brier: float
    calibration_error: float
    chance_error: float
    first_brier: float
    first_calibration_error: float
    first_chance_error: float
    bins: tuple[ReliabilityBin, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Reliability:
        """Build a reliability from the values that `to_json` returned."""
        bins = tuple(ReliabilityBin(**each) for each in values["bins"])
        return Reliability(**{**values, "bins": bins})


def measure_reliability(
    probabilities: NDArray[np.float64],
    right: NDArray[np.bool_],
    queries: NDArray[np.int64],
    ranks: NDArray[np.int64],
) -> Reliability:
    """Compare the probabilities of n matches, at least one, with whether they are right.

    Args:
        probabilities: (n,) float64, from 0 to 1.
        right: (n,) bool.
        queries: (n,) int64, the number of each match's query; the unit of the intervals.
        ranks: (n,) int64, from 1 within a query.
    """
    outcomes = right.astype(np.float64)
    errors = np.square(probabilities - outcomes)
    _, query = np.unique(queries, return_inverse=True)
    counts = np.bincount(query).astype(np.float64)[:, None]
    low, high = score_intervals(np.bincount(query, errors)[:, None] / counts, counts)
    share, first = float(outcomes.mean()), ranks == 1
    return Reliability(
        len(counts), len(errors), float(errors.mean()), _finite(low[0]), _finite(high[0]),
        share * (1 - share), expected_calibration_error(probabilities, right),
        _chance_error(probabilities, outcomes, query),
        float(errors[first].mean()) if first.any() else 0.0,
        expected_calibration_error(probabilities[first], right[first]),
        _chance_error(probabilities[first], outcomes[first], query[first]),
        _bins(probabilities, outcomes, query, len(counts)),
    )  # fmt: skip


def expected_calibration_error(
    probabilities: NDArray[np.float64], right: NDArray[np.bool_]
) -> float:
    """Return the mean over matches of |mean probability - share right| of their bin; 0 for none."""
    number = _bin_numbers(probabilities)
    gaps = np.bincount(number, probabilities, BINS) - np.bincount(number, right, BINS)
    return float(np.abs(gaps).sum() / max(1, len(right)))


def _chance_error(
    probabilities: NDArray[np.float64], outcomes: NDArray[np.float64], query: NDArray[np.int64]
) -> float:
    """Return the mean calibration error of perfect probabilities, for queries that vary as these.

    The gap of a bin is then a sum over independent queries with mean 0. A normal variable of
    deviation s has the mean absolute value s * sqrt(2 / pi).
    """
    cells = query * BINS + _bin_numbers(probabilities)
    gaps = np.bincount(cells, probabilities - outcomes, BINS * int(query.max(initial=-1) + 1))
    deviations = np.sqrt(np.square(gaps.reshape(-1, BINS)).sum(0))
    return float(deviations.sum() * np.sqrt(2 / np.pi) / max(1, len(outcomes)))


def _bin_numbers(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)


def _bins(
    probabilities: NDArray[np.float64],
    outcomes: NDArray[np.float64],
    query: NDArray[np.int64],
    queries: int,
) -> tuple[ReliabilityBin, ...]:
    """Return the bins that have matches, in ascending order."""
    bins = []
    numbers = _bin_numbers(probabilities)
    for number in np.unique(numbers):
        chosen = numbers == number
        counts = np.bincount(query[chosen], minlength=queries)
        shares = np.bincount(query[chosen], outcomes[chosen], queries) / np.maximum(counts, 1)
        low, high = score_intervals(shares[:, None], counts[:, None].astype(np.float64))
        bins.append(ReliabilityBin(
            int(chosen.sum()), float(probabilities[chosen].mean()), float(outcomes[chosen].mean()),
            _finite(low[0]), _finite(high[0]),
        ))  # fmt: skip
    return tuple(bins)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
