"""Is an output sound, and how far is it? Every byte is read and checked.

A finished output is held against its inventory. An unfinished one has none; there each file carries
its own checksum (`seal.py`) or is named with its checksum by one that does.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from retrieval.core.errors import Damaged, InputError, LookalikeError
from retrieval.core.output_layout import KINDS
from retrieval.core.schemas import COMPACTED, WORK
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import is_sealed, read_json
from retrieval.storage.local import Folder
from retrieval.storage.temporary import TEMPORARY


@dataclass(frozen=True)
class Verdict:
    """What `verify` found in one output: its state, how far it is, and what is wrong."""

    path: str
    kind: str
    state: Literal["finished", "unfinished", "damaged"]
    files: int
    done: str
    problems: tuple[str, ...] = field(default=())


def verify(folder: Folder) -> list[Verdict]:
    """Judge an output and every output inside it, outermost first."""
    paths = [entry.path for entry in folder.entries()]
    if not paths and not _there(folder):
        raise InputError(f"{folder.uri()} does not exist; name an output of lookalike")
    nested = "/" + finished_output.JOB
    inner = sorted(path.removesuffix(nested) for path in paths if path.endswith(nested))
    return [_judge(folder), *(_judge(folder.child(path)) for path in inner)]


def _there(folder: Folder) -> bool:
    return os.path.isdir(folder.uri())


def _judge(folder: Folder) -> Verdict:
    """Judge one output: whatever its files resemble, the answer is a verdict."""
    entries = finished_output.own_entries(folder)
    kind, done = "unknown", ""
    state: Literal["finished", "unfinished"] = "unfinished"
    problems: list[str] = []
    try:
        if not len(entries) and not any(
            folder.exists(p) for p in (finished_output.MANIFEST, finished_output.INVENTORY)
        ):
            return Verdict(folder.uri(), kind, state, 0, "nothing yet")
        kind = _kind(folder)
        problems += [
            f"{folder.uri(path)} does not belong there"
            for path in transaction.foreign(folder, [kind])
        ]
        if finished_output.is_finished(folder):
            state = "finished"
            manifest = finished_output.read_manifest(folder)
            for expected in manifest.files.values():
                problems += _problem(lambda e=expected: finished_output.read_checked(folder, e))
            if finished_output.beyond(manifest, entries):
                state = "unfinished"
                problems += _unsealed(folder)
        else:
            problems += _unsealed(folder)
        done = _progress(folder, kind)
    except LookalikeError as error:
        problems.append(str(error))
    except Exception as error:  # noqa: BLE001 - rubbish raises anything at all
        problems.append(f"{folder.uri()} holds what cannot be read ({error})")
    return Verdict(
        folder.uri(), kind, "damaged" if problems else state, len(entries), done, tuple(problems)
    )


def _kind(folder: Folder) -> str:
    if not folder.exists(finished_output.JOB):
        raise Damaged(f"{folder.uri(finished_output.JOB)} is missing")
    kind = finished_output.read_job(folder, folder.read(finished_output.JOB))["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise Damaged(f"{folder.uri(finished_output.JOB)} names no kind of output")
    return kind


def _problem(check: Any) -> list[str]:
    try:
        check()
    except Damaged as error:
        return [str(error)]
    return []


def _unsealed(folder: Folder) -> list[str]:
    """Check the files of an unfinished output: those without a seal are vouched for by another."""
    problems = []
    named: dict[str, str] = {}
    found: dict[str, str] = {}
    compacting = folder.exists(COMPACTED)
    entries = [
        e
        for e in finished_output.own_entries(folder)
        if not e.path.endswith("/" + finished_output.MANIFEST)
    ]
    entries += [e for e in folder.entries(WORK.rstrip("/")) if TEMPORARY not in e.path]
    for entry in entries:
        data = folder.read(entry.path)
        if transaction.seals_itself(entry.path) and not is_sealed(io.BytesIO(data)):
            problems.append(f"{folder.uri(entry.path)} was altered")
            continue
        found[entry.path] = hashlib.sha256(data).hexdigest()
        if not (compacting and entry.path.startswith("segments/")):
            named |= transaction.checksums_in(entry.path, data)
    differing = sorted(path for path in named.keys() & found.keys() if found[path] != named[path])
    return problems + [f"{folder.uri(path)} was altered" for path in differing]


def _progress(folder: Folder, kind: str) -> str:
    paths = [entry.path for entry in folder.entries() if TEMPORARY not in entry.path]
    if kind == "store":
        return _progress_of_store(folder, paths)
    if kind == "index":
        done = sum(1 for path in paths if path.startswith("shards/") and path.endswith(".json"))
        return f"{done} shards"
    if kind in ("matches", "predictions"):
        return f"{sum(1 for path in paths if path.startswith(f'{kind}/'))} parts"
    if kind == "comparison":
        return f"{sum(1 for path in paths if path.startswith('backbones/'))} networks"
    return f"{len(paths)} files"


def _progress_of_store(folder: Folder, paths: list[str]) -> str:
    done = sum(1 for path in paths if re.fullmatch(r"segments/\d{5}/parts/\d{8}\.parquet", path))
    cuts = [path for path in paths if re.fullmatch(r"segments/\d{5}/segment\.json", path)]
    if not cuts:
        return "listing not finished"
    chunks = sum(int((read_json(folder.read(path)) or {}).get("chunks", 0)) for path in cuts)
    grown = f" in {len(cuts)} segments" if len(cuts) > 1 else ""
    return f"{done} of {chunks} chunks{grown}"
