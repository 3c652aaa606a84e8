"""What rankings come to: a line a judged query, and means over them with intervals."""

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
from retrieval.evaluation.measures import Values, measure_of, values_of
from retrieval.evaluation.relevance import SCORED, Judged

OF_A_CLASS = ("top1", "map")
"""What is told of each class."""

Over = Literal["queries", "classes"]
"""What an interval speaks of: further queries of the same classes, or further classes."""


@dataclass(frozen=True)
class Results:
    """The judged queries of a ranking.

    `queries` has query_id, label (null where unknown), relevant (images in the gallery), matches
    (judged places that were filled: 0 is a query without an answer) and a float64 column a measure.
    `scored` is SCORED; its `query` is the line of `queries`.
    """

    queries: pa.Table
    scored: pa.Table
    measures: tuple[str, ...]
    left_out: int
    junk: int

    def values(self, *names: str) -> Values:
        """Give the (q, m) values of some measures, all if none is named."""
        columns = [self.queries[name].to_numpy() for name in names or self.measures]
        return np.stack(columns, axis=1)

    def of_labels(self, labels: Iterable[str]) -> Results:
        """Give the results of the queries of some classes alone."""
        chosen = pc.is_in(self.queries["label"], value_set=pa.array(list(labels), pa.string()))
        kept = pc.is_in(self.scored["query"], value_set=pc.indices_nonzero(chosen).cast(pa.int64()))
        queries = self.queries.filter(chosen)
        left_out = self.left_out + len(self.queries) - len(queries)
        return Results(queries, self.scored.filter(kept), self.measures, left_out, self.junk)


def gather(parts: Iterable[Judged], measures: Sequence[str]) -> Results:
    """Measure the parts of a ranking one after another; their grades are not kept."""
    names = [("query_id", pa.string()), ("label", pa.string()), ("relevant", pa.int64()),
             ("matches", pa.int64()), *((name, pa.float64()) for name in measures)]  # fmt: skip
    tables, scored = [pa.schema(names).empty_table()], [SCORED.empty_table()]
    lines = left_out = junk = 0
    for part in parts:
        values = values_of(part, measures)
        columns = dict(zip(measures, values.T, strict=True))
        tables.append(
            pa.table({
                "query_id": part.query_ids, "label": part.labels.cast(pa.string()),
                "relevant": part.relevant, "matches": part.filled, **columns,
            })
        )  # fmt: skip
        moved = pc.add(part.scored["query"], lines)
        scored.append(part.scored.set_column(1, SCORED.field("query"), moved))
        lines, left_out, junk = lines + len(values), left_out + part.left_out, junk + part.junk
    return Results(
        pa.concat_tables(tables), pa.concat_tables(scored), tuple(measures), left_out, junk
    )


@dataclass(frozen=True)
class Measured:
    """A measure over queries, with its 95 % interval; nan where there are too few for one.

    `key` is that of `Definition`.
    """

    key: str
    title: str
    value: float
    low: float
    high: float
    meaning: str

    @property
    def name(self) -> str:
        """The name that ir-measures has for it."""
        return measure_of(self.key).name

    @property
    def usual(self) -> bool:
        """Whether it is printed without being asked for."""
        return measure_of(self.key).usual

    @property
    def has_interval(self) -> bool:
        """Tell whether both ends are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class ClassMeasured:
    """What the queries of one class come to."""

    label: str
    queries: int
    measures: tuple[Measured, ...]


def measured(results: Results, over: Over = "queries") -> tuple[Measured, ...]:
    """Return each measure over all queries."""
    values = results.values()
    low, high = score_intervals(*independent(values, results.queries["label"], over))
    return _measured(results.measures, values.mean(0), low, high)


def by_class(results: Results) -> tuple[ClassMeasured, ...]:
    """Return the measures `OF_A_CLASS` of each class, the worst first by mAP.

    Their intervals speak of further queries of that class.
    """
    values = results.values(*OF_A_CLASS)
    encoded = results.queries["label"].combine_chunks().dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy()
    counts = np.bincount(codes[codes >= 0], minlength=len(encoded.dictionary))
    order = np.argsort(codes, kind="stable")[int((codes < 0).sum()) :]
    begins = np.cumsum(counts) - counts
    found = []
    for size in np.unique(counts):  # classes of one size at once: there may be many
        classes = np.flatnonzero(counts == size)
        rows = values[order[begins[classes] + np.arange(size)[:, None]]]  # (size, classes, m)
        low, high = (
            ends.reshape(rows.shape[1:]) for ends in score_intervals(rows.reshape(size, -1))
        )
        for place, number in enumerate(classes):
            measures = _measured(OF_A_CLASS, rows[:, place].mean(0), low[place], high[place])
            label = encoded.dictionary[int(number)].as_py()
            found.append(ClassMeasured(label, int(size), measures))
    return tuple(sorted(found, key=lambda each: (each.measures[-1].value, each.label)))


def independent(
    values: Values, labels: pa.ChunkedArray, over: Over
) -> tuple[Values, Values | None]:
    """Return what is independent for an interval, rows and their weights, of (n, m) values.

    The queries, or the means of their classes: where an interval is to speak of classes that were
    not seen, queries of one class are no independent witnesses.
    """
    if over == "queries":
        return values, None
    if labels.null_count:
        raise InputError(
            f"--intervals-over classes: {labels.null_count} queries have no class; name a file "
            "with --labels, or leave the option out"
        )
    codes = labels.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return class_means(values, codes)


def _measured(
    keys: Sequence[str], means: Values, low: Values, high: Values
) -> tuple[Measured, ...]:
    found = []
    for place, key in enumerate(keys):
        each = measure_of(key)
        ends = float(low[place]), float(high[place])
        found.append(Measured(key, each.title, float(means[place]), *ends, each.meaning))
    return tuple(found)
