"""Ground truth by pairs: a TREC qrels file with lines `query_id 0 image_id grade`.

Pairs that the file does not contain are not relevant. Queries without a relevant image are not
judged, as in trec_eval and in the revisited Oxford and Paris benchmarks (Radenović et al., CVPR
2018).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from retrieval.core.errors import InputError
from retrieval.evaluation.ground_truth import JUNK, UNKNOWN, WRONG, Grades, QueryRelevance

QRELS = pa.schema([("query_id", pa.string()), ("image_id", pa.string()), ("grade", pa.int16())])
_FIELDS = ("query_id", "iteration", "image_id", "grade")
_SPACES, _EDGES = re.compile(rb"[ \t]+"), re.compile(rb"^ | $", re.MULTILINE)


@dataclass(frozen=True)
class Qrels:
    """Ground truth by (query, image) pairs.

    A pair is encoded as query position * number of images + image position. `keys` are the sorted
    pair keys, `pair_grades` their grades. `counts` is (queries + 1, levels): the number of images
    at each level; its last row (zeros) stands for a query that the file does not contain.
    """

    queries: pa.Array
    images: pa.Array
    keys: NDArray[np.int64]
    pair_grades: Grades
    levels: Grades
    counts: NDArray[np.int64]

    def grades(self, matches: pa.Table) -> Grades:
        """Return the grades of rows: WRONG for absent pairs, UNKNOWN for unjudged queries."""
        query = _positions(matches["query_id"], self.queries)
        image = _positions(matches["image_id"], self.images)
        keys = query * len(self.images) + image
        position = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        in_file = (self.keys[position] == keys) & (query >= 0) & (image >= 0)
        grades = np.where(in_file, self.pair_grades[position], WRONG).astype(np.int16)
        grades[self.counts[query].sum(1) == 0] = UNKNOWN
        return grades

    def query_relevance(self, queries: pa.Table) -> QueryRelevance:
        """Return the relevance of queries; those with a relevant image are judged."""
        counts = self.counts[_positions(queries["query_id"], self.queries)]
        labels = queries["query_label"].combine_chunks()
        return QueryRelevance(counts.sum(1) > 0, counts, labels)

    def judged_queries(self) -> pa.Array:
        """Return the ids of the queries that have a relevant image."""
        return self.queries.filter(pa.array(self.counts[:-1].any(1)))


def _positions(ids: pa.ChunkedArray, value_set: pa.Array) -> NDArray[np.int64]:
    """Return the position of each id in `value_set`; -1, which also indexes the last, if absent."""
    distinct = ids.combine_chunks().dictionary_encode()
    position = pc.fill_null(pc.index_in(distinct.dictionary, value_set=value_set), -1)
    positions: NDArray[np.int64] = position.take(distinct.indices).to_numpy().astype(np.int64)
    return positions


def build_qrels(pairs: pa.Table, junk: int = JUNK) -> Qrels:
    """Return the ground truth of a table QRELS without duplicate pairs.

    Images of grade `junk` are ignored in rankings; other grades below 1 are not relevant.
    """
    queries, images = (pc.unique(pairs[name]) for name in ("query_id", "image_id"))
    query = _positions(pairs["query_id"], queries)
    file_grades = pairs["grade"].to_numpy()
    grades = np.where(file_grades == junk, JUNK, np.maximum(file_grades, WRONG)).astype(np.int16)
    keys = query * len(images) + _positions(pairs["image_id"], images)
    order = np.argsort(keys)
    levels = np.unique(grades[grades > 0])[::-1]
    counts = [np.bincount(query[grades == level], minlength=len(queries) + 1) for level in levels]
    table = np.array(counts, np.int64).reshape(len(levels), -1).T
    return Qrels(queries, images, keys[order], grades[order], levels, table)


def read_qrels(data: bytes, name: str) -> pa.Table:
    """Parse a qrels file into a table QRELS, decoding percent-encoded ids as in `--format trec`.

    Raises InputError for a malformed line, a duplicate pair, or a file without a relevant image.
    """
    text = _SPACES.sub(b" ", data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n"))
    text = _EDGES.sub(b"", text)
    no_relevant = InputError(f"--qrels {name} contains no relevant image; use grades of 1 or more")
    if not text.strip():
        raise no_relevant
    malformed: list[str] = []

    def skip_row(row: Any) -> str:
        malformed.append(row.text)
        return "skip"

    try:
        table = pa.csv.read_csv(
            pa.BufferReader(text),
            read_options=pa.csv.ReadOptions(column_names=_FIELDS),
            parse_options=pa.csv.ParseOptions(
                delimiter=" ", quote_char=False, invalid_row_handler=skip_row
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(_FIELDS, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise InputError(f"--qrels {name} cannot be read as text in UTF-8 ({error})") from error
    bad_grades = table.filter(
        pc.invert(pc.match_substring_regex(table["grade"], r"^-?[0-9]{1,4}$"))
    )
    malformed += [" ".join(row.values()) for row in bad_grades.slice(0, 1).to_pylist()]
    if malformed:
        raise InputError(
            f"--qrels {name}: the line {malformed[0][:80]!r} is not of the form "
            "query_id 0 image_id grade"
        )
    ids = [_decoded(table[column]) for column in ("query_id", "image_id")]
    pairs = pa.table([*ids, table["grade"].cast(pa.int16())], schema=QRELS)
    _refuse_duplicates(pairs, name)
    if not pc.any(pc.greater(pairs["grade"], WRONG)).as_py():
        raise no_relevant
    return pairs


def _decoded(ids: pa.ChunkedArray) -> pa.Array:
    distinct = ids.combine_chunks().dictionary_encode()
    plain = [unquote(text) for text in distinct.dictionary.to_pylist()]
    return pa.array(plain, pa.string()).take(distinct.indices)


def _refuse_duplicates(pairs: pa.Table, name: str) -> None:
    query, image = (pairs[column] for column in ("query_id", "image_id"))
    images = pc.unique(image)
    keys = _positions(query, pc.unique(query)) * len(images) + _positions(image, images)
    order = np.argsort(keys, kind="stable")
    duplicates = order[1:][np.diff(keys[order]) == 0]
    if len(duplicates):
        first = int(duplicates.min())
        raise InputError(
            f"--qrels {name} grades {image[first].as_py()} twice for {query[first].as_py()}; "
            "keep one line per pair"
        )
