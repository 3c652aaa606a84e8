"""How a folder becomes an output: job.json first, everything else once, manifest.json last.

job.json says what the folder is being made of; a run that finds another one refuses. The manifest
names, through files.parquet, every file with size and SHA-256; without it the output is not
finished. Both carry a checksum of their own (`seal.py`).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import Damaged, InputError, Mismatch, UsageError
from retrieval.storage.files import TEMPORARY, Entry, Folder
from retrieval.storage.seal import is_sealed, read_json, sealed_json, sealed_parquet
from retrieval.tables import FILES, FORMAT, KINDS, WORK, FileRecord, Kind

SEALED = (".json", ".parquet", ".html")
"""What carries its own checksum; other files are named with theirs by one that does."""

JOB, MANIFEST, INVENTORY, RUN = "job.json", "manifest.json", "files.parquet", "run.json"


@dataclass(frozen=True)
class Manifest:
    """What is known of a finished output, and the record of each of its files by path."""

    kind: Kind
    job_sha256: str
    files_sha256: str
    counts: dict[str, Any]
    sha256: str  # of manifest.json itself: names this very output
    files: dict[str, FileRecord]


def job_json(kind: Kind, settings: Mapping[str, Any]) -> bytes:
    """Write what an output is made of: only what shapes content belongs into `settings`."""
    return sealed_json({"format": FORMAT, "kind": kind, "settings": dict(settings)})


def begin(
    folder: Folder,
    kind: Kind,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
    keep_equal: bool = False,
) -> None:
    """Claim a folder for a job, or find it claimed by the same one and go on.

    Another job there is refused with `Mismatch` naming what differs. `overwrite` removes what is
    there first, with `keep_equal` only where it is another job's. A folder that holds anything
    else than an output of ours is never touched.
    """
    data = job_json(kind, settings)
    try:
        there = _existing_job(folder)
        if there is not None and overwrite and not (keep_equal and there == data):
            _wipe(folder)
            there = None
        if there is None:
            there = data if folder.put_new(JOB, data) else folder.read(JOB)
        folder.sweep()
        if is_finished(folder):  # by a run that was killed before it cleared its work away
            clear_work(folder)
    except OSError as error:
        raise UsageError(
            f"--output {folder.uri()} cannot be written ({error.strerror or error}); "
            "name a folder that can"
        ) from error
    if there != data:
        _refuse(folder, there, data)


def _wipe(folder: Folder) -> None:
    """Remove an output, but not the outputs inside it: each answers for itself.

    The manifest goes first and job.json last, so that a kill leaves an unfinished output.
    """
    for path in foreign(folder, KINDS):
        raise _not_ours(folder, path)
    folder.delete(MANIFEST)
    for entry in own_entries(folder):
        if entry.path != JOB and not entry.path.endswith("/" + MANIFEST):
            folder.delete(entry.path)
    clear_work(folder)
    for path in (INVENTORY, RUN, JOB):
        folder.delete(path)


def _existing_job(folder: Folder) -> bytes | None:
    try:
        return folder.read(JOB)
    except FileNotFoundError:
        pass
    for entry in folder.entries():
        name = entry.path.rsplit("/", 1)[-1]
        if name.startswith(TEMPORARY) or entry.path == RUN:
            continue
        if entry.path == MANIFEST:
            raise Damaged(f"{folder.uri(JOB)} is missing beside a manifest; remove the folder")
        raise _not_ours(folder, entry.path)
    return None


def _not_ours(folder: Folder, path: str) -> UsageError:
    return UsageError(
        f"--output {folder.uri()} holds files that are not lookalike's ({path}); "
        "name an empty or a new folder"
    )


def _refuse(folder: Folder, there: bytes, asked: bytes) -> None:
    was, now = read_job(folder, there), read_job(folder, asked)
    if was["format"] != now["format"] or was["kind"] != now["kind"]:
        raise Mismatch(
            f"{folder.uri()} is a {was['kind']} of format {was['format']}, not a {now['kind']} of "
            f"format {now['format']}; name another --output, or --overwrite"
        )
    differs = _differences(was["settings"], now["settings"])
    raise Mismatch(
        f"{folder.uri()} was made with other settings ({'; '.join(differs)}); "
        "name another --output, or --overwrite to start anew"
    )


def _differences(was: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(was.keys() | now.keys()):
        old, new = was.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old}, is {new}")
    return found


def put_once(folder: Folder, path: str, data: bytes) -> FileRecord:
    """Put a sealed or otherwise checked file if it is absent, and give the record of what is there.

    A second run on the same output makes the same bytes; where they differ (another processor
    kind), the first stands.
    """
    if not folder.put_new(path, data):
        data = folder.read(path)
    return record(path, data)


def record(path: str, data: bytes) -> FileRecord:
    """Give the line of files.parquet for a file of these bytes."""
    rows = pq.read_metadata(io.BytesIO(data)).num_rows if path.endswith(".parquet") else None
    return FileRecord(path, rows, len(data), hashlib.sha256(data).hexdigest())


def own_entries(folder: Folder) -> list[Entry]:
    """Give the files of an output without temporary ones, run.json, manifest and inventory.

    A folder below it that holds a job.json is an output of its own; only its manifest counts.
    """
    entries = sorted(folder.entries(), key=lambda entry: entry.path)
    # in order, so that of outputs inside one another the outermost comes first
    nested = sorted(e.path.removesuffix(JOB) for e in entries if e.path.endswith("/" + JOB))
    keep = []
    for entry in entries:
        below = next((outer for outer in nested if entry.path.startswith(outer)), None)
        if entry.path.rsplit("/", 1)[-1].startswith(TEMPORARY):
            continue
        if entry.path in (MANIFEST, INVENTORY, RUN) or entry.path.startswith(WORK):
            continue
        if below is None or entry.path == below + MANIFEST:
            keep.append(entry)
    return keep


def foreign(folder: Folder, kinds: Iterable[str]) -> Iterator[str]:
    """Give the files that lie in no output of any of these kinds."""
    allowed = [re.compile(pattern) for kind in kinds for pattern in KINDS[kind]]
    for entry in own_entries(folder):
        nested = entry.path.endswith("/" + MANIFEST)
        if not nested and not any(pattern.fullmatch(entry.path) for pattern in allowed):
            yield entry.path


def records(folder: Folder, known: Iterable[FileRecord] = ()) -> list[FileRecord]:
    """Give the record of each file of an output; those in `known` are not read again.

    What an earlier run left is read and must carry its own checksum.
    """
    found = {record.path: record for record in known}
    for entry in own_entries(folder):
        if entry.path not in found:
            data = folder.read(entry.path)
            if entry.path.endswith(SEALED) and not is_sealed(io.BytesIO(data)):
                raise Damaged(f"{folder.uri(entry.path)} was altered; remove it and run again")
            found[entry.path] = record(entry.path, data)
    return [found[path] for path in sorted(found)]


def finish(
    folder: Folder,
    kind: Kind,
    counts: Mapping[str, Any],
    known: Iterable[FileRecord] = (),
) -> Manifest:
    """Write files.parquet and, last of all, manifest.json; then clear the work away."""
    rows = records(folder, known)
    columns = {name: [getattr(row, name) for row in rows] for name in FILES.schema.names}
    inventory = sealed_parquet(pa.table(columns, schema=FILES.schema))
    folder.put(INVENTORY, inventory)
    data = sealed_json(
        {
            "format": FORMAT,
            "kind": kind,
            "job_sha256": next(row.sha256 for row in rows if row.path == JOB),
            "files_sha256": hashlib.sha256(inventory).hexdigest(),
            "counts": dict(counts),
        }
    )
    folder.put(MANIFEST, data)
    clear_work(folder)
    return _manifest(data, inventory, folder)


def clear_work(folder: Folder) -> None:
    """Remove what a finished output no longer needs."""
    for entry in list(folder.entries(WORK.rstrip("/"))):
        folder.delete(entry.path)


def is_finished(folder: Folder) -> bool:
    """Tell whether an output has its manifest."""
    return folder.exists(MANIFEST)


def read_manifest(folder: Folder, *, kind: Kind | None = None) -> Manifest:
    """Open a finished output: manifest, job and inventory are checked, and every file's size.

    The bytes of the other files are checked when they are read (`read_checked`). Raises InputError
    where there is no finished output, Mismatch where it is of another kind, Damaged otherwise.
    """
    try:
        data = folder.read(MANIFEST)
    except FileNotFoundError:
        what = (
            "is not finished: run the command that makes it again"
            if (folder.exists(JOB))
            else "is not an output of lookalike"
        )
        raise InputError(f"{folder.uri()} {what}") from None
    except NotADirectoryError:
        raise InputError(f"{folder.uri()} is a file, not a folder lookalike made") from None
    inventory, job = _read(folder, INVENTORY), _read(folder, JOB)
    manifest = _manifest(data, inventory, folder)
    if hashlib.sha256(job).hexdigest() != manifest.job_sha256:
        raise Damaged(f"{folder.uri(JOB)} was altered; {_WAY_OUT}")
    if kind is not None and manifest.kind != kind:
        raise Mismatch(f"{folder.uri()} is a {manifest.kind}, not a {kind}; name a {kind}")
    check_sizes(folder, manifest)
    return manifest


_JOB_KEYS = {"format", "kind", "settings"}
_MANIFEST_KEYS = {"format", "kind", "job_sha256", "files_sha256", "counts"}
_WAY_OUT = "remove the folder and run the command that made it again"


def _read(folder: Folder, path: str) -> bytes:
    try:
        return folder.read(path)
    except FileNotFoundError:
        raise Damaged(f"{folder.uri(path)} is missing; {_WAY_OUT}") from None


def _manifest(data: bytes, inventory: bytes, folder: Folder) -> Manifest:
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
    rows = pq.read_table(io.BytesIO(inventory)).to_pylist()
    return Manifest(
        values["kind"],
        values["job_sha256"],
        values["files_sha256"],
        values["counts"],
        hashlib.sha256(data).hexdigest(),
        {row["path"]: FileRecord(**row) for row in rows},
    )


def check_sizes(folder: Folder, manifest: Manifest) -> None:
    """Refuse an output in which a file is missing, extra or of another length."""
    there = {entry.path: entry.size for entry in own_entries(folder)}
    for path, expected in manifest.files.items():
        if path not in there:
            raise Damaged(f"{folder.uri(path)} is missing; {_WAY_OUT}")
        if there[path] != expected.size:
            raise Damaged(f"{folder.uri(path)} was altered (its length changed); {_WAY_OUT}")
    if extra := sorted(there.keys() - manifest.files.keys()):
        raise Damaged(f"{folder.uri(extra[0])} does not belong there; remove it")


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
