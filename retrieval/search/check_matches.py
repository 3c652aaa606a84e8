"""Check matches for an error that checksums cannot show: an image that a query has twice."""

from __future__ import annotations

import io
import re

import pyarrow.parquet as pq

from retrieval.core.errors import Damaged
from retrieval.search.candidates import check_no_repeated_matches
from retrieval.storage.local import Folder

_PART = re.compile(r"matches/part-\d{5}\.parquet")


def audit_matches(folder: Folder) -> list[str]:
    """Return the problems found in matches, finished or not, whose checksums are right.

    All matches of a query are in one part, so the parts are read one at a time.
    """
    problems = []
    for path in sorted(entry.path for entry in folder.entries("matches")):
        if _PART.fullmatch(path):
            table = pq.read_table(io.BytesIO(folder.read(path)), columns=["query_id", "image_id"])
            try:
                check_no_repeated_matches(table, folder.uri(path))
            except Damaged as error:
                problems.append(str(error))
    return problems
