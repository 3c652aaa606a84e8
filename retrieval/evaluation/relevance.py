"""Rankings as grades: what `Truth` says of matches, rank by rank, and of queries without any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.evaluation.ground_truth import JUNK, WRONG, Grades, Truth
from retrieval.search.candidates import refuse_repeated_matches

SCORED = pa.schema([("score", pa.float64()), ("query", pa.int64()), ("right", pa.bool_())])
"""A match that is right or wrong; `query` is the place of its query among those judged."""


@dataclass(frozen=True)
class Judged:
    """The rankings of q judged queries, those of one part.

    `grades` is (q, k): the grade of the match at each place, junk images passed over; WRONG where
    there is no match. `filled` is (q,): how many places are a match. `counts` is (q, g) int64:
    images of each of `levels` that the gallery holds. `scored` is a table SCORED. `left_out` counts
    queries that are not judged, `junk` matches that were passed over.
    """

    query_ids: pa.Array
    labels: pa.Array
    grades: Grades
    filled: NDArray[np.int64]
    levels: Grades
    counts: NDArray[np.int64]
    scored: pa.Table
    left_out: int
    junk: int

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Give the (q, k) places that hold a relevant image."""
        return self.grades > 0

    @property
    def relevant(self) -> NDArray[np.int64]:
        """Give the (q,) number of relevant images in the gallery."""
        found: NDArray[np.int64] = self.counts.sum(1)
        return found

    def slice(self, first: int, last: int) -> Judged:
        """Give some of the queries, without their scores."""
        span = last - first
        return Judged(
            self.query_ids.slice(first, span), self.labels.slice(first, span),
            self.grades[first:last], self.filled[first:last], self.levels, self.counts[first:last],
            SCORED.empty_table(), 0, 0,
        )  # fmt: skip


def judge(matches: pa.Table, truth: Truth, source: str = "the ranking") -> Judged:
    """Judge a part: MATCHES' columns, in any order; all matches of a query are in one part.

    A query that has an image twice is refused (Damaged): every measure counts an image once.
    `source` names the matches in that message.
    """
    refuse_repeated_matches(matches, source)
    codes = matches["query_id"].combine_chunks().dictionary_encode()
    query = codes.indices.to_numpy().astype(np.int64)
    rank = matches["rank"].to_numpy()
    if np.any(np.diff(query) < 0) or np.any((np.diff(rank) <= 0) & (np.diff(query) == 0)):
        order = np.lexsort((rank, query))
        matches, query = matches.take(order), query[order]
    firsts = np.searchsorted(query, np.arange(len(codes.dictionary)))
    labels = matches["query_label"].take(firsts)
    asked = truth.asked(pa.table({"query_id": codes.dictionary, "query_label": labels}))
    grades = truth.grades(matches)
    judged = asked.judged[query]
    passed = judged & (grades == JUNK)
    kept = judged & ~passed
    new = np.cumsum(asked.judged) - 1  # place of a query among those that are judged
    filled = np.bincount(new[query[kept]], minlength=int(asked.judged.sum()))
    table = np.zeros((len(filled), int(filled.max(initial=1))), np.int16)
    table[new[query[kept]], _places(query[kept])] = np.maximum(grades[kept], WRONG)
    clear = kept & (grades >= WRONG)
    scored = [matches["score"].to_numpy()[clear], new[query[clear]], grades[clear] > 0]
    chosen = pa.array(asked.judged)
    return Judged(
        codes.dictionary.filter(chosen), asked.labels.filter(chosen), table, filled,
        truth.levels, asked.counts[asked.judged], pa.table(scored, schema=SCORED),
        int((~asked.judged).sum()), int(passed.sum()),
    )  # fmt: skip


def judge_unanswered(queries: pa.Table, truth: Truth) -> Judged:
    """Judge queries without any match, (query_id, query_label): all that are judged are wrong."""
    asked = truth.asked(queries)
    chosen = pa.array(asked.judged)
    return Judged(
        queries["query_id"].combine_chunks().filter(chosen), asked.labels.filter(chosen),
        np.zeros((int(asked.judged.sum()), 1), np.int16),
        np.zeros(int(asked.judged.sum()), np.int64), truth.levels,
        asked.counts[asked.judged], SCORED.empty_table(), int((~asked.judged).sum()), 0,
    )  # fmt: skip


def _places(query: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the place of each match within its query, from 0; those of a query stand together."""
    begins = np.flatnonzero(np.diff(query, prepend=-1))
    return np.arange(len(query)) - np.repeat(begins, np.diff(begins, append=len(query)))
