"""Measurement of a sample: the stages of `run` on a few images, in a temporary folder.

The images are embedded by the workers of the job, then indexed, ranked and reported. The times of
the small stages are their fixed costs; the costs that grow with the number of rows are measured per
image and by microbenchmarks on one worker.
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

_SMALL_CHUNK = 2  # images of a small chunk, to measure the fixed cost of a chunk
_CHUNKS_PER_WORKER = 4  # so that the median time is one of a worker that has started up
_THUMBNAIL_IMAGES = 32  # images of which thumbnails are made


@dataclass
class Probe:
    """A probe: it writes its outputs into `folder` and collects measurements."""

    settings: PlanSettings
    cluster: Cluster
    folder: Folder
    temp_dir: Path
    prepared: PreparedModel
    workers: int
    seconds: dict[str, float] = field(default_factory=dict)  # by stage or operation
    bytes: dict[str, float] = field(default_factory=dict)  # by output, and per row or picture
    memory: dict[str, int] = field(default_factory=dict)  # peak of a worker by stage, in bytes
    images: int = 0  # in the sample
    failed: int = 0
    read: int = 0  # bytes of the images read

    @property
    def failing(self) -> float:
        """Return the share of the sample that failed; 0 before it is measured."""
        return self.failed / max(1, self.images)

    def run(self, gallery: SourceListing, queries: SourceListing | None) -> None:
        """Run the stages in the order of `run`, since later pools of workers start faster.

        Raises TooManyFailures if no image of the sample can be embedded.
        """
        count, seed = self.settings.sample, self.settings.seed
        workers = self._worker_count(gallery)
        lines = sample_rows(gallery.rows, count, seed)
        step = max(2 * _SMALL_CHUNK, -(-len(lines) // (_CHUNKS_PER_WORKER * workers)))
        first_wall, large = self._embed("store", gallery, lines, step, workers)
        self.images, self.failed = len(lines), sum(result.failures for result in large)
        self.read = sum(result.read_bytes for result in large)
        self._index()
        next_workers = self._worker_count(queries or gallery)
        small_count = _SMALL_CHUNK * _CHUNKS_PER_WORKER * next_workers
        small_lines = sample_rows(gallery.rows, small_count, seed + 1)
        next_wall, small = self._embed("again", gallery, small_lines, _SMALL_CHUNK, next_workers)
        self._fit_chunk_costs(small, large, step)
        image, chunk = self.seconds["image"], self.seconds["chunk"]
        for name, wall, results, pool_size in (
            ("first", first_wall, large, workers),
            ("next", next_wall, small, next_workers),
        ):
            images = sum(result.rows + result.failures for result in results)
            work = chunk * len(results) + image * images
            self.seconds[name] = max(0.0, wall - work / min(pool_size, len(results)))
        if queries is not None:
            self._rank()
        self._run_microbenchmarks(gallery)

    def _worker_count(self, listed: SourceListing) -> int:
        """Return the number of workers that the job starts: at most one per chunk."""
        return min(self.workers, -(-listed.rows // listed.chunk_rows))

    def _embed(
        self, name: str, listed: SourceListing, lines: Any, step: int, workers: int
    ) -> tuple[float, list[ChunkResult]]:
        """Embed lines of the listing into a store; return the wall time and the chunk results."""
        from retrieval.models.bundle import write_bundle

        folder, target = self.folder.child(name), self.temp_dir / f"{name}.parquet"
        write_segment_listing(listed.path, lines, target, step, 0)
        settings = derive_settings(
            self.settings, EmbedSettings, input=self.settings.gallery, output=folder.uri()
        )
        bundle = self.prepared.bundle
        job = {"bundle": bundle.digest, "embedding_dtype": settings.embedding_dtype}
        transaction.claim_output(folder, "store", job)
        write_bundle(folder, bundle)
        segment = claim_segment(folder, 0, 0, target, step, len(lines), np.empty(0, np.int64))
        context = EmbedContext(settings, self.cluster, folder, self.prepared)
        requested = self.cluster.requested_workers
        self.cluster.requested_workers, self.cluster.peak = workers, 0
        started = time.perf_counter()
        chunks = list(segment.chunks())
        results = list(embed_chunks(context, chunks, len(lines), f"probe {name}"))
        wall = time.perf_counter() - started
        self.cluster.requested_workers = requested
        self.memory["worker"] = max(self.cluster.peak, self.memory.get("worker", 0))
        if name == "store":
            if not any(result.rows for result in results):  # the ledger will be deleted
                ledgers = (
                    record.path
                    for result in results
                    for record in result.files
                    if "/failures/" in record.path
                )
                raise TooManyFailures(
                    f"none of {len(lines)} images of {self.settings.gallery} could be embedded, "
                    f"{commonest_reason(folder, ledgers)}; specify an input with readable photos"
                )
            records = [record for result in results for record in result.files]
            manifest = finish_store(folder, bundle.dimension, records, 1.0)
            self._record_bytes("store", manifest)
        return wall, results

    def _fit_chunk_costs(
        self, small: list[ChunkResult], large: list[ChunkResult], step: int
    ) -> None:
        """Estimate the time per chunk and per image, and the bytes per row.

        Both are fitted by a line through two points: the medians of small and of large chunks.
        """
        complete = [result for result in large if result.rows + result.failures == step] or large
        rows = statistics.mean(result.rows + result.failures for result in complete)
        times = [
            statistics.median(result.seconds for result in results) for results in (small, complete)
        ]
        image = (times[1] - times[0]) / (rows - _SMALL_CHUNK) if rows > _SMALL_CHUNK else 0.0
        if image <= 0:  # the start-up of the workers hides the fixed cost of a chunk
            image = times[1] / rows
        self.seconds["image"] = image
        self.seconds["chunk"] = max(0.0, times[1] - image * rows)
        quartiles = np.quantile([result.seconds for result in complete], [0.25, 0.75]) / times[1]
        self.seconds["image_spread"] = max(0.1, float(quartiles[1] - quartiles[0]))
        sizes = [
            statistics.median(_file_bytes(result) for result in results)
            for results in (small, complete)
        ]
        embedded = statistics.mean(result.rows for result in complete)
        self.bytes["row"] = max(0.0, sizes[1] - sizes[0]) / max(1.0, embedded - _SMALL_CHUNK)

    def _index(self) -> None:
        store, output = self.folder.child("store"), self.folder.child("index")
        settings = derive_settings(
            self.settings, IndexSettings, embeddings=store.uri(), output=output.uri(),
            index_factory=None, rows_per_shard=None, limit=None, labels=None, retry_failed=False,
        )  # fmt: skip
        manifest = self._measure("index", lambda: index.build_index(settings, self.cluster))
        self._record_bytes("index", manifest)

    def _rank(self) -> None:
        """Rank the sample against itself, evaluate it and write its report."""
        store, index_folder, matches = (
            self.folder.child(name) for name in ("store", "index", "matches")
        )
        settings = derive_settings(
            self.settings, RankSettings, index=index_folder.uri(), queries=store.uri(),
            output=matches.uri(), limit=None, labels=None, filter=None, nprobe=None, format=None,
            retry_failed=False,
        )  # fmt: skip
        manifest = self._measure("rank", lambda: rank.rank(settings, self.cluster))
        self._record_bytes("matches", manifest)

        def report() -> None:
            evaluation, _ = evaluate_by_labels(matches, manifest)
            source = build_report_source(matches, manifest, evaluation, self.settings.seed)
            write_report(self.cluster, source, matches, "report.html")

        self._measure("report", report)
        sizes = [entry.size for entry in matches.entries() if entry.path.startswith("report")]
        self.bytes["report"] = sum(sizes)

    def _run_microbenchmarks(self, listed: SourceListing) -> None:
        """Measure the times of matrix products and thumbnails on one worker."""
        lines = sample_rows(listed.rows, _THUMBNAIL_IMAGES, self.settings.seed)
        paths = read_items(listed.path, lines)["path"].to_pylist()
        benchmark = partial(
            time_products_and_thumbnails, self.prepared.dimension, self.settings.metric,
            self.settings.top_k, paths, self.settings.max_pixels,
        )  # fmt: skip
        (result,) = tasks.run_tasks(self.cluster, benchmark, [0])
        self.seconds |= result["seconds"]
        self.bytes["picture"] = result["picture"]

    def _measure(self, stage: str, work: Callable[[], Any]) -> Any:
        """Return the result of `work`; record its time and peak memory."""
        self.cluster.peak = 0
        started = time.perf_counter()
        result = work()
        self.seconds[stage] = time.perf_counter() - started
        self.memory[stage] = self.cluster.peak
        return result

    def _record_bytes(self, output: str, manifest: Manifest) -> None:
        """Record the size of an output without its model, and once the size of the model."""
        files = manifest.files.values()
        models = [file.size for file in files if file.path.startswith("model/")]
        self.bytes[output] = sum(file.size for file in files) - sum(models)
        if output == "store":
            self.bytes["model"] = sum(models)


def _file_bytes(result: ChunkResult) -> int:
    return sum(record.size for record in result.files)
