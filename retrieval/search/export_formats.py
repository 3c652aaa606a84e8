"""Finished matches in further formats, one function a format: jsonl, csv, trec, submission.

Each is written as the matches stream by, so memory does not grow with their number. Where a query
failed says each format in its way; none leaves a query out silently but trec, which has no word for
it. Text is UTF-8, a score is the shortest decimal that gives the same float64 again (but see trec).
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
from retrieval.vectors.scoring import keys_of

Row = dict[str, Any]
_COLUMNS = (*MATCHES.schema.names, "error", "message")
_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})
"""What JSON leaves as it is and some readers take for the end of a line."""
_BATCH = 1 << 12
_FAR = 3e38  # scores of trec stay within; a million steps of float32 below -3e38 are finite still


@dataclass(frozen=True)
class Finished:
    """A finished ranking, read anew at each call.

    `parts` gives tables MATCHES, each ordered by query_id and rank and each query in one of them;
    `failures` gives tables FAILURES of the queries. `groupname` is what a submission calls its
    author and trec its run.
    """

    parts: Callable[[], Iterable[pa.Table]]
    failures: Callable[[], Iterable[pa.Table]]
    metric: Metric
    groupname: str = "lookalike"

    def queries(self) -> Iterator[list[Row]]:
        """Give the matches of one query after another, best first."""
        for _, rows in groupby(_rows(self.parts()), key=lambda row: row["query_id"]):
            yield list(rows)

    def failed(self) -> Iterator[Row]:
        """Give the failures of queries, one after another."""
        yield from _rows(self.failures())


def _rows(parts: Iterable[pa.Table]) -> Iterator[Row]:
    for part in parts:
        for batch in part.to_batches(max_chunksize=_BATCH):  # as dicts they take far more memory
            yield from batch.to_pylist()


def write_matches(name: str, finished: Finished, file: BinaryIO) -> None:
    """Write finished matches in the format of that name; UsageError where there is none such."""
    if name not in FORMATS:
        raise UsageError(f"--format {name!r}: write one of parquet, {', '.join(FORMATS)}")
    FORMATS[name](finished, file)


def write_jsonl(finished: Finished, file: BinaryIO) -> None:
    """Write one JSON object a query and line; then those that failed, with their error.

    Lines end with LF alone: what else a reader may take for an end (U+0085, U+2028, U+2029) is
    escaped.
    """
    shared = ("query_id", "query_path", "query_label")
    for rows in finished.queries():
        found = [
            {key: row[key] for key in ("rank", "image_id", "score", "path", "label")}
            for row in rows
        ]
        file.write(_json({key: rows[0][key] for key in shared} | {"matches": found}) + b"\n")
    for row in finished.failed():
        failed = {"query_id": row["image_id"], "query_path": row["path"]}
        file.write(_json(failed | {key: row[key] for key in ("error", "message")}) + b"\n")


def write_csv(finished: Finished, file: BinaryIO) -> None:
    """Write the columns of MATCHES, a line a match, as RFC 4180 has it: header, CRLF, quotes.

    Two columns follow, error and message, empty for a match. A query that failed is one line with
    these, its id, path and label, and no rank: whoever counts queries counts it, and whoever drops
    lines without a rank has the matches. What is null is empty.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    lines = csv.writer(text)
    lines.writerow(_COLUMNS)
    for rows in finished.queries():
        lines.writerows([row.get(name) for name in _COLUMNS] for row in rows)
    for row in finished.failed():
        failed = row | {f"query_{key}": row[key] for key in ("path", "label")}
        failed |= {"query_id": row["image_id"], "image_id": None, "path": None, "label": None}
        lines.writerow([failed.get(name) for name in _COLUMNS])
    text.detach()  # else it would close the file


