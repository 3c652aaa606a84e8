"""Duplicates in finished matches: pairs and groups within a gallery, leaks between two sets.

Each file is written once. A JSON file, written last, holds the counts of a group or leak report and
the checksums of the files that cannot carry their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any, BinaryIO

import pyarrow as pa

from jobs.config.settings import RankSettings
from jobs.indexing.index import read_table
from jobs.ranking.match_constraints import is_index_store
from retrieval.core.errors import Damaged, UsageError
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import (
    checksummed_json,
    fill_file_checksum,
    parse_checksummed_json,
    stream_checksummed_parquet,
)
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.store.reader import Store

PAIRS, GROUPS, LEAKS = "pairs.parquet", "groups.parquet", "leaks.parquet"
_KEEP, _REMOVE = "keep.txt", "remove.txt"
_GROUP_COUNTS, _LEAK_COUNTS = "groups.json", "leaks.json"
_BATCH = 1 << 16

Tables = Callable[[], Iterator[pa.Table]]


@dataclass(frozen=True)
class RankedStores:
    """The index of a ranking, and the queries, whose store is that of the index for groups."""

    index_folder: Folder
    index: Manifest
    queries: Store


def requested_files(
    settings: RankSettings, query_store: Store | None, index: Manifest
) -> tuple[str, ...]:
    """Return the names of the files that --unique-pairs writes last, in the order of writing.

    Raises UsageError if the ranking is of two sets without --min-score.
    """
    if not settings.unique_pairs:
        return ()
    if query_store is not None and is_index_store(query_store, index):
        return (PAIRS,) if settings.min_score is None else (PAIRS, _GROUP_COUNTS)
    if settings.min_score is None:
        raise UsageError(
            "--unique-pairs needs --min-score for queries of another set than the gallery: set the "
            "score from which on two images count as duplicates; to find duplicates within "
            f"{settings.index}, omit --queries"
        )
    return (_LEAK_COUNTS,)


def write_duplicates(
    folder: Folder, names: tuple[str, ...], matches: Tables, metric: Any, stores: RankedStores,
) -> None:  # fmt: skip
    """Write those of the `requested_files` that are missing, from the tables of the matches."""
    from retrieval.search.pairs import write_leaks, write_pairs

    for name in names:
        if folder.exists(name):
            continue
        if name == PAIRS:
            _put_table(folder, PAIRS, lambda file: write_pairs(matches(), metric, file))
        elif name == _GROUP_COUNTS:
            _write_groups(folder, _count_full_lists(folder, matches), stores)
        else:
            _put_table(folder, LEAKS, lambda file: write_leaks(matches(), metric, file))
            _write_leak_counts(folder, _count_full_lists(folder, matches))


def read_duplicate_counts(folder: Folder) -> dict[str, int]:
    """Return the counts of the existing group and leak reports, empty without one."""
    counts: dict[str, int] = {}
    for path in (_GROUP_COUNTS, _LEAK_COUNTS):
        values = parse_checksummed_json(finished_output.read_if_exists(folder, path) or b"")
        counts |= {key: value for key, value in (values or {}).items() if key != "files"}
    return counts


def format_duplicates(manifest: Manifest, top_k: int) -> tuple[str, ...]:
    """Format lines for the result that count pairs, groups and leaks."""
    counts, files = manifest.counts, manifest.files
    lines: list[str] = []
    if PAIRS in files:
        pairs = files[PAIRS].rows
        lines.append(f"{pairs} {'pair' if pairs == 1 else 'pairs'}, closest first: {PAIRS}")
    if _GROUP_COUNTS in files:
        lines.append(
            f"{counts['groups']} {'group' if counts['groups'] == 1 else 'groups'} of "
            f"{counts['grouped_images']} duplicates: {GROUPS}; "
            f"{counts['removed_images']} of them to remove: {_REMOVE}; all other images: {_KEEP}"
        )
    if _LEAK_COUNTS in files:
        lines.append(
            f"{counts['leaks']} pairs between the two sets, closest first, of "
            f"{counts['leaked_queries']} queries and {counts['leaked_images']} gallery images: "
            f"{LEAKS}"
        )
    if counts.get("full_lists"):
        lines.append(
            f"{counts['full_lists']} images have {top_k} or more duplicates; with a larger --top-k "
            "none is left out"
        )
    if counts.get("unlisted_paths"):
        lines.append(
            f"{counts['unlisted_paths']} images whose path is empty or has a line break are in "
            f"neither {_KEEP} nor {_REMOVE}"
        )
    return tuple(lines)


def _put_table(folder: Folder, path: str, write: Callable[[BinaryIO], int]) -> None:
    def write_local(local: str) -> None:
        with open(local, "wb") as file:
            write(file)
        fill_file_checksum(Path(local))

    folder.put_new_file(path, write_local)


def _write_groups(folder: Folder, full_lists: int, stores: RankedStores) -> None:
    from retrieval.search.duplicate_groups import GroupFiles, write_groups

    for path in (_KEEP, _REMOVE):  # left by a run that was killed before it wrote their checksums
        folder.delete(path)
    with tempfile.TemporaryDirectory() as temp_dir:
        paths = {name: Path(temp_dir, name) for name in (GROUPS, _KEEP, _REMOVE)}
        counts = write_groups(
            stream_checksummed_parquet(folder, PAIRS),
            _read_images(stores),
            _read_sizes(stores.queries),
            GroupFiles(paths[GROUPS], paths[_KEEP], paths[_REMOVE]),
        )
        for name, local in paths.items():
            folder.put_new_file(name, partial(_copy, local))
    files = {path: folder.sha256(path) for path in (_KEEP, _REMOVE)}
    values = {**asdict(counts), "full_lists": full_lists, "files": files}
    transaction.put_if_absent(folder, _GROUP_COUNTS, checksummed_json(values))


def _copy(source: Path, target: str) -> None:
    copyfile(source, target)


def _write_leak_counts(folder: Folder, full_lists: int) -> None:
    import pyarrow.parquet as pq

    from retrieval.search.pairs import count_leaked_images

    with folder.open(LEAKS) as file:
        pairs = pq.read_metadata(file).num_rows
    queries, images = count_leaked_images(stream_checksummed_parquet(folder, LEAKS))
    values = {
        "leaks": pairs,
        "leaked_queries": queries,
        "leaked_images": images,
        "full_lists": full_lists,
    }
    transaction.put_if_absent(folder, _LEAK_COUNTS, checksummed_json(values))


def _count_full_lists(folder: Folder, matches: Tables) -> int:
    """Return the number of queries with --top-k matches, which may have left out further ones."""
    import pyarrow.compute as pc

    top_k = finished_output.read_settings(folder)["top_k"]
    return sum(pc.sum(pc.equal(part["rank"], top_k)).as_py() or 0 for part in matches())


def _read_images(stores: RankedStores) -> Iterator[pa.RecordBatch]:
    """Iterate over the live rows of the shards as tables IMAGES; a shard's table is read whole."""
    import pyarrow.compute as pc

    from retrieval.search.duplicate_groups import IMAGES

    deleted = pa.array(stores.queries.deleted, pa.int64())
    paths = [path.as_py() for path in stores.index.files.paths]
    for path in sorted(path for path in paths if path.endswith(".rows.parquet")):
        rows = read_table(stores.index_folder, stores.index, path).select(IMAGES.names)
        is_deleted = pc.is_in(rows["row"], value_set=deleted)
        yield from rows.filter(pc.invert(is_deleted)).cast(IMAGES).to_batches(_BATCH)


def _read_sizes(store: Store) -> Iterator[pa.RecordBatch]:
    """Iterate over the sizes of all listed files as tables SIZES."""
    import pyarrow.parquet as pq

    from retrieval.search.duplicate_groups import SIZES
    from retrieval.store.layout import listing_path

    for segment in store.segments:
        path = listing_path(segment.number)
        if store.folder.sha256(path) != segment.files[path]:
            raise Damaged(f"{store.folder.uri(path)} was altered; remove it and run again")
        with store.folder.open(path) as file:
            yield from pq.ParquetFile(file).iter_batches(_BATCH, columns=SIZES.names)
