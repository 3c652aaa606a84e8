"""Measure rankings: one row per judged query, and means over queries with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.core.confidence import class_means, score_intervals
from retrieval.core.errors import InputError
from retrieval.evaluation.measures import Values, compute_measures, find_measure
from retrieval.evaluation.relevance import SCORED_MATCHES, RankingRelevance

CLASS_MEASURES = ("top1", "map")
"""The measures reported for each class."""

IntervalUnit = Literal["queries", "classes"]
"""The population of an interval: further queries of the same classes, or further classes."""


@dataclass(frozen=True)
class Results:
    """The measured queries of a ranking.

    `queries` has the columns query_id, label (null where unknown), relevant (images in the
    gallery), matches (0 for a query without an answer) and one float64 column per measure. `scored`
    is a table SCORED_MATCHES whose `query` is the row of `queries`. `left_out` counts the queries
    that are not judged, `junk` the matches that were removed as junk.
    """

    queries: pa.Table
    scored: pa.Table
    measures: tuple[str, ...]
    left_out: int
    junk: int

    def values(self, *names: str) -> Values:
        """Return the (q, m) values of the named measures, of all measures if none is named."""
        columns = [self.queries[name].to_numpy() for name in names or self.measures]
        return np.stack(columns, axis=1)

    def of_labels(self, labels: Iterable[str]) -> Results:
        """Return the results restricted to queries of the given classes."""
        in_classes = pc.is_in(self.queries["label"], value_set=pa.array(list(labels), pa.string()))
        is_scored = pc.is_in(
            self.scored["query"], value_set=pc.indices_nonzero(in_classes).cast(pa.int64())
        )
        queries = self.queries.filter(in_classes)
        left_out = self.left_out + len(self.queries) - len(queries)
        return Results(queries, self.scored.filter(is_scored), self.measures, left_out, self.junk)


def measure_rankings(parts: Iterable[RankingRelevance], measures: Sequence[str]) -> Results:
    """Compute measures of a ranking, one part at a time, without keeping the grades."""
    names = [("query_id", pa.string()), ("label", pa.string()), ("relevant", pa.int64()),
             ("matches", pa.int64()), *((name, pa.float64()) for name in measures)]  # fmt: skip
    tables, scored = [pa.schema(names).empty_table()], [SCORED_MATCHES.empty_table()]
    row_count = left_out = junk = 0
    for part in parts:
        values = compute_measures(part, measures)
        columns = dict(zip(measures, values.T, strict=True))
        tables.append(
            pa.table({
                "query_id": part.query_ids, "label": part.labels.cast(pa.string()),
                "relevant": part.relevant, "matches": part.filled, **columns,
            })
        )  # fmt: skip
        query_rows = pc.add(part.scored["query"], row_count)
        scored.append(part.scored.set_column(1, SCORED_MATCHES.field("query"), query_rows))
        row_count, left_out, junk = (
            row_count + len(values),
            left_out + part.left_out,
            junk + part.junk,
        )
    return Results(
        pa.concat_tables(tables), pa.concat_tables(scored), tuple(measures), left_out, junk
    )


@dataclass(frozen=True)
class MeasureResult:
    """The mean of a measure over queries, with its 95 % interval (nan where too few queries).

    `key` is that of `MeasureDefinition`.
    """

    key: str
    title: str
    value: float
    low: float
    high: float
    meaning: str

    @property
    def name(self) -> str:
        """The name of the measure in ir-measures."""
        return find_measure(self.key).name

    @property
    def shown_by_default(self) -> bool:
        """Whether the measure is printed without `--all-measures`."""
        return find_measure(self.key).shown_by_default

    @property
    def has_interval(self) -> bool:
        """Whether both ends of the interval are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class ClassResult:
    """The measures over the queries of one class."""

    label: str
    queries: int
    measures: tuple[MeasureResult, ...]


def summarize(results: Results, over: IntervalUnit = "queries") -> tuple[MeasureResult, ...]:
    """Return the mean of each measure over all queries, with its interval."""
    values = results.values()
    low, high = score_intervals(*independent_samples(values, results.queries["label"], over))
    return _measure_results(results.measures, values.mean(0), low, high)


def summarize_by_class(results: Results) -> tuple[ClassResult, ...]:
    """Return the measures `CLASS_MEASURES` of each class, ascending by mAP.

    Their intervals are about further queries of the same class.
    """
    values = results.values(*CLASS_MEASURES)
    encoded = results.queries["label"].combine_chunks().dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy()
    counts = np.bincount(codes[codes >= 0], minlength=len(encoded.dictionary))
    order = np.argsort(codes, kind="stable")[int((codes < 0).sum()) :]
    begins = np.cumsum(counts) - counts
    class_results = []
    for size in np.unique(counts):  # vectorised over classes of equal size: there may be many
        classes = np.flatnonzero(counts == size)
        rows = values[order[begins[classes] + np.arange(size)[:, None]]]  # (size, classes, m)
        low, high = (
            ends.reshape(rows.shape[1:]) for ends in score_intervals(rows.reshape(size, -1))
        )
        for column, number in enumerate(classes):
            measures = _measure_results(
                CLASS_MEASURES, rows[:, column].mean(0), low[column], high[column]
            )
            label = encoded.dictionary[int(number)].as_py()
            class_results.append(ClassResult(label, int(size), measures))
    return tuple(
        sorted(class_results, key=lambda result: (result.measures[-1].value, result.label))
    )


def independent_samples(
    values: Values, labels: pa.ChunkedArray, over: IntervalUnit
) -> tuple[Values, Values | None]:
    """Return the independent samples of (n, m) values, and their weights, for an interval.

    These are the queries, or for `over="classes"` the class means: queries of one class are not
    independent samples of further classes. Raises InputError where a query has no class.
    """
    if over == "queries":
        return values, None
    if labels.null_count:
        raise InputError(
            f"--intervals-over classes: {labels.null_count} queries have no class; specify a file "
            "with --labels, or leave the option out"
        )
    codes = labels.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return class_means(values, codes)


def _measure_results(
    keys: Sequence[str], means: Values, low: Values, high: Values
) -> tuple[MeasureResult, ...]:
    results = []
    for column, key in enumerate(keys):
        measure = find_measure(key)
        ends = float(low[column]), float(high[column])
        results.append(
            MeasureResult(key, measure.title, float(means[column]), *ends, measure.meaning)
        )
    return tuple(results)
