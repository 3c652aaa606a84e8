"""Select the queries and matches that a report shows, and number their pictures.

Queries and matches are kept as Arrow tables, since 10^6 matches as Python objects need too much
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.schemas import Metric
from retrieval.evaluation.ground_truth import JUNK, UNKNOWN, GroundTruth
from retrieval.evaluation.labels import DISTRACTOR
from retrieval.report.margin import compute_margins
from retrieval.report.page import STATES, MatchCell, QueryRow, State
from retrieval.sources.container_paths import reading_order

SHOWN_MATCHES = 20
"""Most matches shown per query."""

_RIGHT, _WRONG, _UNKNOWN, _FAILED = range(len(STATES))
_QUERY = pa.schema(
    [("query_id", pa.string()), ("path", pa.string()), ("label", pa.string()),
     ("failure", pa.string()), ("state", pa.int8()), ("margin", pa.float64())]
)  # fmt: skip
_MATCH = pa.schema(
    [("rank", pa.int32()), ("image_id", pa.string()), ("path", pa.string()),
     ("score", pa.float64()), ("label", pa.string()), ("probability", pa.float64()),
     ("grade", pa.int16())]
)  # fmt: skip


@dataclass(frozen=True)
class ShownQueries:
    """The n queries that a report shows, by name, failed ones last, with their matches.

    Query i has the rows `starts[i]` to `starts[i + 1]` of `matches`; `starts` is (n + 1,) int64.
    `with_pictures` adds a column `picture` to both tables.
    """

    queries: pa.Table
    matches: pa.Table
    starts: NDArray[np.int64]
    first: int = 0  # position of the first query in the whole report

    def __len__(self) -> int:
        return len(self.queries)

    def cut(self, first: int, last: int) -> ShownQueries:
        """Return a copy of the queries from `first` to before `last`, which pickles small."""
        starts = self.starts[first : last + 1]
        matches = self.matches.slice(starts[0], starts[-1] - starts[0])
        queries = self.queries.slice(first, last - first)
        return ShownQueries(
            _copied(queries), _copied(matches), starts - starts[0], self.first + first
        )

    def rows(self) -> list[QueryRow]:
        """Return the queries as objects; call it on a `cut`, since objects need much memory."""
        queries, matches = _pictured(self.queries), _pictured(self.matches)
        names = ("rank", "image_id", "path", "score", "label", "grade", "picture", "probability")
        cells = [MatchCell(*values) for values in _tuples(matches, names)]
        columns = ("query_id", "path", "label", "state", "margin", "failure", "picture")
        return [
            QueryRow(self.first + position, query_id, path, label, STATES[state], margin,
                     tuple(cells[self.starts[position] : self.starts[position + 1]]),
                     failure, picture)
            for position, (query_id, path, label, state, margin, failure, picture) in enumerate(
                _tuples(queries, columns))
        ]  # fmt: skip

    def paths(self) -> list[str]:
        """Return the distinct paths of all images, in efficient reading order."""
        paths = pa.chunked_array([*self.queries["path"].chunks, *self.matches["path"].chunks],
                                 pa.string())  # fmt: skip
        return sorted(paths.unique().to_pylist(), key=reading_order)

    def with_pictures(
        self, numbers: dict[str, int] | list[str], missing: Iterable[int]
    ) -> ShownQueries:
        """Return the queries with picture numbers, by path or list position; null if missing."""
        paths = pa.array(list(numbers), pa.string())
        picture_numbers = pa.array(
            numbers.values() if isinstance(numbers, dict) else range(len(numbers)), pa.int32()
        )
        is_missing = np.zeros(len(paths), bool)
        is_missing[list(missing)] = True
        picture_numbers = pc.if_else(
            pa.array(is_missing), pa.scalar(None, pa.int32()), picture_numbers
        )

        def numbered(table: pa.Table) -> pa.Table:
            positions = pc.index_in(table["path"], value_set=paths)
            return table.append_column("picture", picture_numbers.take(positions.combine_chunks()))

        return ShownQueries(numbered(self.queries), numbered(self.matches), self.starts, self.first)

    def counts(self) -> dict[State, int]:
        """Return the number of queries in each state."""
        counted = np.bincount(self.queries["state"].to_numpy(), minlength=len(STATES))
        return {state: int(count) for state, count in zip(STATES, counted, strict=True)}


def select_queries(
    parts: Callable[[], Iterable[pa.Table]],
    failures: pa.Table,
    ground_truth: GroundTruth | None,
    metric: Metric,
    limit: int,
) -> tuple[ShownQueries, int]:
    """Select at most `limit` queries to show, by name, those without matches last.

    Queries that could not be read are selected first, then those with matches, then those that no
    gallery image may match (stage `rank`), which may be most of them.

    Args:
        parts: Returns a new iterator over tables of MATCHES at each call; each query is in one
            table.
        failures: Table FAILURES of the queries.
        ground_truth: Grades the matches; None if there are no labels.
        metric: The metric of the scores.
        limit: The largest number of queries.

    Returns:
        The selection, and the number of queries with matches, shown or not.
    """
    failures = failures.sort_by("image_id")
    is_unmatched = pc.equal(failures["stage"], "rank")
    failed = failures.filter(pc.invert(is_unmatched)).slice(0, limit)
    last, query_count = _last_shown(parts, limit - len(failed))
    unmatched = failures.filter(is_unmatched)
    unmatched = unmatched.slice(0, max(0, limit - len(failed) - query_count))
    failed = pa.concat_tables([failed, unmatched]).sort_by("image_id")
    query_tables, match_tables, starts = [], [], [np.zeros(1, np.int64)]
    for part in parts() if last is not None else ():
        shown = part.filter(
            (pc.field("rank") <= SHOWN_MATCHES) & (pc.field("query_id") <= pa.scalar(last))
        )
        if not len(shown):
            continue
        queries, matches, begins = _grade_part(shown.combine_chunks(), ground_truth, metric)
        query_tables.append(queries)
        match_tables.append(matches)
        starts.append(begins[1:] + starts[-1][-1])
    shown = _by_name(
        pa.concat_tables([_QUERY.empty_table(), *query_tables]),
        pa.concat_tables([_MATCH.empty_table(), *match_tables]),
        np.concatenate(starts),
    )
    return _append_failed(shown, failed), query_count


def _last_shown(parts: Callable[[], Iterable[pa.Table]], limit: int) -> tuple[str | None, int]:
    """Return the last shown query with matches, or None, and the number of such queries."""
    ids = [part.filter(pc.field("rank") == 1)["query_id"] for part in parts()]
    names = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
    if limit <= 0 or not len(names):
        return None, len(names)
    order = pc.sort_indices(names)
    return names[order[min(limit, len(names)) - 1].as_py()].as_py(), len(names)


def _grade_part(
    shown: pa.Table, ground_truth: GroundTruth | None, metric: Metric
) -> tuple[pa.Table, pa.Table, NDArray[np.int64]]:
    """Return the queries and matches of a part with grades and margins, and the query starts."""
    first = np.flatnonzero(shown["rank"].to_numpy() == 1)
    starts = np.append(first, len(shown)).astype(np.int64)
    grades = (
        np.full(len(shown), UNKNOWN, np.int16)
        if ground_truth is None
        else ground_truth.grades(shown)
    )
    margins = compute_margins(shown["score"].to_numpy(), _classes(shown["label"]), starts, metric)
    heads = shown.take(pa.array(first))
    queries = [heads["query_id"], heads["query_path"], heads["query_label"],
               pa.nulls(len(first), pa.string()), pa.array(_states(grades, first)),
               pa.array(margins)]  # fmt: skip
    matches = [shown[name] for name in _MATCH.names[:-1]]
    return (
        pa.table(queries, schema=_QUERY),
        pa.table([*matches, pa.array(grades, pa.int16())], schema=_MATCH),
        starts,
    )


def _classes(labels: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return class numbers of labels; -1 without class; each distractor is a class of its own."""
    coded = labels.combine_chunks().dictionary_encode()
    names = {name: number for number, name in enumerate(coded.dictionary.to_pylist())}
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    distractor_codes = np.arange(len(codes)) + len(names)
    codes = np.where(
        codes == names.get(DISTRACTOR, -1), np.where(codes < 0, -1, distractor_codes), codes
    )
    return np.where(codes == names.get("", -1), -1, codes)


