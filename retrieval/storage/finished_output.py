"""Reading of finished outputs: manifest, inventory and settings, each verified by its checksum.

The manifest names, through files.parquet, every file with its size and SHA-256; an output without a
manifest is unfinished. The other files are verified when they are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from retrieval.core.errors import Damaged, InputError, Mismatch
from retrieval.core.output_layout import OUTPUT_LAYOUTS, OutputKind
from retrieval.core.records import FileRecord
from retrieval.core.schemas import FORMAT_VERSION, WORK_FOLDER
from retrieval.storage import retry
from retrieval.storage.checksum import CHECKSUM_MARK, parse_checksummed_json
from retrieval.storage.inventory import (
    Entries,
    Inventory,
    collect_entries,
    is_among,
    read_inventory,
)
from retrieval.storage.local import Entry, Folder, is_remote, local_path
from retrieval.storage.temporary import TEMPORARY_PREFIX

JOB, MANIFEST, INVENTORY, RUN = "job.json", "manifest.json", "files.parquet", "run.json"

_JOB_KEYS = {"format", "kind", "settings"}
_MANIFEST_KEYS = {"format", "kind", "job_sha256", "files_sha256", "counts"}
_APPENDED_FILES = {
    "segments": re.compile(r"segments/(\d{5})/(?:\w+/\d{8}(-\d+)?\.parquet|\w+\.(?:parquet|json))"),
    "shards": re.compile(r"shards/(\d{5})\.(?:faiss|vectors|rows\.parquet|json)()"),
    "generations": re.compile(r"generations/(\d{5})\.(?:parquet|json)()"),
}
"""Files that may be appended to a finished output, by the count that the manifest has of them.

