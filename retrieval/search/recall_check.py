"""Which recall the real queries got, measured on a sample that was also searched exactly."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.records import Certificate, Neighbours
from retrieval.index import recall_curve
from retrieval.index.faiss_io import centroids_of, from_bytes
from retrieval.index.kmeans import list_metric
from retrieval.index.quantized_codes import coarse_of
from retrieval.index.recall_interval import Values, delivered, sampled_interval
from retrieval.index.train import TRAINED
from retrieval.search.candidates import best_of
from retrieval.search.shard_search import Task, candidates_path, exact_answers, read_answer
from retrieval.storage import finished_output
from retrieval.store.reader import vectors_of
from retrieval.vectors.scoring import block

_LEAST = 1e-9  # recall below which nothing can be said of the codes


def certify(task: Task, target: float, seed: int) -> tuple[Certificate, int]:
    """Return the certificate of a search at the look at hand, and the nprobe shown to be enough.

    That is the one of the search where its lower bound meets the target. Where all lists were read
    recall is 1, unless the codes lose something: then what was found is counted, and what they
    lose is allowed for in the lists.
    """
    nlist = int(task.manifest.counts["nlist"])
    if len(task.sample) == 0 or (task.codes and task.nprobe >= nlist):
        return Certificate(task.nprobe, nlist, target, 1.0, 1.0, 1.0, 0, 1), task.nprobe
    needed, there, found = _needed(task)
    queries, sampled = task.queries.rows, len(needed)

    def matches_low(values: Values) -> float:
        low, _ = sampled_interval(values, queries, looks=len(task.looks), seed=seed)
        return low + _gained(values, queries)

    listed = recall_curve.recall_at(needed, there, task.nprobe)
    values = listed if task.codes else recall_curve.share_of(found, there)
    low, high = sampled_interval(values, queries, looks=len(task.looks), seed=seed)
    gained, mean = _gained(values, queries), float(values.mean())
    made = Certificate(
        task.nprobe, nlist, target, delivered(mean, sampled, queries),
        min(1.0, low + gained), min(1.0, high + gained), sampled, 1, mean, low, high, queries,
    )  # fmt: skip
    if made.low >= target:
        return made, task.nprobe
    enough = target if task.codes else target * float(listed.mean() / max(mean, _LEAST))
    wider = recall_curve.wider_nprobe(
        needed, there, nlist, lambda recalls: matches_low(recalls) >= enough
    )
    return made, max(task.nprobe, wider)


def _gained(recalls: Values, queries: int) -> float:
    """Return by how much exact answers of the sampled queries raise the mean recall of all."""
    return float((1 - recalls).sum()) / queries


def _needed(task: Task) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return for each sampled query how many lists its exact neighbours need, block by block.

    Also which of them exist, and which are among its candidates (looked up for lossy codes).
    """
    index = from_bytes(finished_output.read_checked(task.index, task.manifest.files[TRAINED]))
    measure, coarse = list_metric(task.metric), coarse_of(index)
    centroids = block(centroids_of(index), measure) if task.codes else coarse.centroids
    needed, there, kept = [], [], []
    for number in range(len(task.blocks)):
        if not task.exact_blocks(0, [number]):
            continue
        asked = task.block(number)
        asked = asked.filter(pc.is_in(asked["row"], pa.array(task.sample)))
        rows = asked["row"].to_numpy()
        found = _merged(task, rows, list(exact_answers(task, number)))
        vectors = vectors_of(asked)
        inside = block(vectors, measure) if task.codes else coarse.inside(vectors, task.metric)
        places = recall_curve.probes_needed(inside, centroids, found)
        needed.append(places[0])
        there.append(places[1])
        if task.codes is None:
            paths = [candidates_path(task.nprobe, shard, number) for shard in task.shards]
            parts = [read_answer(task.matches, path) for path in paths]
            kept.append(_is_among(found.rows, _merged(task, rows, parts).rows))
    return np.concatenate(needed), np.concatenate(there), np.concatenate(kept or there)


def _merged(task: Task, rows: NDArray[np.int64], parts: list[pa.Table]) -> Neighbours:
    """Merge what the shards have for a block's sampled queries, `rows`, as the ranking would."""
    table, rank = best_of(parts, task.top_k)
    keep = np.isin(table["query"].to_numpy(), rows)
    place = np.searchsorted(rows, table["query"].to_numpy()[keep])
    shape = (len(rows), task.top_k)
    found = Neighbours(np.full(shape, -np.inf), np.full(shape, -1), np.full(shape, -1))
    for target, column in ((found.keys, "key"), (found.rows, "row"), (found.lists, "list")):
        target[place, rank[keep]] = table[column].to_numpy()[keep]
    return found


def _is_among(wanted: NDArray[np.int64], found: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows of each line of `wanted` are in the same line of `found`."""
    pairs = zip(wanted, found, strict=True)
    return np.array([np.isin(one, other) for one, other in pairs], np.bool_).reshape(wanted.shape)
