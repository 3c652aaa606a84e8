"""Conversion of probe measurements to the counts, rates and sizes of the cost model."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.config.settings import PlanSettings
from jobs.embedding.fit_projection import SAMPLE
from jobs.embedding.listing import SourceListing
from jobs.planning.probe import Probe
from jobs.reporting.write_report import DEFAULT_SHOWN_QUERIES, LOCAL_IMAGE_LIMIT
from jobs.runtime.run_metadata import peak_memory
from retrieval.index.plan import Gallery, plan_index
from retrieval.index.recall_interval import LOOK_SIZES
from retrieval.planning.costs import Counts, Rates, Sizes, expected_thumbnails, guess_nprobe
from retrieval.report.rows import SHOWN_MATCHES

_TEXT = 4 / 3  # bytes of base64, as pictures stand in a page, a byte of theirs


def estimate_counts(
    settings: PlanSettings, probe: Probe, sides: dict[str, SourceListing]
) -> Counts:
    """Count what there is, and plan the index of what will not fail."""
    gallery, queries = sides["gallery"], sides.get("queries")
    rows = max(1, round(gallery.rows * (1 - probe.failing)))
    dimension = settings.pca or probe.prepared.dimension
    made = plan_index(
        Gallery(rows, dimension, settings.embedding_dtype, settings.metric),
        settings.max_index_memory, rows_per_shard=settings.rows_per_shard,
        factory=settings.index_factory,
    )  # fmt: skip
    asked = queries.rows if queries else None
    every = made.probe_all or settings.recall == 1
    every |= bool(made.codes) and asked is not None and asked <= LOOK_SIZES[0]  # each is sampled
    nprobe = settings.nprobe or (made.nlist if every else guess_nprobe(made.nlist))
    return Counts(
        gallery.rows, asked, dimension,
        (gallery.chunk_rows, queries.chunk_rows if queries else 1), made,
        min(nprobe, made.nlist), settings.top_k,
        fitted=min(SAMPLE, gallery.rows) if settings.pca else 0,
        pictures=expected_thumbnails(
            asked or 0, DEFAULT_SHOWN_QUERIES, min(settings.top_k, SHOWN_MATCHES), rows
        ),
        shards=-(-rows // made.rows_per_shard),
        number_bytes=np.dtype(settings.embedding_dtype).itemsize,
    )  # fmt: skip


def estimate_image_bytes(listed: SourceListing, probe: Probe) -> int:
    """Return the bytes of a source's images: as listed, else as those of the sample."""
    known = total = 0
    with pq.ParquetFile(listed.path) as parquet:
        for batch in parquet.iter_batches(columns=["size"]):
            known += len(batch) - batch["size"].null_count
            total += pc.sum(batch["size"]).as_py() or 0
    if not known:
        known, total = max(1, probe.images - probe.failed), probe.read
    return round(total / known * listed.rows)


def estimate_rates(probe: Probe, counts: Counts, listing: float, beside: int) -> Rates:
    """Return what was measured as rates; what the small stages took beside their rows is small."""
    at, listed = probe.seconds, counts.gallery + (counts.queries or 0)
    shown = probe.images * at["thumbnail"] / 2  # by two threads of the driver
    workers = at["show"] if counts.pictures > LOCAL_IMAGE_LIMIT else 0.0
    return Rates(
        start=at["start"], listed=listed / max(listing, 1e-9), first_pool=at["first"],
        next_pool=at["next"], chunk=at["chunk"], image=at["image"],
        image_spread=at["image_spread"], index=at["index"], rank=at.get("rank", 0.0),
        report=max(0.0, at.get("report", 0.0) - shown) + workers, thumbnail=at["thumbnail"],
        multiplied=2 * counts.dimension / at["placed"], compared=1 / at["compared"],
        beside=beside,
    )  # fmt: skip


def estimate_sizes(settings: PlanSettings, probe: Probe, counts: Counts, listings: int) -> Sizes:
    """Return the bytes of what the probe has put, a row."""
    weighed, rows = probe.bytes, max(1, probe.images - probe.failed)
    own = plan_index(
        Gallery(rows, probe.prepared.dimension, settings.embedding_dtype, settings.metric),
        settings.max_index_memory,
    )  # fmt: skip
    shard_row = (weighed["index"] - own.nlist * probe.prepared.dimension * 4) / rows
    shorter = (counts.dimension - probe.prepared.dimension) * counts.number_bytes  # by --pca
    matches = rows * min(counts.top_k, rows)
    return Sizes(
        model=weighed["model"], row=weighed["row"] + shorter,
        line=listings / (counts.gallery + (counts.queries or 0)),
        shard_row=shard_row + counts.plan.bytes_per_vector - own.bytes_per_vector,
        match=weighed.get("matches", 0.0) / matches,
        page=max(0.0, weighed.get("report", 0.0) - rows * weighed["picture"] * _TEXT),
        picture=weighed["picture"] * _TEXT, worker=probe.memory["worker"],
        index_task=probe.memory["index"], rank_task=probe.memory.get("rank", 0),
        driver=peak_memory(),
    )  # fmt: skip
