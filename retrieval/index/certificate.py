"""Which recall the real queries got, measured on a sample that was also searched exactly."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.embeddings.store import vectors_of
from retrieval.index import recall
from retrieval.index.answer import Task, blocks_of, exact_path, query_block, read_answer
from retrieval.index.faiss_files import centroids_of, from_bytes
from retrieval.index.kmeans import list_metric
from retrieval.index.training import TRAINED
from retrieval.intervals import bootstrap_mean
from retrieval.scoring import block
from retrieval.storage import finished
from retrieval.tables import CANDIDATES, Certificate, Neighbours


def certify(task: Task, target: float, seed: int) -> tuple[Certificate, int]:
    """Give the certificate of one pass, and the nprobe that the sample shows to be enough.

    Without a sample all lists were read, and recall is 1.
    """
    nlist = int(task.manifest.counts["nlist"])
    if len(task.sample) == 0:
        return Certificate(task.nprobe, nlist, target, 1.0, 1.0, 1.0, 0, 1), task.nprobe
    needed, there = _needed(task)
    values = recall.recall_at(needed, there, task.nprobe)
    low, high = bootstrap_mean(values, seed=seed)
    mean = float(values.mean())
    made = Certificate(task.nprobe, nlist, target, mean, low, high, len(values), 1)
    if mean >= target:
        return made, task.nprobe
    return made, recall.wider_nprobe(needed, there, target, nlist, seed)


def _needed(task: Task) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tell for each sampled query how many lists its exact neighbours need, block by block."""
    measure = list_metric(task.metric)
    trained = finished.read_checked(task.index, task.manifest.files[TRAINED])
    centroids = block(centroids_of(from_bytes(trained)), measure)
    needed, there = [], []
    for number in range(blocks_of(task.queries)):
        asked = query_block(task.queries, number)
        asked = asked.filter(pc.is_in(asked["row"], pa.array(task.sample)))
        if len(asked) == 0:
            continue
        found = _exact(task, number, asked["row"].to_numpy())
        places = recall.probes_needed(block(vectors_of(asked), measure), centroids, found)
        needed.append(places[0])
        there.append(places[1])
    return np.concatenate(needed), np.concatenate(there)


def _exact(task: Task, number: int, rows: NDArray[np.int64]) -> Neighbours:
    """Merge what the shards hold closest to a block's sampled queries, as the ranking would."""
    shards = range(int(task.manifest.counts["shards"]))
    parts = [read_answer(task.matches, exact_path(shard, number)) for shard in shards]
    table = pa.concat_tables([CANDIDATES.empty_table(), *parts]).sort_by(
        [("query", "ascending"), ("key", "descending"), ("image_id", "ascending")]
    )
    query = table["query"].to_numpy()
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    keep = rank < task.top_k
    place = np.searchsorted(rows, query[keep])
    shape = (len(rows), task.top_k)
    found = Neighbours(np.full(shape, -np.inf), np.full(shape, -1), np.full(shape, -1))
    for target, column in ((found.keys, "key"), (found.rows, "row"), (found.lists, "list")):
        target[place, rank[keep]] = table[column].to_numpy()[keep]
    return found
