"""Update of a store after changes of its source.

Unfinished segments are completed and changes of the source are appended as a new segment. With
`--retry-failed` the images in the ledger are embedded again, and with `--compact` all segments are
merged into one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings
from jobs.embedding.changed_images import copy_segment_listings, find_changed_images
from jobs.embedding.compact import compact, finish_compaction, is_compact
from jobs.embedding.embed_chunks import EmbedContext, embed_chunks
from jobs.embedding.listing import SourceListing
from jobs.embedding.precomputed_vectors import PrecomputedVectors
from jobs.embedding.prepare_model import PreparedModel
from jobs.runtime.progress import print_message
from retrieval.core.errors import Damaged, Stalled, StorageFailure, TooManyFailures
from retrieval.core.records import Chunk, Rounding
from retrieval.core.schemas import COMPACTION_MARKER
from retrieval.listing import diff
from retrieval.listing.chunking import chunk_rows_for
from retrieval.storage import finished_output
from retrieval.storage.checksum import read_checksummed_parquet
from retrieval.storage.finished_output import Manifest, read_if_exists
from retrieval.storage.inventory import RecordCollector
from retrieval.storage.local import Folder, sha256_of_file
from retrieval.store import layout
from retrieval.store.compaction import is_compaction_ready
from retrieval.store.finalize import (
    finish_store,
    has_unlisted_files,
    is_manifest_outdated,
    read_deleted,
)
from retrieval.store.segment import (
    Segment,
    claim_segment,
    group_by_segment,
    install_claimed_files,
    read_segments,
    remove_claims,
    remove_unclaimed,
    row_span,
)

_MAX_ATTEMPTS = 5  # to update a store that other runs change at the same time


@dataclass
class StoreSync:
    """State of a run that updates a store from its source."""

    settings: EmbedSettings
    cluster: Cluster
    folder: Folder
    prepared: PreparedModel | PrecomputedVectors
    listing: SourceListing
    stage: str
    invalidate: Callable[[], None]  # deletes the manifests of outputs that depend on this store
    records: RecordCollector = field(default_factory=RecordCollector)
    embedded: int = 0  # rows that this run added
    seconds: float = 0.0  # of worker time for these rows, summed
    changed: bool = False
    rounding: Rounding = field(default_factory=Rounding)  # of the vectors that this run imported

    def synchronize(self) -> Manifest:
        """Embed what the store lacks, finish it, and return the manifest.

        Another run may compact the store or replace its manifest at the same time. If the state of
        the store has changed when an error occurs, the run starts over from the new state.
        """
        for attempts_left in reversed(range(_MAX_ATTEMPTS)):
            state = self._read_state()
            try:
                return self._synchronize_once()
            except (StorageFailure, TooManyFailures, Stalled):
                raise
            except Exception:  # Ray wraps the FileNotFoundError of a worker in its own class
                if not attempts_left or self._read_state() == state:
                    raise
                self.records = RecordCollector()
        raise AssertionError("unreachable")

    def _read_state(self) -> list[bytes | None]:
        """Read the small files that determine which segments exist and which are finished."""
        state = [
            read_if_exists(self.folder, path)
            for path in (COMPACTION_MARKER, finished_output.MANIFEST)
        ]
        number = 0
        while (data := read_if_exists(self.folder, layout.segment_json_path(number))) is not None:
            state.append(data)
            number += 1
        return state

    def _synchronize_once(self) -> Manifest:
        if is_compaction_ready(self.folder):
            self.invalidate()
            self.records.add(finish_compaction(self.cluster, self.folder))
        remove_unclaimed(self.folder)
        manifest = self._read_manifest()
        self.records.add(manifest.files if manifest else [])
        segments = read_segments(self.folder)
        finished = int(manifest.counts["segments"]) if manifest else 0
        for segment in segments[finished:]:
            install_claimed_files(self.folder, segment)
        self._embed([c for segment in segments[finished:] for c in segment.chunks()])
        if appended := self._append_changes(segments):
            segments.append(appended)
            self._embed(list(appended.chunks()))
        if self.settings.retry_failed:
            self._retry_failed(segments)
        if (
            manifest is None
            or finished < len(segments)
            or self.changed
            or has_unlisted_files(self.folder, manifest)
        ):
            self.invalidate()
            manifest = self._finish(segments)
        if self.settings.compact and not is_compact(segments, manifest, self.listing):
            self.invalidate()
            listings = copy_segment_listings(self.folder, segments, self.listing)
            files = compact(self.cluster, self.folder, segments, self.listing, listings)
            self.records = RecordCollector(files)
            manifest = self._finish(read_segments(self.folder))
        remove_unclaimed(self.folder)
        return manifest

    def _read_manifest(self) -> Manifest | None:
        """Read the manifest; None if there is none, or if it predates a compaction."""
        if not finished_output.is_finished(self.folder):
            return None
        if is_manifest_outdated(self.folder):
            self.folder.delete(finished_output.MANIFEST)
            return None
        return finished_output.read_manifest(self.folder, kind="store")

    def _finish(self, segments: list[Segment]) -> Manifest:
        self.changed = True
        self._check_unchanged(segments)
        records, self.records = self.records, RecordCollector()  # `finish_store` consumes them
        manifest = finish_store(
            self.folder, self.prepared.dimension, records, self.settings.max_error_rate, segments,
            self.prepared.unit,
        )  # fmt: skip
        self._check_unchanged(segments)
        return manifest

    def _check_unchanged(self, segments: list[Segment]) -> None:
        """Raise if another run has changed the segments since this one read them."""
        compacted = is_compaction_ready(self.folder)
        if compacted or read_segments(self.folder) != segments or is_manifest_outdated(self.folder):
            raise Damaged(f"{self.folder.uri()} is being changed by another run; run again")

    def _append_changes(self, segments: list[Segment]) -> Segment | None:
        """Claim a segment with the changes of the source; the first segment has the whole listing.

        Returns None if nothing has changed.
        """
        listing, base = self.listing, row_span(segments)
        if not segments:
            return claim_segment(
                self.folder, 0, 0, listing.path, listing.chunk_rows, listing.rows,
                np.empty(0, np.int64),
            )  # fmt: skip
        if len(segments) == 1 and segments[0].files[layout.listing_path(0)] == sha256_of_file(
            listing.path
        ):
            remove_claims(self.folder)
            return None
        deleted = read_deleted(self.folder, segments)
        listings = copy_segment_listings(self.folder, segments, listing)
        changes = diff.compare_listings(listing.path, listings, deleted)
        if len(changes.touched):
            rows = find_changed_images(
                self.cluster, self.folder, segments, listing, changes.touched
            )
            self.changed = self.changed or len(rows) > 0
            changes = changes.mark_changed(rows)
        if not changes:
            remove_claims(self.folder)
            return None
        count = len(changes.added)
        print_message(
            f"{count} {self.prepared.unit} are new or changed, {len(changes.removed)} rows are "
            "outdated"
        )
        chunk_rows = self.settings.chunk_rows or chunk_rows_for(count)
        self.invalidate()
        target = listing.path.with_name("segment.parquet")
        diff.write_segment_listing(listing.path, changes.added, target, chunk_rows, base)
        claimed = claim_segment(
            self.folder, len(segments), base, target, chunk_rows, count, changes.removed,
            segments[-1].digest,
        )  # fmt: skip
        if [*segments, claimed] != read_segments(self.folder)[: claimed.number + 1]:
            raise Damaged(f"{self.folder.uri()} was changed by another run; run again")
        return claimed

    def _retry_failed(self, segments: list[Segment]) -> None:
        """Embed the live images in the ledger again; recovered ones are in further parts."""
        files = layout.find_chunk_files(finished_output.list_output_files(self.folder).paths)
        deleted = read_deleted(self.folder, segments)
        work, images = [], 0
        for segment, segment_files in group_by_segment(segments, files):
            for number, retry in segment_files.current_ledgers():
                chunk = dataclasses.replace(segment.chunk(number), retry=retry)
                failed = read_checksummed_parquet(self.folder, layout.failures_path(chunk))[
                    "row"
                ].to_numpy()
                if live_count := int((~np.isin(failed, deleted)).sum()):
                    work.append(dataclasses.replace(chunk, retry=retry + 1))
                    images += live_count
        self._embed(work, images, f"{self.stage} again")

    def _embed(self, work: list[Chunk], images: int = 0, stage: str = "") -> None:
        if not work:
            return
        self.invalidate()
        self.prepared = self.prepared.with_engine()
        images = images or sum(chunk.last - chunk.first for chunk in work)
        context = EmbedContext(self.settings, self.cluster, self.folder, self.prepared)
        for result in embed_chunks(context, work, images, stage or self.stage):
            self.records.add(result.files)
            self.changed = self.changed or bool(result.files)
            self.embedded += result.rows if result.seconds else 0
            self.seconds += result.seconds
            self.rounding += result.rounding
