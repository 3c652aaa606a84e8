"""Files below a root, local or behind an fsspec URI, as they are met: nothing is sorted or kept.

Locally only the folders on the way down are open, so a folder of ten million files costs no memory.
Remotely a folder at a time is listed, as fsspec gives it whole: memory is the largest folder. Its
cache of listings is off, for it would hold all of them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import fsspec

from retrieval.errors import InputError
from retrieval.kinds import REPORT_FOLDERS, REPORT_MARK
from retrieval.records import Item
from retrieval.storage.files import is_remote, local_path
from retrieval.storage.finished import JOB, MANIFEST, is_made_by_us
from retrieval.storage.ignored_files import hidden_part, is_hidden
from retrieval.storage.patience import may_pass
from retrieval.storage.reading import not_a_file, readable

_CHANGED = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
"""Where stores tell the last change of a file, best first; S3 has the second, Google the fourth."""

_MOST_BYTES = 1 << 20
"""Bytes that are read of a job.json; those of lookalike are smaller by far."""

_START = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Found:
    """One file: `name` below the root, '/'-separated, and the `path` that opens it again.

    Or, with a `problem`, what was met and cannot be read: a folder that may not be listed, a named
    pipe, a device.
    """

    name: str
    path: str
    size: int | None
    mtime_ns: int | None
    problem: str | None = None
    is_folder: bool = False  # one that may not be listed; others are not met, only what they hold

    def unread(self, columns: int = 0) -> Item:
        """Return the item that stands for what cannot be read, so that the ledger names it."""
        return Item(
            self.name, self.path, None, self.mtime_ns, None, problem=self.problem,
            more=(None,) * columns,
        )  # fmt: skip


class PassedOver:
    """What a listing left out unread: counts by kind, with one example of each."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    @property
    def total(self) -> int:
        """The number of files and folders; a folder counts once, for nobody looked inside."""
        return sum(count for count, _ in self._kinds.values())

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """Count one more file or folder of a kind."""
        before, example = self._kinds.get(kind, (0, name))
        self._kinds[kind] = before + count, example

    def include(self, other: PassedOver) -> None:
        """Add the counts of another listing."""
        for kind, (count, example) in other._kinds.items():
            self.add(kind, example, count)

    def __str__(self) -> str:
        """Write it as `hidden files: 2 (such as ._a.jpg), hidden folders: 1 (such as .git)`."""
        kinds = sorted(self._kinds.items())
        return ", ".join(f"{kind}: {count} (such as {name})" for kind, (count, name) in kinds)


HIDDEN_FILES, HIDDEN_FOLDERS = "hidden files", "hidden folders"
OUTPUTS = "folders that lookalike wrote"


def walk(
    root: str, options: Mapping[str, Any], passed: PassedOver | None = None
) -> Iterator[Found]:
    """Yield every file below a folder; refuse one that is missing or is none.

    Hidden files and folders are passed over, and so are folders that lookalike wrote: pictures in a
    result are no photos. The root is what somebody named, hidden or not; but a result as the root
    is refused.
    """
    passed = PassedOver() if passed is None else passed
    return _remote(root, options, passed) if is_remote(root) else _local(root, passed)


def files_at(
    root: str,
    suffixes: tuple[str, ...],
    options: Mapping[str, Any],
    passed: PassedOver | None = None,
) -> tuple[list[Found], int]:
    """Give the files that a file's path, a folder or a glob means, and how many others there are.

    They are few and large ones, and come by name. A path that exists is what it says, even if `*`
    or `[` stands in it. Folders that may not be listed, and what is named so and is no file, are
    among them, with a problem.
    """
    others = 0
    passed = PassedOver() if passed is None else passed
    if is_folder(root, options):
        found = []
        for one in walk(root, options, passed):
            if one.is_folder or one.name.lower().endswith(suffixes):
                found.append(one)
            else:
                others += 1
    elif is_file(root, options):
        found = [one_file(root, options)]
    elif is_glob(root):
        found = list(_globbed(root, options, passed))
    else:
        raise InputError(f"{root} does not exist; name a file, a folder or a glob of such files")
    for one in found:
        if "::" in one.path:
            raise InputError(
                f"{one.path} has :: in its path, by which paths are chained; rename it"
            )
    return sorted(found, key=lambda one: one.name), others + passed.total


