"""Write finished matches as jsonl, csv, trec or submission, with one function per format.

Matches are streamed, so memory does not grow with their number. Every format except trec, which has
no field for them, lists the failed queries. Text is UTF-8; a score is the shortest decimal that
reads back as the same float64 (except in trec).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.errors import UsageError
from retrieval.core.schemas import MATCHES, Metric
from retrieval.vectors.float_conversions import to_float32
from retrieval.vectors.scoring import scores_to_keys

Row = dict[str, Any]
_COLUMNS = (*MATCHES.schema.names, "error", "message")
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})
"""Characters that JSON does not escape and some readers take for the end of a line."""
_BATCH = 1 << 12
_MAX_TREC_SCORE = 3e38  # a million float32 steps below its negative are still finite


@dataclass(frozen=True)
class FinishedMatches:
    """The tables of a finished ranking, read anew at each call.

    `parts` returns tables MATCHES, ordered by query_id and rank, with all matches of a query in one
    table; `failures` returns tables FAILURES of the queries. `groupname` names the author in a
    submission and the run in trec.
    """

    parts: Callable[[], Iterable[pa.Table]]
    failures: Callable[[], Iterable[pa.Table]]
    metric: Metric
    groupname: str = "lookalike"

    def queries(self) -> Iterator[list[Row]]:
        """Yield the matches of each query, best first."""
        for _, rows in groupby(_rows(self.parts()), key=lambda row: row["query_id"]):
            yield list(rows)

    def failed(self) -> Iterator[Row]:
        """Yield the failed queries."""
        yield from _rows(self.failures())


def _rows(parts: Iterable[pa.Table]) -> Iterator[Row]:
    for part in parts:
        for batch in part.to_batches(
            max_chunksize=_BATCH
        ):  # a dict takes far more memory than a table row
            yield from batch.to_pylist()


def write_export(name: str, finished: FinishedMatches, file: BinaryIO) -> None:
    """Write finished matches to a file in the named format; UsageError for an unknown one."""
    if name not in FORMAT_WRITERS:
        raise UsageError(f"--format {name!r}: write one of parquet, {', '.join(FORMAT_WRITERS)}")
    FORMAT_WRITERS[name](finished, file)


def write_jsonl(finished: FinishedMatches, file: BinaryIO) -> None:
    """Write one line with a JSON object per query, then the failed queries with their error.

    Lines end with LF. Other characters that a reader may take for a line end (U+0085, U+2028,
    U+2029) are escaped.
    """
    shared = ("query_id", "query_path", "query_label")
    for rows in finished.queries():
        matches = [
            {key: row[key] for key in ("rank", "image_id", "score", "probability", "path", "label")}
            for row in rows
        ]
        file.write(_json({key: rows[0][key] for key in shared} | {"matches": matches}) + b"\n")
    for row in finished.failed():
        failed = {"query_id": row["image_id"], "query_path": row["path"]}
        file.write(_json(failed | {key: row[key] for key in ("error", "message")}) + b"\n")


def write_csv(finished: FinishedMatches, file: BinaryIO) -> None:
    """Write one line per match with the columns of MATCHES, by RFC 4180: header, CRLF, quotes.

    Two more columns, error and message, are empty for matches. A failed query is one line with
    these, its id, path and label, and no rank, so that lines with a rank are the matches. Null
    values are empty.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for rows in finished.queries():
        writer.writerows([row.get(name) for name in _COLUMNS] for row in rows)
    for row in finished.failed():
        failed = row | {f"query_{key}": row[key] for key in ("path", "label")}
        failed |= {"query_id": row["image_id"], "image_id": None, "path": None, "label": None}
        writer.writerow([failed.get(name) for name in _COLUMNS])
    text.detach()  # so that `file` is not closed with it


