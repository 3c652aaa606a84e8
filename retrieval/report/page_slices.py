"""Write a report's further files in slices that can be processed in parallel and resumed.

When all files of a slice are written, a JSON file records their checksums. A restarted run skips
slices whose checksums match, and `verify` finds altered files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from retrieval.report.contact_sheet import PageFrame, render_further_pages
from retrieval.report.names import PER_CHUNK, PER_THUMBNAILS, ReportFiles
from retrieval.report.rows import ShownQueries
from retrieval.storage import finished_output
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.local import Folder
from retrieval.storage.temporary import TEMPORARY_PREFIX

_PARALLEL_WRITES = 8


@dataclass(frozen=True)
class ThumbnailSlice:
    """A work item: images whose thumbnails are numbered from `first` in the order of `paths`."""

    folder: Folder
    names: ReportFiles
    first: int
    paths: tuple[str, ...]
    max_pixels: int


def thumbnail_slices(
    folder: Folder, names: ReportFiles, paths: list[str], *, max_pixels: int
) -> Iterator[ThumbnailSlice]:
    """Yield the work items of image paths, which are given in efficient reading order."""
    for first in range(0, len(paths), PER_THUMBNAILS):
        slice_paths = tuple(paths[first : first + PER_THUMBNAILS])
        yield ThumbnailSlice(folder, names, first, slice_paths, max_pixels)


def make_thumbnails(work: ThumbnailSlice) -> dict[str, bytes]:
    """Return the thumbnails of a slice by path, without unreadable images."""
    from retrieval.report.thumbnails import read_thumbnails  # loads torch

    return read_thumbnails(work.paths, max_pixels=work.max_pixels)


def write_thumbnails(work: ThumbnailSlice) -> list[int]:
    """Write the thumbnails of a slice; return the numbers of unreadable images."""

    def make() -> tuple[dict[str, bytes], dict[str, Any]]:
        images = make_thumbnails(work)
        numbered = list(enumerate(work.paths, work.first))
        files = {work.names.thumbnail(n): images[path] for n, path in numbered if path in images}
        return files, {"missing": [n for n, path in numbered if path not in images]}

    values = _write_once(work.folder, work.names.thumbnail(work.first, "json"), make)
    return [int(number) for number in values["missing"]]


@dataclass(frozen=True)
class PageSlice:
    """A work item: queries whose pages and chunk scripts are rendered together."""

    folder: Folder
    frame: PageFrame
    shown: ShownQueries


def write_pages(work: PageSlice) -> int:
    """Write the pages and chunk scripts of a slice; return its number of queries."""
    first = work.shown.first // PER_CHUNK
    _write_once(
        work.folder,
        work.frame.names.chunk(first, "json"),
        lambda: (render_further_pages(work.frame, work.shown), {}),
    )
    return len(work.shown)


def write_facets(folder: Folder, names: ReportFiles, script: str) -> None:
    """Write the script with all queries' facets."""
    _write_once(folder, names.facets("json"), lambda: ({names.facets(): script.encode()}, {}))


def prepare_folder(folder: Folder, names: ReportFiles, made_from: dict[str, str]) -> bool:
    """Record the digests of the report's input, and remove files made from other input.

    `made_from` has the digests for "thumbnails" and "pages". Returns False, and changes nothing,
    where the folder contains files that do not belong to a report.
    """
    folder.child(names.folder).sweep()
    existing = [entry.path for entry in folder.entries(names.folder)]
    if not all(names.is_report_file(path) or TEMPORARY_PREFIX in path for path in existing):
        return False
    previous = (
        parse_checksummed_json(finished_output.read_if_exists(folder, names.origin()) or b"") or {}
    )
    if previous == made_from:
        return True
    keep_thumbnails = previous.get("thumbnails") == made_from["thumbnails"]
    folder.delete(names.origin())
    for path in existing:
        if not (keep_thumbnails and path.startswith(f"{names.folder}/thumbnails/")):
            folder.delete(path)
    folder.put(names.origin(), checksummed_json(made_from))
    return True


def remove_files(folder: Folder, names: ReportFiles) -> None:
    """Delete the further files of an earlier report; other files stay."""
    for entry in list(folder.entries(names.folder)):
        if names.is_report_file(entry.path):
            folder.delete(entry.path)


def _write_once(
    folder: Folder, path: str, make: Callable[[], tuple[dict[str, bytes], dict[str, Any]]]
) -> dict[str, Any]:
    """Make and write files, then write their checksums and further values as JSON at `path`.

    Nothing is made where the files exist with the recorded checksums. Returns the recorded values.
    """
    values = parse_checksummed_json(finished_output.read_if_exists(folder, path) or b"")
    if values is not None and all(
        _digest(finished_output.read_if_exists(folder, name)) == sha256
        for name, sha256 in values["files"].items()
    ):
        return values
    folder.delete(path)
    files, extra = make()
    with ThreadPoolExecutor(_PARALLEL_WRITES) as pool:  # small files are limited by latency
        list(pool.map(folder.put, files.keys(), files.values()))
    values = {**extra, "files": {name: _digest(data) for name, data in files.items()}}
    folder.put(path, checksummed_json(values))
    return values


def _digest(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()