def write_trec(finished: Finished, file: BinaryIO) -> None:
    """Write `query_id Q0 image_id rank score run`, as trec_eval and ir-measures read it.

    Ids are written by `trec_id`; qrels must be too. Queries that failed have no line; trec_eval
    counts them as nothing found with its option -c.

    Such tools do not read the rank. They sort by the score as a float32, most first, and order
    equal ones by id, backwards. So the score here is the rank's: negated for l2, rounded to
    float32, and where it would equal or exceed the one before it, the next smaller float32.
    """
    run = trec_id(finished.groupname)
    for rows in finished.queries():
        query = trec_id(rows[0]["query_id"])
        keys = keys_of(np.array([row["score"] for row in rows], np.float64), finished.metric)
        for row, score in zip(rows, _falling(keys), strict=True):
            line = f"{query} Q0 {trec_id(row['image_id'])} {row['rank']} {score!s} {run}\n"
            file.write(line.encode())


def trec_id(image_id: str) -> str:
    """Write an id for trec, whose columns end at whitespace.

    Whitespace, control characters and % itself are percent-encoded (`%20`), as
    `urllib.parse.unquote` reads it; all else stays.
    """
    return re.sub(r"[%\s\x00-\x1f\x7f]", lambda found: quote(found[0], safe=""), image_id)


def _falling(keys: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round (k,) falling keys to float32 that fall strictly, each as little lowered as can be.

    float32 in the order of their values are integers in order, so a step down is minus 1, and
    o[i] <= o[i - 1] - 1 for all i says that o[i] + i does not rise.
    """
    bits = to_float32(np.clip(keys, -_FAR, _FAR)).view(np.int32).astype(np.int64)
    magnitude = bits & 0x7FFFFFFF
    order = np.where(bits < 0, -magnitude, magnitude)
    steps = np.arange(len(keys))
    order = np.minimum.accumulate(order + steps) - steps
    sign = np.where(order < 0, np.int64(0x80000000), 0)
    return (np.abs(order) | sign).astype(np.uint32).view(np.float32)


def write_submission(finished: Finished, file: BinaryIO) -> None:
    """Write {"groupname": …, "images": {query's file name: [gallery's file names, best first]}}.

    A file name is the last component of an image_id. Where several queries have the same one, they
    are called by their whole image_id, and so are images of one list that share one: no key and no
    name of a list stands twice. A query that failed has an empty list. Which names are shared is
    found by a pass before, which keeps 8 bytes a query.
    """
    shared = _shared(finished)
    file.write(b'{"groupname": %s, "images": {' % _json(finished.groupname))
    separator = b"\n"
    for query, found in _lists(finished):
        name = query if _short(query) in shared else file_name(query)
        file.write(separator + _json(name) + b": " + _json(found))
        separator = b",\n"
    file.write(b"\n}}\n")


def file_name(image_id: str) -> str:
    """Give the last component of an id, or the id where it has none."""
    return image_id.rpartition("/")[2] or image_id


def _lists(finished: Finished) -> Iterator[tuple[str, list[str]]]:
    for rows in finished.queries():
        names = Counter(file_name(row["image_id"]) for row in rows)
        ids = [(row["image_id"], file_name(row["image_id"])) for row in rows]
        yield rows[0]["query_id"], [name if names[name] == 1 else whole for whole, name in ids]
    for row in finished.failed():
        yield row["image_id"], []


def _shared(finished: Finished) -> set[int]:
    """Find the file names that several queries have, as short digests.

    Two names of one digest would both be written whole, which is right as well.
    """
    digests = np.fromiter(map(_short, _query_ids(finished)), np.int64)
    values, counts = np.unique(digests, return_counts=True)
    return set(values[counts > 1].tolist())


def _query_ids(finished: Finished) -> Iterator[str]:
    for part in finished.parts():
        yield from part["query_id"].unique().to_pylist()
    for part in finished.failures():
        yield from part["image_id"].to_pylist()


def _short(query: str) -> int:
    digest = blake2b(file_name(query).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.translate(_ENDS).encode()


FORMATS: dict[str, Callable[[Finished, BinaryIO], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "trec": write_trec,
    "submission": write_submission,
}
FILE_OF: dict[str, str] = {
    "jsonl": "matches.jsonl",
    "csv": "matches.csv",
    "trec": "matches.trec",
    "submission": "submission.json",
}
"""The file of an output that holds a format."""
