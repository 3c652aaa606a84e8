"""Slices of a report's further files: each made once, by whoever has it, and vouched for.

When all files of a slice are there a sealed JSON names them with their checksums. A run that was
killed and comes again finds by it what need not be made again, and `verify` what was altered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from retrieval.report.contact_sheet import Frame, render_further
from retrieval.report.names import PER_CHUNK, PER_THUMBNAILS, Names
from retrieval.report.rows import Shown
from retrieval.storage import finished_output
from retrieval.storage.checksum import read_json, sealed_json
from retrieval.storage.local import Folder
from retrieval.storage.temporary import TEMPORARY

_AT_ONCE = 8  # files of a slice that are put side by side


@dataclass(frozen=True)
class PictureSlice:
    """Images whose thumbnails are made together: `paths` are numbered from `first` on."""

    folder: Folder
    names: Names
    first: int
    paths: tuple[str, ...]
    max_pixels: int


def picture_slices(
    folder: Folder, names: Names, paths: list[str], *, max_pixels: int
) -> Iterator[PictureSlice]:
    """Cut the images of a report, given as they are best read."""
    for first in range(0, len(paths), PER_THUMBNAILS):
        some = tuple(paths[first : first + PER_THUMBNAILS])
        yield PictureSlice(folder, names, first, some, max_pixels)


def make_pictures(work: PictureSlice) -> dict[str, bytes]:
    """Give the thumbnails of a slice by path, without those that cannot be read."""
    from retrieval.report.thumbnails import thumbnails  # loads torch

    return thumbnails(work.paths, max_pixels=work.max_pixels)


def put_pictures(work: PictureSlice) -> list[int]:
    """Put the thumbnails of a slice; gives the numbers of images that cannot be read."""

    def make() -> tuple[dict[str, bytes], dict[str, Any]]:
        made = make_pictures(work)
        numbered = list(enumerate(work.paths, work.first))
        files = {work.names.thumbnail(n): made[path] for n, path in numbered if path in made}
        return files, {"missing": [n for n, path in numbered if path not in made]}

    values = _once(work.folder, work.names.thumbnail(work.first, "json"), make)
    return [int(number) for number in values["missing"]]


@dataclass(frozen=True)
class PageSlice:
    """Queries whose pages and chunk scripts are drawn together."""

    folder: Folder
    frame: Frame
    shown: Shown


def put_pages(work: PageSlice) -> int:
    """Put the pages and chunk scripts of a slice; gives how many queries it holds."""
    first = work.shown.first // PER_CHUNK
    _once(
        work.folder,
        work.frame.names.chunk(first, "json"),
        lambda: (render_further(work.frame, work.shown), {}),
    )
    return len(work.shown)


def put_facets(folder: Folder, names: Names, script: str) -> None:
    """Put the script of all queries' facets."""
    _once(folder, names.facets("json"), lambda: ({names.facets(): script.encode()}, {}))


def claim(folder: Folder, names: Names, made_from: dict[str, str]) -> bool:
    """Say first what the further files are made from, and remove what is made from something else.

    `made_from` names the origin of "thumbnails" and of "pages". Gives False, and does nothing,
    where the folder holds files that are not a report's.
    """
    folder.child(names.folder).sweep()
    there = [entry.path for entry in folder.entries(names.folder)]
    if not all(names.is_ours(path) or TEMPORARY in path for path in there):
        return False
    was = read_json(finished_output.read_if_there(folder, names.claim()) or b"") or {}
    if was == made_from:
        return True
    keep = was.get("thumbnails") == made_from["thumbnails"]
    folder.delete(names.claim())
    for path in there:
        if not (keep and path.startswith(f"{names.folder}/thumbnails/")):
            folder.delete(path)
    folder.put(names.claim(), sealed_json(made_from))
    return True


def clear(folder: Folder, names: Names) -> None:
    """Remove the further files of an earlier report; what somebody else has put there stays."""
    for entry in list(folder.entries(names.folder)):
        if names.is_ours(entry.path):
            folder.delete(entry.path)


def _once(
    folder: Folder, path: str, make: Callable[[], tuple[dict[str, bytes], dict[str, Any]]]
) -> dict[str, Any]:
    """Make files, put them and then, at `path`, their checksums and what else is to be known.

    Not where they are there as that says.
    """
    values = read_json(finished_output.read_if_there(folder, path) or b"")
    if values is not None and all(
        _digest(finished_output.read_if_there(folder, name)) == sha256
        for name, sha256 in values["files"].items()
    ):
        return values
    folder.delete(path)
    files, more = make()
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # a small file mostly waits for its disk
        list(pool.map(folder.put, files.keys(), files.values()))
    values = {**more, "files": {name: _digest(data) for name, data in files.items()}}
    folder.put(path, sealed_json(values))
    return values


def _digest(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()
