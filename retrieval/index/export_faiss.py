"""Export of all live rows of a finished index as one stock FAISS index.

    FILE          the index for faiss.read_index; ids are rows, deleted rows are left out
    FILE.lists    its inverted lists, where they exceed the allowed memory

FAISS then reads the lists from disk during a search (OnDiskInvertedLists). FILE names FILE.lists by
its absolute path; a pair moved together is opened by
`faiss.read_index(FILE, faiss.IO_FLAG_ONDISK_SAME_DIR)`. FILE is written last, so that an existing
FILE is complete.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.core.errors import UsageError
from retrieval.index.faiss_io import deserialize_index
from retrieval.index.quantized_codes import has_packed_lists
from retrieval.index.shard import read_deleted_rows, read_lists_of_shard, shard_path
from retrieval.index.train import TRAINED
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, LocalFolder, find_write_problem, is_remote, local_path

LISTS = ".lists"  # suffix of the second file


def _do_nothing() -> None:
    """Do nothing (default progress callback)."""


@dataclass(frozen=True)
class ExportedIndex:
    """The files that an export wrote."""

    file: str
    lists: str | None  # the second file, where the lists stay on disk
    rows: int
    bytes: int  # of both files

    def sentence(self) -> str:
        """Return a sentence about the content of the file and how to open it."""
        content = f"{self.rows} vectors, ids are rows: {self.file}"
        opening = f"faiss.read_index({self.file!r})"
        if self.lists is None:
            return f"{content}, opened by {opening}"
        return (
            f"{content}, with its lists on disk in {self.lists}, opened by {opening}; "
            "where both were moved, with faiss.IO_FLAG_ONDISK_SAME_DIR besides"
        )


def check_export_path(file: str, index: Folder, *, overwrite: bool) -> str:
    """Return the absolute path of the file to write; raises UsageError where it is unusable."""
    if is_remote(file):
        raise UsageError(
            f"--export-faiss {file} is no local path, and FAISS can only write local files; "
            "specify a local file and copy it"
        )
    path = local_path(file)
    if os.path.isdir(path):
        raise UsageError(f"--export-faiss {file} is a folder; specify a file")
    if os.path.realpath(path).startswith(os.path.realpath(index.uri()) + os.sep):
        raise UsageError(f"--export-faiss {file} lies inside the index; specify a file elsewhere")
    if not overwrite and os.path.exists(path):
        raise UsageError(f"--export-faiss {file} exists; specify another file, or give --overwrite")
    if reason := find_write_problem(LocalFolder(os.path.dirname(path))):
        raise UsageError(
            f"--export-faiss {file} cannot be written ({reason}); specify a file that can"
        )
    return path


def export_index(
    folder: Folder,
    manifest: Manifest,
    file: str,
    memory: int,
    on_shard: Callable[[], None] = _do_nothing,
) -> ExportedIndex:
    """Write all live rows of a finished index as one FAISS index to the local path `file`.

    An index of up to `memory` bytes is merged in memory; a larger one has its lists filled on disk
    with one shard in memory at a time. `on_shard` is called for each shard that is read.
    """
    trained = finished_output.read_verified(folder, manifest.files[TRAINED])
    shards = _Shards(folder, manifest, read_deleted_rows(folder, manifest), on_shard)
    merged, lists = deserialize_index(trained), file + LISTS
    if manifest.counts["probe_all"]:
        merged.nprobe = manifest.counts["nlist"]  # the same results as `rank`
    for name in (file, lists):
        if os.path.exists(name):
            os.unlink(name)
    if shards.needed_bytes() <= memory:
        _merge(merged, shards)
        _replace(file, lambda name: faiss.write_index(merged, name))
        return ExportedIndex(file, None, int(merged.ntotal), os.path.getsize(file))
    _on_disk(merged, shards, file, lists)
    size = os.path.getsize(file) + os.path.getsize(lists)
    return ExportedIndex(file, lists, int(merged.ntotal), size)


@dataclass(frozen=True)
class _Shards:
    """The shards of a finished index, one at a time, without their deleted rows."""

    folder: Folder
    manifest: Manifest
    deleted: NDArray[np.int64]
    on_shard: Callable[[], None]

    @property
    def _paths(self) -> list[str]:
        return [shard_path(number) for number in range(int(self.manifest.counts["shards"]))]

    def needed_bytes(self) -> int:
        """Return the bytes that a merge in memory takes, with the shard being read.

        A growing list takes up to twice its size.
        """
        sizes = [self.manifest.files[path].size for path in self._paths]
        return 2 * sum(sizes) + max(sizes)

    def without_progress(self) -> _Shards:
        """Return the same shards without progress calls."""
        return replace(self, on_shard=_do_nothing)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Iterate over the first list of each shard and its index."""
        for number, path in enumerate(self._paths):
            self.on_shard()
            shard = deserialize_index(
                finished_output.read_verified(self.folder, self.manifest.files[path])
            )
            if len(self.deleted):
                shard.remove_ids(faiss.IDSelectorBatch(self.deleted))
            yield read_lists_of_shard(self.folder, self.manifest, number).first_list, shard


def _replace(file: str, write: Callable[[str], None]) -> None:
    LocalFolder(os.path.dirname(file)).put_file(os.path.basename(file), write)


def _merge(merged: Any, shards: _Shards) -> None:
    """Append the rows of all shards to the lists of an empty index."""
    for first_list, shard in shards:
        lists = shard.invlists
        for number in np.flatnonzero(_sizes(lists)).tolist():
            entries = lists.list_size(number), lists.get_ids(number), lists.get_codes(number)
            merged.invlists.add_entries(first_list + number, *entries)
        merged.ntotal += shard.ntotal


def _on_disk(merged: Any, shards: _Shards, file: str, lists: str) -> None:
    """Fill lists on disk; a first pass determines their sizes, so that each is written once."""
    if has_packed_lists(merged):
        raise UsageError(
            "--export-faiss: FAISS cannot keep lists of the kind "
            f"{shards.manifest.counts['factory']} on disk; "
            f"give --max-index-memory {shards.needed_bytes()} bytes or more"
        )
    sizes = np.zeros(merged.nlist, np.uint64)
    for first_list, shard in shards.without_progress():
        shard_sizes = _sizes(shard.invlists)
        sizes[first_list : first_list + len(shard_sizes)] += shard_sizes

    def fill(name: str) -> None:
        disk = faiss.OnDiskInvertedLists(merged.nlist, merged.code_size, name)
        disk.set_all_lists_sizes(faiss.swig_ptr(sizes))
        disk.update_totsize(int(sizes.sum()) * (merged.code_size + 8))
        _fill(disk, shards)
        disk.filename = lists  # its final name
        merged.replace_invlists(disk, False)
        merged.ntotal = int(sizes.sum())
        kept_alive.append(disk)

    kept_alive: list[Any] = []  # references to the lists, which the index does not own
    _replace(lists, fill)
    _replace(file, lambda name: faiss.write_index(merged, name))


def _sizes(lists: Any) -> NDArray[np.uint64]:
    return np.array([lists.list_size(number) for number in range(lists.nlist)], np.uint64)


def _fill(disk: Any, shards: _Shards) -> None:
    """Append each shard's rows to the lists on disk."""
    filled = np.zeros(disk.nlist, np.int64)
    for first_list, shard in shards:
        shard_lists = shard.invlists
        for number, size in enumerate(_sizes(shard_lists).tolist()):
            if size:
                target = first_list + number
                ids, codes = shard_lists.get_ids(number), shard_lists.get_codes(number)
                disk.update_entries(target, int(filled[target]), size, ids, codes)
                filled[target] += size
