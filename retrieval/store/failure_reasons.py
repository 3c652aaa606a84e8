"""Summary of why images failed: the most common reason in the ledgers, an example and a remedy."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow.parquet as pq

from retrieval.storage.local import Folder

_MAX_ROWS = 10_000  # of ledgers; no further ledger is read after so many
_MAX_LENGTH = 120  # characters of a path or of an error that are shown

_NOT_FOUND = ("FileNotFoundError", "NotADirectoryError")
_REMEDIES = {
    "DecompressionBombError": "--max-pixels allows larger ones",
    "PermissionError": "give the user who runs the job permission to read them",
    "WorkerDied": "run again with fewer --workers if memory is short, or remove the image",
}


def commonest_reason(folder: Folder, ledgers: Iterable[str]) -> str | None:
    """Format the most common reason of failures, with its count, an example and a remedy.

    `ledgers` are the paths of the ledgers in the store `folder`. Messages that differ only in names
    and numbers count as the same reason. Returns None if the ledgers are empty.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    examples: dict[tuple[str, str, str], dict[str, Any]] = {}
    for path in ledgers:
        table = pq.read_table(io.BytesIO(folder.read(path)))
        for line in table.to_pylist():
            reason = (line["stage"], line["error"], _without_names(line))
            counts[reason] += 1
            examples.setdefault(reason, line)
        if counts.total() >= _MAX_ROWS:
            break
    if not counts:
        return None
    ((reason, count),) = counts.most_common(1)
    line = examples[reason]
    remedy = _remedy(line)
    example = f"{_short(line['path'])} ({_short(line['message'])})"
    return f"{count} of them as {example}" + (f": {remedy}" if remedy else "")


def _without_names(line: dict[str, Any]) -> str:
    message = line["message"]
    for name in (line["path"], line["image_id"]):
        message = message.replace(name, "")
    return re.sub(r"'[^']*'|\d+", "", message)


def _remedy(line: dict[str, Any]) -> str | None:
    """Return a remedy for a failure, or None if its message says enough."""
    error, path = line["error"], line["path"]
    if "\0" in path or "null byte" in line["message"]:
        return "the list is not UTF-8, save it as UTF-8"
    if error in _NOT_FOUND and (separator := re.search(r"[;\t|]", path)):
        name = {";": "';'", "\t": "tabs", "|": "'|'"}[separator[0]]
        return f"the list seems to be separated by {name}, write it with commas and a header"
    if error in _NOT_FOUND:
        return (
            "relative paths start from the folder of their list, and --image-column names the "
            "column that holds them"
        )
    return _REMEDIES.get(error)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 1]}…"
