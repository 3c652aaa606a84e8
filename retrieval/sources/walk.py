"""Streaming of the files below a root, local or at an fsspec URI, in no particular order.

Locally only the folders on the path to the current one are open, so that memory does not grow with
the number of files. Remotely fsspec lists whole folders, several at the same time, so that memory
grows with the largest ones; its cache of listings is off, since that would hold all of them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import fsspec

from retrieval.core.errors import InputError
from retrieval.core.output_layout import REPORT_FOLDERS, REPORT_MARK
from retrieval.core.records import Item
from retrieval.storage.finished_output import JOB, MANIFEST, is_lookalike_json
from retrieval.storage.ignored_files import hidden_part, is_hidden
from retrieval.storage.input_files import describe_special_file, escape_non_utf8
from retrieval.storage.local import is_remote, local_path
from retrieval.storage.retry import is_transient

_MTIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
"""Keys of the modification time in fsspec's file info, best first; S3 has the second, Google the
fourth."""

_MAX_JSON_BYTES = 1 << 20
"""Bytes that are read of a job.json; those written by lookalike are much smaller."""

_CONCURRENT_FOLDERS = 32
"""Remote folders that are listed at the same time."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class ListedFile:
    """A listed file: its `name` below the root, '/'-separated, and the `path` that opens it.

    With a `problem` it cannot be read: a folder that may not be listed, a named pipe, a device.
    """

    name: str
    path: str
    size: int | None
    mtime_ns: int | None
    problem: str | None = None
    is_folder: bool = False  # a folder that cannot be listed; other folders are not returned

    def unreadable_item(self, columns: int = 0) -> Item:
        """Return an item for the ledger, with `columns` null metadata values."""
        return Item(
            self.name, self.path, None, self.mtime_ns, None, problem=self.problem,
            more=(None,) * columns,
        )  # fmt: skip