def write_trec(finished: FinishedMatches, file: BinaryIO) -> None:
    """Write lines `query_id Q0 image_id rank score run`, as trec_eval and ir-measures read them.

    Ids are encoded by `trec_id`, which the ids of qrels must be too. Failed queries have no line;
    trec_eval counts them as queries without results with its option -c.

    These tools ignore the rank: they sort by the score as a float32, descending, and ties by
    descending id. So scores are negated for l2, rounded to float32, and lowered to the next float32
    below the score of the rank before where they would not decrease.
    """
    run = trec_id(finished.groupname)
    for rows in finished.queries():
        query = trec_id(rows[0]["query_id"])
        keys = scores_to_keys(np.array([row["score"] for row in rows], np.float64), finished.metric)
        for row, score in zip(rows, _strictly_decreasing(keys), strict=True):
            line = f"{query} Q0 {trec_id(row['image_id'])} {row['rank']} {score!s} {run}\n"
            file.write(line.encode())


def trec_id(image_id: str) -> str:
    """Return an id encoded for trec, whose columns are separated by whitespace.

    Whitespace, control characters and % are percent-encoded (`%20`); `urllib.parse.unquote`
    decodes them.
    """
    return re.sub(r"[%\s\x00-\x1f\x7f]", lambda match: quote(match[0], safe=""), image_id)


def _strictly_decreasing(keys: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return (k,) descending keys as strictly descending float32, lowered as little as possible.

    float32 values map to integers o of the same order, where the next smaller value is o - 1. So
    o[i] <= o[i - 1] - 1 for all i means that o[i] + i does not increase.
    """
    bits = (
        to_float32(np.clip(keys, -_MAX_TREC_SCORE, _MAX_TREC_SCORE)).view(np.int32).astype(np.int64)
    )
    magnitude = bits & 0x7FFFFFFF
    order = np.where(bits < 0, -magnitude, magnitude)
    steps = np.arange(len(keys))
    order = np.minimum.accumulate(order + steps) - steps
    sign = np.where(order < 0, np.int64(0x80000000), 0)
    return (np.abs(order) | sign).astype(np.uint32).view(np.float32)


def write_submission(finished: FinishedMatches, file: BinaryIO) -> None:
    """Write {"groupname": …, "images": {query's file name: [gallery's file names, best first]}}.

    A file name is the last component of an image_id. Queries that share one are named by their
    whole image_id, and so are images of one list, so that no key and no name in a list occurs
    twice. A failed query has an empty list. Shared names are found by a first pass over the
    queries, which keeps 8 bytes per query.
    """
    shared = _shared_name_digests(finished)
    file.write(b'{"groupname": %s, "images": {' % _json(finished.groupname))
    separator = b"\n"
    for query, names in _ranked_names(finished):
        name = query if _name_digest(query) in shared else file_name(query)
        file.write(separator + _json(name) + b": " + _json(names))
        separator = b",\n"
    file.write(b"\n}}\n")


def file_name(image_id: str) -> str:
    """Return the last component of an id, or the whole id if it ends with a slash."""
    return image_id.rpartition("/")[2] or image_id


def _ranked_names(finished: FinishedMatches) -> Iterator[tuple[str, list[str]]]:
    for rows in finished.queries():
        names = Counter(file_name(row["image_id"]) for row in rows)
        ids = [(row["image_id"], file_name(row["image_id"])) for row in rows]
        yield (
            rows[0]["query_id"],
            [name if names[name] == 1 else image_id for image_id, name in ids],
        )
    for row in finished.failed():
        yield row["image_id"], []


def _shared_name_digests(finished: FinishedMatches) -> set[int]:
    """Return digests of the file names that several queries share.

    Two names with the same digest are both written as whole ids, which is correct as well.
    """
    digests = np.fromiter(map(_name_digest, _query_ids(finished)), np.int64)
    values, counts = np.unique(digests, return_counts=True)
    return set(values[counts > 1].tolist())


def _query_ids(finished: FinishedMatches) -> Iterator[str]:
    for part in finished.parts():
        yield from part["query_id"].unique().to_pylist()
    for part in finished.failures():
        yield from part["image_id"].to_pylist()


def _name_digest(query: str) -> int:
    digest = blake2b(file_name(query).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.translate(_LINE_ENDS).encode()


FORMAT_WRITERS: dict[str, Callable[[FinishedMatches, BinaryIO], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "trec": write_trec,
    "submission": write_submission,
}
FORMAT_FILES: dict[str, str] = {
    "jsonl": "matches.jsonl",
    "csv": "matches.csv",
    "trec": "matches.trec",
    "submission": "submission.json",
}
"""The file name of each format in an output folder."""
