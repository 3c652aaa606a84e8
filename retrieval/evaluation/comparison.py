"""Two rankings of the same queries: the paired difference, and which queries changed most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from retrieval.core.confidence import difference_intervals
from retrieval.evaluation.measures import measure_of
from retrieval.evaluation.results import Over, Results, independent

CHANGE = "map"
"""The measure by which a query has changed."""


@dataclass(frozen=True)
class Difference:
    """How much more of a measure one ranking has than the other, a query at a time, on average.

    The 95 % interval is of pairs of values, mostly far narrower than those of the two means;
    nan where there are too few pairs for one. `key` is that of `Definition`.
    """

    key: str
    value: float
    low: float
    high: float

    @property
    def name(self) -> str:
        """The name that ir-measures has for it."""
        return measure_of(self.key).name

    @property
    def usual(self) -> bool:
        """Whether it is printed without being asked for."""
        return measure_of(self.key).usual


@dataclass(frozen=True)
class Comparison:
    """This ranking against another one.

    `changed` is (query_id, label, here, there), by how much `CHANGE` differs, most first; those
    that did not change are not in it. `only_here` and `only_there` count queries without a partner.
    """

    differences: tuple[Difference, ...]
    queries: int
    only_here: int
    only_there: int
    changed: pa.Table


def compare(here: Results, there: Results, over: Over = "queries") -> Comparison:
    """Compare two rankings on the queries that both judge; positive is better here."""
    columns = ["query_id", "label", *here.measures]
    both = here.queries.select(columns).join(
        there.queries.select(["query_id", *here.measures]), "query_id", join_type="inner",
        right_suffix=" there", use_threads=False,
    ).sort_by("query_id")  # fmt: skip
    ours = np.stack([both[name].to_numpy() for name in here.measures], axis=1)
    theirs = np.stack([both[f"{name} there"].to_numpy() for name in here.measures], axis=1)
    # 0.0 is added since a mean of nothing but -0.0 would be printed as such
    means = (ours - theirs).mean(0) + 0.0 if len(both) else np.full(len(here.measures), np.nan)
    (first, weights), (second, _) = (
        independent(values, both["label"], over) for values in (ours, theirs)
    )
    low, high = difference_intervals(first, second, weights)
    differences = tuple(
        Difference(key, float(means[place]), float(low[place]), float(high[place]))
        for place, key in enumerate(here.measures)
    )
    change = both[CHANGE].to_numpy() - both[f"{CHANGE} there"].to_numpy()
    order = np.argsort(-np.abs(change), kind="stable")
    changed = both.select(["query_id", "label", CHANGE, f"{CHANGE} there"]).take(order)
    changed = changed.rename_columns(["query_id", "label", "here", "there"])
    return Comparison(
        differences, len(both), len(here.queries) - len(both), len(there.queries) - len(both),
        changed.slice(0, int(np.count_nonzero(change))),
    )  # fmt: skip
