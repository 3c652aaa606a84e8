"""A store brought up to its source: what was begun is finished, what changed is appended.

Then, if asked for, what failed is tried again, and all segments are made one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings
from jobs.embedding.changed_images import changed, listings_before
from jobs.embedding.compact import bring_to_place, compact, is_compact
from jobs.embedding.embed_chunks import Embedding, embed_chunks
from jobs.embedding.listing import Listed
from jobs.embedding.precomputed_vectors import Given
from jobs.embedding.prepare_model import Prepared
from jobs.runtime.progress import say
from retrieval.core.errors import Damaged, Stalled, StorageFailure, TooManyFailures
from retrieval.core.records import Chunk, Rounding
from retrieval.core.schemas import COMPACTED
from retrieval.listing import diff
from retrieval.listing.chunking import chunk_rows_for
from retrieval.listing.listing import digest
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest, read_if_there
from retrieval.storage.inventory import Gathered
from retrieval.storage.local import Folder
from retrieval.store import layout
from retrieval.store.compaction import is_settled
from retrieval.store.finalize import finish_store, is_overtaken, lags, read_deleted
from retrieval.store.reader import read_sealed
from retrieval.store.segment import (
    Segment,
    bring_claimed,
    by_segment,
    claim_segment,
    clear_claims,
    clear_unclaimed,
    read_segments,
    span_of,
)

_LOOKS = 5  # times that a run looks again at a store that another run changes


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
    known: Gathered = field(default_factory=Gathered)
    embedded: int = 0  # images that this run embedded
    seconds: float = 0.0  # that its workers took for them, all together
    worked: bool = False
    rounding: Rounding = field(default_factory=Rounding)  # of vectors that this run stored

    def bring_up(self) -> Manifest:
        """Do what is left to do, and give the manifest.

        What another run does to the store meanwhile (compacts it, replaces its manifest) may be
        missed here; then this run looks again at what there is now.
        """
        for left in reversed(range(_LOOKS)):
            before = self._state()
            try:
                return self._bring_up()
            except (StorageFailure, TooManyFailures, Stalled):
                raise
            except Exception:  # what a worker missed comes wrapped in one of Ray's
                if not left or self._state() == before:
                    raise
                self.known = Gathered()
        raise AssertionError("unreachable")

    def _state(self) -> list[bytes | None]:
        """Give what tells which segments there are, and which of them are finished."""
        found = [read_if_there(self.folder, path) for path in (COMPACTED, finished_output.MANIFEST)]
        number = 0
        while (data := read_if_there(self.folder, layout.segment_json_path(number))) is not None:
            found.append(data)
            number += 1
        return found

    def _bring_up(self) -> Manifest:
        if is_settled(self.folder):
            self.unsettle()
            self.known.add(bring_to_place(self.where, self.folder))
        clear_unclaimed(self.folder)
        there = self._manifest()
        self.known.add(there.files if there else [])
        segments = read_segments(self.folder)
        done = int(there.counts["segments"]) if there else 0
        for segment in segments[done:]:
            bring_claimed(self.folder, segment)
        self._embed([c for segment in segments[done:] for c in segment.chunks()])
        if appended := self._append(segments):
            segments.append(appended)
            self._embed(list(appended.chunks()))
        if self.settings.retry_failed:
            self._retry(segments)
        if there is None or done < len(segments) or self.worked or lags(self.folder, there):
            self.unsettle()
            there = self._finish(segments)
        if self.settings.compact and not is_compact(segments, there, self.listed):
            self.unsettle()
            before = listings_before(self.folder, segments, self.listed)
            moved = compact(self.where, self.folder, segments, self.listed, before)
            self.known = Gathered(moved)
            there = self._finish(read_segments(self.folder))
        clear_unclaimed(self.folder)
        return there

    def _manifest(self) -> Manifest | None:
        """Open the manifest; none where there is none, or where a compaction has overtaken it."""
        if not finished_output.is_finished(self.folder):
            return None
        if is_overtaken(self.folder):
            self.folder.delete(finished_output.MANIFEST)
            return None
        return finished_output.read_manifest(self.folder, kind="store")

    def _finish(self, segments: list[Segment]) -> Manifest:
        self.worked = True
        self._still(segments)
        known, self.known = self.known, Gathered()  # the manifest will name them
        manifest = finish_store(
            self.folder, self.prepared.dimension, known, self.settings.max_error_rate, segments,
            self.prepared.unit,
        )  # fmt: skip
        self._still(segments)
        return manifest

    def _still(self, segments: list[Segment]) -> None:
        """Look again where the segments are no longer the ones that this run knows."""
        changed = is_settled(self.folder) or read_segments(self.folder) != segments
        if changed or is_overtaken(self.folder):
            raise Damaged(f"{self.folder.uri()} is being changed by another run; run again")

    def _append(self, segments: list[Segment]) -> Segment | None:
        """Claim the segment of what changed since the last one; the first is the whole listing."""
        listed, base = self.listed, span_of(segments)
        if not segments:
            nothing = np.empty(0, np.int64)
            return claim_segment(
                self.folder, 0, 0, listed.path, listed.chunk_rows, listed.rows, nothing
            )
        if len(segments) == 1 and segments[0].files[layout.listing_path(0)] == digest(listed.path):
            clear_claims(self.folder)
            return None
        deleted = read_deleted(self.folder, segments)
        found = diff.compare(
            listed.path, listings_before(self.folder, segments, self.listed), deleted
        )
        if len(found.touched):
            rows = changed(self.where, self.folder, segments, listed, found.touched)
            self.worked = self.worked or len(rows) > 0
            found = found.with_changed(rows)
        if not found:
            clear_claims(self.folder)
            return None
        what = f"{len(found.fresh)} {self.prepared.unit}"
        say(f"{what} are new or changed, {len(found.gone)} rows are outdated")
        step = self.settings.chunk_rows or chunk_rows_for(len(found.fresh))
        self.unsettle()
        target = listed.path.with_name("segment.parquet")
        diff.write_part_of(listed.path, found.fresh, target, step, base)
        claimed = claim_segment(
            self.folder, len(segments), base, target, step, len(found.fresh), found.gone,
            segments[-1].digest,
        )  # fmt: skip
        if [*segments, claimed] != read_segments(self.folder)[: claimed.number + 1]:
            raise Damaged(f"{self.folder.uri()} was changed by another run")  # looked at again
        return claimed

    def _retry(self, segments: list[Segment]) -> None:
        """Try again what stands in the ledger and is alive."""
        pieces = layout.pieces_in(finished_output.own_entries(self.folder).paths)
        deleted = read_deleted(self.folder, segments)
        work, images = [], 0
        for segment, its in by_segment(segments, pieces):
            for number, retry in its.ledgers():
                chunk = dataclasses.replace(segment.chunk(number), retry=retry)
                failed = read_sealed(self.folder, layout.failures_path(chunk))["row"].to_numpy()
                if alive := int((~np.isin(failed, deleted)).sum()):
                    work.append(dataclasses.replace(chunk, retry=retry + 1))
                    images += alive
        self._embed(work, images, f"{self.stage} again")

    def _embed(self, work: list[Chunk], images: int = 0, stage: str = "") -> None:
        if not work:
            return
        self.unsettle()
        self.prepared = self.prepared.ready()
        images = images or sum(chunk.last - chunk.first for chunk in work)
        with_ = Embedding(self.settings, self.where, self.folder, self.prepared)
        for result in embed_chunks(with_, work, images, stage or self.stage):
            self.known.add(result.files)
            self.worked = self.worked or bool(result.files)
            self.embedded += result.rows if result.seconds else 0
            self.seconds += result.seconds
            self.rounding += result.rounding