class SkippedFiles:
    """Counts of the files and folders that a listing skipped, by kind, with an example of each."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    @property
    def total(self) -> int:
        """Return the number of skipped files and folders; a skipped folder counts once."""
        return sum(count for count, _ in self._kinds.values())

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """Count `count` more files or folders of a kind."""
        previous, example = self._kinds.get(kind, (0, name))
        self._kinds[kind] = previous + count, min(example, name)

    def include(self, other: SkippedFiles) -> None:
        """Add the counts of another listing."""
        for kind, (count, example) in other._kinds.items():
            self.add(kind, example, count)

    def __str__(self) -> str:
        """Format as `hidden files: 2 (such as ._a.jpg), hidden folders: 1 (such as .git)`."""
        kinds = sorted(self._kinds.items())
        return ", ".join(f"{kind}: {count} (such as {name})" for kind, (count, name) in kinds)


HIDDEN_FILES, HIDDEN_FOLDERS = "hidden files", "hidden folders"
OUTPUT_FOLDERS = "folders that lookalike wrote"


def walk_files(
    root: str, options: Mapping[str, Any], skipped: SkippedFiles | None = None
) -> Iterator[ListedFile]:
    """Iterate over all files below a folder, counting in `skipped` what is skipped.

    Hidden files and folders are skipped, and so are outputs of lookalike, whose pictures are not
    photos. The root itself may be hidden. Raises InputError if the root does not exist, is not a
    folder, or is an output of lookalike.
    """
    skipped = SkippedFiles() if skipped is None else skipped
    return _walk_remote(root, options, skipped) if is_remote(root) else _walk_local(root, skipped)


def find_files(
    root: str,
    suffixes: tuple[str, ...],
    options: Mapping[str, Any],
    skipped: SkippedFiles | None = None,
) -> tuple[list[ListedFile], int]:
    """Return the container files at a path, in a folder or matching a glob, sorted by name.

    The second value is the number of other files. An existing path is taken literally even if it
    contains `*` or `[`. Folders that cannot be listed, and pipes or devices with one of the
    suffixes, are included with a problem. Raises InputError if nothing exists there.
    """
    skipped_count = 0
    skipped = SkippedFiles() if skipped is None else skipped
    if is_folder(root, options):
        files = []
        for file in walk_files(root, options, skipped):
            if file.is_folder or file.name.lower().endswith(suffixes):
                files.append(file)
            else:
                skipped_count += 1
    elif is_file(root, options):
        files = [describe_file(root, options)]
    elif is_glob(root):
        files = list(_glob_files(root, options, skipped))
    else:
        raise InputError(f"{root} does not exist; specify a file, a folder or a glob of such files")
    for file in files:
        if "::" in file.path:
            raise InputError(
                f"{file.path} has :: in its path, which fsspec uses to chain paths; rename it"
            )
    return sorted(files, key=lambda file: file.name), skipped_count + skipped.total


def find_readable_files(
    root: str, suffixes: tuple[str, ...], options: Mapping[str, Any]
) -> list[ListedFile]:
    """Return the files of `find_files` that have no problem."""
    return [file for file in find_files(root, suffixes, options)[0] if file.problem is None]


def is_glob(root: str) -> bool:
    """Return whether a path contains a glob character."""
    return any(char in root for char in "*?[")


def is_folder(root: str, options: Mapping[str, Any]) -> bool:
    """Return whether a folder exists at a path, taken literally."""
    if not is_remote(root):
        return os.path.isdir(local_path(root))
    system, name = open_filesystem(root, options)
    return bool(_call_filesystem(root, lambda: system.isdir(name)))


def is_file(root: str, options: Mapping[str, Any]) -> bool:
    """Return whether a file exists at a path, taken literally."""
    if not is_remote(root):
        return os.path.isfile(local_path(root))
    system, name = open_filesystem(root, options)
    return bool(_call_filesystem(root, lambda: system.isfile(name)))


def describe_file(root: str, options: Mapping[str, Any]) -> ListedFile:
    """Return the entry of an existing file; its name is the last part of the path."""
    if is_remote(root):
        system, name = open_filesystem(root, options)
        info = _call_filesystem(root, lambda: system.info(name))
        return _describe_remote(system, name.rsplit("/", 1)[-1], name, info)
    path = local_path(root)
    return _describe_local(os.path.basename(path), path, os.stat(path))


def open_filesystem(root: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the fsspec file system of a URI, with caching of listings off, and the path in it."""
    fs_options = {"use_listings_cache": False, **options}
    return _call_filesystem(root, lambda: fsspec.core.url_to_fs(root, **fs_options))  # type: ignore[no-any-return]


def _call_filesystem(root: str, action: Callable[[], Any]) -> Any:
    """Return the result of an fsspec call; raise InputError, naming the root, if it fails."""
    try:
        return action()
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{root} cannot be listed ({error})") from error


def _walk_local(root: str, skipped: SkippedFiles) -> Iterator[ListedFile]:
    root_path = local_path(root)
    if not os.path.exists(root_path):
        raise InputError(f"{root} does not exist; specify a folder with images")
    if not os.path.isdir(root_path):
        raise InputError(f"{root} is not a folder; specify a folder with images")
    if _is_output(root_path, _read_local_json):
        raise _output_error(root)
    for path, info, error in _walk_local_folder(root_path, frozenset(), skipped):
        name = os.path.relpath(path, root_path).replace(os.sep, "/")
        if error is None:
            yield _describe_local(name, path, info)
        else:
            problem = f"the folder cannot be listed ({error.strerror})"
            yield ListedFile(
                escape_non_utf8(name), escape_non_utf8(path), None, None, problem, is_folder=True
            )


def _describe_local(name: str, path: str, info: os.stat_result | None) -> ListedFile:
    if info is None:
        return ListedFile(escape_non_utf8(name), escape_non_utf8(path), None, None)
    return ListedFile(
        escape_non_utf8(name), escape_non_utf8(path), info.st_size, storable_ns(info.st_mtime_ns),
        describe_special_file(info.st_mode),
    )  # fmt: skip


