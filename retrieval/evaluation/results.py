"""What rankings come to: a line a judged query, and means over them with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.evaluation.judged import SCORED, Judged
from retrieval.evaluation.measures import Values, measure_of, values_of
from retrieval.intervals import bootstrap_means

OF_A_CLASS = ("top1", "map")
"""What is told of each class."""

_COLUMNS = 10_000  # bootstrapped at once


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
    """A measure over queries, with its 95 % bootstrap interval; nan where there is none."""

    name: str
    title: str
    value: float
    low: float
    high: float
    meaning: str

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


def measured(results: Results, *, seed: int) -> tuple[Measured, ...]:
    """Give each measure over all queries."""
    values = results.values()
    low, high = _intervals(values, seed)
    return _told(results.measures, values.mean(0), low, high)


def by_class(results: Results, *, seed: int) -> tuple[ClassMeasured, ...]:
    """Give the measures `OF_A_CLASS` of each class, the worst first by mAP."""
    values = results.values(*OF_A_CLASS)
    found = [
        ClassMeasured(label, count, _told(OF_A_CLASS, mean, low, high))
        for label, count, mean, low, high in _classes(results.queries["label"], values, seed)
    ]
    return tuple(sorted(found, key=lambda one: (one.measures[-1].value, one.label)))


def _classes(
    labels: pa.ChunkedArray, values: Values, seed: int
) -> Iterator[tuple[str, int, Values, Values, Values]]:
    """Give each class with its count, means and intervals.

    Classes of the same size are bootstrapped together: they share their draws.
    """
    encoded = labels.combine_chunks().dictionary_encode()
    code = pc.fill_null(encoded.indices, -1).to_numpy()
    counts = np.bincount(code[code >= 0], minlength=len(encoded.dictionary))
    order = np.argsort(code, kind="stable")[int((code < 0).sum()) :]
    begins = np.cumsum(counts) - counts
    for size in np.unique(counts):
        classes = np.flatnonzero(counts == size)
        lines = order[begins[classes] + np.arange(size)[:, None]]  # (size, classes)
        some = values[lines]  # (size, classes, measures)
        low, high = _intervals(some.reshape(size, -1), seed)
        shape = some.shape[1:]
        for place, number in enumerate(classes):
            name = encoded.dictionary[int(number)].as_py()
            ends = low.reshape(shape)[place], high.reshape(shape)[place]
            yield name, int(size), some.mean(0)[place], *ends


def _intervals(values: Values, seed: int) -> tuple[Values, Values]:
    """Bootstrap many columns, some at a time; a single line has no interval."""
    if len(values) < 2:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    firsts = range(0, values.shape[1], _COLUMNS)
    found = [bootstrap_means(values[:, first : first + _COLUMNS], seed=seed) for first in firsts]
    low, high = (np.concatenate(side) for side in zip(*found, strict=True))
    return low, high


def _told(
    names: Sequence[str], means: NDArray[np.float64], low: Values, high: Values
) -> tuple[Measured, ...]:
    told = []
    for place, name in enumerate(names):
        each = measure_of(name)
        ends = float(low[place]), float(high[place])
        told.append(Measured(name, each.title, float(means[place]), *ends, each.meaning))
    return tuple(told)
