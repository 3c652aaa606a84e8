"""Verification of outputs: every byte is read and checked, and the progress is reported.

The files of a finished output are compared with its inventory. An unfinished output has none; each
of its files carries its own checksum (`checksum.py`), or another file records it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from retrieval.core.errors import Damaged, InputError, LookalikeError
from retrieval.core.output_layout import OUTPUT_LAYOUTS
from retrieval.core.schemas import COMPACTION_MARKER, WORK_FOLDER
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import has_valid_checksum, parse_checksummed_json
from retrieval.storage.local import Folder
from retrieval.storage.temporary import TEMPORARY_PREFIX


@dataclass(frozen=True)
class Verdict:
    """Result of verifying one output; `progress` is text such as `3 of 8 chunks`."""

    path: str
    kind: str
    state: Literal["finished", "unfinished", "damaged"]
    files: int
    progress: str
    problems: tuple[str, ...] = field(default=())


def verify(folder: Folder) -> list[Verdict]:
    """Verify an output and every output nested in it, outermost first.

    Raises InputError if the folder does not exist; problems in it are part of the verdicts.
    """
    paths = [entry.path for entry in folder.entries()]
    if not paths and not os.path.isdir(folder.uri()):
        raise InputError(f"{folder.uri()} does not exist; specify an output of lookalike")
    nested = "/" + finished_output.JOB
    inner = sorted(path.removesuffix(nested) for path in paths if path.endswith(nested))
    return [_verify_one(folder), *(_verify_one(folder.child(path)) for path in inner)]


def _verify_one(folder: Folder) -> Verdict:
    """Verify one output; errors in reading its files become problems of the verdict."""
    entries = finished_output.list_output_files(folder)
    kind, progress = "unknown", ""
    state: Literal["finished", "unfinished"] = "unfinished"
    problems: list[str] = []
    try:
        if not len(entries) and not any(
            folder.exists(p) for p in (finished_output.MANIFEST, finished_output.INVENTORY)
        ):
            return Verdict(folder.uri(), kind, state, 0, "nothing yet")
        kind = _read_kind(folder)
        problems += [
            f"{folder.uri(path)} does not belong there"
            for path in transaction.find_foreign_files(folder, [kind])
        ]
        if finished_output.is_finished(folder):
            state = "finished"
            manifest = finished_output.read_manifest(folder)
            for expected in manifest.files.values():
                problems += _catch_damage(
                    lambda e=expected: finished_output.read_verified(folder, e)
                )
            if finished_output.files_after_manifest(manifest, entries):
                state = "unfinished"
                problems += _verify_unfinished(folder)
        else:
            problems += _verify_unfinished(folder)
        progress = _format_progress(folder, kind)
    except LookalikeError as error:
        problems.append(str(error))
    except Exception as error:  # noqa: BLE001 - damaged files may raise any exception
        problems.append(f"{folder.uri()} has files that cannot be read ({error})")
    return Verdict(
        folder.uri(),
        kind,
        "damaged" if problems else state,
        len(entries),
        progress,
        tuple(problems),
    )


def _read_kind(folder: Folder) -> str:
    if not folder.exists(finished_output.JOB):
        raise Damaged(f"{folder.uri(finished_output.JOB)} is missing")
    kind = finished_output.read_job(folder, folder.read(finished_output.JOB))["kind"]
    if not isinstance(kind, str) or kind not in OUTPUT_LAYOUTS:
        raise Damaged(f"{folder.uri(finished_output.JOB)} names an unknown kind of output")
    return kind


def _catch_damage(check: Any) -> list[str]:
    """Return a list with the message if `check` raises Damaged, else an empty list."""
    try:
        check()
    except Damaged as error:
        return [str(error)]
    return []


def _verify_unfinished(folder: Folder) -> list[str]:
    """Verify the files of an unfinished output by their checksums; return the problems."""
    problems = []
    recorded: dict[str, str] = {}
    actual: dict[str, str] = {}
    compacting = folder.exists(COMPACTION_MARKER)
    entries = [
        e
        for e in finished_output.list_output_files(folder)
        if not e.path.endswith("/" + finished_output.MANIFEST)
    ]
    entries += [
        e for e in folder.entries(WORK_FOLDER.rstrip("/")) if TEMPORARY_PREFIX not in e.path
    ]
    for entry in entries:
        data = folder.read(entry.path)
        if transaction.has_own_checksum(entry.path) and not has_valid_checksum(io.BytesIO(data)):
            problems.append(f"{folder.uri(entry.path)} was altered")
            continue
        actual[entry.path] = hashlib.sha256(data).hexdigest()
        if not (compacting and entry.path.startswith("segments/")):
            recorded |= transaction.listed_checksums(entry.path, data)
    differing = sorted(
        path for path in recorded.keys() & actual.keys() if actual[path] != recorded[path]
    )
    return problems + [f"{folder.uri(path)} was altered" for path in differing]


def _format_progress(folder: Folder, kind: str) -> str:
    paths = [entry.path for entry in folder.entries() if TEMPORARY_PREFIX not in entry.path]
    if kind == "store":
        return _format_store_progress(folder, paths)
    if kind == "index":
        shards = sum(1 for path in paths if path.startswith("shards/") and path.endswith(".json"))
        return _format_count(shards, "shard")
    if kind in ("matches", "predictions"):
        return _format_count(sum(1 for path in paths if path.startswith(f"{kind}/")), "part")
    if kind == "comparison":
        return _format_count(sum(1 for path in paths if path.startswith("backbones/")), "network")
    return _format_count(len(paths), "file")


def _format_count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _format_store_progress(folder: Folder, paths: list[str]) -> str:
    parts = sum(1 for path in paths if re.fullmatch(r"segments/\d{5}/parts/\d{8}\.parquet", path))
    segments = [path for path in paths if re.fullmatch(r"segments/\d{5}/segment\.json", path)]
    if not segments:
        return "listing not finished"
    chunks = sum(
        int((parse_checksummed_json(folder.read(path)) or {}).get("chunks", 0)) for path in segments
    )
    suffix = f" in {len(segments)} segments" if len(segments) > 1 else ""
    return f"{parts} of {chunks} chunks{suffix}"
