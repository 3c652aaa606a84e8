"""Matches as Arrow tables and data frames, and as pictures in a notebook."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.evaluation.ground_truth import stream_tables
from lookalike.html_view import (
    MAX_PICTURES,
    HtmlView,
    properties,
    ranked_images,
    read_pictures,
)
from lookalike.table_conversion import to_pandas, to_polars
from retrieval.core.errors import InputError, UsageError
from retrieval.core.schemas import MATCHES
from retrieval.storage import finished_output
from retrieval.storage.local import open_folder

_PREVIEW_QUERIES, _PREVIEW_MATCHES = 3, 6


@dataclass(frozen=True)
class Matches:
    """Matches of queries, in the order of query_id and rank.

    The columns are query_id, rank, image_id, score, query_path, path, query_label, label and
    probability.

    Attributes:
        location: Path or URI of the output; None for matches of a search in memory.
        queries: Number of queries, those without matches included.
        metric: cosine, ip, l2 (a score is then a squared distance, where lower is closer), or
            unitless after a re-ranking: scores only order the matches of a query.
        parts: Returns the tables of the matches; each query is in one of them.
        pictures: JPEG thumbnails of images in memory, by their path in the table.
    """

    location: str | None
    queries: int
    metric: str
    parts: Callable[[], Iterable[pa.Table]]
    pictures: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def to_arrow(self) -> pa.Table:
        """Return all matches as one Arrow table."""
        return pa.concat_tables([MATCHES.schema.empty_table(), *self.parts()])

    def to_pandas(self) -> Any:
        """Return all matches as a pandas DataFrame; raise ImportError without pandas."""
        return to_pandas(self.to_arrow())

    def to_polars(self) -> Any:
        """Return all matches as a polars DataFrame; raise ImportError without polars."""
        return to_polars(self.to_arrow())

    def __iter__(self) -> Iterator[pa.Table]:
        """Iterate over the tables of the matches, of which one is in memory at a time."""
        return iter(self.parts())

    def for_query(self, query_id: str) -> pa.Table:
        """Return the matches of one query, best first, as an Arrow table; empty if it has none."""
        for table in self.parts():
            matches = table.filter(pc.equal(table["query_id"], query_id))
            if len(matches):
                return matches
        return MATCHES.schema.empty_table()

    def show(self, query_ids: str | Sequence[str] | None = None, *, matches: int = 10) -> HtmlView:
        """Return queries and their matches with scores as pictures, for the output of a notebook.

        Args:
            query_ids: One id or several; by default the first ten queries.
            matches: Largest number of matches per query.

        At most 500 pictures are shown, and a note states how many queries were left out.

        Raises InputError if a query has no matches here, and UsageError for less than one match.
        """
        if matches < 1:
            raise UsageError(f"matches {matches}: write at least 1")
        if isinstance(query_ids, str):
            query_ids = [query_ids]
        if query_ids is None:
            rankings = self._first_rankings(10)
        else:
            rankings = self._rankings(list(dict.fromkeys(query_ids)))
        return HtmlView(self._render([ranking[:matches] for ranking in rankings]))

    def _rankings(self, query_ids: list[str]) -> list[list[dict[str, Any]]]:
        """Return the rows of the matches of each of the queries; raise InputError for none."""
        rows: dict[str, list[dict[str, Any]]] = {query_id: [] for query_id in query_ids}
        wanted = pa.array(query_ids, pa.string())
        for table in self.parts():
            for row in table.filter(pc.is_in(table["query_id"], wanted)).to_pylist():
                rows[row["query_id"]].append(row)
        for query_id, ranking in rows.items():
            if not ranking:
                raise InputError(f"{query_id!r} has no matches; pass a query_id of to_arrow()")
        return list(rows.values())

    def _first_rankings(self, count: int) -> list[list[dict[str, Any]]]:
        """Return the rows of the matches of the first `count` queries."""
        for table in self.parts():
            query_ids = pc.unique(table["query_id"]).slice(0, count).to_pylist()
            if query_ids:
                kept = table.filter(pc.is_in(table["query_id"], pa.array(query_ids, pa.string())))
                rankings: dict[str, list[dict[str, Any]]] = {name: [] for name in query_ids}
                for row in kept.to_pylist():
                    rankings[row["query_id"]].append(row)
                return list(rankings.values())
        return []

    def _render(self, rankings: list[list[dict[str, Any]]]) -> str:
        """Return rankings as HTML, as many as have at most `MAX_PICTURES` pictures."""
        shown, pictures = 0, 0
        for ranking in rankings:
            pictures += 1 + len(ranking)
            if shown and pictures > MAX_PICTURES:
                break
            shown += 1
        left_out = len(rankings) - shown
        note = f"{left_out} further queries are not shown" if left_out else ""
        rankings = [ranking[: MAX_PICTURES - 1] for ranking in rankings[:shown]]
        paths = {row["path"] for ranking in rankings for row in ranking}
        paths |= {ranking[0]["query_path"] for ranking in rankings}
        read = read_pictures(sorted(paths - {*self.pictures, ""}))
        return ranked_images(rankings, {**read, **self.pictures}, note)

    def __fspath__(self) -> str:
        if self.location is None:
            raise TypeError("matches of a search in memory have no path")
        return self.location

    def __repr__(self) -> str:
        return f"Matches({self.location or 'in memory'}: {self.queries} queries, {self.metric})"

    def _repr_html_(self) -> str:
        rankings = self._first_rankings(_PREVIEW_QUERIES)
        title = self.location or "matches in memory"
        summary = properties(title, {"queries": self.queries, "metric": self.metric})
        return summary + self._render([ranking[:_PREVIEW_MATCHES] for ranking in rankings])


def open_matches(path: str | os.PathLike[str]) -> Matches:
    """Open finished matches, written by `rank` or in the folder matches/ of `run`.

    Each file is verified by its checksum when it is read.

    Raises:
        InputError: If there are no finished matches.
        Mismatch: If it is another kind of output.
        Damaged: If a file is missing or altered.
    """
    folder = open_folder(os.fspath(path))
    manifest = finished_output.read_manifest(folder, kind="matches")
    return Matches(
        folder.uri(), manifest.counts["queries"], manifest.counts["metric"],
        lambda: stream_tables(folder, manifest, "matches/"),
    )  # fmt: skip
