"""lookalike index: a store to a sharded IVF index."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from jobs import tasks
from jobs.cluster import Cluster, cluster
from jobs.progress import progress
from jobs.result import Result
from jobs.runfile import Stopwatch
from jobs.settings import IndexSettings, content_of
from retrieval.embeddings.store import Store, open_store
from retrieval.errors import Mismatch
from retrieval.storage import commit, finished
from retrieval.storage.files import Folder, open_folder
from retrieval.storage.finished import Manifest
from retrieval.storage.seal import sealed_parquet
from retrieval.tables import GALLERY_LABELS, IndexPlan, Metric, ShardResult


def start(settings: IndexSettings) -> Result:
    """Index a store and say what it came to."""
    with cluster(settings.ray_address, settings.workers) as where:
        manifest = build(settings, where)
    return _summary(settings.output, manifest)


def build(settings: IndexSettings, where: Cluster, *, keep_equal: bool = False) -> Manifest:
    """Make an index, going on with what is there."""
    watch = Stopwatch()
    store = open_store(open_folder(settings.embeddings))
    folder = open_folder(settings.output)
    commit.begin(
        folder, "index", _job(settings, store), overwrite=settings.overwrite, keep_equal=keep_equal
    )
    if finished.is_finished(folder):
        return finished.read_manifest(folder, kind="index")

    def make() -> Manifest:
        manifest = _make(settings, where, folder, store)
        watch.write(folder, settings, rows=store.rows)
        return manifest

    return commit.unless_overtaken(folder, "index", make)


def _make(settings: IndexSettings, where: Cluster, folder: Folder, store: Store) -> Manifest:
    from retrieval.index.build import train_index
    from retrieval.index.sizing import plan_index
    from retrieval.model.bundle import read_bundle, write_bundle

    bundle = read_bundle(store.folder)
    if bundle.digest != store.bundle:
        raise Mismatch(f"{store.folder.uri()} holds another bundle than its job.json names")
    write_bundle(folder, bundle)
    plan = plan_index(
        images=store.span,
        rows=store.rows,
        dimension=store.dimension,
        dtype=store.dtype,
        metric=settings.metric,
        memory=settings.max_index_memory,
        rows_per_shard=settings.rows_per_shard,
    )
    trained = train_index(folder, store, plan, settings.metric, settings.seed)
    shards = _shards(settings, where, folder, store, plan, trained)
    return _finish(settings, folder, store, plan, shards)


def _job(settings: IndexSettings, store: Store) -> dict[str, Any]:
    return {
        **content_of(settings),
        "embeddings": store.folder.uri(),
        "embeddings_sha256": store.manifest.sha256,
        "embedding_dtype": store.dtype,
        "bundle": store.bundle,
    }


def _shards(
    settings: IndexSettings,
    where: Cluster,
    folder: Folder,
    store: Store,
    plan: IndexPlan,
    trained: bytes,
) -> list[ShardResult]:
    """Build the shards in parallel; each also meets the sample that recall is measured on."""
    from retrieval.index import build, recall, shards

    vectors, rows = shards.sample_rows(store, min(recall.SAMPLE, store.rows), settings.seed + 1)
    count = -(-store.span // plan.rows_per_shard)
    build_one = _shard_builder(folder, store, plan, settings.metric, trained, vectors)
    done: list[ShardResult] = []
    with progress("index", count, "shards") as bar:
        for result in tasks.tasks(where, build_one, range(count)):
            done.append(result)
            bar.advance(1)
    done.sort(key=lambda result: result.number)
    build.put_recall(folder, trained, vectors, rows, count, settings.metric, settings.seed)
    return done


def _shard_builder(
    folder: Folder, store: Store, plan: IndexPlan, metric: Metric, trained: bytes, vectors: Any
) -> Callable[[int], ShardResult]:
    from retrieval.index.recall import CURVE_K

    neighbours = max(CURVE_K) + 1  # one is the sampled row itself

    def build_one(number: int) -> ShardResult:
        from retrieval.index.shards import build_shard
        from retrieval.scoring import block

        sample = block(vectors, metric)
        return build_shard(folder, store, number, plan, metric, trained, sample, neighbours)

    return build_one


def _finish(
    settings: IndexSettings,
    folder: Folder,
    store: Store,
    plan: IndexPlan,
    done: list[ShardResult],
) -> Manifest:
    from retrieval.index.shards import LABELS

    labels: Counter[str] = Counter()
    for result in done:
        labels.update(result.labels)
    names = sorted(labels)
    columns = [pa.array(names, pa.string()), pa.array([labels[n] for n in names], pa.int64())]
    table = pa.table(columns, schema=GALLERY_LABELS.schema)
    commit.put_once(folder, LABELS, sealed_parquet(table))
    known = [file for result in done for file in result.files]
    counts = {
        "rows": sum(result.rows for result in done),
        "dimension": store.dimension,
        "shards": len(done),
        "nlist": plan.nlist,
        "factory": plan.factory,
        "probe_all": plan.probe_all,
        "metric": settings.metric,
    }
    return commit.finish(folder, "index", counts, known)


def read_table(folder: Folder, manifest: Manifest, path: str) -> pa.Table:
    """Read a small Parquet file of a finished output, checked."""
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(finished.read_checked(folder, manifest.files[path])))


def _summary(output: str, manifest: Manifest) -> Result:
    counts = manifest.counts
    lines = (
        f"{counts['rows']} vectors of {counts['dimension']} dimensions in {counts['shards']} "
        f"shards of {counts['factory']}: {output}",
    )
    return Result({"output": output, **counts}, lines)
