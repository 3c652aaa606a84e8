"""Files below a root, local or behind an fsspec URI, as they are met: nothing is sorted or kept.

Locally only the folders on the way down are open, so a folder of ten million files costs no memory.
Remotely a folder at a time is listed, as fsspec gives it whole: memory is the largest folder. Its
cache of listings is off, for it would hold all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import fsspec

from retrieval.errors import InputError
from retrieval.storage.files import is_remote, local_path
from retrieval.storage.reading import readable

_CHANGED = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
"""Where stores tell the last change of a file, best first; S3 has the second, Google the fourth."""

_START = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Found:
    """One file: `name` below the root, '/'-separated, and the `path` that opens it again."""

    name: str
    path: str
    size: int | None
    mtime_ns: int | None


def walk(root: str, options: Mapping[str, Any]) -> Iterator[Found]:
    """Give every file below a folder; refuse one that is missing or is none."""
    return _remote(root, options) if is_remote(root) else _local(root)


def files_at(
    root: str, suffixes: tuple[str, ...], options: Mapping[str, Any]
) -> tuple[list[Found], int]:
    """Give the files that a file's path, a folder or a glob means, and how many others there are.

    They are few and large ones, and come by name. A path that exists is what it says, even if `*`
    or `[` stands in it.
    """
    others = 0
    if is_folder(root, options):
        found = []
        for one in walk(root, options):
            if one.name.lower().endswith(suffixes):
                found.append(one)
            else:
                others += 1
    elif is_file(root, options):
        found = [one_file(root, options)]
    elif is_glob(root):
        found = list(_globbed(root, options))
    else:
        raise InputError(f"{root} does not exist; name a file, a folder or a glob of such files")
    for one in found:
        if "::" in one.path:
            raise InputError(
                f"{one.path} has :: in its path, by which paths are chained; rename it"
            )
    return sorted(found, key=lambda one: one.name), others


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
    info = os.stat(path)
    return Found(
        readable(os.path.basename(path)), readable(path), info.st_size, info.st_mtime_ns
    )  # fmt: skip


def connect(root: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Give the store of a URI, with no cache of listings, and the name there."""
    plain = {"use_listings_cache": False, **options}
    return _asked(root, lambda: fsspec.core.url_to_fs(root, **plain))  # type: ignore[no-any-return]


def _asked(root: str, question: Any) -> Any:
    try:
        return question()
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{root} cannot be listed ({error})") from error


def _local(root: str) -> Iterator[Found]:
    top = local_path(root)
    if not os.path.exists(top):
        raise InputError(f"{root} does not exist; name a folder with images")
    if not os.path.isdir(top):
        raise InputError(f"{root} is not a folder; name a folder with images")
    for path, info in _files(top, frozenset()):
        name = readable(os.path.relpath(path, top)).replace(os.sep, "/")
        yield Found(name, readable(path), info.st_size, info.st_mtime_ns)


def _files(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.stat_result]]:
    """Walk a local folder, following links to folders, but never into one that is above.

    A link that leads nowhere is a file of its own: only its target could have been an image, and
    whoever reads it says that it is missing.
    """
    try:
        status = os.stat(folder)
        here = above | {(status.st_dev, status.st_ino)}
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    info = entry.stat()
                except OSError:
                    if entry.is_symlink():
                        yield entry.path, entry.stat(follow_symlinks=False)
                    continue
                if entry.is_dir():
                    if (info.st_dev, info.st_ino) not in here:
                        yield from _files(entry.path, here)
                elif entry.is_file():
                    yield entry.path, info
    except OSError as error:
        raise InputError(f"{readable(folder)} cannot be listed ({error.strerror})") from error


def _remote(root: str, options: Mapping[str, Any]) -> Iterator[Found]:
    system, top = connect(root, options)
    below = top.rstrip("/") + "/"
    empty = True
    try:
        for _, folders, files in system.walk(top, detail=True, on_error="raise"):
            itself = files.pop("", None)
            if empty and itself and itself["type"] == "file" and not files:
                raise InputError(f"{root} is not a folder; name a folder with images")
            empty = empty and not files and not folders
            for info in files.values():
                path = info["name"]
                yield _described(system, path.removeprefix(below), path, info)
    except FileNotFoundError as error:
        raise InputError(f"{root} does not exist; name a folder with images") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{root} cannot be listed ({error})") from error
    if empty and not system.exists(top):
        raise InputError(f"{root} does not exist; name a folder with images")


def _globbed(root: str, options: Mapping[str, Any]) -> Iterator[Found]:
    """Give the files that a pattern means, named below the last folder it names outright."""
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
    for path, info in found.items():
        if info["type"] == "file" and is_remote(root):
            yield _described(system, path.removeprefix(below), path, info)
        elif info["type"] == "file":
            status = os.stat(path)
            yield Found(
                readable(path.removeprefix(below)), readable(path), status.st_size,
                status.st_mtime_ns,
            )  # fmt: skip
    if not found:
        raise InputError(f"{root} matches no file; name a file, a folder or another glob")


def _described(system: Any, name: str, path: str, info: Mapping[str, Any]) -> Found:
    return Found(name, system.unstrip_protocol(path), info.get("size"), changed_ns(info))


def changed_ns(info: Mapping[str, Any]) -> int | None:
    """Give the last change of a remote file in nanoseconds since 1970, where its store tells it.

    Stores write it as a date (naive ones are UTC), as ISO text, or as seconds.
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
            return (value - _START) // timedelta(microseconds=1) * 1000
        if isinstance(value, int | float) and not isinstance(value, bool):
            return int(value * 1_000_000_000)
    return None
