"""Confidence intervals of mean recall, and sequential decisions on a growing sample of queries.

A query's recall lies between 0 and 1, mostly at 1 and sometimes far below; the percentile bootstrap
of such values covers the true mean much less often than it claims. Here the worst possible value (0
for the lower end, 1 for the upper) is added to the sample, and the ends are quantiles of the mean
under uniformly random weights. For values 0 or 1 this is the Clopper-Pearson interval; for others
Gaffke conjectured the same coverage. Queries are drawn without replacement from a finite set, so
the unseen ones are drawn from Pólya's urn: for values 0 or 1 that is the exact hypergeometric
interval, and a single point once every query was sampled.

Measured (`python -m tests.retrieval.index.test_recall_interval` prints the table): of 1,000 samples
of 15, 250, 1,000 and 2,000 of 10,000 queries, of four kinds of recall around 0.95 and 0.99, the
lower end lies above the true mean in at most 3.0 % and the upper one below it in as many, where
2.5 % are allowed and chance makes 3.5 % of that; mostly in fewer. Where nearly all recalls are near
1 it is wider than it need be, since a query that found nothing may just not have been sampled.

Sources: Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a
nonnegative variable" (2005); Phan, Thomas, Learned-Miller, "Towards practical mean bounds for small
samples" (2021); Lo, "A Bayesian bootstrap for a finite population" (1988).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Verdict = Literal["met", "missed", "undecided"]

TAIL = 0.025
"""Chance that an end of a 95 % interval lies beyond the true mean."""

DRAWS = 10_000
"""Random draws: the smallest tail, a fifth of `TAIL`, is then known to within one seventh."""

LOOK_SIZES = (250, 500, 1000, 2000, 4000)
"""Sample sizes at which the recall of a ranking is evaluated."""

_FEW_SAMPLES = 2  # first samples that are few queries

_SURE_LOOKS = 3
"""Looks made at any cost: 1,000 queries determine a recall of 0.95 to within 0.01."""


def are_few_queries(queries: int) -> bool:
    """Return whether queries are few enough to search all of them exhaustively, without a sample.

    Of up to twice the first sample, at least half would be searched exhaustively anyway.
    """
    return queries <= _FEW_SAMPLES * LOOK_SIZES[0]


def look_sizes(queries: int, lists: float, nlist: int) -> tuple[int, ...]:
    """Return the ascending sample sizes at which the recall of a search may be evaluated.

    A sampled query reads all `nlist` lists, another one `lists` of them on average: more than 1,000
    are drawn only if they take no longer than the whole search. If that includes nearly all queries
    the last look is at every one.
    """
    affordable = int(queries * lists / nlist)
    sizes = [
        *LOOK_SIZES[:_SURE_LOOKS],
        *(size for size in LOOK_SIZES[_SURE_LOOKS:] if size <= affordable),
    ]
    if queries <= sizes[-1]:
        return (*(size for size in sizes if size < queries), queries)
    return tuple(sizes)


def sampled_interval(
    recalls: Values, queries: int, *, looks: int = 1, seed: int = 0
) -> tuple[float, float]:
    """Return the ends of the 95 % interval of the mean of `queries` values, given (n,) of them.

    The known values are a simple random sample without replacement, n > 0. With `looks` looks at
    growing samples, all their intervals hold jointly with 95 % (Bonferroni).
    """
    unseen = queries - len(recalls)
    total = float(recalls.sum())
    if unseen <= 0:
        return total / len(recalls), total / len(recalls)
    levels, counts = np.unique(recalls, return_counts=True)
    generator = np.random.default_rng(seed)
    shares = generator.standard_gamma(np.append(counts, 1.0), (DRAWS, len(counts) + 1))
    shares /= shares.sum(1, keepdims=True)
    drawn = generator.multinomial(unseen, shares).astype(np.float64)
    # not by BLAS, whose last bits may depend on the number of threads
    unseen_sums = np.einsum("rn,n->r", drawn[:, :-1], levels)
    low = np.quantile(unseen_sums, TAIL / looks, method="inverted_cdf")
    high = np.quantile(unseen_sums + drawn[:, -1], 1 - TAIL / looks, method="inverted_cdf")
    return float(total + low) / queries, float(total + high) / queries


def mean_intervals(recalls: Values, *, seed: int = 0) -> tuple[Values, Values]:
    """Return the ends, (m,) each, of the 95 % intervals of the means of m columns of (n, m) values.

    The population is taken as infinite. All columns share the random weights.
    """
    weights = np.random.default_rng(seed).standard_exponential((DRAWS, len(recalls) + 1))
    weights /= weights.sum(1, keepdims=True)
    means = np.einsum("rn,nm->rm", weights[:, :-1], recalls)
    low = np.quantile(means, TAIL, axis=0)
    return low, np.quantile(means + weights[:, -1:], 1 - TAIL, axis=0)


def delivered_recall(recall: float, sampled: int, queries: int) -> float:
    """Return the mean recall of all queries once the `sampled` ones get their exact matches.

    `recall` is the mean of the search; the sampled queries then count as 1.
    """
    return (sampled + (queries - sampled) * recall) / queries


def interval_verdict(low: float, high: float, target: float) -> Verdict:
    """Return whether an interval shows the target as met, as missed, or leaves it undecided."""
    if low >= target:
        return "met"
    return "missed" if high < target else "undecided"


def sequential_verdict(
    recalls: Values, target: float, sizes: Sequence[int], *, seed: int = 0
) -> tuple[Verdict, int]:
    """Return the verdict on a search and the number of queries sampled to reach it.

    `recalls` are those of all queries in sampling order. A ranking does the same look by look
    (`search/recall_check.py`), where each look costs a search.
    """
    verdict: Verdict = "undecided"
    for size in sizes:
        low, high = sampled_interval(recalls[:size], len(recalls), looks=len(sizes), seed=seed)
        gained = float((1 - recalls[:size]).sum()) / len(recalls)
        verdict = interval_verdict(low + gained, high + gained, target)
        if verdict != "undecided":
            break
    return verdict, size
