"""The embed stage: turn a source of images, or of precomputed vectors, into a vector store.

It lists the source, prepares the model (with a fitted projection for `--pca`), claims the output,
and embeds what the store lacks (`StoreSync`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.cluster.driver_process import choose_process
from jobs.cluster.resources import Cluster, open_cluster
from jobs.config.settings import EmbedSettings, ModelOptions, VectorSourceOptions, content_settings
from jobs.embedding.fit_projection import fit_projection
from jobs.embedding.listing import list_source, open_input
from jobs.embedding.precomputed_vectors import (
    DEFAULT_CHUNK_ROWS,
    PrecomputedVectors,
    add_rounding,
    is_vector_source,
    open_precomputed_vectors,
    vector_job_settings,
)
from jobs.embedding.prepare_model import PreparedModel, prepare_model, read_begun_settings
from jobs.embedding.recipe import (
    NO_PROJECTION,
    choose_projection,
    explain_other_bundle,
    projection_left_out,
)
from jobs.embedding.store_sync import StoreSync
from jobs.runtime.check_output import check_output
from jobs.runtime.progress import print_message
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import Stopwatch
from retrieval.sources.base import Source
from retrieval.storage import finished_output, transaction
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, is_remote, open_folder


@dataclass(frozen=True)
class EmbedResult:
    """Result of the embed stage."""

    manifest: Manifest
    other_files: int  # files of the source that are not images


def start(settings: EmbedSettings) -> Result:
    """Run `lookalike embed` and summarize the store it wrote."""
    check_output(settings, "store")
    with open_cluster(settings) as cluster:
        result = embed(settings, cluster)
    return _summarize(settings, result)


def embed(
    settings: EmbedSettings,
    cluster: Cluster,
    *,
    prepared: PreparedModel | PrecomputedVectors | None = None,
    split: str | None = None,
    reuse_if_same: bool = False,
    stage: str = "embed",
    invalidate: Callable[[], None] = lambda: None,
) -> EmbedResult:
    """Write a store, or continue and update the one at the output.

    Args:
        settings: What to embed, how, and where to.
        cluster: The Ray cluster that does the work.
        prepared: The model, or the opened vectors; by default the settings choose it.
        split: Rows of the labels file to use: "gallery" or "queries"; all by default.
        reuse_if_same: Whether `--overwrite` keeps a store that has the same settings.
        stage: Name shown by the progress bar.
        invalidate: Called before the store changes; deletes the manifests of outputs that depend
            on it.
    """
    stopwatch = Stopwatch(cluster, stage)
    folder = open_folder(settings.output)
    with tempfile.TemporaryDirectory() as temp_dir:
        if prepared is None and is_vector_source(settings.input, settings):
            prepared = open_precomputed_vectors(settings.input, settings, metric=None)
        if isinstance(prepared, PrecomputedVectors):
            chunk_rows = settings.chunk_rows or DEFAULT_CHUNK_ROWS
            settings = dataclasses.replace(settings, chunk_rows=chunk_rows)
            source: Source = prepared.source
        else:
            source = open_input(settings, settings.input)
        listing_began = cluster.profile.now()
        listing = list_source(settings, source, Path(temp_dir) / "listing.parquet", split)
        cluster.profile.add(f"list ({stage})", listing_began)
        if isinstance(prepared, PrecomputedVectors):
            cluster = choose_process(cluster, prepared.estimate_seconds(listing.rows))
        prepared = prepared or prepare_model(settings, cluster, folder)
        dtype = prepared.resolve_dtype(settings.embedding_dtype)
        settings = dataclasses.replace(settings, embedding_dtype=dtype)
        projection = NO_PROJECTION
        if isinstance(prepared, PreparedModel):
            begun = None if settings.overwrite else read_begun_settings(folder)
            projection = choose_projection(settings, prepared.bundle, listing.rows, begun)
            if projection.dimensions:
                bundle = fit_projection(
                    settings, cluster, folder, prepared, listing.path, projection
                )
                prepared = dataclasses.replace(prepared, bundle=bundle)
        job = {**_job_settings(settings, prepared), **projection.job_fields(settings.seed)}
        with explain_other_bundle(settings, folder.child("model"), prepared.bundle):
            transaction.claim_output(
                folder, "store", job, overwrite=settings.overwrite, reuse_if_same=reuse_if_same
            )
        if prepared.bundle is not None and not finished_output.is_finished(folder):
            from retrieval.models.bundle import write_bundle

            write_bundle(folder, prepared.bundle)
        sync = StoreSync(settings, cluster, folder, prepared, listing, stage, invalidate)
        manifest = sync.synchronize()
    if sync.changed:
        _report_run(stopwatch, settings, folder, manifest, sync)
    return EmbedResult(manifest, listing.other_files)


def _report_run(
    stopwatch: Stopwatch, settings: EmbedSettings, folder: Folder, manifest: Manifest,
    sync: StoreSync,
) -> None:  # fmt: skip
    """Log the failures and write run.json."""
    images, failed = manifest.counts["images"], manifest.counts["failures"]
    if failed:
        print_message(
            f"{failed} of {images} {sync.prepared.unit} failed and are recorded in the ledger"
        )
    rounding = {"rounding": asdict(sync.rounding)} if sync.rounding.vectors else {}
    stopwatch.write(
        folder, settings, done=sync.embedded, files=manifest.files.values(), images=images,
        failures=failed, embedded=sync.embedded, worker_seconds=round(sync.seconds, 3),
        **rounding,
    )  # fmt: skip


def _job_settings(
    settings: EmbedSettings, prepared: PreparedModel | PrecomputedVectors
) -> dict[str, Any]:
    """Return the settings for job.json.

    The digest of the bundle replaces the model options, from which the bundle was resolved.
    """
    source = {"input": open_folder(settings.input).uri()}
    if isinstance(prepared, PrecomputedVectors):
        return {**vector_job_settings(settings, prepared), **source}
    resolved = {
        field.name
        for options in (ModelOptions, VectorSourceOptions)
        for field in dataclasses.fields(options)
    }
    content = {k: v for k, v in content_settings(settings).items() if k not in resolved}
    return {
        **content,
        **source,
        **prepared.job_fields(),
        "bundle": prepared.bundle.digest,
    }


def _summarize(settings: EmbedSettings, result: EmbedResult) -> Result:
    counts = result.manifest.counts
    is_import = is_vector_source(settings.input, settings)
    action = "vectors imported" if is_import else "images embedded"
    lines = [
        f"{counts['rows']} of {counts['images']} {action} in {counts['dimension']} "
        f"dimensions, {counts['failures']} failed: {settings.output}",
    ]
    if result.other_files:
        lines.append(f"{result.other_files} other files in {settings.input} are not read")
    values = {"output": settings.output, **counts, "others": result.other_files}
    store = open_folder(settings.output)
    reason, reason_lines = projection_left_out(store)
    return add_rounding(Result({**values, **reason}, (*lines, *reason_lines)), store)


def is_output_path(path: str) -> bool:
    """Return whether a path is an output of lookalike, finished or not, instead of a source."""
    if not is_remote(path) and not Path(path).is_dir():
        return False
    return finished_output.is_output(open_folder(path))
