"""Audit of a finished index for errors that checksums cannot detect.

It checks that every row is in exactly one shard, that sampled vectors are in their nearest list and
have the recorded norm, and on request that the recall curve is reproducible.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.errors import UsageError
from retrieval.core.records import Neighbours
from retrieval.index import recall_curve
from retrieval.index.faiss_io import deserialize_index, read_centroids
from retrieval.index.kmeans import assignment_metric
from retrieval.index.sample_neighbors import (
    iterate_list_blocks,
    make_recall_samples,
    nearest_in_shard,
)
from retrieval.index.sampling import below_fraction, hash_image_ids, sampling_fraction
from retrieval.index.shard import RECALL_TABLE, Shard, open_shard
from retrieval.index.train import TRAINED
from retrieval.storage import finished_output
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.vectors.scoring import VectorBlock, block, compute_squared_norms
from retrieval.vectors.topk import nearest_centroids

_CHECKED_VECTORS = 1000  # vectors per shard whose list is verified


def audit_index(folder: Folder) -> list[str]:
    """Return the problems of a finished index whose checksums match, one sentence each."""
    manifest = finished_output.read_manifest(folder, kind="index")
    metric = manifest.counts["metric"]
    trained = finished_output.read_verified(folder, manifest.files[TRAINED])
    centroids = block(read_centroids(deserialize_index(trained)), assignment_metric(metric))
    problems = []
    alive, seen_rows = 0, np.zeros(0, np.bool_)
    for number in range(int(manifest.counts["shards"])):
        shard = _open(folder, manifest, number)
        problems += [
            f"{folder.uri()} shard {number}: {problem}"
            for problem in _shard_problems(shard, centroids)
        ]
        rows = shard.rows
        seen_rows = np.pad(seen_rows, (0, max(0, int(rows.max(initial=-1)) + 1 - len(seen_rows))))
        if seen_rows[rows].any():
            problems.append(f"{folder.uri()} shard {number}: holds rows of another shard")
        seen_rows[rows] = True
        alive += int(shard.alive.sum())
    if alive != manifest.counts["rows"]:
        problems.append(
            f"{folder.uri()} holds {alive} rows, but its manifest records another number"
        )
    return problems


def _open(folder: Folder, manifest: Manifest, number: int) -> Shard:
    counts = manifest.counts
    return open_shard(folder, manifest, number, counts["metric"], counts["codes"])


def _shard_problems(shard: Shard, centroids: VectorBlock) -> list[str]:
    """Return the problems of one shard, from all its ids and a sample of its vectors."""
    first, last = shard.first_list, shard.first_list + shard.index.nlist
    if not np.array_equal(read_centroids(shard.index), centroids.values[first:last]):
        return ["its centroids differ from those of its lists in the index"]
    ids = [shard.list_ids(number) for number in range(shard.index.nlist)]
    if not np.array_equal(np.sort(np.concatenate(ids)), shard.rows):
        return ["the ids in its lists differ from the rows of its table"]
    problems = []
    checked_rows = shard.rows[:: max(1, len(shard.rows) // _CHECKED_VECTORS)]
    for number in range(shard.index.nlist):
        rows, vectors = shard.stored_vectors(number)
        checked = np.flatnonzero(np.isin(rows, checked_rows))
        if len(checked) == 0:
            continue
        values = np.ascontiguousarray(vectors[checked])
        nearest = nearest_centroids(block(values, centroids.metric), centroids)
        if (nearest != first + number).any():
            problems.append(f"vectors of list {first + number} lie nearer to another list")
        recorded_norms = shard.squared_norms[np.searchsorted(shard.rows, rows[checked])]
        if not np.array_equal(recorded_norms, compute_squared_norms(values)):
            problems.append(f"vectors of list {first + number} have other norms than recorded")
    return problems


def verify_recall_curve(folder: Folder) -> list[str]:
    """Measure the recall curve of a finished index again; return a problem if it differs, else [].

    Raises UsageError for an index with lossy codes, whose vectors cannot be read from it.
    """
    manifest = finished_output.read_manifest(folder, kind="index")
    if manifest.counts["codes"] is None:
        raise UsageError(
            f"--measure-recall: the codes of {folder.uri()} are lossy, so the recall curve "
            "cannot be measured from them; run index again with another --output"
        )
    settings, metric = finished_output.read_settings(folder), manifest.counts["metric"]
    shards = range(int(manifest.counts["shards"]))
    share = sampling_fraction(recall_curve.SAMPLE_SIZE, int(manifest.counts["rows"]))
    drawn = [_sample_of_shard(_open(folder, manifest, n), share, settings["seed"]) for n in shards]
    order = np.argsort(np.concatenate([rows for rows, _ in drawn]))
    rows = np.concatenate([rows for rows, _ in drawn])[order]
    vectors = np.concatenate([v for _, v in drawn])[order]
    counts = manifest.counts
    samples = make_recall_samples(vectors, rows, int(counts["rows"]), counts["codes"])
    best: list[Neighbours | None] = [None] * len(samples)
    for shard in (_open(folder, manifest, number) for number in shards):
        for position, sample in enumerate(samples):
            nearest_rows = nearest_in_shard(shard, iterate_list_blocks(shard), sample)
            parts = [part for part in (best[position], nearest_rows) if part is not None]
            best[position] = recall_curve.merge_neighbours(parts, sample.k)
    centroid_metric = assignment_metric(metric)
    centroids = block(read_centroids(deserialize_index(folder.read(TRAINED))), centroid_metric)
    curve = pa.concat_tables(
        recall_curve.recall_curve(
            block(sample.vectors, centroid_metric), centroids,
            recall_curve.drop_self(merged, sample.rows), sample.ks, seed=settings["seed"],
        )
        for sample, merged in zip(samples, best, strict=True)
        if merged is not None
    ).combine_chunks()  # fmt: skip
    digest = hashlib.sha256(checksummed_parquet(curve)).hexdigest()
    if digest == manifest.files[RECALL_TABLE].sha256:
        return []
    return [
        f"{folder.uri(RECALL_TABLE)} differs from the recall curve measured again from the vectors"
    ]


def _sample_of_shard(
    shard: Shard, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.generic]]:
    """Return the rows of a shard that belong to the recall sample, and their vectors."""
    table = shard.metadata.filter(shard.alive)
    hashes = hash_image_ids(table["image_id"].to_pylist(), seed, "curve")
    sampled_rows = table["row"].to_numpy()[below_fraction(hashes, share)]
    rows, vectors = [np.empty(0, np.int64)], [shard.list_vectors(0)[1][:0]]
    for number in range(shard.index.nlist):
        list_rows, values = shard.list_vectors(number)
        is_sampled = np.isin(list_rows, sampled_rows)
        rows.append(list_rows[is_sampled])
        vectors.append(values[is_sampled])
    return np.concatenate(rows), np.concatenate(vectors)
