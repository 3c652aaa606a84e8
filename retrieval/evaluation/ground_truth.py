"""What every truth must answer: which matches are right, and how many there could have been.

A truth grades the rows of matches: above 0 a relevant image (how much so: qrels), WRONG, JUNK,
which is passed over as if it were not there, or UNKNOWN, where nothing is said.
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
class Asked:
    """What is known of q queries: whether they are judged, and what the gallery holds for each.

    `counts` is (q, g) int64: gallery images of each of the truth's g levels. `labels` are the
    classes, null where there are none.
    """

    judged: NDArray[np.bool_]
    counts: NDArray[np.int64]
    labels: pa.Array


class Truth(Protocol):
    """What can tell right from wrong."""

    @property
    def levels(self) -> Grades:
        """Give the (g,) grades above 0, the highest first."""

    def grades(self, matches: pa.Table) -> Grades:
        """Grade each row of a table that has MATCHES' columns of ids and labels."""

    def asked(self, queries: pa.Table) -> Asked:
        """Tell what is known of queries: (query_id, query_label), each once."""
