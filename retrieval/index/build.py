"""What is built once an index: the trained quantizer, and the recall curve of all shards.

trained.json holds the plan with its reasons and vouches for trained.faiss.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
from numpy.typing import NDArray

from retrieval.embeddings.store import Store
from retrieval.errors import Damaged
from retrieval.index import recall, shards
from retrieval.index.kmeans import list_metric, train_centroids
from retrieval.scoring import block
from retrieval.storage import commit
from retrieval.storage.files import Folder
from retrieval.storage.seal import read_json, sealed_json, sealed_parquet
from retrieval.tables import IndexPlan, Metric, Vectors


def train_index(folder: Folder, store: Store, plan: IndexPlan, metric: Metric, seed: int) -> bytes:
    """Put a trained index without rows and give its bytes, or those that an earlier run put."""
    try:
        trained, note = folder.read(shards.TRAINED), folder.read(shards.TRAINED_JSON)
        return _checked(folder, trained, note)
    except FileNotFoundError:
        pass
    sample, _ = shards.sample_rows(store, plan.sample_rows, seed)
    centroids = train_centroids(sample, plan.nlist, metric, seed=seed)
    trained = shards.to_bytes(shards.empty_index(plan, centroids, metric))
    folder.delete(shards.TRAINED)  # of a run that was killed before it put trained.json
    folder.put_new(shards.TRAINED, trained)
    values = {**dataclasses.asdict(plan), "reasons": list(plan.reasons)}
    files = {shards.TRAINED: hashlib.sha256(trained).hexdigest()}
    folder.put_new(shards.TRAINED_JSON, sealed_json({"plan": values, "files": files}))
    return trained


def _checked(folder: Folder, trained: bytes, note: bytes) -> bytes:
    values = read_json(note)
    digest = hashlib.sha256(trained).hexdigest()
    if values is None or values["files"] != {shards.TRAINED: digest}:
        raise Damaged(f"{folder.uri(shards.TRAINED)} was altered; remove it and run again")
    return trained


def put_recall(
    folder: Folder,
    trained: bytes,
    sample: Vectors,
    rows: NDArray[np.int64],
    count: int,
    metric: Metric,
    seed: int,
) -> None:
    """Put the recall curve, from what `count` shards hold closest to the sampled rows."""
    if folder.exists(shards.RECALL_TABLE):
        return
    measure = list_metric(metric)
    centroids = block(shards.centroids_of(shards.from_bytes(trained)), measure)
    parts = [shards.read_neighbours(folder, number) for number in range(count)]
    found = recall.merge_neighbours(parts, max(recall.CURVE_K) + 1)
    others = recall.without_self(found, rows)
    curve = recall.recall_curve(block(sample, measure), centroids, others, seed=seed)
    commit.put_once(folder, shards.RECALL_TABLE, sealed_parquet(curve))
