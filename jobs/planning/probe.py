"""What is measured before a job: its own stages on a few of its images, in a folder of their own.

Nothing is imitated: images are embedded by the job's workers, then indexed, ranked and shown as
`run` does. What these small stages take is what a stage takes in any case; what grows with the rows
comes from the images, and from products of a second or less on one worker.
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
from jobs.config.settings import EmbedSettings, IndexSettings, PlanSettings, RankSettings, part_of
from jobs.embedding.embed_chunks import Embedding, embed_chunks
from jobs.embedding.listing import Listed
from jobs.embedding.prepare_model import Prepared
from jobs.evaluation.judge_matches import evaluate_by_labels
from jobs.indexing import index
from jobs.planning.microbenchmarks import products_and_thumbnails
from jobs.ranking import rank
from jobs.reporting.write_report import put_report, report_of
from retrieval.core.errors import TooManyFailures
from retrieval.core.records import ChunkResult
from retrieval.listing.diff import items_at, write_part_of
from retrieval.listing.listing import sampled_rows
from retrieval.storage import transaction
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.store.failure_reasons import commonest_reason
from retrieval.store.finalize import finish_store
from retrieval.store.segment import claim_segment

_FEW = 2  # images of a small chunk, by which a chunk's own cost is known
_EACH = 4  # chunks a worker, so that their median is one of a worker that is warm
_SHOWN = 32  # images that thumbnails are made of


@dataclass
class Probe:
    """A probe under way: what it writes into `folder`, and what it has measured so far."""

    settings: PlanSettings
    where: Cluster
    folder: Folder
    scratch: Path
    prepared: Prepared
    workers: int
    seconds: dict[str, float] = field(default_factory=dict)  # of each stage
    bytes: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    images: int = 0
    failed: int = 0
    read: int = 0  # bytes

    @property
    def failing(self) -> float:
        """Give the share of the sample that failed; none before there is one."""
        return self.failed / max(1, self.images)

    def run(self, gallery: Listed, queries: Listed | None) -> None:
        """Do what `run` does, in its order: workers that start again find more than the first."""
        count, seed = self.settings.sample, self.settings.seed
        needed = self._needed(gallery)
        lines = sampled_rows(gallery.rows, count, seed)
        step = max(2 * _FEW, -(-len(lines) // (_EACH * needed)))
        first, large = self._embedded("store", gallery, lines, step, needed)
        self.images, self.failed = len(lines), sum(result.failures for result in large)
        self.read = sum(result.read_bytes for result in large)
        self._index()
        again = self._needed(queries or gallery)
        few = sampled_rows(gallery.rows, _FEW * _EACH * again, seed + 1)
        then, small = self._embedded("again", gallery, few, _FEW, again)
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

    def _needed(self, listed: Listed) -> int:
        """Count the workers that will start: no more than there are chunks."""
        return min(self.workers, -(-listed.rows // listed.chunk_rows))

    def _embedded(
        self, name: str, listed: Listed, lines: Any, step: int, workers: int
    ) -> tuple[float, list[ChunkResult]]:
        """Make a store of some lines of the listing, as `embed` does."""
        from retrieval.models.bundle import write_bundle

        folder, target = self.folder.child(name), self.scratch / f"{name}.parquet"
        write_part_of(listed.path, lines, target, step, 0)
        settings = part_of(
            self.settings, EmbedSettings, input=self.settings.gallery, output=folder.uri()
        )
        bundle = self.prepared.bundle
        job = {"bundle": bundle.digest, "embedding_dtype": settings.embedding_dtype}
        transaction.begin(folder, "store", job)
        write_bundle(folder, bundle)
        segment = claim_segment(folder, 0, 0, target, step, len(lines), np.empty(0, np.int64))
        with_ = Embedding(settings, self.where, folder, self.prepared)
        asked, self.where.asked, self.where.peak = self.where.asked, workers, 0
        began = time.perf_counter()
        done = list(embed_chunks(with_, list(segment.chunks()), len(lines), f"probe {name}"))
        wall = time.perf_counter() - began
        self.where.asked = asked
        self.memory["worker"] = max(self.where.peak, self.memory.get("worker", 0))
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
        image = (times[1] - times[0]) / (rows - _FEW) if rows > _FEW else 0.0
        if image <= 0:  # the starts of the workers hide what a chunk takes
            image = times[1] / rows
        self.seconds["image"] = image
        self.seconds["chunk"] = max(0.0, times[1] - image * rows)
        quarters = np.quantile([one.seconds for one in whole], [0.25, 0.75]) / times[1]
        self.seconds["image_spread"] = max(0.1, float(quarters[1] - quarters[0]))
        part = [statistics.median(_size(one) for one in some) for some in (small, whole)]
        kept = statistics.mean(one.rows for one in whole)
        self.bytes["row"] = max(0.0, part[1] - part[0]) / max(1.0, kept - _FEW)

    def _index(self) -> None:
        store, made = self.folder.child("store"), self.folder.child("index")
        settings = part_of(
            self.settings, IndexSettings, embeddings=store.uri(), output=made.uri(),
            index_factory=None, rows_per_shard=None, limit=None, labels=None, retry_failed=False,
        )  # fmt: skip
        self._weigh("index", self._timed("index", lambda: index.build(settings, self.where)))

    def _rank(self) -> None:
        """Rank the sample against itself, evaluate and show it."""
        store, made, matches = (self.folder.child(n) for n in ("store", "index", "matches"))
        settings = part_of(
            self.settings, RankSettings, index=made.uri(), queries=store.uri(),
            output=matches.uri(), limit=None, labels=None, filter=None, nprobe=None, format=None,
            retry_failed=False,
        )  # fmt: skip
        ranked = self._timed("rank", lambda: rank.rank(settings, self.where))
        self._weigh("matches", ranked)

        def show() -> None:
            evaluate_by_labels(matches, ranked)
            source = report_of(matches, ranked, self.settings.seed)
            put_report(self.where, source, matches, "report.html")

        self._timed("report", show)
        sizes = [e.size for e in matches.entries() if e.path.startswith("report")]
        self.bytes["report"] = sum(sizes)

    def _machine(self, listed: Listed) -> None:
        """Measure what products and thumbnails take, on one worker."""
        lines = sampled_rows(listed.rows, _SHOWN, self.settings.seed)
        paths = items_at(listed.path, lines)["path"].to_pylist()
        measure = partial(
            products_and_thumbnails, self.prepared.dimension, self.settings.metric,
            self.settings.top_k, paths, self.settings.max_pixels,
        )  # fmt: skip
        (found,) = tasks.tasks(self.where, measure, [0])
        self.seconds |= found["seconds"]
        self.bytes["picture"] = found["picture"]

    def _timed(self, stage: str, work: Callable[[], Any]) -> Any:
        self.where.peak = 0
        began = time.perf_counter()
        answer = work()
        self.seconds[stage] = time.perf_counter() - began
        self.memory[stage] = self.where.peak
        return answer

    def _weigh(self, output: str, manifest: Manifest) -> None:
        """Count the bytes of an output, and once those of the model that lies in each."""
        files = manifest.files.values()
        models = [file.size for file in files if file.path.startswith("model/")]
        self.bytes[output] = sum(file.size for file in files) - sum(models)
        if output == "store":
            self.bytes["model"] = sum(models)


def _size(result: ChunkResult) -> int:
    return sum(record.size for record in result.files)
