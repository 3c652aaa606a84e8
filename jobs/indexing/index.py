"""The index stage: build a sharded IVF index of a store, or add the new rows of the store to it.

The index is trained once. Its rows are then shuffled into shards by list in two phases of tasks on
the cluster: the first one assigns the rows of some parts to lists and writes them as runs, the
second one builds a shard from the runs and searches it for the sampled rows of the recall curve.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.cluster import tasks
from jobs.cluster.driver_process import choose_process, estimate_seconds
from jobs.cluster.resources import Cluster, open_cluster
from jobs.cluster.stall_detector import send_heartbeat
from jobs.config.settings import IndexSettings, content_settings
from jobs.embedding.embed import is_output_path
from jobs.embedding.precomputed_vectors import add_rounding, import_option_names
from jobs.indexing.import_vectors import (
    EMBEDDINGS,
    format_skipped_vectors,
    import_into_index,
    refuse_import_options,
)
from jobs.indexing.training_workers import training_workers
from jobs.runtime.check_output import check_file, check_output
from jobs.runtime.progress import progress
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import Stopwatch, read_rounding
from retrieval.core.errors import InputError, Mismatch
from retrieval.core.records import IndexPlan, ShardResult
from retrieval.storage import finished_output, transaction
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder
from retrieval.storage.temporary import make_temp_dir
from retrieval.store.reader import Store, open_store

RETRAIN_THRESHOLD = 1.25
"""Retraining is recommended if the vectors are on average this many times as far from their
centroids as the first vectors of the index, by the lower end of the interval."""


def start(settings: IndexSettings) -> Result:
    """Run `lookalike index` and summarize the index it wrote."""
    check_output(settings, "index")
    folder = open_folder(settings.output)
    refuse_import_options(settings)
    export_path = settings.export_faiss
    if export_path is not None:
        from retrieval.index.export_faiss import check_export_path

        check_file("--export-faiss", export_path)
        export_path = check_export_path(export_path, folder, overwrite=settings.overwrite)
    with open_cluster(settings) as cluster:
        manifest = build_index(settings, cluster)
    result = _summary(settings.output, manifest)
    if left_out := format_skipped_vectors(folder):
        result = Result(result.values, (*result.lines, left_out))
    result = add_rounding(result, folder.child(EMBEDDINGS))
    if export_path is None:
        return result
    return _export(settings, folder, manifest, export_path, result)


def _export(
    settings: IndexSettings, folder: Folder, manifest: Manifest, path: str, result: Result
) -> Result:
    """Write the index as one FAISS file, and return the result with a summary of the file."""
    from retrieval.index.export_faiss import export_index

    with progress("merge", manifest.counts["shards"], "shards") as bar:
        exported = export_index(
            folder, manifest, path, settings.max_index_memory, lambda: bar.advance(1)
        )
    values = {**result.values, "merged_into": path, "merged_rows": exported.rows}
    return Result(values, (*result.lines, exported.sentence()))


def build_index(
    settings: IndexSettings, cluster: Cluster, *, reuse_if_same: bool = False
) -> Manifest:
    """Build an index, or continue and update the one at the output.

    Args:
        settings: What to index, how, and where to.
        cluster: The Ray cluster that does the work.
        reuse_if_same: Whether `--overwrite` keeps an index that has the same settings.
    """
    stopwatch = Stopwatch(cluster, "index")
    folder = open_folder(settings.output)
    if is_output_path(settings.embeddings):
        store = open_store(open_folder(settings.embeddings))
        if store.rows == 0:
            raise InputError(f"{settings.embeddings} contains no vectors; embed readable images")
        job = _job_settings(settings, store)
        transaction.claim_output(
            folder, "index", job, overwrite=settings.overwrite, reuse_if_same=reuse_if_same
        )
    else:
        store = import_into_index(settings, cluster, folder)
    finished = (
        finished_output.read_manifest(folder, kind="index")
        if finished_output.is_finished(folder)
        else None
    )
    if finished and finished.counts["embeddings_sha256"] == store.manifest.sha256:
        return finished

    def make() -> Manifest:
        _copy_bundle(folder, store)
        manifest = _update_index(settings, cluster, folder, store)
        rounding = read_rounding(store.folder)
        stopwatch.write(
            folder, settings, done=store.rows, files=manifest.files.values(), rows=store.rows,
            **({"rounding": asdict(rounding)} if rounding else {}),
        )  # fmt: skip
        return manifest

    manifest = transaction.make_unless_finished(folder, "index", make)
    # another run may have finished the index from an older state of the store
    if manifest.counts["embeddings_sha256"] != store.manifest.sha256:
        manifest = transaction.make_unless_finished(folder, "index", make)
    return manifest


def _job_settings(settings: IndexSettings, store: Store) -> dict[str, Any]:
    content = {
        k: v for k, v in content_settings(settings).items() if k not in import_option_names()
    }
    return {
        **content,
        "embeddings": store.folder.uri(),
        "embedding_dtype": store.dtype,
        "bundle": store.bundle,
    }


def _copy_bundle(folder: Folder, store: Store) -> None:
    from retrieval.models.bundle import read_bundle, write_bundle

    if store.bundle is None:
        return
    bundle = read_bundle(store.folder)
    if bundle.digest != store.bundle:
        raise Mismatch(f"{store.folder.uri()} has another bundle than its job.json records")
    write_bundle(folder, bundle)


def _update_index(
    settings: IndexSettings, cluster: Cluster, folder: Folder, store: Store
) -> Manifest:
    """Train if necessary, build the missing shards, measure recall, and finish the index."""
    from retrieval.index import finalize
    from retrieval.index.build_shard import plan_shards
    from retrieval.index.generations import claim_generations
    from retrieval.index.plan import Gallery, plan_index
    from retrieval.index.recall_curve import SAMPLE_SIZE
    from retrieval.index.sample_neighbors import make_recall_samples
    from retrieval.index.sampling import draw_sample
    from retrieval.index.train import train_index

    plan = plan_index(
        Gallery(store.rows, store.dimension, store.dtype, settings.metric),
        settings.max_index_memory, rows_per_shard=settings.rows_per_shard,
        factory=settings.index_factory,
    )  # fmt: skip
    cluster = choose_process(cluster, _estimate_seconds(store, plan))
    workers = training_workers(cluster)
    trained = train_index(folder, store, plan, settings.metric, settings.seed, workers)
    # cached before the store is sent to workers, so that no task reads the listings
    _ = store.metadata_columns
    generations = claim_generations(folder, store)
    shards: list[Any] = []
    for generation in generations:
        assign = _assigner(settings, cluster, folder, store, trained, generation)
        shards += plan_shards(
            folder, generation, trained.plan, settings.max_index_memory, len(shards), assign
        )
    vectors, rows = draw_sample(store, SAMPLE_SIZE, settings.seed, "curve", workers)
    samples = make_recall_samples(vectors, rows, store.rows, trained.plan.codes)
    build_shard = _shard_builder(settings, folder, store, trained, samples)
    results: list[ShardResult] = []
    with progress("index", len(shards), "shards", cluster) as bar:
        for result in tasks.run_tasks(cluster, build_shard, shards):
            results.append(result)
            bar.advance(1)
    results.sort(key=lambda result: result.number)
    return finalize.finish_index(
        folder, store, trained, samples, results, len(generations), settings.metric, settings.seed
    )


def _assigner(
    settings: IndexSettings, cluster: Cluster, folder: Folder, store: Store, trained: Any,
    generation: Any,
) -> Callable[[Any], Any]:  # fmt: skip
    """Return a function that writes runs of a generation and sums the rows of each list."""

    def assign_runs(runs: Any) -> Any:
        generation_store = generation.store_of(store)
        # cached before the store is sent to workers, so that no task reads the listings
        _ = generation_store.metadata_columns, generation_store.deleted
        metric, temp_dir = settings.metric, settings.temp_dir

        def assign(run: tuple[int, int]) -> Any:
            from retrieval.index.runs import ShardBuildContext, write_run

            context = ShardBuildContext(
                folder, generation_store, metric, trained.faiss, trained.plan.codes, temp_dir,
                send_heartbeat,
            )  # fmt: skip
            return write_run(context, generation, run)

        counts: Any = 0
        with progress("assign", len(runs), "runs", cluster) as bar:
            for run_counts in tasks.run_tasks(cluster, assign, runs):
                counts = counts + run_counts
                bar.advance(1)
        return counts

    return assign_runs


def _estimate_seconds(store: Store, plan: IndexPlan) -> float:
    """Estimate the seconds of one core to train and fill an index and to measure its recall."""
    from retrieval.index.kmeans import ITERATIONS
    from retrieval.index.recall_curve import SAMPLE_SIZE

    compared = plan.sample_rows * ITERATIONS * plan.nlist + store.rows * (plan.nlist + SAMPLE_SIZE)
    vector_bytes = store.rows * store.dimension * np.dtype(store.dtype).itemsize
    return estimate_seconds(3 * vector_bytes, float(compared) * store.dimension)


def _shard_builder(
    settings: IndexSettings, folder: Folder, store: Store, trained: Any, samples: Any
) -> Callable[[Any], ShardResult]:
    metric, temp_dir = settings.metric, settings.temp_dir

    def build_shard(planned: Any) -> ShardResult:
        from retrieval.index.runs import ShardBuildContext
        from retrieval.index.sample_neighbors import build_measured_shard

        make_temp_dir(temp_dir)
        context = ShardBuildContext(
            folder, store, metric, trained.faiss, trained.plan.codes, temp_dir, send_heartbeat
        )
        return build_measured_shard(context, samples, planned)

    return build_shard


def read_table(folder: Folder, manifest: Manifest, path: str) -> pa.Table:
    """Read a small Parquet file of a finished output and verify its checksum."""
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(finished_output.read_verified(folder, manifest.files[path])))


def _summary(output: str, manifest: Manifest) -> Result:
    counts = manifest.counts
    lines = [
        f"{counts['rows']} vectors of {counts['dimension']} dimensions in {counts['shards']} "
        f"{'shard' if counts['shards'] == 1 else 'shards'} of {counts['factory']}: {output}",
    ]
    if counts["drift_low"] > RETRAIN_THRESHOLD:
        lines.append(
            f"on average, vectors are {counts['drift']:.2f} times as far from their centroids as "
            "the first vectors of the index; --overwrite trains again, so that fewer lists are read"
        )
    return Result({"output": output, **counts}, tuple(lines))