def readable_files_at(
    root: str, suffixes: tuple[str, ...], options: Mapping[str, Any]
) -> list[Found]:
    """Return those of `files_at` that have no problem."""
    return [one for one in files_at(root, suffixes, options)[0] if one.problem is None]


def is_glob(root: str) -> bool:
    """Tell whether a path has signs of a pattern in it."""
    return any(sign in root for sign in "*?[")


def is_folder(root: str, options: Mapping[str, Any]) -> bool:
    """Tell whether there is a folder of this very name."""
    if not is_remote(root):
        return os.path.isdir(local_path(root))
    system, name = connect(root, options)
    return bool(_asked(root, lambda: system.isdir(name)))


def is_file(root: str, options: Mapping[str, Any]) -> bool:
    """Tell whether there is a file of this very name."""
    if not is_remote(root):
        return os.path.isfile(local_path(root))
    system, name = connect(root, options)
    return bool(_asked(root, lambda: system.isfile(name)))


def one_file(root: str, options: Mapping[str, Any]) -> Found:
    """Describe one file that is there, named below its own folder."""
    if is_remote(root):
        system, name = connect(root, options)
        info = _asked(root, lambda: system.info(name))
        return _described(system, name.rsplit("/", 1)[-1], name, info)
    path = local_path(root)
    return _described_local(os.path.basename(path), path, os.stat(path))


