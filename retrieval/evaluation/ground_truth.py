"""The interface of a ground truth, implemented by labels (`labels.py`) and qrels (`qrels.py`).

A ground truth assigns a grade to each match: above 0 for a relevant image (qrels may have several
grades of relevance), WRONG, JUNK (ignored, as if the image were not in the list), or UNKNOWN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

WRONG, JUNK, UNKNOWN = 0, -1, -2

Grades = NDArray[np.int16]


@dataclass(frozen=True)
class QueryRelevance:
    """Which of q queries are judged, and how many relevant gallery images each of them has.

    `judged` is (q,). `counts` is (q, g) int64: the number of gallery images at each of the g
    relevance levels of the ground truth. `labels` are the q classes, null where there is none.
    """

    judged: NDArray[np.bool_]
    counts: NDArray[np.int64]
    labels: pa.Array


class GroundTruth(Protocol):
    """A source of relevance grades for matches and queries."""

    @property
    def levels(self) -> Grades:
        """Return the g grades above 0, (g,) int16, in descending order."""

    def grades(self, matches: pa.Table) -> Grades:
        """Return the grade of each row of a table with the id and label columns of MATCHES."""

    def query_relevance(self, queries: pa.Table) -> QueryRelevance:
        """Return the relevance of distinct queries, a table with query_id and query_label."""
