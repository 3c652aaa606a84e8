"""Which recall the real queries got, measured on a sample that was also searched exactly."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.candidates import best_of
from retrieval.embeddings.store import vectors_of
from retrieval.index import recall
from retrieval.index.answer import (
    Task,
    candidates_path,
    exact_path,
    read_answer,
)
from retrieval.index.faiss_files import centroids_of, from_bytes
from retrieval.index.kmeans import list_metric
from retrieval.index.lossy import coarse_of
from retrieval.index.training import TRAINED
from retrieval.intervals import bootstrap_mean
from retrieval.records import Certificate, Neighbours
from retrieval.scoring import block
from retrieval.storage import finished

_LEAST = 1e-9  # recall below which nothing can be said of the codes


def certify(task: Task, target: float, seed: int) -> tuple[Certificate, int]:
    """Give the certificate of one pass, and the nprobe that the sample shows to be enough.

    Without a sample all lists were read, and recall is 1. Where the codes lose something, what was
    found is counted, and what they lose is allowed for in the lists.
    """
    nlist = int(task.manifest.counts["nlist"])
    if len(task.sample) == 0:
        return Certificate(task.nprobe, nlist, target, 1.0, 1.0, 1.0, 0, 1), task.nprobe
    needed, there, found = _needed(task)
    values = recall.recall_at(needed, there, task.nprobe)
    enough = target
    if task.codes is None:
        listed = values.mean()
        values = recall.share_of(found, there)
        enough = target * float(listed / max(values.mean(), _LEAST))
    low, high = bootstrap_mean(values, seed=seed)
    mean = float(values.mean())
    made = Certificate(task.nprobe, nlist, target, mean, low, high, len(values), 1)
    if mean >= target:
        return made, task.nprobe
    return made, recall.wider_nprobe(needed, there, enough, nlist, seed)


def _needed(task: Task) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell for each sampled query how many lists its exact neighbours need, block by block.

    Also which of them there are, and which are among its candidates (looked up for lossy codes).
    """
    index = from_bytes(finished.read_checked(task.index, task.manifest.files[TRAINED]))
    measure, coarse = list_metric(task.metric), coarse_of(index)
    centroids = block(centroids_of(index), measure) if task.codes else coarse.centroids
    needed, there, kept = [], [], []
    for number in range(len(task.blocks)):
        asked = task.block(number)
        asked = asked.filter(pc.is_in(asked["row"], pa.array(task.sample)))
        if len(asked) == 0:
            continue
        rows = asked["row"].to_numpy()
        found = _merged(task, rows, [exact_path(shard, number) for shard in task.shards])
        vectors = vectors_of(asked)
        inside = block(vectors, measure) if task.codes else coarse.inside(vectors, task.metric)
        places = recall.probes_needed(inside, centroids, found)
        needed.append(places[0])
        there.append(places[1])
        if task.codes is None:
            paths = [candidates_path(task.nprobe, shard, number) for shard in task.shards]
            kept.append(_is_among(found.rows, _merged(task, rows, paths).rows))
    return np.concatenate(needed), np.concatenate(there), np.concatenate(kept or there)


def _merged(task: Task, rows: NDArray[np.int64], paths: list[str]) -> Neighbours:
    """Merge what the shards have for a block's sampled queries, `rows`, as the ranking would."""
    table, rank = best_of([read_answer(task.matches, path) for path in paths], task.top_k)
    keep = np.isin(table["query"].to_numpy(), rows)
    place = np.searchsorted(rows, table["query"].to_numpy()[keep])
    shape = (len(rows), task.top_k)
    found = Neighbours(np.full(shape, -np.inf), np.full(shape, -1), np.full(shape, -1))
    for target, column in ((found.keys, "key"), (found.rows, "row"), (found.lists, "list")):
        target[place, rank[keep]] = table[column].to_numpy()[keep]
    return found


def _is_among(wanted: NDArray[np.int64], found: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which of each line's rows are in the same line of `found`."""
    pairs = zip(wanted, found, strict=True)
    return np.array([np.isin(own, other) for own, other in pairs], np.bool_).reshape(wanted.shape)
