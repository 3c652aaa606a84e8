"""A store brought up to its source: what was begun is finished, what changed is appended.

Then, if asked for, what failed is tried again, and all segments are made one.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs import tasks
from jobs.cluster import Cluster
from jobs.compact import bring_to_place, compact, is_compact
from jobs.elsewhere import Given
from jobs.embed_chunks import Embedding, embed_chunks
from jobs.listed import Listed
from jobs.prepare import Prepared
from jobs.progress import progress, say
from jobs.settings import EmbedSettings
from retrieval.embeddings.compaction import chunks_of, is_settled
from retrieval.embeddings.finish import finish_store, read_deleted
from retrieval.embeddings.layout import failures_path, listing_path, pieces_in
from retrieval.embeddings.segment import Rows, Segment, claim_segment, read_segments, span_of
from retrieval.embeddings.store import read_sealed
from retrieval.errors import Damaged
from retrieval.images import changes
from retrieval.images.chunks import chunk_rows_for
from retrieval.images.listing import digest
from retrieval.storage import finished
from retrieval.storage.files import Folder
from retrieval.storage.finished import Manifest
from retrieval.tables import Chunk, FileRecord


@dataclass
class Growth:
    """A store that is being brought up to its source."""

    settings: EmbedSettings
    where: Cluster
    folder: Folder
    prepared: Prepared | Given
    listed: Listed
    stage: str
    unsettle: Callable[[], None]  # called before the store is changed: what depends on it is undone
    known: list[FileRecord] = field(default_factory=list)
    peak: int = 0
    worked: bool = False

    def bring_up(self) -> Manifest:
        """Do what is left to do, and give the manifest."""
        if is_settled(self.folder):
            self.unsettle()
            self.known += bring_to_place(self.where, self.folder)
        there = finished.read_manifest(self.folder, kind="store") if self._is_finished() else None
        self.known += there.files.values() if there else []
        segments = read_segments(self.folder)
        done = int(there.counts["segments"]) if there else 0
        self._embed([c for segment in segments[done:] for c in segment.chunks()])
        if appended := self._append(segments):
            segments.append(appended)
            self._embed(list(appended.chunks()))
        if self.settings.retry_failed:
            self._retry(segments)
        if there is None or done < len(segments) or self.worked:
            there = self._finish()
        if self.settings.compact and not is_compact(segments, there, self.listed):
            self.unsettle()
            before = self._listings(segments)
            self.known = compact(self.where, self.folder, segments, self.listed, before)
            there = self._finish()
        return there

    def _is_finished(self) -> bool:
        return finished.is_finished(self.folder)

    def _finish(self) -> Manifest:
        self.worked = True
        rate, prepared = self.settings.max_error_rate, self.prepared
        return finish_store(self.folder, prepared.dimension, self.known, rate, prepared.unit)

    def _append(self, segments: list[Segment]) -> Segment | None:
        """Claim the segment of what changed since the last one; the first is the whole listing."""
        listed, base = self.listed, span_of(segments)
        if not segments:
            nothing = np.empty(0, np.int64)
            return claim_segment(
                self.folder, 0, 0, listed.path, listed.chunk_rows, listed.rows, nothing
            )
        if len(segments) == 1 and segments[0].files[listing_path(0)] == digest(listed.path):
            return None
        deleted = read_deleted(self.folder, segments)
        found = changes.compare(listed.path, self._listings(segments), deleted)
        if len(found.touched):
            found = found.with_changed(self._changed(segments, found.touched))
        if not found:
            return None
        many, unit = len(found.fresh), self.prepared.unit
        say(f"{many} {unit} are new or changed, {len(found.gone)} rows are outdated")
        step = self.settings.chunk_rows or chunk_rows_for(len(found.fresh))
        self.unsettle()
        target = listed.path.with_name("segment.parquet")
        changes.write_part_of(listed.path, found.fresh, target, step, base)
        return claim_segment(
            self.folder, len(segments), base, target, step, len(found.fresh), found.gone
        )

    def _listings(self, segments: list[Segment]) -> list[Path]:
        """Copy the listings of a store to where they can be compared."""
        found = []
        for segment in segments:
            path = self.listed.path.with_name(f"before-{segment.number}.parquet")
            if not path.exists():
                with self.folder.open(listing_path(segment.number)) as file, open(path, "wb") as to:
                    shutil.copyfileobj(file, to)
                if digest(path) != segment.files[listing_path(segment.number)]:
                    raise Damaged(f"{self.folder.uri(listing_path(segment.number))} was altered")
            found.append(path)
        return found

    def _changed(self, segments: list[Segment], touched: pa.Table) -> Rows:
        """Ask the workers which of the touched images have other bytes now."""
        unit = self.prepared.unit
        say(f"{len(touched)} {unit} have another time or size than before: reading them")
        folder = self.folder

        def compare(work: tuple[Chunk, list[dict[str, Any]]]) -> list[int]:
            from retrieval.model.same_bytes import changed_rows

            return changed_rows(folder, *work, {})

        found = [np.empty(0, np.int64)]
        with progress("compare", len(touched), unit) as bar:
            for rows in tasks.tasks(self.where, compare, self._touched(segments, touched)):
                found.append(np.array(rows, np.int64))
                bar.advance(0)
        self.worked = self.worked or any(len(rows) for rows in found)
        return np.sort(np.concatenate(found))

    def _touched(
        self, segments: list[Segment], touched: pa.Table
    ) -> Iterator[tuple[Chunk, list[dict[str, Any]]]]:
        """Group the touched images by the chunk that their row lies in."""
        rows, lines = (touched[name].to_numpy() for name in ("row", "line"))
        for chunk in chunks_of(segments, rows):
            ends = [chunk.base + chunk.first, chunk.base + chunk.last]
            own = slice(*np.searchsorted(rows, ends))
            order = np.argsort(lines[own], kind="stable")
            items = changes.items_at(self.listed.path, lines[own][order]).to_pylist()
            numbers = rows[own][order].tolist()
            yield chunk, [{**i, "row": n} for i, n in zip(items, numbers, strict=True)]

    def _retry(self, segments: list[Segment]) -> None:
        """Try again what stands in the ledger and is alive."""
        pieces = pieces_in(entry.path for entry in finished.own_entries(self.folder))
        deleted = read_deleted(self.folder, segments)
        work, images = [], 0
        for chunk in (chunk for segment in segments for chunk in segment.chunks()):
            there = pieces[chunk.segment, chunk.number]
            if there.latest in there.failures:
                path = failures_path(dataclasses.replace(chunk, retry=there.latest))
                failed = read_sealed(self.folder, path)["row"].to_numpy()
                if alive := int((~np.isin(failed, deleted)).sum()):
                    work.append(dataclasses.replace(chunk, retry=there.latest + 1))
                    images += alive
        self._embed(work, images, f"{self.stage} again")

    def _embed(self, work: list[Chunk], images: int = 0, stage: str = "") -> None:
        if not work:
            return
        self.unsettle()
        self.prepared = self.prepared.ready()
        images = images or sum(chunk.last - chunk.first for chunk in work)
        with_ = Embedding(self.settings, self.where, self.folder, self.prepared)
        for files, peak in embed_chunks(with_, work, images, stage or self.stage):
            self.known += files
            self.peak = max(self.peak, peak)
            self.worked = self.worked or bool(files)
