"""All live rows of a finished index as one stock FAISS index, for any program that has FAISS.

    FILE          what faiss.read_index opens; ids are rows, deleted rows are left out
    FILE.lists    its inverted lists, where they are larger than the memory that is allowed

The lists are then read from disk as they are searched (FAISS' OnDiskInvertedLists). FILE names
FILE.lists by its absolute path; a pair that was moved together is opened by
`faiss.read_index(FILE, faiss.IO_FLAG_ONDISK_SAME_DIR)`. FILE is put last: where it stands it is
whole, and so is what it names.
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
from retrieval.index.faiss_io import from_bytes, ivf_of
from retrieval.index.shard import read_deleted_rows, shard_path
from retrieval.index.train import TRAINED
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, LocalFolder, is_remote, local_path, unwritable

LISTS = ".lists"  # what the name of the second file ends with


def _nothing() -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Merged:
    """What was written."""

    file: str
    lists: str | None  # the second file, where the lists stay on disk
    rows: int
    bytes: int  # of both files

    def sentence(self) -> str:
        """Say what a file holds and how it is opened."""
        what = f"{self.rows} vectors, ids are rows: {self.file}"
        how = f"faiss.read_index({self.file!r})"
        if self.lists is None:
            return f"{what}, opened by {how}"
        return (
            f"{what}, with its lists on disk in {self.lists}, opened by {how}; "
            "where both were moved, with faiss.IO_FLAG_ONDISK_SAME_DIR besides"
        )


def check_target(file: str, index: Folder, *, overwrite: bool) -> str:
    """Give the absolute path of the file to write, or refuse it before any work is done."""
    if is_remote(file):
        raise UsageError(
            f"--merge-into {file} is no local path, and FAISS writes and opens such only; name a "
            "local file and copy it"
        )
    path = local_path(file)
    if os.path.isdir(path):
        raise UsageError(f"--merge-into {file} is a folder; name a file")
    if os.path.realpath(path).startswith(os.path.realpath(index.uri()) + os.sep):
        raise UsageError(f"--merge-into {file} lies inside the index; name a file elsewhere")
    if not overwrite and os.path.exists(path):
        raise UsageError(f"--merge-into {file} exists; name another file, or give --overwrite")
    if why := unwritable(LocalFolder(os.path.dirname(path))):
        raise UsageError(f"--merge-into {file} cannot be written ({why}); name a file that can")
    return path


def merge_index(
    folder: Folder,
    manifest: Manifest,
    file: str,
    memory: int,
    tell: Callable[[], None] = _nothing,
) -> Merged:
    """Write all live rows of a finished index as one FAISS index; `file` is a local path.

    Up to `memory` bytes it is put together in memory; beyond, the lists are filled on disk, shard
    by shard, and memory is one shard. `tell` is called for each shard that was reached.
    """
    trained = finished_output.read_checked(folder, manifest.files[TRAINED])
    shards = _Shards(folder, manifest, read_deleted_rows(folder, manifest), tell)
    whole, lists = from_bytes(trained), file + LISTS
    if manifest.counts["probe_all"]:
        ivf_of(whole).nprobe = manifest.counts["nlist"]  # so that it answers as we do
    for name in (file, lists):
        if os.path.exists(name):
            os.unlink(name)
    if shards.needed() <= memory:
        _merge(whole, shards)
        _replace(file, lambda name: faiss.write_index(whole, name))
        return Merged(file, None, int(whole.ntotal), os.path.getsize(file))
    _on_disk(whole, shards, file, lists)
    size = os.path.getsize(file) + os.path.getsize(lists)
    return Merged(file, lists, int(whole.ntotal), size)


@dataclass(frozen=True)
class _Shards:
    """The shards of a finished index, one at a time, without their deleted rows."""

    folder: Folder
    manifest: Manifest
    deleted: NDArray[np.int64]
    tell: Callable[[], None]

    @property
    def _paths(self) -> list[str]:
        return [shard_path(number) for number in range(int(self.manifest.counts["shards"]))]

    def needed(self) -> int:
        """Give the bytes that all of them take in memory, and the one that is read beside them.

        A list that grows takes up to twice its size.
        """
        sizes = [self.manifest.files[path].size for path in self._paths]
        return 2 * sum(sizes) + max(sizes)

    def quiet(self) -> _Shards:
        """Give the same, telling nobody."""
        return replace(self, tell=_nothing)

    def __iter__(self) -> Iterator[Any]:
        for path in self._paths:
            self.tell()
            shard = from_bytes(finished_output.read_checked(self.folder, self.manifest.files[path]))
            if len(self.deleted):
                shard.remove_ids(faiss.IDSelectorBatch(self.deleted))
            yield shard


def _replace(file: str, write: Callable[[str], None]) -> None:
    LocalFolder(os.path.dirname(file)).put_file(os.path.basename(file), write)


def _merge(whole: Any, shards: _Shards) -> None:
    """Move the rows of all shards into an index that has none."""
    for shard in shards:
        try:
            whole.merge_from(shard, 0)
        except RuntimeError as error:
            raise _unfit(shards) from error


def _unfit(shards: _Shards) -> UsageError:
    return UsageError(
        f"--merge-into: FAISS cannot merge indexes of the kind {shards.manifest.counts['factory']}"
        f"; open the files in {shards.folder.uri('shards')} one by one, or make an index of a "
        "plain IVF kind"
    )


def _on_disk(whole: Any, shards: _Shards, file: str, lists: str) -> None:
    """Fill lists on disk whose sizes are known from a first pass, so that each is written once."""
    ivf = ivf_of(whole)
    if type(faiss.downcast_InvertedLists(ivf.invlists)) is not faiss.ArrayInvertedLists:
        raise UsageError(
            f"--merge-into: FAISS cannot keep lists of the kind {shards.manifest.counts['factory']}"
            f" on disk; give --max-index-memory {shards.needed()} bytes or more"
        )
    sizes = np.zeros(ivf.nlist, np.uint64)
    for shard in shards.quiet():
        sizes += _sizes(ivf_of(shard).invlists)

    def fill(name: str) -> None:
        disk = faiss.OnDiskInvertedLists(ivf.nlist, ivf.code_size, name)
        disk.set_all_lists_sizes(faiss.swig_ptr(sizes))
        disk.update_totsize(int(sizes.sum()) * (ivf.code_size + 8))
        _fill(disk, shards)
        disk.filename = lists  # its name once it is put
        ivf.replace_invlists(disk, False)
        ivf.ntotal = whole.ntotal = int(sizes.sum())
        made.append(disk)

    made: list[Any] = []  # holds what the index does not own
    _replace(lists, fill)
    _replace(file, lambda name: faiss.write_index(whole, name))


def _sizes(lists: Any) -> NDArray[np.uint64]:
    return np.array([lists.list_size(number) for number in range(lists.nlist)], np.uint64)


def _fill(disk: Any, shards: _Shards) -> None:
    """Write each shard's rows behind those of the shards before it."""
    filled = np.zeros(disk.nlist, np.int64)
    for shard in shards:
        held = ivf_of(shard).invlists
        for number, size in enumerate(_sizes(held).tolist()):
            if size:
                first = int(filled[number])
                ids, codes = held.get_ids(number), held.get_codes(number)
                disk.update_entries(number, first, size, ids, codes)
                filled[number] += size