_LocalEntry = tuple[str, os.stat_result | None, OSError | None]
"""(path, status, None) of a file, without status if it cannot be read; (path, None, error) of a
folder that cannot be listed."""


def _walk_local_folder(
    folder: str, above: frozenset[tuple[int, int]], skipped: SkippedFiles
) -> Iterator[_LocalEntry]:
    """Walk a local folder, following links to folders except to those that contain it.

    `above` holds (device, inode) of the folders that contain it. Broken links, and files whose
    status cannot be read, are returned as files; reading them fails later. A folder below the root
    that cannot be listed is returned with its error; transient errors of the disk are raised.
    """
    try:
        status = os.stat(folder)
        ancestors = above | {(status.st_dev, status.st_ino)}
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    is_directory = entry.is_dir(follow_symlinks=False)
                    skipped.add(
                        HIDDEN_FOLDERS if is_directory else HIDDEN_FILES,
                        escape_non_utf8(entry.name),
                    )
                    continue
                try:
                    info = entry.stat()
                except OSError as error:
                    yield from _without_status(entry, error)
                    continue
                if stat.S_ISDIR(info.st_mode):
                    if (info.st_dev, info.st_ino) in ancestors:
                        continue
                    if _is_written_by_lookalike(entry.path, _read_local_json):
                        skipped.add(OUTPUT_FOLDERS, escape_non_utf8(entry.name))
                        continue
                    yield from _walk_local_folder(entry.path, ancestors, skipped)
                else:
                    yield entry.path, info, None
    except OSError as error:
        if not above or is_transient(error):
            raise InputError(
                f"{escape_non_utf8(folder)} cannot be listed ({error.strerror})"
            ) from error
        yield folder, None, error


def _without_status(entry: os.DirEntry[str], error: OSError) -> Iterator[_LocalEntry]:
    """Yield an entry whose status cannot be read; yield nothing if it was removed meanwhile."""
    if entry.is_symlink():
        yield entry.path, entry.stat(follow_symlinks=False), None
    elif entry.is_dir(follow_symlinks=False):
        yield entry.path, None, error
    elif not isinstance(error, FileNotFoundError):
        yield entry.path, None, None


def _is_output(folder: str, read: Callable[[str], bytes | None]) -> bool:
    """Return whether a folder is an output of lookalike, finished or not.

    This depends on the content of job.json, or of manifest.json, since other programs use these
    names too.
    """
    job = read(f"{folder}/{JOB}")
    if job is None:
        return False
    return is_lookalike_json(job) or is_lookalike_json(read(f"{folder}/{MANIFEST}") or b"")


def _is_written_by_lookalike(folder: str, read: Callable[[str], bytes | None]) -> bool:
    """Return whether a folder is an output of lookalike, or a folder beside a page of `report`."""
    if _is_output(folder, read):
        return True
    marker = read(f"{folder}/{REPORT_MARK}") if folder.endswith(REPORT_FOLDERS) else None
    return marker is not None and is_lookalike_json(marker)


def _read_local_json(path: str) -> bytes | None:
    """Return the start of a local file; None if it does not exist or cannot be read."""
    try:
        if not os.path.isfile(path):  # reading a pipe would not end
            return None
        with open(path, "rb") as file:
            return file.read(_MAX_JSON_BYTES)
    except OSError:
        return None


def _output_error(root: str) -> InputError:
    return InputError(
        f"{root} is a folder that lookalike wrote, not a folder of images (see its {JOB}); specify "
        "one with photos"
    )