def connect(root: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Give the store of a URI, with no cache of listings, and the name there."""
    plain = {"use_listings_cache": False, **options}
    return _asked(root, lambda: fsspec.core.url_to_fs(root, **plain))  # type: ignore[no-any-return]


def _asked(root: str, question: Any) -> Any:
    try:
        return question()
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{root} cannot be listed ({error})") from error


def _local(root: str, passed: PassedOver) -> Iterator[Found]:
    top = local_path(root)
    if not os.path.exists(top):
        raise InputError(f"{root} does not exist; name a folder with images")
    if not os.path.isdir(top):
        raise InputError(f"{root} is not a folder; name a folder with images")
    if _is_output(top, _local_bytes):
        raise _is_ours(root)
    for path, info, error in _files(top, frozenset(), passed):
        name = os.path.relpath(path, top).replace(os.sep, "/")
        if error is None:
            yield _described_local(name, path, info)
        else:
            problem = f"the folder cannot be listed ({error.strerror})"
            yield Found(readable(name), readable(path), None, None, problem, is_folder=True)


def _described_local(name: str, path: str, info: os.stat_result | None) -> Found:
    if info is None:
        return Found(readable(name), readable(path), None, None)
    return Found(
        readable(name), readable(path), info.st_size, storable_ns(info.st_mtime_ns),
        not_a_file(info.st_mode),
    )  # fmt: skip


_Met = tuple[str, os.stat_result | None, OSError | None]
"""The path of a file and its status, where that may be asked; or of a folder, and why it cannot be
listed."""


def _files(folder: str, above: frozenset[tuple[int, int]], passed: PassedOver) -> Iterator[_Met]:
    """Walk a local folder, following links to folders, but never into one that is above.

    A link that leads nowhere, and a file that may not be looked at, is a file of its own: whoever
    reads it says why it cannot be read. A folder below the first that may not be listed is met as
    such; a disk that fails for now stops the walk.
    """
    try:
        status = os.stat(folder)
        here = above | {(status.st_dev, status.st_ino)}
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    inside = entry.is_dir(follow_symlinks=False)
                    passed.add(HIDDEN_FOLDERS if inside else HIDDEN_FILES, readable(entry.name))
                    continue
                try:
                    info = entry.stat()
                except OSError as error:
                    yield from _without_status(entry, error)
                    continue
                if stat.S_ISDIR(info.st_mode):
                    if (info.st_dev, info.st_ino) in here:
                        continue
                    if _is_written(entry.path, _local_bytes):
                        passed.add(OUTPUTS, readable(entry.name))
                        continue
                    yield from _files(entry.path, here, passed)
                else:
                    yield entry.path, info, None
    except OSError as error:
        if not above or may_pass(error):
            raise InputError(f"{readable(folder)} cannot be listed ({error.strerror})") from error
        yield folder, None, error


def _without_status(entry: os.DirEntry[str], error: OSError) -> Iterator[_Met]:
    """Yield an entry whose status cannot be read; nothing where it was removed meanwhile."""
    if entry.is_symlink():
        yield entry.path, entry.stat(follow_symlinks=False), None
    elif entry.is_dir(follow_symlinks=False):
        yield entry.path, None, error
    elif not isinstance(error, FileNotFoundError):
        yield entry.path, None, None


def _is_output(folder: str, read: Callable[[str], bytes | None]) -> bool:
    """Return whether a folder is an output of lookalike, finished or not.

    Told by what its job.json (else manifest.json) says: other programs have files of these names.
    """
    job = read(f"{folder}/{JOB}")
    if job is None:
        return False
    return is_made_by_us(job) or is_made_by_us(read(f"{folder}/{MANIFEST}") or b"")


def _is_written(folder: str, read: Callable[[str], bytes | None]) -> bool:
    """Return whether a folder is an output of lookalike, or lies beside a page of `report`."""
    if _is_output(folder, read):
        return True
    mark = read(f"{folder}/{REPORT_MARK}") if folder.endswith(REPORT_FOLDERS) else None
    return mark is not None and is_made_by_us(mark)


def _local_bytes(path: str) -> bytes | None:
    """Read the beginning of a small local file; None where there is none that can be read."""
    try:
        if not os.path.isfile(path):  # a pipe of that name would never end
            return None
        with open(path, "rb") as file:
            return file.read(_MOST_BYTES)
    except OSError:
        return None


def _is_ours(root: str) -> InputError:
    return InputError(
        f"{root} is a folder that lookalike wrote, and no folder of images (see its {JOB}); name "
        "one with photos"
    )


def _remote(root: str, options: Mapping[str, Any], passed: PassedOver) -> Iterator[Found]:
    system, top = connect(root, options)
    below = top.rstrip("/") + "/"
    empty = True
    try:
        for folder, folders, files in system.walk(top, detail=True, on_error="raise"):
            itself = files.pop("", None)
            if empty and itself and itself["type"] == "file" and not files:
                raise InputError(f"{root} is not a folder; name a folder with images")
            if empty and _is_output(folder, _reader(system, files)):
                raise _is_ours(root)
            at_root, empty = empty, empty and not files and not folders
            for info in _offered(system, folder, folders, files, passed, at_root):
                path = info["name"]
                yield _described(system, path.removeprefix(below), path, info)
    except FileNotFoundError as error:
        raise InputError(f"{root} does not exist; name a folder with images") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{root} cannot be listed ({error})") from error
    if empty and not system.exists(top):
        raise InputError(f"{root} does not exist; name a folder with images")


def _offered(
    system: Any, folder: str, folders: dict[str, Any], files: dict[str, Any], passed: PassedOver,
    at_root: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the files of a remote folder that are not passed over.

    Folders below it that are passed over are taken out of `folders`, by which the walk goes on.
    """
    if not at_root and _is_written(folder, _reader(system, files)):
        passed.add(OUTPUTS, folder.rsplit("/", 1)[-1])
        folders.clear()
        return []
    for name in list(filter(is_hidden, folders)):
        passed.add(HIDDEN_FOLDERS, name)
        del folders[name]
    for name in filter(is_hidden, files):
        passed.add(HIDDEN_FILES, name)
    return [info for name, info in files.items() if not is_hidden(name)]


def _reader(system: Any, files: Mapping[str, Any]) -> Callable[[str], bytes | None]:
    """Return what reads the beginning of a remote file, if it is among those that were listed."""

    def read(path: str) -> bytes | None:
        info = files.get(path.rsplit("/", 1)[-1])
        if info is None or info.get("size") == 0:  # of which stores refuse any range
            return None
        try:
            return bytes(system.cat_file(path, start=0, end=_MOST_BYTES))
        except (FileNotFoundError, PermissionError):  # removed since, or somebody else's
            return None

    return read


def _globbed(root: str, options: Mapping[str, Any], passed: PassedOver) -> Iterator[Found]:
    """Yield the files that a glob matches, named below its last folder without a wildcard.

    As in a shell, what is hidden has to be asked for by a part of the pattern that begins with a
    dot. What lies in a folder that lookalike wrote below that last folder is passed over.
    """
    pattern = root if is_remote(root) else local_path(root)
    fixed = 0
    parts = pattern.split("/")
    while fixed < len(parts) - 1 and not is_glob(parts[fixed]):
        fixed += 1
    system, name = connect(pattern, options if is_remote(root) else {})
    outright = name.split("/")
    fixed -= len(parts) - len(outright)
    below = "/".join(outright[:fixed]) + "/" if fixed > 0 else ""
    found = _asked(root, lambda: system.glob(name, detail=True))
    hidden_too = any(part.startswith(".") for part in outright[max(fixed, 0) :])
    outputs = _OutputsBelow(system, below)
    matched = False
    for path, info in found.items():
        if not hidden_too and (part := hidden_part(path.removeprefix(below))):
            passed.add(HIDDEN_FILES, part)
            continue
        if output := outputs.around(path):
            passed.add(f"files in {OUTPUTS}", output.rsplit("/", 1)[-1])
            continue
        matched = matched or info["type"] == "file"
        if info["type"] == "file" and is_remote(root):
            yield _described(system, path.removeprefix(below), path, info)
        elif info["type"] == "file":
            yield _described_local(path.removeprefix(below), path, os.stat(path))
    if not matched:
        left_out = f" (passed over: {passed})" if passed.total else ""
        raise InputError(f"{root} matches no file{left_out}; name a file, a folder or another glob")


class _OutputsBelow:
    """Which folders below another one are outputs of lookalike; each is looked at once."""

    def __init__(self, system: Any, below: str) -> None:
        self._system, self._below = system, below
        self._known: dict[str, bool] = {}

    def around(self, path: str) -> str | None:
        """Return the output that a file lies in, the outermost one; None without one."""
        parts = path.removeprefix(self._below).split("/")[:-1]
        for count in range(1, len(parts) + 1):
            folder = self._below + "/".join(parts[:count])
            if folder not in self._known:
                self._known[folder] = _is_written(folder, self._read)
            if self._known[folder]:
                return folder
        return None

    def _read(self, path: str) -> bytes | None:
        try:
            if not self._system.isfile(path):  # a pipe of that name would never end
                return None
            return bytes(self._system.cat_file(path, start=0, end=_MOST_BYTES))
        except OSError:
            return None


def _described(system: Any, name: str, path: str, info: Mapping[str, Any]) -> Found:
    return Found(name, system.unstrip_protocol(path), info.get("size"), changed_ns(info))


def storable_ns(nanoseconds: int) -> int | None:
    """Return a time that a listing can hold, which ends in 2262; any other is unknown (None)."""
    return nanoseconds if abs(nanoseconds) < 1 << 63 else None


def seconds_to_ns(seconds: float) -> int | None:
    """Return seconds as nanoseconds, None where they are no time that a listing can hold."""
    return storable_ns(int(seconds * 1_000_000_000)) if abs(seconds) < 1 << 34 else None


def changed_ns(info: Mapping[str, Any]) -> int | None:
    """Give the last change of a remote file in nanoseconds since 1970, where its store tells it.

    Stores write it as a date (naive ones are UTC), as ISO text, or as seconds. A time out of range
    is unknown.
    """
    for key in _CHANGED:
        value = info.get(key)
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime):
            value = value if value.tzinfo else value.replace(tzinfo=UTC)
            return storable_ns((value - _START) // timedelta(microseconds=1) * 1000)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return seconds_to_ns(value)
    return None
