"""How each query stands, and which of them are worth a look: matches read part by part.

Of a hundred thousand queries with a hundred matches each, 20 bytes a match and some hundred a query
are kept; the rows of the few that are shown are read again.
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
from retrieval.evaluation.ground_truth import UNKNOWN, Truth
from retrieval.index.sampling import hashes_of
from retrieval.search.candidates import refuse_repeated_matches
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder

NEVER = np.iinfo(np.int32).max
_NEEDED = ["query_id", "rank", "image_id", "score", "query_label", "label"]


@dataclass(frozen=True)
class Standings:
    """All n matches of q queries, in the order of the parts.

    `scores` is (n,) float64, `grades` (n,) int16. Of the queries: `first` (q,) int32 the rank of
    the first right match among those that are right or wrong (`NEVER`: there is none), `precision`
    (q,) float64 the precision at each right match, summed and divided by the matches that are right
    or wrong (NaN where there is none: nothing is known), `parts` (q,) int32 the part of each.
    """

    query_ids: list[str]
    scores: NDArray[np.float64]
    grades: NDArray[np.int16]
    first: NDArray[np.int32]
    precision: NDArray[np.float64]
    parts: NDArray[np.int32]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Tell of which queries anything is known, (q,)."""
        return ~np.isnan(self.precision)

    def drawn(self, most: int, seed: int) -> list[str]:
        """Draw so many queries by the hash of their id, or all; in the order of their ids."""
        hashes = hashes_of(self.query_ids, seed, "report")
        return sorted(self.query_ids[one] for one in np.argsort(hashes, kind="stable")[:most])

    def worst(self, most: int) -> list[str]:
        """Give the queries whose first known match is wrong, the worst first.

        Worse is who finds the first right image later, then who has less precision.
        """
        wrong = np.flatnonzero(self.known & (self.first != 1))
        order = np.lexsort((wrong, self.precision[wrong], -self.first[wrong].astype(np.int64)))
        return [self.query_ids[one] for one in wrong[order[:most]]]


def part_paths(manifest: Manifest) -> list[str]:
    """Name the parts of finished matches, in order."""
    return sorted(path for path in manifest.files if path.startswith("matches/"))


def read_standings(folder: Folder, manifest: Manifest, truth: Truth | None) -> Standings:
    """Read all parts of finished matches, one at a time; without a truth all is unknown.

    A query that has an image twice is refused (Damaged).
    """
    scores, grades, queries = [np.empty(0)], [np.empty(0, np.int16)], []
    first, precision = [np.empty(0, np.int32)], [np.empty(0)]
    counts = []
    for path in part_paths(manifest):
        table = _read(folder, manifest, path, _NEEDED)
        refuse_repeated_matches(table, folder.uri())
        scores.append(table["score"].to_numpy())
        given = truth.grades(table) if truth else np.full(len(table), UNKNOWN)
        grades.append(np.asarray(given, np.int16))
        starts = _starts(table["query_id"])
        queries += table["query_id"].take(starts).to_pylist()
        stands = stand(grades[-1], starts)
        first.append(stands[0])
        precision.append(stands[1])
        counts.append(len(starts))
    parts = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return Standings(
        queries, np.concatenate(scores), np.concatenate(grades), np.concatenate(first),
        np.concatenate(precision), parts,
    )  # fmt: skip


def _read(
    folder: Folder, manifest: Manifest, path: str, columns: list[str] | None = None
) -> pa.Table:
    data = finished_output.read_checked(folder, manifest.files[path])
    return pq.read_table(io.BytesIO(data), columns=columns)


def _starts(queries: pa.ChunkedArray) -> NDArray[np.int64]:
    """Give the places where another query begins; the rows of one follow one another."""
    codes = queries.combine_chunks().dictionary_encode().indices.to_numpy()
    return np.flatnonzero(np.diff(codes, prepend=-1))


def stand(
    grades: NDArray[np.int16], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Give `first` and `precision` of `Standings` for queries whose matches begin at `starts`.

    Junk and unknown matches are passed over, as if they were not in the list.
    """
    if len(starts) == 0:
        return np.empty(0, np.int32), np.empty(0)
    lengths = np.diff(starts, append=len(grades))

    def within(marked: NDArray[np.bool_]) -> NDArray[np.int64]:
        total = np.cumsum(marked)
        return total - np.repeat(total[starts] - marked[starts], lengths)

    rank, hits = within(grades >= 0), within(grades > 0)
    right = grades > 0
    first = np.minimum.reduceat(np.where(right, rank, NEVER), starts).astype(np.int32)
    sums = np.add.reduceat(np.where(right, hits / np.maximum(rank, 1), 0.0), starts)
    known = np.add.reduceat((grades >= 0).astype(np.int64), starts)
    return first, np.where(known > 0, sums / np.maximum(known, 1), np.nan)


def rows_of(
    folder: Folder, manifest: Manifest, standings: Standings, queries: Iterable[str],
    truth: Truth | None,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """Read the matches of some queries: MATCHES as rows, best first, with their `grade`."""
    wanted = set(queries)
    pairs = zip(standings.query_ids, standings.parts, strict=True)
    parts = sorted({int(part) for query, part in pairs if query in wanted})
    names = part_paths(manifest)
    found: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(folder, manifest, [names[part] for part in parts], wanted, truth):
        found.setdefault(row["query_id"], []).append(row)
    return found


def _rows(
    folder: Folder, manifest: Manifest, paths: list[str], wanted: set[str], truth: Truth | None
) -> Iterator[dict[str, Any]]:
    names = pa.array(sorted(wanted), pa.string())
    for path in paths:
        whole = _read(folder, manifest, path)
        table = whole.filter(pc.is_in(whole["query_id"], value_set=names))
        grades = truth.grades(table) if truth else np.full(len(table), UNKNOWN)
        for row, grade in zip(table.select(MATCHES.schema.names).to_pylist(), grades, strict=True):
            yield {**row, "grade": int(grade)}
