"""Open-set measures: known queries, with an image in the gallery, against unknown ones without.

A known query has a relevant image in the gallery, an unknown one has none. The evidence of a query
is the probability, or else the key (score, negated for l2), of its first or most probable match.

Sources: Phillips, Grother, Micheals, "Evaluation methods in face recognition" (Handbook of Face
Recognition, 2nd edition, 2011) for the detection and identification rate at a false alarm rate;
ISO/IEC 19795-1 calls them 1 - FNIR and FPIR. Fawcett, "An introduction to ROC analysis" (2006).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.core.confidence import score_intervals

Float64 = NDArray[np.float64]

FALSE_POSITIVE_RATES = (0.01, 0.1)
"""Shares of unknown queries that may get a match, at which identification is measured."""


@dataclass(frozen=True)
class Identification:
    """The known queries that are identified at a threshold that few unknown queries pass.

    `threshold` is the lowest evidence at which at most the share `rate` of the unknown queries have
    a match, `false_positives` that share. `identified` is the share of known queries whose best
    match passes the threshold and is right; `low` and `high` are the ends of its 95 % interval over
    known queries for this threshold, nan for too few.
    """

    rate: float
    threshold: float
    false_positives: float
    identified: float
    low: float
    high: float

    @property
    def name(self) -> str:
        """The name of the measure: DIR at FPIR."""
        return f"DIR@{self.rate:g}"


@dataclass(frozen=True)
class OpenSetResult:
    """Open-set measures of a ranking.

    `auroc` is the probability that a known query has more evidence than an unknown one, ties
    counting half: 0.5 by chance, 1 at best.
    """

    known: int
    unknown: int
    auroc: float
    identifications: tuple[Identification, ...]


def measure_open_set(
    evidence: Float64, right: NDArray[np.bool_], known: NDArray[np.bool_]
) -> OpenSetResult | None:
    """Measure how well the evidence tells known queries from unknown ones.

    Args:
        evidence: (q,) float64, of the best match of each query; -inf for a query without a match.
        right: (q,) bool, whether that match is right.
        known: (q,) bool, whether the gallery has a relevant image.

    Returns:
        The measures, or None where all queries are known or all are unknown.
    """
    unknown_evidence = np.sort(evidence[~known])
    if len(unknown_evidence) in (0, len(evidence)):
        return None
    known_evidence, known_right = evidence[known], right[known]
    below = np.searchsorted(unknown_evidence, known_evidence, "left")
    not_above = np.searchsorted(unknown_evidence, known_evidence, "right")
    return OpenSetResult(
        len(known_evidence), len(unknown_evidence),
        float((below + not_above).mean() / 2 / len(unknown_evidence)),
        tuple(
            _identification(known_evidence, known_right, unknown_evidence, rate)
            for rate in FALSE_POSITIVE_RATES
        ),
    )  # fmt: skip


def _identification(
    evidence: Float64, right: NDArray[np.bool_], unknown: Float64, rate: float
) -> Identification:
    """Measure identification at a rate; `unknown` is the evidence of unknown queries, ascending."""
    allowed = int(rate * len(unknown) + 1e-9)  # so that 0.1 of 30 is 3
    # just above the first unknown query that may not pass
    threshold = np.nextafter(unknown[len(unknown) - allowed - 1], np.inf)
    passing = len(unknown) - np.searchsorted(unknown, threshold, "left")
    identified = (right & (evidence >= threshold)).astype(np.float64)[:, None]
    low, high = score_intervals(identified)
    return Identification(
        rate, float(threshold), float(passing / len(unknown)), float(identified.mean()),
        float(low[0]), float(high[0]),
    )  # fmt: skip
