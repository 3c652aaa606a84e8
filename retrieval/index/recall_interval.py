"""Intervals of a mean recall, and the looks at a growing sample that decide whether it is enough.

A query's recall is a number between 0 and 1, mostly 1, now and then far below: the percentile
bootstrap of such values holds the true mean much less often than it claims. Here the sampled values
get one value more, the worst there can be (0 for the lower end, 1 for the upper), and random
weights, uniform among all that sum to one; the ends are quantiles of the weighted mean. For values
that are 0 or 1 this is the interval of Clopper and Pearson, for others Gaffke conjectured that it
holds as often. Queries are drawn without replacement from a finite number of them, so what remains
unseen is drawn value by value from Pólya's urn instead: for values of 0 or 1 that is the exact
hypergeometric interval, and a point where every query was sampled.

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
"""Enough that the smallest tail, a fifth of `TAIL`, is known to within a seventh of itself."""

LOOKS = (250, 500, 1000, 2000, 4000)
"""Sampled queries at which the recall of a ranking is looked at."""

_SURE_LOOKS = 3
"""Looks that there are however dear: 1,000 queries show a recall of 0.95 to within 0.01."""


def look_sizes(queries: int, nprobe: int, nlist: int) -> tuple[int, ...]:
    """Return the sample sizes, ascending, at which the recall of a search may be looked at.

    All lists are read for a sampled query, which costs nlist / nprobe as much as another: more than
    1,000 are drawn only as far as they take no longer than the whole search. Where that is nearly
    all queries the last look is at every one.
    """
    affordable = queries * nprobe // nlist
    sizes = [*LOOKS[:_SURE_LOOKS], *(size for size in LOOKS[_SURE_LOOKS:] if size <= affordable)]
    if queries <= sizes[-1]:
        return (*(size for size in sizes if size < queries), queries)
    return tuple(sizes)


def sampled_interval(
    recalls: Values, queries: int, *, looks: int = 1, seed: int = 0
) -> tuple[float, float]:
    """Return the ends of the 95 % interval of the mean of `queries` values of which (n,) are known.

    The known ones are a simple random sample without replacement, n > 0. Of `looks` looks at
    growing samples all intervals hold together with 95 % (Bonferroni).
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
    rest = np.einsum("rn,n->r", drawn[:, :-1], levels)
    low = np.quantile(rest, TAIL / looks, method="inverted_cdf")
    high = np.quantile(rest + drawn[:, -1], 1 - TAIL / looks, method="inverted_cdf")
    return float(total + low) / queries, float(total + high) / queries


def mean_intervals(recalls: Values, *, seed: int = 0) -> tuple[Values, Values]:
    """Return the ends, (m,) each, of the 95 % intervals of the means of m columns of (n, m) values.

    Of samples from so many that they are as good as infinite. All columns share their weights.
    """
    weights = np.random.default_rng(seed).standard_exponential((DRAWS, len(recalls) + 1))
    weights /= weights.sum(1, keepdims=True)
    means = np.einsum("rn,nm->rm", weights[:, :-1], recalls)
    low = np.quantile(means, TAIL, axis=0)
    return low, np.quantile(means + weights[:, -1:], 1 - TAIL, axis=0)


def delivered(recall: float, sampled: int, queries: int) -> float:
    """Return the mean recall of all queries once `sampled` of them have their exact answers.

    `recall` is that of the search; the sampled queries, of which it is known, then count as 1.
    """
    return (sampled + (queries - sampled) * recall) / queries


def verdict_of(low: float, high: float, target: float) -> Verdict:
    """Return whether an interval shows that the target is met, or missed, or neither."""
    if low >= target:
        return "met"
    return "missed" if high < target else "undecided"


def sequential_verdict(
    recalls: Values, target: float, sizes: Sequence[int], *, seed: int = 0
) -> tuple[Verdict, int]:
    """Return the verdict over a search, and how many queries were sampled until it was reached.

    `recalls` are those of all queries in the order in which they are sampled. This is what a
    ranking does look by look (`certificate.py`), where each look costs a search.
    """
    verdict: Verdict = "undecided"
    for size in sizes:
        low, high = sampled_interval(recalls[:size], len(recalls), looks=len(sizes), seed=seed)
        gained = float((1 - recalls[:size]).sum()) / len(recalls)
        verdict = verdict_of(low + gained, high + gained, target)
        if verdict != "undecided":
            break
    return verdict, size
