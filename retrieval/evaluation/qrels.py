"""Truth by pairs: a qrels file as TREC has it, `query_id 0 image_id grade` a line.

What it does not name is not relevant. A query without a relevant image is not judged, as
trec_eval has it and the revisited Oxford and Paris benchmarks do (Radenović et al., CVPR 2018).
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
from retrieval.evaluation.ground_truth import JUNK, UNKNOWN, WRONG, Asked, Grades

QRELS = pa.schema([("query_id", pa.string()), ("image_id", pa.string()), ("grade", pa.int16())])
_FIELDS = ("query_id", "iteration", "image_id", "grade")
_SPACES, _EDGES = re.compile(rb"[ \t]+"), re.compile(rb"^ | $", re.MULTILINE)


@dataclass(frozen=True)
class Qrels:
    """Truth by pairs, each one number: place of the query times images, plus place of the image.

    `keys` are sorted and have `graded` beside them. `counts` is (queries + 1, levels): images of
    each level; its last row is that of a query without any.
    """

    queries: pa.Array
    images: pa.Array
    keys: NDArray[np.int64]
    graded: Grades
    levels: Grades
    counts: NDArray[np.int64]

    def grades(self, matches: pa.Table) -> Grades:
        """Grade rows: WRONG what is not named; UNKNOWN where the query is not judged."""
        query = _places(matches["query_id"], self.queries)
        image = _places(matches["image_id"], self.images)
        keys = query * len(self.images) + image
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        named = (self.keys[place] == keys) & (query >= 0) & (image >= 0)
        grades = np.where(named, self.graded[place], WRONG).astype(np.int16)
        grades[self.counts[query].sum(1) == 0] = UNKNOWN
        return grades

    def asked(self, queries: pa.Table) -> Asked:
        """Tell what is known of queries: judged are those with a relevant image."""
        counts = self.counts[_places(queries["query_id"], self.queries)]
        labels = queries["query_label"].combine_chunks()
        return Asked(counts.sum(1) > 0, counts, labels)

    def judged_queries(self) -> pa.Array:
        """Give the queries that have a relevant image."""
        return self.queries.filter(pa.array(self.counts[:-1].any(1)))


def _places(ids: pa.ChunkedArray, known: pa.Array) -> NDArray[np.int64]:
    """Give the place of each id among those known; -1, which is also the last, for others."""
    distinct = ids.combine_chunks().dictionary_encode()
    place = pc.fill_null(pc.index_in(distinct.dictionary, value_set=known), -1)
    found: NDArray[np.int64] = place.take(distinct.indices).to_numpy().astype(np.int64)
    return found


def qrels_of(pairs: pa.Table, junk: int = JUNK) -> Qrels:
    """Make a truth of a table QRELS, each pair once; images of grade `junk` are passed over.

    Other grades below 1 are not relevant.
    """
    queries, images = (pc.unique(pairs[name]) for name in ("query_id", "image_id"))
    query = _places(pairs["query_id"], queries)
    given = pairs["grade"].to_numpy()
    graded = np.where(given == junk, JUNK, np.maximum(given, WRONG)).astype(np.int16)
    keys = query * len(images) + _places(pairs["image_id"], images)
    order = np.argsort(keys)
    levels = np.unique(graded[graded > 0])[::-1]
    counts = [np.bincount(query[graded == level], minlength=len(queries) + 1) for level in levels]
    table = np.array(counts, np.int64).reshape(len(levels), -1).T
    return Qrels(queries, images, keys[order], graded[order], levels, table)


def read_qrels(data: bytes, name: str) -> pa.Table:
    """Read a qrels file as a table QRELS; ids are percent-decoded, as `--format trec` writes them.

    Refused: a line of another form, a pair that is graded twice, a file without a relevant image.
    """
    text = _SPACES.sub(b" ", data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n"))
    text = _EDGES.sub(b"", text)
    nothing = InputError(f"--qrels {name} names no relevant image; write grades of 1 or more")
    if not text.strip():
        raise nothing
    wrong: list[str] = []

    def note(row: Any) -> str:
        wrong.append(row.text)
        return "skip"

    try:
        table = pa.csv.read_csv(
            pa.BufferReader(text),
            read_options=pa.csv.ReadOptions(column_names=_FIELDS),
            parse_options=pa.csv.ParseOptions(
                delimiter=" ", quote_char=False, invalid_row_handler=note
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(_FIELDS, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise InputError(f"--qrels {name} cannot be read as text in UTF-8 ({error})") from error
    odd = table.filter(pc.invert(pc.match_substring_regex(table["grade"], r"^-?[0-9]{1,4}$")))
    wrong += [" ".join(row.values()) for row in odd.slice(0, 1).to_pylist()]
    if wrong:
        raise InputError(
            f"--qrels {name}: the line {wrong[0][:80]!r} is not of the form "
            "query_id 0 image_id grade"
        )
    ids = [_decoded(table[column]) for column in ("query_id", "image_id")]
    pairs = pa.table([*ids, table["grade"].cast(pa.int16())], schema=QRELS)
    _refuse_doubled(pairs, name)
    if not pc.any(pc.greater(pairs["grade"], WRONG)).as_py():
        raise nothing
    return pairs


def _decoded(ids: pa.ChunkedArray) -> pa.Array:
    distinct = ids.combine_chunks().dictionary_encode()
    plain = [unquote(text) for text in distinct.dictionary.to_pylist()]
    return pa.array(plain, pa.string()).take(distinct.indices)


def _refuse_doubled(pairs: pa.Table, name: str) -> None:
    query, image = (pairs[column] for column in ("query_id", "image_id"))
    images = pc.unique(image)
    keys = _places(query, pc.unique(query)) * len(images) + _places(image, images)
    order = np.argsort(keys, kind="stable")
    again = order[1:][np.diff(keys[order]) == 0]
    if len(again):
        first = int(again.min())
        raise InputError(
            f"--qrels {name} grades {image[first].as_py()} twice for {query[first].as_py()}; "
            "keep one line a pair"
        )
