"""A finished output, opened: manifest, inventory and settings, each held against its checksum.

The manifest names, through files.parquet, every file with size and SHA-256; without it an output is
not finished. The bytes of the other files are checked when they are read.
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
from retrieval.core.output_layout import KINDS, Kind
from retrieval.core.records import FileRecord
from retrieval.core.schemas import FORMAT, WORK
from retrieval.storage import retry
from retrieval.storage.checksum import MARK, read_json
from retrieval.storage.inventory import Entries, Inventory, among, listed, read_inventory
from retrieval.storage.local import Entry, Folder, is_remote, local_path
from retrieval.storage.temporary import TEMPORARY

JOB, MANIFEST, INVENTORY, RUN = "job.json", "manifest.json", "files.parquet", "run.json"

_JOB_KEYS = {"format", "kind", "settings"}
_MANIFEST_KEYS = {"format", "kind", "job_sha256", "files_sha256", "counts"}
_GROWN = {
    "store": re.compile(r"segments/(\d{5})/(?:\w+/\d{8}(-\d+)?\.parquet|\w+\.(?:parquet|json))"),
    "index": re.compile(r"shards/(\d{5})\.(?:faiss|rows\.parquet|json)()"),
}
"""Files of what may be appended to an output, by the counter of its manifest that numbers them."""
_WAY_OUT = "remove the folder and run the command that made it again"


@dataclass(frozen=True)
class Manifest:
    """What is known of a finished output, and the record of each of its files by path."""

    kind: Kind
    job_sha256: str
    files_sha256: str
    counts: dict[str, Any]
    sha256: str  # of manifest.json itself: names this very output
    files: Inventory


def own_entries(folder: Folder) -> Entries:
    """Give the files of an output without temporary ones, run.json, manifest and inventory.

    A folder below it that holds a job.json is an output of its own; only its manifest counts.
    """
    found: list[str] = []

    def own() -> Iterator[Entry]:
        for entry in folder.entries():
            if entry.path.endswith("/" + JOB):
                found.append(entry.path.removesuffix(JOB))
            if entry.path.rsplit("/", 1)[-1].startswith(TEMPORARY):
                continue
            if entry.path not in (MANIFEST, INVENTORY, RUN) and not entry.path.startswith(WORK):
                yield entry

    entries = listed(own())
    if not found:
        return entries
    nested = sorted(found)  # so that of outputs inside one another the outermost comes first

    def stays(entry: Entry) -> bool:
        below = next((outer for outer in nested if entry.path.startswith(outer)), None)
        return below is None or entry.path == below + MANIFEST

    return listed(filter(stays, entries))


def read_if_there(folder: Folder, path: str) -> bytes | None:
    """Read a file; None where there is none."""
    try:
        return folder.read(path)
    except FileNotFoundError:
        return None


def is_made_by_us(data: bytes, keys: Collection[str] = _JOB_KEYS) -> bool:
    """Return whether a JSON file of this content is lookalike's; others use the same names.

    One altered byte does not change the answer: either the mark of its checksum or the keys remain.
    """
    if MARK in data:
        return True
    try:
        values: Any = json.loads(data)
    except (ValueError, RecursionError):
        return False
    if not isinstance(values, dict) or not values.keys() >= set(keys):
        return False
    return values.get("kind") in KINDS


def is_output(folder: Folder) -> bool:
    """Return whether a folder is an output of lookalike, or the beginnings of one."""
    for path, keys in ((JOB, _JOB_KEYS), (MANIFEST, _MANIFEST_KEYS)):
        data = read_if_there(folder, path)
        if data is not None and is_made_by_us(data, keys):
            return True
    return False


def enclosing_output(path: str) -> str | None:
    """Return the output that a local file or folder would lie in, or None.

    Whatever is put there does not belong to that output, which would be damaged from then on.
    Object stores are not asked: a key may be denied there, and each would be a request.
    """
    if is_remote(path):
        return None
    for parent in Path(os.path.realpath(local_path(path))).parents:
        with suppress(OSError):
            if is_made_by_us((parent / JOB).read_bytes()):
                return str(parent)
    return None


def is_finished(folder: Folder) -> bool:
    """Tell whether an output has its manifest."""
    return folder.exists(MANIFEST)


def read_manifest(folder: Folder, *, kind: Kind | None = None) -> Manifest:
    """Open a finished output: manifest, job and inventory are checked, and every file's size.

    The bytes of the other files are checked when they are read (`read_checked`). Raises InputError
    where there is no finished output, Mismatch where it is of another kind, Damaged otherwise.
    A manifest that another run is replacing is gone for a moment, which is waited for.
    """
    for left in reversed(range(_LOOKS)):
        data = _manifest_bytes(folder)
        try:
            return _opened(folder, data, kind)
        except (InputError, Damaged):
            replaced = folder.exists(INVENTORY) if data is None else data != _manifest_bytes(folder)
            if not left or not replaced:
                raise
        retry.wait(0.2)
    raise AssertionError("unreachable")


_LOOKS = 6


def _manifest_bytes(folder: Folder) -> bytes | None:
    try:
        return read_if_there(folder, MANIFEST)
    except NotADirectoryError:
        raise InputError(f"{folder.uri()} is a file, not a folder lookalike made") from None


def _opened(folder: Folder, data: bytes | None, kind: Kind | None) -> Manifest:
    if data is None:
        what = (
            "is not finished: run the command that makes it again"
            if (folder.exists(JOB))
            else "is not an output of lookalike"
        )
        raise InputError(f"{folder.uri()} {what}")
    inventory, job = _read(folder, INVENTORY), _read(folder, JOB)
    manifest = parse_manifest(data, inventory, folder)
    if hashlib.sha256(job).hexdigest() != manifest.job_sha256:
        raise Damaged(f"{folder.uri(JOB)} was altered; {_WAY_OUT}")
    if kind is not None and manifest.kind != kind:
        raise Mismatch(f"{folder.uri()} is of kind {manifest.kind}; name one of kind {kind}")
    check_sizes(folder, manifest)
    return manifest


def _read(folder: Folder, path: str) -> bytes:
    try:
        return folder.read(path)
    except FileNotFoundError:
        raise Damaged(f"{folder.uri(path)} is missing; {_WAY_OUT}") from None


def parse_manifest(data: bytes, inventory: bytes, folder: Folder) -> Manifest:
    """Read the bytes of manifest.json and files.parquet, each held against its checksum."""
    values = read_json(data)
    if values is None or not values.keys() >= _MANIFEST_KEYS:
        raise Damaged(f"{folder.uri(MANIFEST)} was altered; {_WAY_OUT}")
    if values["format"] != FORMAT:
        raise Mismatch(
            f"{folder.uri()} has format {values['format']}, this version reads {FORMAT}; "
            "make it again, or use the version that made it"
        )
    if hashlib.sha256(inventory).hexdigest() != values["files_sha256"]:
        raise Damaged(f"{folder.uri(INVENTORY)} was altered; {_WAY_OUT}")
    return manifest_of(data, read_inventory(inventory))


def manifest_of(data: bytes, files: Inventory) -> Manifest:
    """Give what the bytes of manifest.json say, beside the files that it names."""
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
    """Refuse an output in which a file is missing, extra or of another length."""
    there, named = own_entries(folder), manifest.files
    extra = there.outside(named)
    if len(there) - len(extra) < len(named):
        path = named.kept(pc.invert(among(named.paths, there.paths))).paths[0].as_py()
        raise Damaged(f"{folder.uri(path)} is missing; {_WAY_OUT}")
    kept = there.table if not len(extra) else there.table.filter(among(there.paths, named.paths))
    differ = pc.not_equal(kept["size"], named.table["size"])
    if pc.any(differ, min_count=0).as_py():
        path = kept.filter(differ)["path"][0].as_py()
        raise Damaged(f"{folder.uri(path)} was altered (its length changed); {_WAY_OUT}")
    later = beyond(manifest, extra)
    if wrong := [entry.path for entry in extra if entry.path not in later]:
        raise Damaged(f"{folder.uri(wrong[0])} does not belong there; remove it")


def beyond(manifest: Manifest, there: Entries) -> set[str]:
    """Name the files of a store or an index that belong to what comes after its manifest.

    A further segment, retry or shard that is under way or was killed: the rest stays readable.
    """
    pattern = _GROWN.get(manifest.kind)
    if pattern is None:
        return set()
    count = int(manifest.counts["segments" if manifest.kind == "store" else "shards"])
    paths = (entry.path for entry in there.outside(manifest.files))
    found = ((path, pattern.fullmatch(path)) for path in paths)
    return {path for path, it in found if it and (int(it[1]) >= count or it[2])}


def read_checked(folder: Folder, expected: FileRecord) -> bytes:
    """Read a file of a finished output; its SHA-256 is compared before anything is parsed."""
    data = _read(folder, expected.path)
    if hashlib.sha256(data).hexdigest() != expected.sha256:
        raise Damaged(f"{folder.uri(expected.path)} was altered; {_WAY_OUT}")
    return data


def read_settings(folder: Folder) -> dict[str, Any]:
    """Give what job.json says an output is made of."""
    settings: dict[str, Any] = read_job(folder, _read(folder, JOB))["settings"]
    return settings


def read_job(folder: Folder, data: bytes) -> dict[str, Any]:
    """Read the bytes of a job.json: format, kind and settings."""
    values = read_json(data)
    if values is None or not values.keys() >= _JOB_KEYS:
        raise Damaged(f"{folder.uri(JOB)} was altered; {_WAY_OUT}")
    return values
