"""Certify the recall of a search on a sample of its queries that was also searched exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.records import Certificate, Neighbours
from retrieval.index import recall_curve
from retrieval.index.faiss_io import deserialize_index, read_centroids
from retrieval.index.kmeans import assignment_metric
from retrieval.index.probing import Probing
from retrieval.index.recall_curve import RequiredProbing
from retrieval.index.recall_interval import Values, delivered_recall, sampled_interval
from retrieval.index.train import TRAINED
from retrieval.search.candidates import Candidates, top_candidates
from retrieval.search.shard_search import (
    SearchTask,
    read_block_candidates,
    read_exact_candidates,
    read_probed_lists,
)
from retrieval.storage import finished_output
from retrieval.store.reader import read_vectors
from retrieval.vectors.scoring import block

_MIN_RECALL = 1e-9  # avoids a division by zero


def certify(task: SearchTask, target: float, seed: int) -> tuple[Certificate, Probing]:
    """Return the certificate of a search at its current look, and a sufficient probing.

    That is the one of the search if the lower bound of its recall reaches `target`, else a wider
    one by the gaps of the lists that the sampled queries need. Where all lists were read the recall
    is 1, unless codes are lossy: then recall is counted on the candidates, and the wider probing
    allows for the loss.
    """
    nlist = int(task.manifest.counts["nlist"])
    gap = None if math.isinf(task.gap) else task.gap
    if len(task.sampled_queries) == 0 or (task.codes and task.reads_all_lists):
        certificate = Certificate(task.nprobe, nlist, target, 1.0, 1.0, 1.0, 0, 1, gap=gap)
        return certificate, task.probing
    values = _sampled_recalls(task)
    queries, sampled = task.queries.rows, len(values)

    def recall_interval(recalls: Values) -> tuple[float, float]:
        return sampled_interval(recalls, queries, looks=len(task.looks), seed=seed)

    def recall_lower_bound(recalls: Values) -> float:
        return recall_interval(recalls)[0] + _gain_of_exact(recalls, queries)

    low, high = recall_interval(values)
    gain, mean = _gain_of_exact(values, queries), float(values.mean())
    certificate = Certificate(
        task.nprobe, nlist, target, delivered_recall(mean, sampled, queries),
        min(1.0, low + gain), min(1.0, high + gain), sampled, 1, mean, low, high, queries,
        gap=gap,
    )  # fmt: skip
    if certificate.low >= target:
        return certificate, task.probing
    required, goal = _required_by_sample(task), target
    if task.codes is None:
        goal *= float(required.recall(task.probing).mean() / max(mean, _MIN_RECALL))
    sufficient = recall_curve.smallest_sufficient_probing(
        required, lambda recalls: recall_lower_bound(recalls) >= goal
    )
    return certificate, _widen(task.probing, sufficient)


def _widen(probing: Probing, sufficient: Probing) -> Probing:
    """Return a probing that reads the lists of both, unless the first has no gap."""
    if math.isinf(probing.gap):
        return sufficient
    return Probing(max(probing.nprobe, sufficient.nprobe), max(probing.gap, sufficient.gap))


def _gain_of_exact(recalls: Values, queries: int) -> float:
    """Return by how much exact matches of the sampled queries raise the mean recall of all."""
    return float((1 - recalls).sum()) / queries


def _sampled_recalls(task: SearchTask) -> Values:
    """Return the recall of the search for each sampled query, (s,).

    A search of vectors finds a neighbour if and only if it reads its list; with lossy codes the
    neighbour must also be among the candidates.
    """
    recalls = []
    for number, queries, neighbours in _sampled_blocks(task):
        rows = queries["row"].to_numpy()
        if task.codes:
            block_rows = task.stored_queries(number, ["row"])["row"].to_numpy()
            lists = read_probed_lists(task, number)[np.searchsorted(block_rows, rows)]
            is_found = _is_among(neighbours.lists, lists)
        else:
            parts = read_block_candidates(task, number)
            is_found = _is_among(neighbours.rows, _merge_neighbours(task, rows, parts).rows)
        recalls.append(recall_curve.found_fraction(is_found, neighbours.rows >= 0))
    return np.concatenate(recalls)


def _required_by_sample(task: SearchTask) -> RequiredProbing:
    """Return what finding the exact neighbours of the sampled queries requires."""
    index = deserialize_index(
        finished_output.read_verified(task.index, task.manifest.files[TRAINED])
    )
    measure = assignment_metric(task.metric)
    centroids = block(read_centroids(index), measure)
    return RequiredProbing.concatenate(
        [
            recall_curve.required_probing(
                block(read_vectors(queries), measure), centroids, neighbours
            )
            for _, queries, neighbours in _sampled_blocks(task)
        ]
    )


def _sampled_blocks(task: SearchTask) -> Iterator[tuple[int, pa.Table, Neighbours]]:
    """Yield the number, the sampled queries and their exact neighbours of each block with some."""
    for number in range(len(task.query_chunks)):
        if not task.exact_outputs(0, [number]):
            continue
        queries = task.query_block(number)
        queries = queries.filter(pc.is_in(queries["row"], pa.array(task.sampled_queries)))
        exact = read_exact_candidates(task, number)
        yield number, queries, _merge_neighbours(task, queries["row"].to_numpy(), exact)


def _merge_neighbours(
    task: SearchTask, rows: NDArray[np.int64], parts: Iterable[Candidates]
) -> Neighbours:
    """Return the best candidates of the queries `rows` of a block, merged as the ranking does."""
    best, rank = top_candidates(parts, task.top_k)
    table = best.pairs
    keep = np.isin(table["query"].to_numpy(), rows)
    positions = np.searchsorted(rows, table["query"].to_numpy()[keep])
    shape = (len(rows), task.top_k)
    neighbours = Neighbours(np.full(shape, -np.inf), np.full(shape, -1), np.full(shape, -1))
    for target, column in (
        (neighbours.keys, "key"),
        (neighbours.rows, "row"),
        (neighbours.lists, "list"),
    ):
        target[positions, rank[keep]] = table[column].to_numpy()[keep]
    return neighbours


def _is_among(rows: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which entries of `rows` (n, k) are in the same row of `candidates`, (n, k) bool."""
    pairs = zip(rows, candidates, strict=True)
    return np.array(
        [np.isin(row, candidate_row) for row, candidate_row in pairs], np.bool_
    ).reshape(rows.shape)
