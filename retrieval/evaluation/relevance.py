"""Grade ranked matches: turn tables of matches into arrays of relevance grades by rank.

The measures (`measures.py`) are functions of the resulting `RankingRelevance`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.evaluation.ground_truth import JUNK, WRONG, Grades, GroundTruth
from retrieval.search.candidates import check_no_repeated_matches

SCORED_MATCHES = pa.schema([("score", pa.float64()), ("query", pa.int64()), ("right", pa.bool_())])
"""Matches graded right or wrong; `query` is the position of the query among the judged ones."""


@dataclass(frozen=True)
class RankingRelevance:
    """The relevance grades of the ranked matches of q judged queries (one part of a ranking).

    `grades` is (q, k): the grade of the match at each rank, junk images removed; WRONG where there
    is no match. `filled` is (q,): the number of matches. `counts` is (q, g) int64: the number of
    gallery images at each of the g grades `levels`. `scored` is a table SCORED_MATCHES. `left_out`
    counts the queries that are not judged, `junk` the matches that were removed as junk.
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
        """Return (q, k) bool: whether the match at each rank is relevant."""
        return self.grades > 0

    @property
    def relevant(self) -> NDArray[np.int64]:
        """Return the number of relevant images in the gallery, (q,)."""
        totals: NDArray[np.int64] = self.counts.sum(1)
        return totals

    def slice(self, first: int, last: int) -> RankingRelevance:
        """Return the queries from `first` to before `last`, without their scores."""
        length = last - first
        return RankingRelevance(
            self.query_ids.slice(first, length), self.labels.slice(first, length),
            self.grades[first:last], self.filled[first:last], self.levels, self.counts[first:last],
            SCORED_MATCHES.empty_table(), 0, 0,
        )  # fmt: skip


def grade_rankings(
    matches: pa.Table, ground_truth: GroundTruth, source: str = "the ranking"
) -> RankingRelevance:
    """Return the relevance of a table with columns of MATCHES, rows in any order.

    The table must hold all matches of each of its queries. Raises Damaged where a query has the
    same image twice, since measures count an image once; `source` names the matches in the message.
    """
    check_no_repeated_matches(matches, source)
    codes = matches["query_id"].combine_chunks().dictionary_encode()
    query = codes.indices.to_numpy().astype(np.int64)
    rank = matches["rank"].to_numpy()
    if np.any(np.diff(query) < 0) or np.any((np.diff(rank) <= 0) & (np.diff(query) == 0)):
        order = np.lexsort((rank, query))
        matches, query = matches.take(order), query[order]
    starts = np.searchsorted(query, np.arange(len(codes.dictionary)))
    labels = matches["query_label"].take(starts)
    relevance = ground_truth.query_relevance(
        pa.table({"query_id": codes.dictionary, "query_label": labels})
    )
    grades = ground_truth.grades(matches)
    judged = relevance.judged[query]
    is_junk = judged & (grades == JUNK)
    is_ranked = judged & ~is_junk
    judged_position = np.cumsum(relevance.judged) - 1
    filled = np.bincount(judged_position[query[is_ranked]], minlength=int(relevance.judged.sum()))
    table = np.zeros((len(filled), int(filled.max(initial=1))), np.int16)
    table[judged_position[query[is_ranked]], _rank_positions(query[is_ranked])] = np.maximum(
        grades[is_ranked], WRONG
    )
    scored_rows = is_ranked & (grades >= WRONG)
    scored = [
        matches["score"].to_numpy()[scored_rows],
        judged_position[query[scored_rows]],
        grades[scored_rows] > 0,
    ]
    is_judged = pa.array(relevance.judged)
    return RankingRelevance(
        codes.dictionary.filter(is_judged), relevance.labels.filter(is_judged), table, filled,
        ground_truth.levels, relevance.counts[relevance.judged],
        pa.table(scored, schema=SCORED_MATCHES),
        int((~relevance.judged).sum()), int(is_junk.sum()),
    )  # fmt: skip


def grade_unanswered(queries: pa.Table, ground_truth: GroundTruth) -> RankingRelevance:
    """Return the relevance of queries without matches, a table with query_id and query_label."""
    relevance = ground_truth.query_relevance(queries)
    is_judged = pa.array(relevance.judged)
    return RankingRelevance(
        queries["query_id"].combine_chunks().filter(is_judged), relevance.labels.filter(is_judged),
        np.zeros((int(relevance.judged.sum()), 1), np.int16),
        np.zeros(int(relevance.judged.sum()), np.int64), ground_truth.levels,
        relevance.counts[relevance.judged], SCORED_MATCHES.empty_table(),
        int((~relevance.judged).sum()), 0,
    )  # fmt: skip


def _rank_positions(query: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of each match within its query, from 0; a query's rows are contiguous."""
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    return np.arange(len(query)) - np.repeat(starts, np.diff(starts, append=len(query)))
