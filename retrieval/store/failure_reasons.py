"""Why images of a store failed: the commonest reason in its ledgers, an example, and its remedy."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow.parquet as pq

from retrieval.storage.local import Folder

_LINES = 10_000
"""Lines of the ledgers that are looked at: they tell what is commonest."""
_LENGTH = 120  # characters of a path or of an error that are shown

_NOT_FOUND = ("FileNotFoundError", "NotADirectoryError")
_REMEDIES = {
    "DecompressionBombError": "--max-pixels allows larger ones",
    "PermissionError": "let the user who runs the job read them",
    "WorkerDied": "run again with fewer --workers if memory is short, or leave it out",
}


def commonest_reason(folder: Folder, ledgers: Iterable[str]) -> str | None:
    """Return how many of the lines of some ledgers have the commonest reason, which and a remedy.

    Reasons are the same if they differ in names and numbers only. None where no line is there.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    examples: dict[tuple[str, str, str], dict[str, Any]] = {}
    for path in ledgers:
        table = pq.read_table(io.BytesIO(folder.read(path)))
        for line in table.to_pylist():
            reason = (line["stage"], line["error"], _without_names(line))
            counts[reason] += 1
            examples.setdefault(reason, line)
        if counts.total() >= _LINES:
            break
    if not counts:
        return None
    ((reason, count),) = counts.most_common(1)
    line = examples[reason]
    remedy = _remedy(line)
    shown = f"{_short(line['path'])} ({_short(line['message'])})"
    return f"{count} of them as {shown}" + (f": {remedy}" if remedy else "")


def _without_names(line: dict[str, Any]) -> str:
    message = line["message"]
    for name in (line["path"], line["image_id"]):
        message = message.replace(name, "")
    return re.sub(r"'[^']*'|\d+", "", message)


def _remedy(line: dict[str, Any]) -> str | None:
    """Return what helps against a failure; None where its message says it, or nothing is known."""
    error, path = line["error"], line["path"]
    if "\0" in path or "null byte" in line["message"]:
        return "the list is not UTF-8, save it as such"
    if error in _NOT_FOUND and (found := re.search(r"[;\t|]", path)):
        mark = {";": "';'", "\t": "tabs", "|": "'|'"}[found[0]]
        return f"the list seems to be separated by {mark}, write it with commas and a header"
    if error in _NOT_FOUND:
        return (
            "relative paths start from the folder of their list, and --image-column names the "
            "column that holds them"
        )
    return _REMEDIES.get(error)


def _short(text: str) -> str:
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 1]}…"