def _walk_remote(
    root: str, options: Mapping[str, Any], skipped: SkippedFiles
) -> Iterator[ListedFile]:
    system, root_path = open_filesystem(root, options)
    prefix = root_path.rstrip("/") + "/"
    try:
        first = _list_remote_folder(system, root_path)
        if first.is_file:
            raise InputError(f"{root} is not a folder; specify a folder with images")
        if _is_output(root_path, _remote_reader(system, first.files)):
            raise _output_error(root)
        if not first.files and not first.folders and not system.exists(root_path):
            raise InputError(f"{root} does not exist; specify a folder with images")
        for folder in chain([first], _list_subfolders(system, first)):
            skipped.include(folder.skipped)
            for info in folder.files.values():
                path = info["name"]
                yield _describe_remote(system, path.removeprefix(prefix), path, info)
    except FileNotFoundError as error:
        raise InputError(f"{root} does not exist; specify a folder with images") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{root} cannot be listed ({error})") from error


@dataclass(frozen=True)
class _RemoteFolder:
    """One remote folder: its files by name, its folders, and what is skipped in it."""

    files: dict[str, dict[str, Any]]
    folders: list[str]
    skipped: SkippedFiles
    is_file: bool  # the path is that of a file


def _list_subfolders(system: Any, root: _RemoteFolder) -> Iterator[_RemoteFolder]:
    """List the folders below a remote folder at any depth, several at the same time.

    An object store answers a request in about 0.1 s however many others it gets, so the time falls
    with the number of requests in progress.
    """
    waiting = list(root.folders)
    running: set[Future[_RemoteFolder]] = set()
    with ThreadPoolExecutor(_CONCURRENT_FOLDERS, "list") as pool:
        try:
            while waiting or running:
                while waiting and len(running) < _CONCURRENT_FOLDERS:
                    running.add(pool.submit(_list_below_root, system, waiting.pop()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    folder = future.result()
                    waiting += folder.folders
                    yield folder
        finally:
            for future in running:
                future.cancel()


def _list_below_root(system: Any, path: str) -> _RemoteFolder:
    """List a folder below the root; one that lookalike wrote has no files and no folders."""
    folder = _list_remote_folder(system, path)
    if not _is_written_by_lookalike(path, _remote_reader(system, folder.files)):
        return folder
    skipped = SkippedFiles()
    skipped.add(OUTPUT_FOLDERS, path.rsplit("/", 1)[-1])
    return _RemoteFolder({}, [], skipped, is_file=False)


def _list_remote_folder(system: Any, path: str) -> _RemoteFolder:
    """List the files and folders of a remote folder that are not hidden."""
    walk = system.walk(path, maxdepth=1, detail=True, on_error="raise")
    listed: tuple[str, dict[str, Any], dict[str, Any]] = next(walk, (path, {}, {}))
    _, folders, files = listed
    root_entry = files.pop("", None)
    skipped = SkippedFiles()
    for kind, names in ((HIDDEN_FOLDERS, folders), (HIDDEN_FILES, files)):
        for name in filter(is_hidden, names):
            skipped.add(kind, name)
    return _RemoteFolder(
        {name: info for name, info in files.items() if not is_hidden(name)},
        [info["name"].rstrip("/") for name, info in folders.items() if not is_hidden(name)],
        skipped,
        is_file=bool(root_entry and root_entry["type"] == "file" and not files),
    )


def _remote_reader(system: Any, files: Mapping[str, Any]) -> Callable[[str], bytes | None]:
    """Return a function that reads the start of a remote file if it is in `files`, else None."""

    def read(path: str) -> bytes | None:
        info = files.get(path.rsplit("/", 1)[-1])
        if info is None or info.get("size") == 0:  # object stores reject ranges of an empty file
            return None
        try:
            return bytes(system.cat_file(path, start=0, end=_MAX_JSON_BYTES))
        except (FileNotFoundError, PermissionError):  # removed since, or not accessible
            return None

    return read


def _glob_files(
    root: str, options: Mapping[str, Any], skipped: SkippedFiles
) -> Iterator[ListedFile]:
    """Iterate over the files that match a pattern; names are relative to its fixed leading folders.

    As in a shell, hidden files match only a part of the pattern that begins with a dot. Files in
    outputs of lookalike below the fixed folders are skipped.
    """
    pattern = root if is_remote(root) else local_path(root)
    fixed_parts = 0
    parts = pattern.split("/")
    while fixed_parts < len(parts) - 1 and not is_glob(parts[fixed_parts]):
        fixed_parts += 1
    system, name = open_filesystem(pattern, options if is_remote(root) else {})
    name_parts = name.split("/")
    fixed_parts -= len(parts) - len(name_parts)
    prefix = "/".join(name_parts[:fixed_parts]) + "/" if fixed_parts > 0 else ""
    infos = _call_filesystem(root, lambda: system.glob(name, detail=True))
    include_hidden = any(part.startswith(".") for part in name_parts[max(fixed_parts, 0) :])
    outputs = _EnclosingOutputs(system, prefix)
    matched = False
    for path, info in infos.items():
        if not include_hidden and (part := hidden_part(path.removeprefix(prefix))):
            skipped.add(HIDDEN_FILES, part)
            continue
        if output := outputs.enclosing(path):
            skipped.add(f"files in {OUTPUT_FOLDERS}", output.rsplit("/", 1)[-1])
            continue
        matched = matched or info["type"] == "file"
        if info["type"] == "file" and is_remote(root):
            yield _describe_remote(system, path.removeprefix(prefix), path, info)
        elif info["type"] == "file":
            yield _describe_local(path.removeprefix(prefix), path, os.stat(path))
    if not matched:
        left_out = f" (skipped: {skipped})" if skipped.total else ""
        raise InputError(
            f"{root} matches no file{left_out}; specify a file, a folder or another glob"
        )


class _EnclosingOutputs:
    """Find the outputs of lookalike that enclose files below a folder; each folder is read once."""

    def __init__(self, system: Any, prefix: str) -> None:
        self._system, self._below = system, prefix
        self._is_output: dict[str, bool] = {}

    def enclosing(self, path: str) -> str | None:
        """Return the outermost output that encloses a file, or None."""
        parts = path.removeprefix(self._below).split("/")[:-1]
        for count in range(1, len(parts) + 1):
            folder = self._below + "/".join(parts[:count])
            if folder not in self._is_output:
                self._is_output[folder] = _is_written_by_lookalike(folder, self._read)
            if self._is_output[folder]:
                return folder
        return None

    def _read(self, path: str) -> bytes | None:
        try:
            if not self._system.isfile(path):  # reading a pipe would not end
                return None
            return bytes(self._system.cat_file(path, start=0, end=_MAX_JSON_BYTES))
        except OSError:
            return None


def _describe_remote(system: Any, name: str, path: str, info: Mapping[str, Any]) -> ListedFile:
    return ListedFile(name, system.unstrip_protocol(path), info.get("size"), modified_ns(info))


def storable_ns(nanoseconds: int) -> int | None:
    """Return a time in ns since 1970 if it fits into int64 (until 2262), else None."""
    return nanoseconds if abs(nanoseconds) < 1 << 63 else None


def seconds_to_ns(seconds: float) -> int | None:
    """Return seconds since 1970 as nanoseconds; None where these do not fit into int64."""
    return storable_ns(int(seconds * 1_000_000_000)) if abs(seconds) < 1 << 34 else None


def modified_ns(info: Mapping[str, Any]) -> int | None:
    """Return the modification time of a remote file in ns since 1970; None where unknown.

    Object stores report it as a datetime (naive ones are UTC), as ISO text, or as seconds.
    """
    for key in _MTIME_KEYS:
        value = info.get(key)
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime):
            value = value if value.tzinfo else value.replace(tzinfo=UTC)
            return storable_ns((value - _EPOCH) // timedelta(microseconds=1) * 1000)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return seconds_to_ns(value)
    return None
