"""Read the outcome of every query from finished matches, and select queries to show.

Parts are read one at a time, keeping about 20 bytes per match and 100 bytes per query; the rows of
the queries that are shown are read again.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.schemas import MATCHES
from retrieval.evaluation.ground_truth import UNKNOWN, GroundTruth
from retrieval.index.sampling import hash_image_ids
from retrieval.search.candidates import check_no_repeated_matches
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder

NO_HIT = np.iinfo(np.int32).max
_NEEDED = ["query_id", "rank", "image_id", "score", "query_label", "label"]


@dataclass(frozen=True)
class QueryOutcomes:
    """Scores and grades of all n matches, and outcomes of all q queries, in the order of the parts.

    `scores` is (n,) float64, `grades` (n,) int16. Per query: `first` (q,) int32 is the rank of the
    first right match among the right and wrong ones (`NO_HIT`: none), `precision` (q,) float64 the
    sum of the precisions at right matches divided by the number of right and wrong matches (nan if
    there are none), `parts` (q,) int32 the part that holds its rows.
    """

    query_ids: list[str]
    scores: NDArray[np.float64]
    grades: NDArray[np.int16]
    first: NDArray[np.int32]
    precision: NDArray[np.float64]
    parts: NDArray[np.int32]

    @property
    def has_grade(self) -> NDArray[np.bool_]:
        """Which queries have a right or wrong match, (q,)."""
        return ~np.isnan(self.precision)

    def sample(self, limit: int, seed: int) -> list[str]:
        """Return at most `limit` queries sampled by the hash of their id, ordered by id."""
        hashes = hash_image_ids(self.query_ids, seed, "report")
        return sorted(
            self.query_ids[position] for position in np.argsort(hashes, kind="stable")[:limit]
        )

    def worst(self, limit: int) -> list[str]:
        """Return at most `limit` queries whose first graded match is wrong, worst first.

        Queries are ordered by the rank of the first right match, descending, then by precision.
        """
        wrong = np.flatnonzero(self.has_grade & (self.first != 1))
        order = np.lexsort((wrong, self.precision[wrong], -self.first[wrong].astype(np.int64)))
        return [self.query_ids[position] for position in wrong[order[:limit]]]


def part_paths(manifest: Manifest) -> list[str]:
    """Return the paths of the parts of finished matches, in order."""
    return sorted(path for path in manifest.files if path.startswith("matches/"))


def read_outcomes(
    folder: Folder, manifest: Manifest, ground_truth: GroundTruth | None
) -> QueryOutcomes:
    """Read the outcomes of all queries; without a ground truth all grades are UNKNOWN.

    Raises Damaged where a query has the same image twice.
    """
    scores, grades, queries = [np.empty(0)], [np.empty(0, np.int16)], []
    first, precision = [np.empty(0, np.int32)], [np.empty(0)]
    counts = []
    for path in part_paths(manifest):
        table = _read(folder, manifest, path, _NEEDED)
        check_no_repeated_matches(table, folder.uri())
        scores.append(table["score"].to_numpy())
        part_grades = ground_truth.grades(table) if ground_truth else np.full(len(table), UNKNOWN)
        grades.append(np.asarray(part_grades, np.int16))
        starts = _starts(table["query_id"])
        queries += table["query_id"].take(starts).to_pylist()
        query_outcomes = first_hits_and_precision(grades[-1], starts)
        first.append(query_outcomes[0])
        precision.append(query_outcomes[1])
        counts.append(len(starts))
    parts = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return QueryOutcomes(
        queries, np.concatenate(scores), np.concatenate(grades), np.concatenate(first),
        np.concatenate(precision), parts,
    )  # fmt: skip


def _read(
    folder: Folder, manifest: Manifest, path: str, columns: list[str] | None = None
) -> pa.Table:
    data = finished_output.read_verified(folder, manifest.files[path])
    return pq.read_table(io.BytesIO(data), columns=columns)


def _starts(queries: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the first row of each query; the rows of a query are contiguous."""
    codes = queries.combine_chunks().dictionary_encode().indices.to_numpy()
    return np.flatnonzero(np.diff(codes, prepend=-1))


def first_hits_and_precision(
    grades: NDArray[np.int16], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return `first` and `precision` of `QueryOutcomes` for queries that begin at rows `starts`.

    Junk and unknown matches are ignored, as if they were not in the list.
    """
    if len(starts) == 0:
        return np.empty(0, np.int32), np.empty(0)
    lengths = np.diff(starts, append=len(grades))

    def cumulative_within_query(marked: NDArray[np.bool_]) -> NDArray[np.int64]:
        total = np.cumsum(marked)
        return total - np.repeat(total[starts] - marked[starts], lengths)

    rank, hits = cumulative_within_query(grades >= 0), cumulative_within_query(grades > 0)
    right = grades > 0
    first = np.minimum.reduceat(np.where(right, rank, NO_HIT), starts).astype(np.int32)
    sums = np.add.reduceat(np.where(right, hits / np.maximum(rank, 1), 0.0), starts)
    graded_count = np.add.reduceat((grades >= 0).astype(np.int64), starts)
    return first, np.where(graded_count > 0, sums / np.maximum(graded_count, 1), np.nan)


def read_match_rows(
    folder: Folder, manifest: Manifest, outcomes: QueryOutcomes, queries: Iterable[str],
    ground_truth: GroundTruth | None,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """Read the matches of some queries: rows of MATCHES with their `grade`, best first."""
    requested = set(queries)
    pairs = zip(outcomes.query_ids, outcomes.parts, strict=True)
    parts = sorted({int(part) for query, part in pairs if query in requested})
    names = part_paths(manifest)
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(folder, manifest, [names[part] for part in parts], requested, ground_truth):
        rows.setdefault(row["query_id"], []).append(row)
    return rows


def _rows(
    folder: Folder,
    manifest: Manifest,
    paths: list[str],
    requested: set[str],
    ground_truth: GroundTruth | None,
) -> Iterator[dict[str, Any]]:
    names = pa.array(sorted(requested), pa.string())
    for path in paths:
        part = _read(folder, manifest, path)
        table = part.filter(pc.is_in(part["query_id"], value_set=names))
        grades = ground_truth.grades(table) if ground_truth else np.full(len(table), UNKNOWN)
        for row, grade in zip(table.select(MATCHES.schema.names).to_pylist(), grades, strict=True):
            yield {**row, "grade": int(grade)}
