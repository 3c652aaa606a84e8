"""How a folder becomes an output: job.json first, everything else once, manifest.json last.

job.json says what the folder is being made of; a run that finds another one refuses. What has been
finished is read by `finished.py`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from retrieval.core.errors import AccessRefused, Damaged, Mismatch, UsageError
from retrieval.core.output_layout import KINDS, Kind
from retrieval.core.records import FileRecord
from retrieval.core.schemas import FORMAT, WORK
from retrieval.storage.checksum import is_sealed, read_json, sealed_json, sealed_parquet
from retrieval.storage.finished_output import (
    INVENTORY,
    JOB,
    MANIFEST,
    RUN,
    Manifest,
    enclosing_output,
    is_finished,
    is_made_by_us,
    is_output,
    manifest_of,
    own_entries,
    read_if_there,
    read_job,
    read_manifest,
)
from retrieval.storage.inventory import Gathered, Inventory, Known, inventory_of
from retrieval.storage.local import Folder, is_remote
from retrieval.storage.temporary import TEMPORARY

_SEALED = (".json", ".parquet", ".html")
_UNSEALED = ("submission.json",)  # of a form that others have fixed


def seals_itself(path: str) -> bool:
    """Tell which files carry their own checksum; others are named with theirs by one that does."""
    return path.endswith(_SEALED) and path not in _UNSEALED


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
    with _refusing_unwritable(folder):
        there = _existing_job(folder)
        if there is not None and overwrite and not (keep_equal and there == data):
            _wipe(folder)
            there = None
        while there is None:  # another run may put it first, or wipe what it put
            there = data if folder.put_new(JOB, data) else _existing_job(folder)
        folder.sweep()
        if is_finished(folder):  # by a run that was killed before it cleared its work away
            clear_work(folder)
    if there != data:
        _refuse(folder, there, data)


def check_claim(folder: Folder, kind: Kind, *, overwrite: bool = False) -> None:
    """Refuse a folder that `begin` would refuse whatever the settings; nothing is written.

    So that this is known before minutes of work, and not after them.
    """
    with _refusing_unwritable(folder):
        there = _existing_job(folder)
        if there is None:
            _check_writable(folder)
    if there is None:
        if around := enclosing_output(folder.uri()):
            raise UsageError(
                f"--output {folder.uri()} lies in {around}, an output of lookalike, to which it "
                "would not belong; name a folder elsewhere"
            )
    elif overwrite:
        _refuse_foreign(folder)
    else:
        _refuse_kind(folder, read_job(folder, there), {"format": FORMAT, "kind": kind})


@contextmanager
def _refusing_unwritable(folder: Folder) -> Iterator[None]:
    try:
        yield
    except (OSError, AccessRefused) as error:
        said = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--output {folder.uri()} cannot be written ({said}); name a folder that can"
        ) from error


def _check_writable(folder: Folder) -> None:
    """Refuse a local folder that cannot be made or written, as far as permissions show."""
    path = folder.uri()
    if is_remote(path):
        return
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def _wipe(folder: Folder) -> None:
    """Remove an output, job.json last, so that a kill leaves an unfinished output."""
    _refuse_foreign(folder)
    start_over(folder)
    for path in (RUN, JOB):
        folder.delete(path)


def _refuse_foreign(folder: Folder) -> None:
    for path in foreign(folder, KINDS):
        raise _not_ours(folder, path)


def start_over(folder: Folder) -> None:
    """Remove what a job has made so far, the manifest first, but not the outputs inside its own.

    Each of those answers for itself.
    """
    folder.delete(MANIFEST)
    for entry in own_entries(folder):
        if entry.path != JOB and not entry.path.endswith("/" + MANIFEST):
            folder.delete(entry.path)
    for entry in list(folder.entries(WORK.rstrip("/"))):
        folder.delete(entry.path)
    folder.delete(INVENTORY)


def _existing_job(folder: Folder) -> bytes | None:
    """Give the job.json that is there; a folder with other files, and without one, is not ours."""
    if (there := read_if_there(folder, JOB)) is not None:
        if _is_of_somebody_else(there) and not is_output(folder):
            raise _not_ours(folder, JOB)
        return there
    for entry in folder.entries():
        name = entry.path.rsplit("/", 1)[-1]
        if name.startswith(TEMPORARY) or entry.path == RUN:
            continue
        if (there := read_if_there(folder, JOB)) is not None:  # of a run that has begun since
            return there
        if entry.path == MANIFEST:
            raise Damaged(f"{folder.uri(JOB)} is missing beside a manifest; remove the folder")
        raise _not_ours(folder, entry.path)
    return None


def _is_of_somebody_else(job: bytes) -> bool:
    """Return whether a job.json is sound JSON that lookalike never wrote.

    One that is no JSON at all may have been ours, and counts as altered.
    """
    try:
        json.loads(job)
    except (ValueError, RecursionError):
        return False
    return not is_made_by_us(job)


def _not_ours(folder: Folder, path: str) -> UsageError:
    return UsageError(
        f"--output {folder.uri()} holds files that are not lookalike's ({path}); "
        "name an empty or a new folder"
    )


def _refuse(folder: Folder, there: bytes, asked: bytes) -> None:
    was, now = read_job(folder, there), read_job(folder, asked)
    _refuse_kind(folder, was, now)
    differs = _differences(was["settings"], now["settings"])
    raise Mismatch(
        f"{folder.uri()} was made with other settings ({'; '.join(differs)}); "
        "name another --output, or --overwrite to start anew"
    )


def _refuse_kind(folder: Folder, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if was["format"] != now["format"] or was["kind"] != now["kind"]:
        raise Mismatch(
            f"{folder.uri()} is of kind {was['kind']} and format {was['format']}, not "
            f"{now['kind']} and {now['format']}; name another --output, or --overwrite"
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
    there = data if folder.put_new(path, data) else None
    while there is None:  # another run may remove what was in the way
        there = read_if_there(folder, path) or (data if folder.put_new(path, data) else None)
    return record(path, there)


def put_named(folder: Folder, files: Mapping[str, bytes], by: str) -> None:
    """Put files that carry no seal, then `by`, a sealed JSON that names each with its checksum.

    Where `by` is there, so are they; without it they are what a killed run left.
    """
    sums = {path: put_once(folder, path, data).sha256 for path, data in files.items()}
    put_once(folder, by, sealed_json({"files": sums}))


def copy_over(source: Folder, target: Folder, path: str) -> FileRecord:
    """Copy a file to the same path of another folder, over what is there; gives its record.

    What is no longer at the source has been copied by another run, which took it away.
    """
    data = read_if_there(source, path)
    if data is not None and read_if_there(target, path) != data:
        target.put(path, data)
    with target.open(path) as file:
        return record_of(path, file)


def record(path: str, data: bytes) -> FileRecord:
    """Give the line of files.parquet for a file of these bytes."""
    rows = pq.read_metadata(io.BytesIO(data)).num_rows if path.endswith(".parquet") else None
    return FileRecord(path, rows, len(data), hashlib.sha256(data).hexdigest())


def record_of(path: str, file: BinaryIO) -> FileRecord:
    """Give the line of files.parquet for an open file, without holding all of it."""
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    size = file.seek(0, io.SEEK_END)
    rows = pq.ParquetFile(file).metadata.num_rows if path.endswith(".parquet") else None
    return FileRecord(path, rows, size, sha256)


def foreign(folder: Folder, kinds: Iterable[str]) -> Iterator[str]:
    """Give the files that lie in no output of any of these kinds."""
    allowed = [re.compile(pattern) for kind in kinds for pattern in KINDS[kind]]
    for entry in own_entries(folder):
        nested = entry.path.endswith("/" + MANIFEST)
        if not nested and not any(pattern.fullmatch(entry.path) for pattern in allowed):
            yield entry.path


def records(
    folder: Folder,
    known: Known = (),
    *,
    leave_out: Container[str] = (),
) -> Inventory:
    """Give the record of each file of an output; those in `known` are not read again.

    What an earlier run left is read, a file at a time and a large one in pieces, and must carry its
    own checksum, or the one that another file names for it.
    """
    given = inventory_of(known)
    found = Gathered()
    named: dict[str, str] = {}
    for entry in own_entries(folder).outside(given):
        if entry.path in leave_out:
            continue
        try:
            file = folder.open(entry.path)
        except FileNotFoundError:  # another run has removed it since
            continue
        with file:
            if seals_itself(entry.path) and not is_sealed(file):
                raise Damaged(f"{folder.uri(entry.path)} was altered; remove it and run again")
            found.add([record_of(entry.path, file)])
        if entry.path.endswith(".json"):
            named |= checksums_in(entry.path, folder.read(entry.path))
    found.add(given)
    made = found.inventory()
    for path in sorted(named):
        if path in made and made[path].sha256 != named[path]:
            raise Damaged(f"{folder.uri(path)} was altered; remove it and run again")
    return made


def checksums_in(path: str, data: bytes) -> dict[str, str]:
    """Give the checksums of other files that a sealed file names: {path: sha256}."""
    sealed = path.endswith(".json") and seals_itself(path)
    files: Any = (read_json(data) or {}).get("files") if sealed else None
    folder = path.rsplit("/", 1)[0] + "/" if path.startswith("model/") else ""
    return {folder + name: digest for name, digest in (files or {}).items()}


def finish(
    folder: Folder,
    kind: Kind,
    counts: Mapping[str, Any],
    known: Known = (),
    *,
    stale: Collection[str] = (),
    leave_out: Collection[str] = (),
) -> Manifest:
    """Write files.parquet and, last of all, manifest.json; then clear the work away.

    A manifest that is there is removed first, then the `stale` files that it may have named. Files
    to `leave_out` stay, but belong to what comes after this manifest.
    """
    files = records(folder, known, leave_out={*stale, *leave_out})
    inventory = sealed_parquet(files.table)
    data = sealed_json(
        {
            "format": FORMAT,
            "kind": kind,
            "job_sha256": files[JOB].sha256,
            "files_sha256": hashlib.sha256(inventory).hexdigest(),
            "counts": dict(counts),
        }
    )
    there = read_if_there(folder, MANIFEST)
    if there not in (None, data):
        folder.delete(MANIFEST)
    for path in stale:
        folder.delete(path)
    if there != data:
        folder.put(INVENTORY, inventory)
        folder.put(MANIFEST, data)
    clear_work(folder)
    return manifest_of(data, files)


def clear_work(folder: Folder) -> None:
    """Remove what a finished output no longer needs; compactions and claims clear their own."""
    for entry in list(folder.entries(WORK.rstrip("/"))):
        if not entry.path.startswith((f"{WORK}compact", f"{WORK}claim")):
            folder.delete(entry.path)


def unless_overtaken(folder: Folder, kind: Kind, make: Callable[[], Manifest]) -> Manifest:
    """Make an output; where another run finishes it meanwhile, that one is the answer.

    It has cleared the work away, which this run may then miss, or put there again.
    """
    try:
        return make()
    except FileNotFoundError:
        if not is_finished(folder):
            raise
        clear_work(folder)
        return read_manifest(folder, kind=kind)