The first group is the number of the segment, shard or generation.
"""
_REMEDY = "remove the folder and run the command that made it again"


@dataclass(frozen=True)
class Manifest:
    """Manifest of a finished output, with the record of each of its files by path."""

    kind: OutputKind
    job_sha256: str
    files_sha256: str
    counts: dict[str, Any]
    sha256: str  # of manifest.json itself: identifies the output
    files: Inventory


def list_output_files(folder: Folder) -> Entries:
    """Return the files of an output except temporary files, run.json, manifest and inventory.

    A subfolder with a job.json is a nested output, of which only the manifest is included.
    """
    nested: list[str] = []

    def included() -> Iterator[Entry]:
        for entry in folder.entries():
            if entry.path.endswith("/" + JOB):
                nested.append(entry.path.removesuffix(JOB))
            if entry.path.rsplit("/", 1)[-1].startswith(TEMPORARY_PREFIX):
                continue
            if entry.path not in (MANIFEST, INVENTORY, RUN) and not entry.path.startswith(
                WORK_FOLDER
            ):
                yield entry

    entries = collect_entries(included())
    if not nested:
        return entries
    nested.sort()  # of outputs within outputs the outermost comes first

    def is_kept(entry: Entry) -> bool:
        output = next((outer for outer in nested if entry.path.startswith(outer)), None)
        return output is None or entry.path == output + MANIFEST

    return collect_entries(filter(is_kept, entries))


def read_if_exists(folder: Folder, path: str) -> bytes | None:
    """Return the bytes of a file, or None where it does not exist."""
    try:
        return folder.read(path)
    except FileNotFoundError:
        return None


def is_lookalike_json(data: bytes, keys: Collection[str] = _JOB_KEYS) -> bool:
    """Return whether the bytes of a JSON file were written by lookalike, not by another program.

    A single altered byte does not change the result: either the checksum mark or the keys remain.
    """
    if CHECKSUM_MARK in data:
        return True
    try:
        values: Any = json.loads(data)
    except (ValueError, RecursionError):
        return False
    if not isinstance(values, dict) or not values.keys() >= set(keys):
        return False
    return values.get("kind") in OUTPUT_LAYOUTS


def is_output(folder: Folder) -> bool:
    """Return whether a folder is an output of lookalike, finished or not."""
    for path, keys in ((JOB, _JOB_KEYS), (MANIFEST, _MANIFEST_KEYS)):
        data = read_if_exists(folder, path)
        if data is not None and is_lookalike_json(data, keys):
            return True
    return False


def enclosing_output(path: str) -> str | None:
    """Return the path of the output that contains a local path, or None.

    A file written there would be foreign to that output, which would then count as damaged. Object
    stores are not checked: that would take one request per parent folder, which may be denied.
    """
    if is_remote(path):
        return None
    for parent in Path(os.path.realpath(local_path(path))).parents:
        with suppress(OSError):
            if is_lookalike_json((parent / JOB).read_bytes()):
                return str(parent)
    return None


def is_finished(folder: Folder) -> bool:
    """Return whether an output has a manifest."""
    return folder.exists(MANIFEST)


def read_manifest(folder: Folder, *, kind: OutputKind | None = None) -> Manifest:
    """Read and verify the manifest, job and inventory of a finished output, and all file sizes.

    The other files are verified when they are read (`read_verified`). If the manifest is missing
    because another run is replacing it, wait and try again.

    Raises:
        InputError: If there is no finished output.
        Mismatch: If its kind is not `kind`, or its format is of another version.
        Damaged: If a file is missing, foreign or altered.
    """
    for attempts_left in reversed(range(_MANIFEST_ATTEMPTS)):
        data = _read_manifest_bytes(folder)
        try:
            return _verify_manifest(folder, data, kind)
        except (InputError, Damaged):
            is_being_replaced = (
                folder.exists(INVENTORY) if data is None else data != _read_manifest_bytes(folder)
            )
            if not attempts_left or not is_being_replaced:
                raise
        retry.wait(0.2)
    raise AssertionError("unreachable")


_MANIFEST_ATTEMPTS = 6


def _read_manifest_bytes(folder: Folder) -> bytes | None:
    try:
        return read_if_exists(folder, MANIFEST)
    except NotADirectoryError:
        raise InputError(f"{folder.uri()} is a file, not an output of lookalike") from None


def _verify_manifest(folder: Folder, data: bytes | None, kind: OutputKind | None) -> Manifest:
    if data is None:
        problem = (
            "is not finished: run the command that makes it again"
            if folder.exists(JOB)
            else "is not an output of lookalike"
        )
        raise InputError(f"{folder.uri()} {problem}")
    inventory, job = _read(folder, INVENTORY), _read(folder, JOB)
    manifest = parse_manifest(data, inventory, folder)
    if hashlib.sha256(job).hexdigest() != manifest.job_sha256:
        raise Damaged(f"{folder.uri(JOB)} was altered; {_REMEDY}")
    if kind is not None and manifest.kind != kind:
        raise Mismatch(f"{folder.uri()} is of kind {manifest.kind}; specify one of kind {kind}")
    check_sizes(folder, manifest)
    return manifest


def _read(folder: Folder, path: str) -> bytes:
    try:
        return folder.read(path)
    except FileNotFoundError:
        raise Damaged(f"{folder.uri(path)} is missing; {_REMEDY}") from None


def parse_manifest(data: bytes, inventory: bytes, folder: Folder) -> Manifest:
    """Parse the bytes of manifest.json and files.parquet, each verified by its checksum.

    Raises Damaged if one was altered, and Mismatch if the format is of another version. `folder` is
    named in messages.
    """
    values = parse_checksummed_json(data)
    if values is None or not values.keys() >= _MANIFEST_KEYS:
        raise Damaged(f"{folder.uri(MANIFEST)} was altered; {_REMEDY}")
    if values["format"] != FORMAT_VERSION:
        raise Mismatch(
            f"{folder.uri()} has format {values['format']}, this version reads {FORMAT_VERSION}; "
            "make it again, or use the version that made it"
        )
    if hashlib.sha256(inventory).hexdigest() != values["files_sha256"]:
        raise Damaged(f"{folder.uri(INVENTORY)} was altered; {_REMEDY}")
    return build_manifest(data, read_inventory(inventory))


def build_manifest(data: bytes, files: Inventory) -> Manifest:
    """Build a manifest from the bytes of manifest.json and the inventory that it names."""
    values = json.loads(data)
    return Manifest(
        values["kind"],
        values["job_sha256"],
        values["files_sha256"],
        values["counts"],
        hashlib.sha256(data).hexdigest(),
        files,
    )


def check_sizes(folder: Folder, manifest: Manifest) -> None:
    """Raise Damaged if a file of an output is missing, foreign or of another size."""
    existing, listed = list_output_files(folder), manifest.files
    extra = existing.not_in(listed)
    if len(existing) - len(extra) < len(listed):
        path = listed.filter(pc.invert(is_among(listed.paths, existing.paths))).paths[0].as_py()
        raise Damaged(f"{folder.uri(path)} is missing; {_REMEDY}")
    common = existing.table
    if len(extra):
        common = common.filter(is_among(existing.paths, listed.paths))
    differ = pc.not_equal(common["size"], listed.table["size"])
    if pc.any(differ, min_count=0).as_py():
        path = common.filter(differ)["path"][0].as_py()
        raise Damaged(f"{folder.uri(path)} was altered (its length changed); {_REMEDY}")
    appended = files_after_manifest(manifest, extra)
    if foreign := [entry.path for entry in extra if entry.path not in appended]:
        raise Damaged(f"{folder.uri(foreign[0])} does not belong there; remove it")


def files_after_manifest(manifest: Manifest, entries: Entries) -> set[str]:
    """Return the paths of the files of a store or index that were written after its manifest.

    They belong to a segment, retry, shard or generation that is in progress or was killed; the
    finished part of the output stays readable.
    """
    appended = set()
    for name, pattern in _APPENDED_FILES.items():
        if manifest.kind not in ("store", "index") or name not in manifest.counts:
            continue
        count = int(manifest.counts[name])
        paths = (entry.path for entry in entries.not_in(manifest.files))
        matches = ((path, pattern.fullmatch(path)) for path in paths)
        appended |= {p for p, match in matches if match and (int(match[1]) >= count or match[2])}
    return appended


def read_verified(folder: Folder, expected: FileRecord) -> bytes:
    """Return the bytes of a file of a finished output.

    Raises Damaged if it is missing or its SHA-256 differs from the `expected` one.
    """
    data = _read(folder, expected.path)
    if hashlib.sha256(data).hexdigest() != expected.sha256:
        raise Damaged(f"{folder.uri(expected.path)} was altered; {_REMEDY}")
    return data


def read_settings(folder: Folder) -> dict[str, Any]:
    """Return the settings of an output, from its job.json; raise Damaged if it was altered."""
    settings: dict[str, Any] = read_job(folder, _read(folder, JOB))["settings"]
    return settings


def read_job(folder: Folder, data: bytes) -> dict[str, Any]:
    """Parse the bytes of a job.json: format, kind and settings; raise Damaged if it was altered."""
    values = parse_checksummed_json(data)
    if values is None or not values.keys() >= _JOB_KEYS:
        raise Damaged(f"{folder.uri(JOB)} was altered; {_REMEDY}")
    return values
