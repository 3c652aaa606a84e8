"""Conversion of the measurements of a probe to counts, rates and sizes of the cost model."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.config.settings import PlanSettings
from jobs.embedding.fit_projection import SAMPLE
from jobs.embedding.listing import SourceListing
from jobs.embedding.recipe import choose_projection
from jobs.planning.probe import Probe
from jobs.reporting.write_report import DEFAULT_SHOWN_QUERIES, LOCAL_IMAGE_LIMIT
from jobs.runtime.run_metadata import peak_memory
from retrieval.index.plan import Gallery, plan_index
from retrieval.index.recall_interval import are_few_queries
from retrieval.planning.costs import Counts, Rates, Sizes, expected_thumbnails, guess_nprobe
from retrieval.report.rows import SHOWN_MATCHES

_BASE64_RATIO = 4 / 3  # bytes of base64 per byte; pictures are embedded in pages as base64


def estimate_counts(
    settings: PlanSettings, probe: Probe, listings: dict[str, SourceListing]
) -> Counts:
    """Return the counts of the job: images as listed, and the index of those expected to succeed.

    `listings` has the listing of the gallery, and of the queries if they are known.
    """
    gallery, queries = listings["gallery"], listings.get("queries")
    rows = max(1, round(gallery.rows * (1 - probe.failing)))
    projection = choose_projection(settings, probe.prepared.bundle, gallery.rows, None)
    dimension = projection.dimensions or probe.prepared.dimension
    plan = plan_index(
        Gallery(rows, dimension, settings.embedding_dtype, settings.metric),
        settings.max_index_memory, rows_per_shard=settings.rows_per_shard,
        factory=settings.index_factory,
    )  # fmt: skip
    query_count = queries.rows if queries else None
    probes_all = plan.probe_all or settings.recall == 1
    probes_all |= bool(plan.codes) and query_count is not None and are_few_queries(query_count)
    nprobe = settings.nprobe or (plan.nlist if probes_all else guess_nprobe(plan.nlist))
    return Counts(
        gallery.rows, query_count, dimension,
        (gallery.chunk_rows, queries.chunk_rows if queries else 1), plan,
        min(nprobe, plan.nlist), settings.top_k,
        pca_sample=min(SAMPLE, gallery.rows) if projection.dimensions else 0,
        thumbnails=expected_thumbnails(
            query_count or 0, DEFAULT_SHOWN_QUERIES, min(settings.top_k, SHOWN_MATCHES), rows
        ),
        shards=-(-rows // plan.rows_per_shard),
        number_bytes=np.dtype(settings.embedding_dtype).itemsize,
    )  # fmt: skip


def estimate_image_bytes(listed: SourceListing, probe: Probe) -> int:
    """Return the total size of the images of a source in bytes.

    It is extrapolated from the listed sizes, or from the sample if the listing has none.
    """
    sized = total = 0
    with pq.ParquetFile(listed.path) as parquet:
        for batch in parquet.iter_batches(columns=["size"]):
            sized += len(batch) - batch["size"].null_count
            total += pc.sum(batch["size"]).as_py() or 0
    if not sized:
        sized, total = max(1, probe.images - probe.failed), probe.read
    return round(total / sized * listed.rows)


def estimate_rates(
    probe: Probe, counts: Counts, listing_seconds: float, decoder_cores: int
) -> Rates:
    """Return the rates of the cost model from the measured times.

    `listing_seconds` is the time of listing all sources, `decoder_cores` the number of decoding
    threads per worker.
    """
    seconds, listed = probe.seconds, counts.gallery + (counts.queries or 0)
    thumbnail_seconds = probe.images * seconds["thumbnail"] / 2  # by two threads of the driver
    worker_start = seconds["show"] if counts.thumbnails > LOCAL_IMAGE_LIMIT else 0.0
    return Rates(
        start=seconds["start"], listing_rate=listed / max(listing_seconds, 1e-9),
        first_pool_start=seconds["first"], later_pool_start=seconds["next"],
        chunk=seconds["chunk"], image=seconds["image"], image_spread=seconds["image_spread"],
        index=seconds["index"], rank=seconds.get("rank", 0.0),
        report=max(0.0, seconds.get("report", 0.0) - thumbnail_seconds) + worker_start,
        thumbnail=seconds["thumbnail"], multiply_rate=2 * counts.dimension / seconds["placed"],
        compare_rate=1 / seconds["compared"], decoder_cores=decoder_cores,
    )  # fmt: skip


def estimate_sizes(settings: PlanSettings, probe: Probe, counts: Counts, listings: int) -> Sizes:
    """Return the sizes of the cost model in bytes, per row of the outputs of the probe.

    `listings` is the size of the listing files in bytes.
    """
    sizes, rows = probe.bytes, max(1, probe.images - probe.failed)
    probe_plan = plan_index(
        Gallery(rows, probe.prepared.dimension, settings.embedding_dtype, settings.metric),
        settings.max_index_memory,
    )  # fmt: skip
    shard_row = (sizes["index"] - probe_plan.nlist * probe.prepared.dimension * 4) / rows
    projection_change = (counts.dimension - probe.prepared.dimension) * counts.number_bytes
    matches = rows * min(counts.top_k, rows)
    return Sizes(
        model=sizes["model"], row=sizes["row"] + projection_change,
        line=listings / (counts.gallery + (counts.queries or 0)),
        shard_row=shard_row + counts.plan.bytes_per_vector - probe_plan.bytes_per_vector,
        match=sizes.get("matches", 0.0) / matches,
        page=max(0.0, sizes.get("report", 0.0) - rows * sizes["picture"] * _BASE64_RATIO),
        picture=sizes["picture"] * _BASE64_RATIO, worker=probe.memory["worker"],
        index_task=probe.memory["index"], rank_task=probe.memory.get("rank", 0),
        driver=peak_memory(),
    )  # fmt: skip