def _states(grades: NDArray[np.int16], first: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return the state of each query, by its first match that is not junk."""
    end = len(grades)
    first_graded = np.minimum.reduceat(np.where(grades != JUNK, np.arange(end), end), first)
    owner = np.searchsorted(first, first_graded, "right") - 1
    has_graded = (first_graded < end) & (owner == np.arange(len(first)))
    grade = np.where(has_graded, grades[np.minimum(first_graded, end - 1)], UNKNOWN)
    return np.select([grade > 0, grade == 0], [_RIGHT, _WRONG], _UNKNOWN).astype(np.int8)


def _by_name(queries: pa.Table, matches: pa.Table, starts: NDArray[np.int64]) -> ShownQueries:
    """Sort queries, with their matches, by the bytes of their ids."""
    order = pc.sort_indices(queries["query_id"]).to_numpy()
    if (order == np.arange(len(order))).all():
        return ShownQueries(queries, matches, starts)
    lengths = np.diff(starts)[order]
    begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    rows = np.repeat(starts[:-1][order] - begins[:-1], lengths) + np.arange(begins[-1])
    return ShownQueries(queries.take(pa.array(order)), matches.take(pa.array(rows)), begins)


def _append_failed(shown: ShownQueries, failed: pa.Table) -> ShownQueries:
    reason = pc.binary_join_element_wise(failed["error"], failed["message"], ": ")
    count = len(failed)
    state, no_margin = pa.array(np.full(count, _FAILED, np.int8)), pa.array(np.full(count, np.nan))
    columns = [failed["image_id"], failed["path"], failed["label"], reason, state, no_margin]
    failed_queries = pa.table(columns, schema=_QUERY)
    starts = np.append(shown.starts, np.full(count, shown.starts[-1]))
    return ShownQueries(pa.concat_tables([shown.queries, failed_queries]), shown.matches, starts)


def _pictured(table: pa.Table) -> pa.Table:
    if "picture" in table.column_names:
        return table
    return table.append_column("picture", pa.nulls(len(table), pa.int32()))


def _tuples(table: pa.Table, names: tuple[str, ...]) -> Iterable[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in names), strict=True)


def _copied(table: pa.Table) -> pa.Table:
    """Copy a slice, which would otherwise be pickled with the buffers of the whole table."""
    return table.take(pa.array(np.arange(len(table))))
