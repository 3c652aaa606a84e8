"""Measurement of a sample: the stages of `run` on a few images, in a temporary folder.

The stages themselves run: images are embedded by the job's workers, then indexed, ranked and shown.
Their times are the fixed cost of each stage. What grows with the rows is measured per image and by
microbenchmarks on one worker.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jobs.cluster import tasks
from jobs.cluster.resources import Cluster
from jobs.config.settings import (
    EmbedSettings,
    IndexSettings,
    PlanSettings,
    RankSettings,
    derive_settings,
)
from jobs.embedding.embed_chunks import EmbedContext, embed_chunks
from jobs.embedding.listing import SourceListing
from jobs.embedding.prepare_model import PreparedModel
from jobs.evaluation.evaluate_matches import evaluate_by_labels
from jobs.indexing import index
from jobs.planning.microbenchmarks import time_products_and_thumbnails
from jobs.ranking import rank
from jobs.reporting.write_report import build_report_source, write_report
from retrieval.core.errors import TooManyFailures
from retrieval.core.records import ChunkResult
from retrieval.listing.diff import read_items, write_segment_listing
from retrieval.listing.listing import sample_rows
from retrieval.storage import transaction
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.store.failure_reasons import commonest_reason
from retrieval.store.finalize import finish_store
from retrieval.store.segment import claim_segment

_SMALL_CHUNK = 2  # images of a small chunk, by which a chunk's own cost is known
_CHUNKS_PER_WORKER = 4  # chunks a worker, so that their median is one of a worker that is warm
_THUMBNAIL_IMAGES = 32  # images that thumbnails are made of


@dataclass
class Probe:
    """A probe under way: what it writes into `folder`, and what it has measured so far."""

    settings: PlanSettings
    cluster: Cluster
    folder: Folder
    scratch: Path
    prepared: PreparedModel
    workers: int
    seconds: dict[str, float] = field(default_factory=dict)  # of each stage
    bytes: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    images: int = 0
    failed: int = 0
    read: int = 0  # bytes

    @property
    def failing(self) -> float:
        """Return the share of the sample that failed; none before there is one."""
        return self.failed / max(1, self.images)

    def run(self, gallery: SourceListing, queries: SourceListing | None) -> None:
        """Do what `run` does, in its order: workers that start again find more than the first."""
        count, seed = self.settings.sample, self.settings.seed
        needed = self._needed(gallery)
        lines = sample_rows(gallery.rows, count, seed)
        step = max(2 * _SMALL_CHUNK, -(-len(lines) // (_CHUNKS_PER_WORKER * needed)))
        first, large = self._embedded("store", gallery, lines, step, needed)
        self.images, self.failed = len(lines), sum(result.failures for result in large)
        self.read = sum(result.read_bytes for result in large)
        self._index()
        again = self._needed(queries or gallery)
        few = sample_rows(gallery.rows, _SMALL_CHUNK * _CHUNKS_PER_WORKER * again, seed + 1)
        then, small = self._embedded("again", gallery, few, _SMALL_CHUNK, again)
        self._fit(small, large, step)
        image, chunk = self.seconds["image"], self.seconds["chunk"]
        for name, wall, results, workers in (
            ("first", first, large, needed),
            ("next", then, small, again),
        ):
            work = chunk * len(results) + image * sum(one.rows + one.failures for one in results)
            self.seconds[name] = max(0.0, wall - work / min(workers, len(results)))
        if queries is not None:
            self._rank()
        self._machine(gallery)

    def _needed(self, listed: SourceListing) -> int:
        """Count the workers that will start: no more than there are chunks."""
        return min(self.workers, -(-listed.rows // listed.chunk_rows))

    def _embedded(
        self, name: str, listed: SourceListing, lines: Any, step: int, workers: int
    ) -> tuple[float, list[ChunkResult]]:
        """Make a store of some lines of the listing, as `embed` does."""
        from retrieval.models.bundle import write_bundle

        folder, target = self.folder.child(name), self.scratch / f"{name}.parquet"
        write_segment_listing(listed.path, lines, target, step, 0)
        settings = derive_settings(
            self.settings, EmbedSettings, input=self.settings.gallery, output=folder.uri()
        )
        bundle = self.prepared.bundle
        job = {"bundle": bundle.digest, "embedding_dtype": settings.embedding_dtype}
        transaction.claim_output(folder, "store", job)
        write_bundle(folder, bundle)
        segment = claim_segment(folder, 0, 0, target, step, len(lines), np.empty(0, np.int64))
        with_ = EmbedContext(settings, self.cluster, folder, self.prepared)
        asked, self.cluster.requested_workers, self.cluster.peak = (
            self.cluster.requested_workers,
            workers,
            0,
        )
        began = time.perf_counter()
        done = list(embed_chunks(with_, list(segment.chunks()), len(lines), f"probe {name}"))
        wall = time.perf_counter() - began
        self.cluster.requested_workers = asked
        self.memory["worker"] = max(self.cluster.peak, self.memory.get("worker", 0))
        if name == "store":
            if not any(result.rows for result in done):  # the ledger goes with the folder
                ledgers = (r.path for one in done for r in one.files if "/failures/" in r.path)
                raise TooManyFailures(
                    f"none of {len(lines)} images of {self.settings.gallery} could be embedded, "
                    f"{commonest_reason(folder, ledgers)}; name a place with readable photos"
                )
            known = [record for result in done for record in result.files]
            manifest = finish_store(folder, bundle.dimension, known, 1.0)
            self._weigh("store", manifest)
        return wall, done

    def _fit(self, small: list[ChunkResult], large: list[ChunkResult], step: int) -> None:
        """Part what a chunk takes from what its images take, in time and in bytes.

        By the medians of small and of large chunks, a line through two points.
        """
        whole = [one for one in large if one.rows + one.failures == step] or large
        rows = statistics.mean(one.rows + one.failures for one in whole)
        times = [statistics.median(one.seconds for one in some) for some in (small, whole)]
        image = (times[1] - times[0]) / (rows - _SMALL_CHUNK) if rows > _SMALL_CHUNK else 0.0
        if image <= 0:  # the starts of the workers hide what a chunk takes
            image = times[1] / rows
        self.seconds["image"] = image
        self.seconds["chunk"] = max(0.0, times[1] - image * rows)
        quarters = np.quantile([one.seconds for one in whole], [0.25, 0.75]) / times[1]
        self.seconds["image_spread"] = max(0.1, float(quarters[1] - quarters[0]))
        part = [statistics.median(_file_bytes(one) for one in some) for some in (small, whole)]
        kept = statistics.mean(one.rows for one in whole)
        self.bytes["row"] = max(0.0, part[1] - part[0]) / max(1.0, kept - _SMALL_CHUNK)

    def _index(self) -> None:
        store, made = self.folder.child("store"), self.folder.child("index")
        settings = derive_settings(
            self.settings, IndexSettings, embeddings=store.uri(), output=made.uri(),
            index_factory=None, rows_per_shard=None, limit=None, labels=None, retry_failed=False,
        )  # fmt: skip
        self._weigh(
            "index", self._timed("index", lambda: index.build_index(settings, self.cluster))
        )

    def _rank(self) -> None:
        """Rank the sample against itself, evaluate and show it."""
        store, made, matches = (self.folder.child(n) for n in ("store", "index", "matches"))
        settings = derive_settings(
            self.settings, RankSettings, index=made.uri(), queries=store.uri(),
            output=matches.uri(), limit=None, labels=None, filter=None, nprobe=None, format=None,
            retry_failed=False,
        )  # fmt: skip
        ranked = self._timed("rank", lambda: rank.rank(settings, self.cluster))
        self._weigh("matches", ranked)

        def show() -> None:
            evaluation, _ = evaluate_by_labels(matches, ranked)
            source = build_report_source(matches, ranked, evaluation, self.settings.seed)
            write_report(self.cluster, source, matches, "report.html")

        self._timed("report", show)
        sizes = [e.size for e in matches.entries() if e.path.startswith("report")]
        self.bytes["report"] = sum(sizes)

    def _machine(self, listed: SourceListing) -> None:
        """Measure what products and thumbnails take, on one worker."""
        lines = sample_rows(listed.rows, _THUMBNAIL_IMAGES, self.settings.seed)
        paths = read_items(listed.path, lines)["path"].to_pylist()
        measure = partial(
            time_products_and_thumbnails, self.prepared.dimension, self.settings.metric,
            self.settings.top_k, paths, self.settings.max_pixels,
        )  # fmt: skip
        (found,) = tasks.run_tasks(self.cluster, measure, [0])
        self.seconds |= found["seconds"]
        self.bytes["picture"] = found["picture"]

    def _timed(self, stage: str, work: Callable[[], Any]) -> Any:
        self.cluster.peak = 0
        began = time.perf_counter()
        answer = work()
        self.seconds[stage] = time.perf_counter() - began
        self.memory[stage] = self.cluster.peak
        return answer

    def _weigh(self, output: str, manifest: Manifest) -> None:
        """Count the bytes of an output, and once those of the model that lies in each."""
        files = manifest.files.values()
        models = [file.size for file in files if file.path.startswith("model/")]
        self.bytes[output] = sum(file.size for file in files) - sum(models)
        if output == "store":
            self.bytes["model"] = sum(models)


def _file_bytes(result: ChunkResult) -> int:
    return sum(record.size for record in result.files)
