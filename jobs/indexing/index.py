"""lookalike index: vectors to a sharded IVF index, or what a store gained to the index it has."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from jobs.cluster import tasks
from jobs.cluster.heartbeat import alive
from jobs.cluster.resources import Cluster, cluster
from jobs.config.settings import IndexSettings, content_of
from jobs.embedding.embed import is_store
from jobs.embedding.precomputed_vectors import of_elsewhere, with_rounding
from jobs.indexing.import_vectors import EMBEDDINGS, lost, refuse_for_a_store, take_into
from jobs.indexing.training_workers import Spread
from jobs.runtime.check_output import check_file, check_output
from jobs.runtime.progress import progress
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import Stopwatch, rounding_of
from retrieval.core.errors import InputError, Mismatch
from retrieval.core.records import ShardResult
from retrieval.storage import finished_output, transaction
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder
from retrieval.storage.temporary import make_scratch
from retrieval.store.reader import Store, open_store

RETRAIN = 1.25
"""So many times as far from their centroids as those that the index had at first may vectors lie,
beyond what chance explains, before a new training is advised."""


def start(settings: IndexSettings) -> Result:
    """Index a store and say what it came to."""
    check_output(settings, "index")
    folder = open_folder(settings.output)
    refuse_for_a_store(settings)
    file = settings.merge_into
    if file is not None:
        from retrieval.index.export_faiss import check_target

        check_file("--merge-into", file)
        file = check_target(file, folder, overwrite=settings.overwrite)
    with cluster(settings) as where:
        manifest = build(settings, where)
    result = _summary(settings.output, manifest)
    if left_out := lost(folder):
        result = Result(result.values, (*result.lines, left_out))
    result = with_rounding(result, folder.child(EMBEDDINGS))
    return result if file is None else _merged(settings, folder, manifest, file, result)


def _merged(
    settings: IndexSettings, folder: Folder, manifest: Manifest, file: str, result: Result
) -> Result:
    """Write the whole index into one FAISS file, and say what it holds."""
    from retrieval.index.export_faiss import merge_index

    with progress("merge", manifest.counts["shards"], "shards") as bar:
        merged = merge_index(
            folder, manifest, file, settings.max_index_memory, lambda: bar.advance(1)
        )
    values = {**result.values, "merged_into": file, "merged_rows": merged.rows}
    return Result(values, (*result.lines, merged.sentence()))


def build(settings: IndexSettings, where: Cluster, *, keep_equal: bool = False) -> Manifest:
    """Make an index, going on with what is there; it follows its store."""
    watch = Stopwatch(where)
    folder = open_folder(settings.output)
    if is_store(settings.embeddings):
        store = open_store(open_folder(settings.embeddings))
        if store.rows == 0:
            raise InputError(f"{settings.embeddings} holds no vectors; embed readable images")
        job = _job(settings, store)
        transaction.begin(folder, "index", job, overwrite=settings.overwrite, keep_equal=keep_equal)
    else:
        store = take_into(settings, where, folder)
    there = (
        finished_output.read_manifest(folder, kind="index")
        if finished_output.is_finished(folder)
        else None
    )
    if there and there.counts["embeddings_sha256"] == store.manifest.sha256:
        return there

    def make() -> Manifest:
        _put_bundle(folder, store)
        manifest = _bring_up(settings, where, folder, store)
        rounding = rounding_of(store.folder)
        watch.write(
            folder, settings, done=store.rows, files=manifest.files.values(), rows=store.rows,
            **({"rounding": asdict(rounding)} if rounding else {}),
        )  # fmt: skip
        return manifest

    manifest = transaction.unless_overtaken(folder, "index", make)
    if manifest.counts["embeddings_sha256"] != store.manifest.sha256:  # it was the one before
        manifest = transaction.unless_overtaken(folder, "index", make)
    return manifest


def _job(settings: IndexSettings, store: Store) -> dict[str, Any]:
    content = {k: v for k, v in content_of(settings).items() if k not in of_elsewhere()}
    return {
        **content,
        "embeddings": store.folder.uri(),
        "embedding_dtype": store.dtype,
        "bundle": store.bundle,
    }


def _put_bundle(folder: Folder, store: Store) -> None:
    from retrieval.models.bundle import read_bundle, write_bundle

    if store.bundle is None:
        return
    bundle = read_bundle(store.folder)
    if bundle.digest != store.bundle:
        raise Mismatch(f"{store.folder.uri()} holds another bundle than its job.json names")
    write_bundle(folder, bundle)


def _bring_up(settings: IndexSettings, where: Cluster, folder: Folder, store: Store) -> Manifest:
    """Train if nothing is trained, build the shards that are missing, measure, finish."""
    from retrieval.index import finalize
    from retrieval.index.plan import Gallery, plan_index
    from retrieval.index.recall_curve import SAMPLE
    from retrieval.index.sample_neighbors import samples_of
    from retrieval.index.sampling import sample_of
    from retrieval.index.train import train_index

    plan = plan_index(
        Gallery(store.rows, store.dimension, store.dtype, settings.metric),
        settings.max_index_memory, rows_per_shard=settings.rows_per_shard,
        factory=settings.index_factory,
    )  # fmt: skip
    workers = Spread(where)
    trained = train_index(folder, store, plan, settings.metric, settings.seed, workers)
    work = finalize.missing_shards(folder, store, trained.plan)
    vectors, rows = sample_of(store, SAMPLE, settings.seed, "curve", workers)
    samples = samples_of(vectors, rows, store.rows, trained.plan.codes)
    build_one = _shard_builder(settings, folder, store, trained, samples)
    done: list[ShardResult] = []
    with progress("index", len(work), "shards", where) as bar:
        for result in tasks.tasks(where, build_one, work):
            done.append(result)
            bar.advance(1)
    done.sort(key=lambda result: result.number)
    return finalize.finish_index(
        folder, store, trained, samples, done, settings.metric, settings.seed
    )


def _shard_builder(
    settings: IndexSettings, folder: Folder, store: Store, trained: Any, samples: Any
) -> Callable[[Any], ShardResult]:
    metric, scratch = settings.metric, settings.scratch
    _ = store.more  # known before the store travels, so that no task reads the listings

    def build_one(work: Any) -> ShardResult:
        from retrieval.index.build_shard import Making
        from retrieval.index.sample_neighbors import make_shard

        make_scratch(scratch)
        making = Making(folder, store, metric, trained.faiss, trained.plan.codes, scratch, alive)
        return make_shard(making, samples, *work)

    return build_one


def read_table(folder: Folder, manifest: Manifest, path: str) -> pa.Table:
    """Read a small Parquet file of a finished output, checked."""
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(finished_output.read_checked(folder, manifest.files[path])))


def _summary(output: str, manifest: Manifest) -> Result:
    counts = manifest.counts
    lines = [
        f"{counts['rows']} vectors of {counts['dimension']} dimensions in {counts['shards']} "
        f"shards of {counts['factory']}: {output}",
    ]
    if counts["drift_low"] > RETRAIN:
        lines.append(
            f"vectors lie {counts['drift']:.2f} times as far from their centroids as those that "
            "the index had at first: --overwrite trains anew, so that fewer lists need be read"
        )
    return Result({"output": output, **counts}, tuple(lines))
