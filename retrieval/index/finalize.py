"""An index beside its store: which shards it lacks, and the end of making it.

The manifest is removed before anything that it names is replaced, and put anew last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from retrieval.core.records import IndexPlan, Neighbours, ShardResult
from retrieval.core.schemas import DELETED, Metric
from retrieval.index import coverage, quantized_codes, recall_curve
from retrieval.index.coverage import Extents
from retrieval.index.drift import drift_of, first_spread, merged_spread
from retrieval.index.faiss_io import centroids_of, from_bytes
from retrieval.index.kmeans import list_metric
from retrieval.index.label_counts import labels_table
from retrieval.index.plan import reads_all
from retrieval.index.sample_neighbors import Sample, by_codes_path, neighbours_path, read_neighbours
from retrieval.index.shard import (
    DELETED_ROWS,
    LABELS,
    RECALL_TABLE,
    note_path,
    rows_path,
    shard_path,
    shards_there,
)
from retrieval.index.train import Trained
from retrieval.storage import transaction
from retrieval.storage.checksum import sealed_parquet
from retrieval.storage.finished_output import MANIFEST, Manifest
from retrieval.storage.local import Folder
from retrieval.store.reader import Store
from retrieval.vectors.scoring import block


def missing_shards(folder: Folder, store: Store, plan: IndexPlan) -> list[tuple[int, Extents]]:
    """Give number and extents of every shard the index will have, those that are there included.

    Shards of parts that the store no longer has are removed, all of them: rows were numbered anew.
    """
    there = shards_there(folder)
    parts = store.parts
    if not coverage.is_of([extent for extents in there.values() for extent in extents], parts):
        folder.delete(MANIFEST)
        for number in there:
            for path in (note_path(number), rows_path(number), shard_path(number)):
                folder.delete(path)
        there = {}
    covered = [extent for extents in there.values() for extent in extents]
    fresh = coverage.missing(parts, covered, plan.rows_per_shard)
    free = (n for n in range(len(there) + len(fresh)) if n not in there)
    return sorted([*there.items(), *zip(free, fresh, strict=True)])


def finish_index(
    folder: Folder,
    store: Store,
    trained: Trained,
    samples: Sequence[Sample],
    done: list[ShardResult],
    metric: Metric,
    seed: int,
) -> Manifest:
    """Put the tables of the whole index and the manifest; `done` are all its shards."""
    measured = (_curve(folder, trained, one, len(done), metric, seed) for one in samples)
    curve = pa.concat_tables(measured).combine_chunks()
    folder.delete(MANIFEST)
    folder.put(RECALL_TABLE, sealed_parquet(curve))
    folder.put(LABELS, sealed_parquet(labels_table(result.labels for result in done)))
    if len(store.deleted):
        deleted = pa.table([pa.array(store.deleted)], schema=DELETED.schema)
        folder.put(DELETED_ROWS, sealed_parquet(deleted))
    else:
        folder.delete(DELETED_ROWS)
    plan = trained.plan
    spread = merged_spread([(result.rows, result.spread) for result in done])
    counts: dict[str, Any] = {
        "rows": sum(result.rows for result in done),
        "dimension": store.dimension,
        "shards": len(done),
        "nlist": plan.nlist,
        "factory": plan.factory,
        "codes": plan.codes,
        "probe_all": reads_all(store.rows, plan.codes),
        "metric": metric,
        **drift_of(first_spread(folder, spread), spread, metric),
        "embeddings_sha256": store.manifest.sha256,
    }
    known = [file for result in done for file in result.files]
    return transaction.finish(folder, "index", counts, known)


def _curve(
    folder: Folder, trained: Trained, sample: Sample, shards: int, metric: Metric, seed: int
) -> pa.Table:
    """Measure the recall curve from what the shards hold closest to the sample."""
    index = from_bytes(trained.faiss)
    others = _others(folder, sample, shards, neighbours_path, sample.k)
    if trained.plan.codes:
        measure = list_metric(metric)
        centroids = block(centroids_of(index), measure)
        return recall_curve.recall_curve(
            block(sample.vectors, measure), centroids, others, sample.ks, seed=seed
        )
    coarse, per_match = quantized_codes.coarse_of(index), quantized_codes.CANDIDATES_PER_MATCH
    proposed = _others(folder, sample, shards, by_codes_path, sample.k * per_match)
    return recall_curve.recall_curve(
        coarse.inside(sample.vectors, metric), coarse.centroids, others, sample.ks, seed=seed,
        places=recall_curve.places_among(others, proposed), per_match=per_match,
    )  # fmt: skip


def _others(
    folder: Folder, sample: Sample, shards: int, path: Callable[[Sample, int], str], k: int
) -> Neighbours:
    """Merge what the shards hold closest to the sample, each row itself left out."""
    best = read_neighbours(folder, path(sample, 0))
    for number in range(1, shards):  # one by one: all at once would grow with the gallery
        best = recall_curve.merge_neighbours(
            [best, read_neighbours(folder, path(sample, number))], k
        )
    return recall_curve.without_self(best, sample.rows)
