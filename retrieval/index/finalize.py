"""Completion of an index: its recall curve, its tables, and its manifest.

The manifest is removed before any file that it names is replaced, and written last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from retrieval.core.records import Neighbours, ShardResult
from retrieval.core.schemas import DELETED, GALLERY_LABELS, Metric
from retrieval.index import recall_curve
from retrieval.index.drift import load_initial_spread, measure_drift, merge_spreads
from retrieval.index.faiss_io import deserialize_index, read_centroids
from retrieval.index.kmeans import assignment_metric
from retrieval.index.plan import probes_all_lists
from retrieval.index.quantized_codes import CANDIDATES_PER_MATCH
from retrieval.index.sample_neighbors import (
    RecallSample,
    code_neighbours_path,
    neighbours_path,
    read_neighbours,
)
from retrieval.index.shard import DELETED_ROWS, LABELS, RECALL_TABLE
from retrieval.index.train import TrainedIndex
from retrieval.storage import transaction
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.finished_output import MANIFEST, Manifest
from retrieval.storage.local import Folder
from retrieval.store.reader import Store
from retrieval.vectors.scoring import block


def finish_index(
    folder: Folder,
    store: Store,
    trained: TrainedIndex,
    samples: Sequence[RecallSample],
    results: list[ShardResult],
    generations: int,
    metric: Metric,
    seed: int,
) -> Manifest:
    """Write the tables and the manifest of an index, from the `results` of all its shards."""
    measured = (_curve(folder, trained, sample, len(results), metric, seed) for sample in samples)
    curve = pa.concat_tables(measured).combine_chunks()
    folder.delete(MANIFEST)
    folder.put(RECALL_TABLE, checksummed_parquet(curve))
    folder.put(LABELS, checksummed_parquet(build_labels_table(result.labels for result in results)))
    if len(store.deleted):
        deleted = pa.table([pa.array(store.deleted)], schema=DELETED.schema)
        folder.put(DELETED_ROWS, checksummed_parquet(deleted))
    else:
        folder.delete(DELETED_ROWS)
    plan = trained.plan
    spread = merge_spreads([(result.rows, result.spread) for result in results])
    counts: dict[str, Any] = {
        "rows": sum(result.rows for result in results),
        "dimension": store.dimension,
        "shards": len(results),
        "generations": generations,
        "nlist": plan.nlist,
        "factory": plan.factory,
        "codes": plan.codes,
        "probe_all": probes_all_lists(store.rows, plan.codes),
        "metric": metric,
        **measure_drift(load_initial_spread(folder, spread), spread, metric),
        "embeddings_sha256": store.manifest.sha256,
    }
    shard_files = [file for result in results for file in result.files]
    return transaction.finish_output(folder, "index", counts, shard_files)


def _curve(
    folder: Folder,
    trained: TrainedIndex,
    sample: RecallSample,
    shards: int,
    metric: Metric,
    seed: int,
) -> pa.Table:
    """Measure the recall curve from the neighbours of the sample in each shard."""
    centroid_metric = assignment_metric(metric)
    centroids = block(read_centroids(deserialize_index(trained.faiss)), centroid_metric)
    neighbours = _neighbours_without_self(folder, sample, shards, neighbours_path, sample.k)
    per_match, proposal_ranks = 1, None
    if trained.plan.codes is None:
        per_match = CANDIDATES_PER_MATCH
        proposed = _neighbours_without_self(
            folder, sample, shards, code_neighbours_path, sample.k * per_match
        )
        proposal_ranks = recall_curve.proposal_positions(neighbours, proposed)
    return recall_curve.recall_curve(
        block(sample.vectors, centroid_metric), centroids, neighbours, sample.ks, seed=seed,
        proposal_ranks=proposal_ranks, per_match=per_match,
    )  # fmt: skip


def _neighbours_without_self(
    folder: Folder,
    sample: RecallSample,
    shards: int,
    path: Callable[[RecallSample, int], str],
    k: int,
) -> Neighbours:
    """Merge the shards' neighbours of the sample, without the sampled rows themselves."""
    best = read_neighbours(folder, path(sample, 0))
    for number in range(1, shards):  # one by one, so that memory does not grow with the gallery
        best = recall_curve.merge_neighbours(
            [best, read_neighbours(folder, path(sample, number))], k
        )
    return recall_curve.drop_self(best, sample.rows)


def build_labels_table(counts: Iterable[dict[str, int]]) -> pa.Table:
    """Return the sum of the label counts of several shards: table GALLERY_LABELS, by label."""
    total: Counter[str] = Counter()
    for shard_counts in counts:
        total.update(shard_counts)
    names = sorted(total, key=str.encode)
    columns = [pa.array(names, pa.string()), pa.array([total[name] for name in names], pa.int64())]
    return pa.table(columns, schema=GALLERY_LABELS.schema)
