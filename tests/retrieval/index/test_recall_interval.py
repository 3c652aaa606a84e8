"""Tests of the coverage of recall intervals and of the error rate of sequential verdicts.

`python -m tests.retrieval.index.test_recall_interval` prints the miss rates per population.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.index import recall_interval
from retrieval.index.recall_interval import (
    TAIL,
    delivered_recall,
    interval_verdict,
    look_sizes,
    mean_intervals,
    sampled_interval,
    sequential_verdict,
)
from tests.retrieval.sample_vectors import quick, seeds

Values = NDArray[np.float64]
KINDS = ("zero or one", "mostly one", "tenths", "hundredths")


def population(kind: str, mean: float, size: int, seed: int = 0) -> Values:
    """Draw recalls of `size` queries with an expected mean, most of them 1."""
    generator = np.random.default_rng(seed)
    if kind == "zero or one":
        return (generator.random(size) < mean).astype(float)
    if kind == "mostly one":
        imperfect = generator.random(size) < (1 - mean) / 0.9
        return np.where(imperfect, generator.integers(0, 3, size) / 10, 1.0)
    trials, beta = (10, 2.0) if kind == "tenths" else (100, 0.5)
    probabilities = generator.beta(beta * mean / (1 - mean), beta, size)
    return generator.binomial(trials, probabilities) / trials


def miss_rates(values: Values, sampled: int, runs: int, seed: int = 0) -> tuple[float, float]:
    """Return the shares of intervals that lie above, and below, the mean of all values."""
    generator = np.random.default_rng(seed)
    mean, misses = values.mean(), np.zeros(2)
    for run in range(runs):
        sample = generator.choice(values, sampled, replace=False)
        low, high = sampled_interval(sample, len(values), seed=run)
        misses += low > mean + 1e-12, high < mean - 1e-12
    return float(misses[0] / runs), float(misses[1] / runs)


# --- intervals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sampled", "queries"), [(15, 10_000), (250, 400), (500, 10_000)])
def test_interval_coverage_is_at_least_nominal(kind, sampled, queries, monkeypatch):
    monkeypatch.setattr(recall_interval, "DRAWS", 1000)
    runs = 80
    allowed = runs * TAIL + 3 * math.sqrt(runs * TAIL * (1 - TAIL))
    for rate in miss_rates(population(kind, 0.95, queries), sampled, runs):
        assert rate * runs <= allowed


@pytest.mark.parametrize(
    ("correct", "sampled", "queries"),
    [(40, 40, 41), (38, 40, 60), (240, 250, 260), (95, 100, 400)],
)
def test_interval_of_binary_recalls_equals_the_hypergeometric(correct, sampled, queries):
    """The lower end is the smallest total that is not rejected by a one-sided test at 2.5 %."""

    def tail_probability(total: int) -> float:
        ways = sum(
            math.comb(total, hits) * math.comb(queries - total, sampled - hits)
            for hits in range(correct, min(total, sampled) + 1)
        )
        return ways / math.comb(queries, sampled)

    smallest = next(
        total for total in range(correct, queries + 1) if tail_probability(total) > TAIL
    )
    sample = np.repeat([1.0, 0.0], [correct, sampled - correct])
    low, high = sampled_interval(sample, queries)
    assert low == pytest.approx(smallest / queries, abs=max(1.01 / queries, 0.001))
    assert low <= correct / sampled <= high


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40).map(np.array), seeds)
def test_interval_of_a_complete_sample_is_a_point(recalls, seed):
    point = pytest.approx((recalls.mean(), recalls.mean()), abs=1e-12)
    assert sampled_interval(recalls, len(recalls), seed=seed) == point


def test_interval_narrows_as_the_sample_grows():
    sample = population("tenths", 0.95, 250)
    widths = [np.diff(sampled_interval(sample, queries))[0] for queries in (250, 260, 400, 10**6)]
    assert widths == sorted(widths)
    assert widths[0] == 0
    assert widths[2] == pytest.approx(widths[3] * math.sqrt(1 - 250 / 400), rel=0.2)


def test_interval_of_perfect_sample_recall_is_not_a_point():
    low, high = sampled_interval(np.ones(250), 10**6)
    assert (low, high) == pytest.approx((TAIL ** (1 / 250), 1), abs=1e-3)


def test_several_looks_widen_the_interval():
    sample = population("tenths", 0.95, 250)
    one_look, five_looks = (sampled_interval(sample, 10_000, looks=looks) for looks in (1, 5))
    assert five_looks[0] < one_look[0] < one_look[1] < five_looks[1]
    low, _ = sampled_interval(np.ones(250), 10**6, looks=5)
    assert low == pytest.approx((TAIL / 5) ** (1 / 250), abs=2e-3)


def test_mean_intervals_equal_those_of_an_infinite_population():
    columns = np.stack([population(kind, 0.95, 300) for kind in KINDS], axis=1)
    low, high = mean_intervals(columns)
    for position, column in enumerate(columns.T):
        assert (low[position], high[position]) == pytest.approx(
            sampled_interval(column, 10**9), abs=1e-3
        )


# --- looks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queries", "nprobe", "nlist", "sizes"),
    [
        (1, 3, 10, (1,)),
        (250, 3, 10, (250,)),
        (300, 3, 10, (250, 300)),
        (1000, 3, 10, (250, 500, 1000)),
        (20_000, 10, 200, (250, 500, 1000)),
        (40_000, 10, 200, (250, 500, 1000, 2000)),  # costs as much as the ranking
        (10**6, 10, 200, (250, 500, 1000, 2000, 4000)),
    ],
)
def test_sample_grows_while_it_costs_no_more_than_the_search(queries, nprobe, nlist, sizes):
    assert look_sizes(queries, nprobe, nlist) == sizes


def test_interval_verdict_is_met_missed_or_undecided():
    assert interval_verdict(0.95, 0.97, 0.95) == "met"
    assert interval_verdict(0.93, 0.949, 0.95) == "missed"
    assert interval_verdict(0.93, 0.95, 0.95) == "undecided"


def test_delivered_recall_counts_sampled_queries_as_exact():
    assert delivered_recall(0.9, 0, 100) == 0.9
    assert delivered_recall(0.9, 50, 100) == 0.95
    assert delivered_recall(0.9, 100, 100) == 1


# --- the gate -------------------------------------------------------------------------------------


def verdicts(kind: str, mean: float, runs: int) -> list[str]:
    """Return sequential verdicts on searches with the recall `mean`, against the target 0.95."""
    values = population(kind, mean, 200_000)
    values += mean - values.mean()  # the mean is exact; values may exceed 1 slightly
    generator = np.random.default_rng(1)
    sizes = (250, 500, 1000, 2000, 4000)
    return [
        sequential_verdict(generator.permutation(values), 0.95, sizes, seed=run)[0]
        for run in range(runs)
    ]


@pytest.mark.parametrize("kind", ["mostly one", "tenths"])
def test_recall_below_the_target_is_rarely_accepted(kind, monkeypatch):
    """A point estimate would accept a recall of 0.945 in 29 % of rankings."""
    monkeypatch.setattr(recall_interval, "DRAWS", 1000)
    runs = 60
    accepted = verdicts(kind, 0.945, runs).count("met")
    assert accepted <= runs * TAIL + 3 * math.sqrt(runs * TAIL)


@pytest.mark.parametrize("kind", ["mostly one", "tenths"])
def test_recall_well_above_the_target_is_nearly_always_accepted(kind, monkeypatch):
    monkeypatch.setattr(recall_interval, "DRAWS", 1000)
    assert verdicts(kind, 0.965, 40).count("met") >= 38


if __name__ == "__main__":
    RUNS = 1000
    for kind in KINDS:
        for mean in (0.95, 0.99):
            for sampled in (15, 250, 1000, 2000):
                below, above = miss_rates(population(kind, mean, 10_000), sampled, RUNS)
                line = f"{kind:>22} {mean} n {sampled:>4}: {below:.4f} {above:.4f}\n"
                sys.stdout.write(line)
