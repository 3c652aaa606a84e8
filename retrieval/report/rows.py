"""What does the page show of all matches? Columns, since 10^6 matches as objects fill a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.schemas import Metric
from retrieval.evaluation.ground_truth import JUNK, UNKNOWN, Truth
from retrieval.evaluation.labels import DISTRACTOR
from retrieval.report.margin import margins
from retrieval.report.page import STATES, MatchCell, QueryRow, State
from retrieval.sources.container_paths import reading_order

SHOWN_MATCHES = 20
"""Matches that the page shows of a query."""

_RIGHT, _WRONG, _UNKNOWN, _FAILED = range(len(STATES))
_QUERY = pa.schema(
    [("query_id", pa.string()), ("path", pa.string()), ("label", pa.string()),
     ("failure", pa.string()), ("state", pa.int8()), ("margin", pa.float64())]
)  # fmt: skip
_MATCH = pa.schema(
    [("rank", pa.int32()), ("image_id", pa.string()), ("path", pa.string()),
     ("score", pa.float64()), ("label", pa.string()), ("grade", pa.int16())]
)  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """What the page shows: n queries by name, the failed ones last, and their matches.

    Query i has the rows `starts[i]` to `starts[i + 1]` of `matches`; `starts` is (n + 1,) int64.
    A column `picture` comes to both tables when pictures are numbered (`with_pictures`).
    """

    queries: pa.Table
    matches: pa.Table
    starts: NDArray[np.int64]
    first: int = 0  # the place of the first query on the page

    def __len__(self) -> int:
        return len(self.queries)

    def cut(self, first: int, last: int) -> Shown:
        """Give the queries from `first` to before `last`, with nothing else that would travel."""
        starts = self.starts[first : last + 1]
        matches = self.matches.slice(starts[0], starts[-1] - starts[0])
        queries = self.queries.slice(first, last - first)
        return Shown(_copied(queries), _copied(matches), starts - starts[0], self.first + first)

    def rows(self) -> list[QueryRow]:
        """Give the queries as objects; to be called on a cut."""
        queries, matches = _pictured(self.queries), _pictured(self.matches)
        names = ("rank", "image_id", "path", "score", "label", "grade", "picture")
        cells = [MatchCell(*values) for values in _tuples(matches, names)]
        names = ("query_id", "path", "label", "state", "margin", "failure", "picture")
        return [
            QueryRow(self.first + place, query_id, path, label, STATES[state], margin,
                     tuple(cells[self.starts[place] : self.starts[place + 1]]), failure, picture)
            for place, (query_id, path, label, state, margin, failure, picture) in enumerate(
                _tuples(queries, names))
        ]  # fmt: skip

    def paths(self) -> list[str]:
        """Give each image's path once, as they are best read."""
        found = pa.chunked_array([*self.queries["path"].chunks, *self.matches["path"].chunks],
                                 pa.string())  # fmt: skip
        return sorted(found.unique().to_pylist(), key=reading_order)

    def with_pictures(self, numbers: dict[str, int] | list[str], missing: Iterable[int]) -> Shown:
        """Give each path the number of its picture: its position in a list; None where missing."""
        paths = pa.array(list(numbers), pa.string())
        known = pa.array(
            numbers.values() if isinstance(numbers, dict) else range(len(numbers)), pa.int32()
        )
        gone = np.zeros(len(paths), bool)
        gone[list(missing)] = True
        known = pc.if_else(pa.array(gone), pa.scalar(None, pa.int32()), known)

        def numbered(table: pa.Table) -> pa.Table:
            places = pc.index_in(table["path"], value_set=paths)
            return table.append_column("picture", known.take(places.combine_chunks()))

        return Shown(numbered(self.queries), numbered(self.matches), self.starts, self.first)

    def counts(self) -> dict[State, int]:
        """Count the queries by state."""
        counted = np.bincount(self.queries["state"].to_numpy(), minlength=len(STATES))
        return {state: int(count) for state, count in zip(STATES, counted, strict=True)}


def gather(
    parts: Callable[[], Iterable[pa.Table]],
    failures: pa.Table,
    truth: Truth | None,
    metric: Metric,
    most: int,
) -> tuple[Shown, int]:
    """Choose what is shown of matches: all failed queries, then others by name, `most` in all.

    `parts` streams the tables of MATCHES, each query in one of them, as often as it is called.
    Also counts the queries with matches, shown or not.
    """
    failed = failures.select(["image_id", "path", "label", "error", "message"])
    failed = failed.sort_by("image_id").slice(0, most)
    last, found = _last(parts, most - len(failed))
    of_queries, of_matches, starts = [], [], [np.zeros(1, np.int64)]
    for part in parts() if last is not None else ():
        shown = part.filter(
            (pc.field("rank") <= SHOWN_MATCHES) & (pc.field("query_id") <= pa.scalar(last))
        )
        if not len(shown):
            continue
        queries, matches, begins = _judged(shown.combine_chunks(), truth, metric)
        of_queries.append(queries)
        of_matches.append(matches)
        starts.append(begins[1:] + starts[-1][-1])
    shown = _by_name(
        pa.concat_tables([_QUERY.empty_table(), *of_queries]),
        pa.concat_tables([_MATCH.empty_table(), *of_matches]),
        np.concatenate(starts),
    )
    return _and_failed(shown, failed), found


