"""Writing of outputs: claim a folder by job.json, add files, publish by manifest.json.

job.json is written first, only if absent, and holds the settings that shape the content; a run with
other settings is rejected. manifest.json is written last and makes the output finished, to be read
by `finished_output.py`. All steps may be repeated after a kill, and by concurrent runs.
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
from retrieval.core.output_layout import OUTPUT_LAYOUTS, OutputKind
from retrieval.core.records import FileRecord
from retrieval.core.schemas import FORMAT_VERSION, WORK_FOLDER
from retrieval.storage.checksum import (
    checksummed_json,
    checksummed_parquet,
    has_valid_checksum,
    parse_checksummed_json,
)
from retrieval.storage.finished_output import (
    INVENTORY,
    JOB,
    MANIFEST,
    RUN,
    Manifest,
    build_manifest,
    enclosing_output,
    is_finished,
    is_lookalike_json,
    is_output,
    list_output_files,
    read_if_exists,
    read_job,
    read_manifest,
)
from retrieval.storage.inventory import Inventory, KnownRecords, RecordCollector, as_inventory
from retrieval.storage.local import Folder, is_remote
from retrieval.storage.temporary import TEMPORARY_PREFIX

_CHECKSUMMED = (".json", ".parquet", ".html")
_NOT_CHECKSUMMED = ("submission.json",)  # its format is fixed externally


def has_own_checksum(path: str) -> bool:
    """Return whether a file carries its own checksum; if not, another file records it."""
    return path.endswith(_CHECKSUMMED) and path not in _NOT_CHECKSUMMED


def job_json(kind: OutputKind, settings: Mapping[str, Any]) -> bytes:
    """Serialise a job.json; `settings` holds only what shapes the content of the output."""
    return checksummed_json({"format": FORMAT_VERSION, "kind": kind, "settings": dict(settings)})


def claim_output(
    folder: Folder,
    kind: OutputKind,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
    reuse_if_same: bool = False,
) -> None:
    """Claim a folder for a job, or continue where the same job has claimed it before.

    Args:
        folder: The output.
        kind: Its kind.
        settings: The settings that shape the content of the output.
        overwrite: Whether to remove an existing output first.
        reuse_if_same: Whether `overwrite` keeps an output with the same kind and settings.

    Raises:
        Mismatch: If another job has claimed the folder; the message names what differs.
        UsageError: If the folder cannot be written, or holds files of other programs, which are
            never changed.
    """
    data = job_json(kind, settings)
    with _translate_write_errors(folder):
        existing = _existing_job(folder)
        if existing is not None and overwrite and not (reuse_if_same and existing == data):
            _remove_output(folder)
            existing = None
        while existing is None:  # another run may write job.json first, or remove it again
            existing = data if folder.put_new(JOB, data) else _existing_job(folder)
        folder.sweep()
        if is_finished(folder):  # a killed run may have left its work files
            remove_work_files(folder)
    if existing != data:
        _raise_mismatch(folder, existing, data)


def check_output_claim(folder: Folder, kind: OutputKind, *, overwrite: bool = False) -> None:
    """Raise the errors of `claim_output` that do not depend on the settings; write nothing.

    Called before minutes of work whose output would be rejected at the end.
    """
    with _translate_write_errors(folder):
        existing = _existing_job(folder)
        if existing is None:
            _check_writable(folder)
    if existing is None:
        if outer := enclosing_output(folder.uri()):
            raise UsageError(
                f"--output {folder.uri()} is inside {outer}, which is an output of lookalike; "
                "specify a folder elsewhere"
            )
    elif overwrite:
        _check_no_foreign_files(folder)
    else:
        _check_kind(folder, read_job(folder, existing), {"format": FORMAT_VERSION, "kind": kind})


@contextmanager
def _translate_write_errors(folder: Folder) -> Iterator[None]:
    try:
        yield
    except (OSError, AccessRefused) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--output {folder.uri()} cannot be written ({reason}); specify a writable folder"
        ) from error


def _check_writable(folder: Folder) -> None:
    """Raise OSError if a local folder cannot be created or written."""
    path = folder.uri()
    if is_remote(path):
        return
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def _remove_output(folder: Folder) -> None:
    """Remove an output, job.json last, so that a kill leaves an unfinished output."""
    _check_no_foreign_files(folder)
    remove_results(folder)
    for path in (RUN, JOB):
        folder.delete(path)


def _check_no_foreign_files(folder: Folder) -> None:
    for path in find_foreign_files(folder, OUTPUT_LAYOUTS):
        raise _foreign_files_error(folder, path)


def remove_results(folder: Folder) -> None:
    """Remove all files that a job has written, the manifest first, except nested outputs."""
    folder.delete(MANIFEST)
    for entry in list_output_files(folder):
        if entry.path != JOB and not entry.path.endswith("/" + MANIFEST):
            folder.delete(entry.path)
    for entry in list(folder.entries(WORK_FOLDER.rstrip("/"))):
        folder.delete(entry.path)
    folder.delete(INVENTORY)


def _existing_job(folder: Folder) -> bytes | None:
    """Return the existing job.json, or None in an empty folder; UsageError for foreign folders."""
    if (job := read_if_exists(folder, JOB)) is not None:
        if _is_of_another_program(job) and not is_output(folder):
            raise _foreign_files_error(folder, JOB)
        return job
    for entry in folder.entries():
        name = entry.path.rsplit("/", 1)[-1]
        if name.startswith(TEMPORARY_PREFIX) or entry.path == RUN:
            continue
        if (job := read_if_exists(folder, JOB)) is not None:  # another run has begun since
            return job
        if entry.path == MANIFEST:
            raise Damaged(f"{folder.uri(JOB)} is missing beside a manifest; remove the folder")
        raise _foreign_files_error(folder, entry.path)
    return None


def _is_of_another_program(job: bytes) -> bool:
    """Return whether a job.json is valid JSON that lookalike did not write.

    Invalid JSON may be an altered file of lookalike.
    """
    try:
        json.loads(job)
    except (ValueError, RecursionError):
        return False
    return not is_lookalike_json(job)


def _foreign_files_error(folder: Folder, path: str) -> UsageError:
    return UsageError(
        f"--output {folder.uri()} holds files that are not lookalike's ({path}); "
        "specify an empty or a new folder"
    )


def _raise_mismatch(folder: Folder, existing: bytes, requested: bytes) -> None:
    old_job, new_job = read_job(folder, existing), read_job(folder, requested)
    _check_kind(folder, old_job, new_job)
    differences = _differences(old_job["settings"], new_job["settings"])
    raise Mismatch(
        f"{folder.uri()} was made with other settings ({'; '.join(differences)}); "
        "specify another --output, or --overwrite to start anew"
    )


def _check_kind(folder: Folder, old_job: Mapping[str, Any], new_job: Mapping[str, Any]) -> None:
    if old_job["format"] != new_job["format"] or old_job["kind"] != new_job["kind"]:
        raise Mismatch(
            f"{folder.uri()} is of kind {old_job['kind']} and format {old_job['format']}, not "
            f"{new_job['kind']} and {new_job['format']}; specify another --output, or --overwrite"
        )


def _differences(
    old_settings: dict[str, Any], new_settings: dict[str, Any], prefix: str = ""
) -> list[str]:
    differences = []
    for key in sorted(old_settings.keys() | new_settings.keys()):
        old, new = old_settings.get(key), new_settings.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            differences += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            differences.append(f"{prefix}{key} was {old}, is {new}")
    return differences


def put_if_absent(folder: Folder, path: str, data: bytes) -> FileRecord:
    """Write a checksummed file if it does not exist; return the record of the existing file.

    A second run on the same output writes the same bytes; if they differ (on another kind of
    processor), the first file is kept.
    """
    content = data if folder.put_new(path, data) else None
    while content is None:  # another run may remove the existing file
        content = read_if_exists(folder, path) or (data if folder.put_new(path, data) else None)
    return file_record(path, content)


def put_with_checksums(folder: Folder, files: Mapping[str, bytes], sums_path: str) -> None:
    """Write files without checksums of their own, then a checksummed JSON file with their SHA-256.

    `sums_path` is the path of that file. If it exists, so do the others; files without it were left
    by a killed run.
    """
    sums = {path: put_if_absent(folder, path, data).sha256 for path, data in files.items()}
    put_if_absent(folder, sums_path, checksummed_json({"files": sums}))


def copy_file(source: Folder, target: Folder, path: str) -> FileRecord:
    """Copy a file to the same path of another folder, replacing it, and return its record.

    A file that the source lacks has been copied and removed by another run.
    """
    data = read_if_exists(source, path)
    if data is not None and read_if_exists(target, path) != data:
        target.put(path, data)
    with target.open(path) as file:
        return read_file_record(path, file)


def file_record(path: str, data: bytes) -> FileRecord:
    """Return the row of files.parquet for a file whose bytes are `data`."""
    rows = pq.read_metadata(io.BytesIO(data)).num_rows if path.endswith(".parquet") else None
    return FileRecord(path, rows, len(data), hashlib.sha256(data).hexdigest())


def read_file_record(path: str, file: BinaryIO) -> FileRecord:
    """Return the row of files.parquet for an open file, which may be larger than memory."""
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    size = file.seek(0, io.SEEK_END)
    rows = pq.ParquetFile(file).metadata.num_rows if path.endswith(".parquet") else None
    return FileRecord(path, rows, size, sha256)


def find_foreign_files(folder: Folder, kinds: Iterable[str]) -> Iterator[str]:
    """Iterate over the paths in a folder that match no layout of the given kinds of output."""
    allowed = [re.compile(pattern) for kind in kinds for pattern in OUTPUT_LAYOUTS[kind]]
    for entry in list_output_files(folder):
        nested = entry.path.endswith("/" + MANIFEST)
        if not nested and not any(pattern.fullmatch(entry.path) for pattern in allowed):
            yield entry.path


def collect_records(
    folder: Folder,
    known_records: KnownRecords = (),
    *,
    leave_out: Container[str] = (),
) -> Inventory:
    """Return the records of all files of an output except `leave_out`.

    Files in `known_records` are not read again. The others, left by an earlier run, are read block
    by block and verified by their own checksum, or by the one that another file records. Raises
    Damaged if a checksum differs.
    """
    known_files = as_inventory(known_records)
    collector = RecordCollector()
    recorded: dict[str, str] = {}
    for entry in list_output_files(folder).not_in(known_files):
        if entry.path in leave_out:
            continue
        try:
            file = folder.open(entry.path)
        except FileNotFoundError:  # another run has removed it since
            continue
        with file:
            if has_own_checksum(entry.path) and not has_valid_checksum(file):
                raise Damaged(f"{folder.uri(entry.path)} was altered; remove it and run again")
            collector.add([read_file_record(entry.path, file)])
        if entry.path.endswith(".json"):
            recorded |= listed_checksums(entry.path, folder.read(entry.path))
    collector.add(known_files)
    inventory = collector.inventory()
    for path in sorted(recorded):
        if path in inventory and inventory[path].sha256 != recorded[path]:
            raise Damaged(f"{folder.uri(path)} was altered; remove it and run again")
    return inventory


def listed_checksums(path: str, data: bytes) -> dict[str, str]:
    """Return the checksums that a checksummed JSON file records for others: {path: sha256}."""
    checksummed = path.endswith(".json") and has_own_checksum(path)
    files: Any = (parse_checksummed_json(data) or {}).get("files") if checksummed else None
    folder = path.rsplit("/", 1)[0] + "/" if path.startswith("model/") else ""
    return {folder + name: digest for name, digest in (files or {}).items()}


def finish_output(
    folder: Folder,
    kind: OutputKind,
    counts: Mapping[str, Any],
    known_records: KnownRecords = (),
    *,
    stale: Collection[str] = (),
    leave_out: Collection[str] = (),
) -> Manifest:
    """Write files.parquet and, last, manifest.json; then remove the intermediate files.

    An existing manifest that differs is removed first, then the `stale` files, which it may name.

    Args:
        folder: The output.
        kind: Its kind.
        counts: Counts for the manifest.
        known_records: Records of files that need not be read again.
        stale: Paths of files to delete.
        leave_out: Paths of files that are kept but not part of this manifest, such as those of a
            segment in progress.

    Raises:
        Damaged: If the checksum of a file differs.
    """
    files = collect_records(folder, known_records, leave_out={*stale, *leave_out})
    inventory = checksummed_parquet(files.table)
    data = checksummed_json(
        {
            "format": FORMAT_VERSION,
            "kind": kind,
            "job_sha256": files[JOB].sha256,
            "files_sha256": hashlib.sha256(inventory).hexdigest(),
            "counts": dict(counts),
        }
    )
    existing = read_if_exists(folder, MANIFEST)
    if existing not in (None, data):
        folder.delete(MANIFEST)
    for path in stale:
        folder.delete(path)
    if existing != data:
        folder.put(INVENTORY, inventory)
        folder.put(MANIFEST, data)
    remove_work_files(folder)
    return build_manifest(data, files)


def remove_work_files(folder: Folder) -> None:
    """Remove the intermediate files of a finished output except compactions and claims."""
    for entry in list(folder.entries(WORK_FOLDER.rstrip("/"))):
        if not entry.path.startswith((f"{WORK_FOLDER}compact", f"{WORK_FOLDER}claim")):
            folder.delete(entry.path)


def make_unless_finished(
    folder: Folder, kind: OutputKind, make: Callable[[], Manifest]
) -> Manifest:
    """Return the manifest that `make` returns, or that of another run that finished meanwhile.

    The other run removes the intermediate files, so that `make` raises FileNotFoundError.
    """
    try:
        return make()
    except FileNotFoundError:
        if not is_finished(folder):
            raise
        remove_work_files(folder)
        return read_manifest(folder, kind=kind)
