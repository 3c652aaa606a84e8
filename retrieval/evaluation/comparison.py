"""Compare two rankings of the same queries: paired differences and most changed queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from retrieval.core.confidence import difference_intervals
from retrieval.evaluation.measures import find_measure
from retrieval.evaluation.results import IntervalUnit, Results, independent_samples

CHANGE = "map"
"""The measure by which changed queries are ranked."""


@dataclass(frozen=True)
class Difference:
    """The mean paired difference of a measure between two rankings, with its 95 % interval.

    The interval is computed from paired values, usually far narrower than those of the two means;
    nan where there are too few pairs. `key` is that of `MeasureDefinition`.
    """

    key: str
    value: float
    low: float
    high: float

    @property
    def name(self) -> str:
        """The name of the measure in ir-measures."""
        return find_measure(self.key).name

    @property
    def shown_by_default(self) -> bool:
        """Whether the measure is printed without `--all-measures`."""
        return find_measure(self.key).shown_by_default


@dataclass(frozen=True)
class Comparison:
    """The paired differences of two rankings, first minus second.

    `queries` counts the queries that both rankings judge; `only_first` and `only_second` count the
    others. `changed` has the columns query_id, label, here and there (the values of `CHANGE` in the
    first and second ranking), most changed first, without unchanged queries.
    """

    differences: tuple[Difference, ...]
    queries: int
    only_first: int
    only_second: int
    changed: pa.Table


def compare_results(first: Results, second: Results, over: IntervalUnit = "queries") -> Comparison:
    """Compare two rankings on the queries that both judge; positive means `first` is better."""
    columns = ["query_id", "label", *first.measures]
    both = first.queries.select(columns).join(
        second.queries.select(["query_id", *first.measures]), "query_id", join_type="inner",
        right_suffix=" there", use_threads=False,
    ).sort_by("query_id")  # fmt: skip
    first_values = np.stack([both[name].to_numpy() for name in first.measures], axis=1)
    second_values = np.stack([both[f"{name} there"].to_numpy() for name in first.measures], axis=1)
    # adding 0.0 turns -0.0, which would be printed with its sign, into 0.0
    means = np.full(len(first.measures), np.nan)
    if len(both):
        means = (first_values - second_values).mean(0) + 0.0
    (first_samples, weights), (second_samples, _) = (
        independent_samples(values, both["label"], over) for values in (first_values, second_values)
    )
    low, high = difference_intervals(first_samples, second_samples, weights)
    differences = tuple(
        Difference(key, float(means[column]), float(low[column]), float(high[column]))
        for column, key in enumerate(first.measures)
    )
    change = both[CHANGE].to_numpy() - both[f"{CHANGE} there"].to_numpy()
    order = np.argsort(-np.abs(change), kind="stable")
    changed = both.select(["query_id", "label", CHANGE, f"{CHANGE} there"]).take(order)
    changed = changed.rename_columns(["query_id", "label", "here", "there"])
    return Comparison(
        differences, len(both), len(first.queries) - len(both), len(second.queries) - len(both),
        changed.slice(0, int(np.count_nonzero(change))),
    )  # fmt: skip