def _last(parts: Callable[[], Iterable[pa.Table]], most: int) -> tuple[str | None, int]:
    """Name the last query that is shown of those with matches, None where none is; count them."""
    ids = [part.filter(pc.field("rank") == 1)["query_id"] for part in parts()]
    names = pa.chunked_array([chunk for each in ids for chunk in each.chunks], pa.string())
    if most <= 0 or not len(names):
        return None, len(names)
    order = pc.sort_indices(names)
    return names[order[min(most, len(names)) - 1].as_py()].as_py(), len(names)


def _judged(
    shown: pa.Table, truth: Truth | None, metric: Metric
) -> tuple[pa.Table, pa.Table, NDArray[np.int64]]:
    """Give the queries, the matches and the starts of a part."""
    first = np.flatnonzero(shown["rank"].to_numpy() == 1)
    starts = np.append(first, len(shown)).astype(np.int64)
    grades = np.full(len(shown), UNKNOWN, np.int16) if truth is None else truth.grades(shown)
    lead = margins(shown["score"].to_numpy(), _classes(shown["label"]), starts, metric)
    heads = shown.take(pa.array(first))
    queries = [heads["query_id"], heads["query_path"], heads["query_label"],
               pa.nulls(len(first), pa.string()), pa.array(_states(grades, first)),
               pa.array(lead)]  # fmt: skip
    matches = [shown[name] for name in _MATCH.names[:-1]]
    return (
        pa.table(queries, schema=_QUERY),
        pa.table([*matches, pa.array(grades, pa.int16())], schema=_MATCH),
        starts,
    )


def _classes(labels: pa.ChunkedArray) -> NDArray[np.int64]:
    """Give labels numbers; -1 for what names no class. Each distractor is a class of its own."""
    coded = labels.combine_chunks().dictionary_encode()
    names = {name: number for number, name in enumerate(coded.dictionary.to_pylist())}
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    alone = np.arange(len(codes)) + len(names)
    codes = np.where(codes == names.get(DISTRACTOR, -1), np.where(codes < 0, -1, alone), codes)
    return np.where(codes == names.get("", -1), -1, codes)


def _states(grades: NDArray[np.int16], first: NDArray[np.int64]) -> NDArray[np.int8]:
    """Say how each query stands: by its first match that is not skipped."""
    none = len(grades)
    place = np.minimum.reduceat(np.where(grades != JUNK, np.arange(none), none), first)
    owner = np.searchsorted(first, place, "right") - 1
    counts = (place < none) & (owner == np.arange(len(first)))
    grade = np.where(counts, grades[np.minimum(place, none - 1)], UNKNOWN)
    return np.select([grade > 0, grade == 0], [_RIGHT, _WRONG], _UNKNOWN).astype(np.int8)


def _by_name(queries: pa.Table, matches: pa.Table, starts: NDArray[np.int64]) -> Shown:
    """Bring queries, and their matches with them, into the order of their names' bytes."""
    order = pc.sort_indices(queries["query_id"]).to_numpy()
    if (order == np.arange(len(order))).all():
        return Shown(queries, matches, starts)
    lengths = np.diff(starts)[order]
    begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    rows = np.repeat(starts[:-1][order] - begins[:-1], lengths) + np.arange(begins[-1])
    return Shown(queries.take(pa.array(order)), matches.take(pa.array(rows)), begins)


def _and_failed(shown: Shown, failed: pa.Table) -> Shown:
    reason = pc.binary_join_element_wise(failed["error"], failed["message"], ": ")
    count = len(failed)
    state, none = pa.array(np.full(count, _FAILED, np.int8)), pa.array(np.full(count, np.nan))
    columns = [failed["image_id"], failed["path"], failed["label"], reason, state, none]
    more = pa.table(columns, schema=_QUERY)
    starts = np.append(shown.starts, np.full(count, shown.starts[-1]))
    return Shown(pa.concat_tables([shown.queries, more]), shown.matches, starts)


def _pictured(table: pa.Table) -> pa.Table:
    if "picture" in table.column_names:
        return table
    return table.append_column("picture", pa.nulls(len(table), pa.int32()))


def _tuples(table: pa.Table, names: tuple[str, ...]) -> Iterable[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in names), strict=True)


def _copied(table: pa.Table) -> pa.Table:
    """Copy a slice: pickled as it is, it would bring the buffers of the whole along."""
    return table.take(pa.array(np.arange(len(table))))
