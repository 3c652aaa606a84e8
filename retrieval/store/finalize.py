"""The end of a store: what its live images came to is judged, and the manifest is put.

A manifest is replaced when a further segment, a retry or a compaction is whole. It is removed
first, since it and files.parquet cannot be replaced in one step: in between the store is unfinished
and not damaged.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval.core.errors import Damaged, TooManyFailures
from retrieval.core.schemas import Paths
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import is_sealed, read_json
from retrieval.storage.finished_output import Manifest
from retrieval.storage.inventory import Inventory, Known, among, inventory_of
from retrieval.storage.local import Folder
from retrieval.store.failure_reasons import commonest_reason
from retrieval.store.layout import (
    Int32,
    deleted_path,
    part_path,
    pieces_in,
    segment_json_path,
    segment_number,
)
from retrieval.store.segment import Rows, Segment, by_segment, clear_claims, read_segments, span_of


@dataclass(frozen=True)
class Tally:
    """What the images of a store came to."""

    span: int  # rows given out, holes and deleted ones included
    deleted: int
    rows: int  # images that are alive and have a vector
    failures: int  # images that are alive and stand in the ledger

    @property
    def images(self) -> int:
        """Count the images that are alive."""
        return self.span - self.deleted


def finish_store(
    folder: Folder,
    dimension: int,
    known: Known,
    max_error_rate: float,
    segments: list[Segment] | None = None,
    unit: str = "images",
) -> Manifest:
    """Judge the ledger against its bound, a share of the live images, and put the manifest.

    Beyond the bound the work is kept without a manifest of it, and the same job with a looser bound
    finishes it; a store without any vector is never finished. `segments` are those that are whole,
    all by default; another run may be at a further one, or have finished it, which then stands.
    `unit` is what its items are called.
    """
    segments = read_segments(folder) if segments is None else segments
    if _segments_finished(folder) > len(segments):
        return finished_output.read_manifest(folder, kind="store")
    there = finished_output.own_entries(folder)
    stale = stale_ledgers(segments, there.paths)
    later = {e.path for e in there if segment_number(e.path, -1) >= len(segments)}
    alive = inventory_of(known)
    alive = alive.kept(among(alive.paths, there.without(stale | later)))
    del there
    records = transaction.records(folder, alive, leave_out=stale | later)
    del alive
    tally = _tally(folder, segments, records)
    _judge(folder, tally, max_error_rate, unit, _ledgers(segments, records.paths))
    counts = {
        "images": tally.images, "rows": tally.rows, "failures": tally.failures,
        "dimension": dimension, "segments": len(segments), "span": tally.span,
        "deleted": tally.deleted,
    }  # fmt: skip
    manifest = transaction.finish(folder, "store", counts, records, stale=stale, leave_out=later)
    clear_claims(folder, below=len(segments))
    return manifest


def _segments_finished(folder: Folder) -> int:
    """Count the segments that the manifest names; 0 where there is none."""
    data = finished_output.read_if_there(folder, finished_output.MANIFEST)
    counts = (read_json(data) or {}).get("counts", {}) if data else {}
    return int(counts.get("segments", 0))


def is_overtaken(folder: Folder) -> bool:
    """Tell whether the manifest is no longer of this store: a slow run may have put it since.

    It is of before a compaction then, or does not fit the inventory, though neither was altered.
    """
    data, inventory, now = (
        finished_output.read_if_there(folder, path)
        for path in (finished_output.MANIFEST, finished_output.INVENTORY, segment_json_path(0))
    )
    if data is None or inventory is None or now is None:
        return False
    values = read_json(data)
    if values is None or read_json(now) is None or not is_sealed(io.BytesIO(inventory)):
        return False  # altered, which whoever reads it will say
    if values.get("files_sha256") != hashlib.sha256(inventory).hexdigest():
        return True
    named = finished_output.parse_manifest(data, inventory, folder).files.get(segment_json_path(0))
    return named is not None and named.sha256 != hashlib.sha256(now).hexdigest()


def lags(folder: Folder, manifest: Manifest) -> bool:
    """Tell whether a retry was killed between its parts and the manifest that names them."""
    return bool(finished_output.beyond(manifest, finished_output.own_entries(folder)))


def stale_ledgers(segments: list[Segment], paths: Paths) -> set[str]:
    """Name the ledgers that a later part replaces, or that lack the part they were put for."""
    pieces = pieces_in(paths)
    stale = [its.places[~its.counts] for _, its in by_segment(segments, pieces)]
    return {path for places in stale for path in paths.take(pa.array(places)).to_pylist()}


def _tally(folder: Folder, segments: list[Segment], records: Inventory) -> Tally:
    pieces = pieces_in(records.paths)
    rows = pc.fill_null(records.table["rows"], 0).to_numpy()
    vectors = failures = 0
    ledgers = []
    for segment, found in by_segment(segments, pieces):
        its = found.where(found.counts)
        parts, lists = its.where(its.is_part), its.where(~its.is_part)
        got, lost = (_sums(each.numbers, rows[each.places], segment) for each in (parts, lists))
        if (wrong := np.flatnonzero(got + lost != segment.sizes())).size:
            chunk = segment.chunk(int(wrong[0]))
            raise Damaged(
                f"{folder.uri(part_path(chunk))} and its ledger have {got[wrong[0]]} rows and "
                f"{lost[wrong[0]]} failures for {chunk.last - chunk.first} images; remove both "
                "and run again"
            )
        vectors += int(got.sum())
        failures += int(lost.sum())
        ledgers.append(lists.places[rows[lists.places] > 0])
    deleted = read_deleted(folder, segments)
    dead = _among(folder, records.paths, ledgers, deleted)
    return Tally(span_of(segments), len(deleted), vectors - (len(deleted) - dead), failures - dead)


def _ledgers(segments: list[Segment], paths: Paths) -> Iterator[str]:
    """Name the ledgers that count, in the order of their rows."""
    for _, found in by_segment(segments, pieces_in(paths)):
        places = found.where(found.counts & ~found.is_part).places
        for first in range(0, len(places), 1 << 10):
            yield from paths.take(pa.array(places[first : first + (1 << 10)])).to_pylist()


def _sums(numbers: Int32, rows: Rows, segment: Segment) -> Rows:
    """Add up the rows of pieces for each chunk of a segment."""
    sums = np.zeros(segment.chunk_count, np.int64)
    np.add.at(sums, numbers, rows)
    return sums


def _among(folder: Folder, paths: Paths, ledgers: list[Rows], rows: Rows) -> int:
    """Count the failures, in the ledgers at some places of the paths, that rows belong to."""
    if len(rows) == 0:
        return 0
    return sum(
        int(np.isin(pq.read_table(io.BytesIO(folder.read(path)))["row"], rows).sum())
        for places in ledgers
        for path in paths.take(pa.array(places)).to_pylist()
    )


def read_deleted(folder: Folder, segments: list[Segment]) -> Rows:
    """Give the rows that are deleted, in their order."""
    found = [np.empty(0, np.int64)]
    for segment in segments:
        if segment.deleted:
            path = deleted_path(segment.number)
            data = folder.read(path)
            if not is_sealed(io.BytesIO(data)):
                raise Damaged(f"{folder.uri(path)} was altered; remove the store")
            found.append(pq.read_table(io.BytesIO(data))["row"].to_numpy())
    return np.sort(np.concatenate(found))


def _judge(
    folder: Folder, tally: Tally, max_error_rate: float, unit: str, ledgers: Iterator[str]
) -> None:
    if tally.rows and tally.failures <= max_error_rate * tally.images:
        return
    way = "what is finished is kept, mend them or run again with a looser --max-error-rate"
    if not tally.rows:
        way = f"name a place with {'readable photos' if unit == 'images' else f'sound {unit}'}"
    reason = commonest_reason(folder, ledgers)
    raise TooManyFailures(
        f"{tally.failures} of {tally.images} {unit} failed, {f'{reason}; ' if reason else ''}all "
        f"reasons stand in {folder.uri('segments')}/*/failures; {way}"
    )
