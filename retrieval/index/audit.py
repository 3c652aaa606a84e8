"""Is a finished index right, and not only unaltered? What checksums cannot tell.

Every row stands in one shard and is counted, vectors lie in their nearest list and have the length
that is noted of them; and on request the recall curve is measured again.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.errors import UsageError
from retrieval.core.records import Neighbours
from retrieval.index import recall_curve
from retrieval.index.faiss_io import centroids_of, from_bytes
from retrieval.index.kmeans import list_metric
from retrieval.index.sample_neighbors import blocks_of_shard, nearest_of, samples_of
from retrieval.index.sampling import hashes_of, share_for, within
from retrieval.index.shard import RECALL_TABLE, Shard, open_shard
from retrieval.index.train import TRAINED
from retrieval.storage import finished_output
from retrieval.storage.checksum import sealed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.vectors.scoring import Block, block, squared_norms_of
from retrieval.vectors.topk import nearest

_LOOKED_AT = 1000  # vectors of each shard whose list is decided again


def audit(folder: Folder) -> list[str]:
    """Say what is wrong with a finished index whose bytes are those that were written."""
    manifest = finished_output.read_manifest(folder, kind="index")
    metric = manifest.counts["metric"]
    trained = finished_output.read_checked(folder, manifest.files[TRAINED])
    centroids = block(centroids_of(from_bytes(trained)), list_metric(metric))
    problems = []
    alive, seen = 0, np.zeros(0, np.bool_)
    for number in range(int(manifest.counts["shards"])):
        shard = _opened(folder, manifest, number)
        problems += [f"{folder.uri()} shard {number}: {what}" for what in _wrong(shard, centroids)]
        rows = shard.rows
        seen = np.pad(seen, (0, max(0, int(rows.max(initial=-1)) + 1 - len(seen))))
        if seen[rows].any():
            problems.append(f"{folder.uri()} shard {number}: holds rows of another shard")
        seen[rows] = True
        alive += int(shard.alive.sum())
    if alive != manifest.counts["rows"]:
        problems.append(f"{folder.uri()} holds {alive} rows, its manifest says otherwise")
    return problems


def _opened(folder: Folder, manifest: Manifest, number: int) -> Shard:
    counts = manifest.counts
    return open_shard(folder, manifest, number, counts["metric"], counts["codes"])


def _wrong(shard: Shard, centroids: Block) -> list[str]:
    """Look at every id and at a sample of the vectors."""
    if shard.codes is None:  # rows are counted; what FAISS made of them is its own
        return []
    ids = [shard.ids(number) for number in range(shard.index.nlist)]
    if not np.array_equal(np.sort(np.concatenate(ids)), shard.rows):
        return ["the ids in its lists are not the rows of its table"]
    problems = []
    chosen = shard.rows[:: max(1, len(shard.rows) // _LOOKED_AT)]
    for number in range(shard.index.nlist):
        rows, vectors = shard.listed(number)
        which = np.flatnonzero(np.isin(rows, chosen))
        if len(which) == 0:
            continue
        values = np.ascontiguousarray(vectors[which])
        if (nearest(block(values, centroids.metric), centroids) != number).any():
            problems.append(f"vectors of list {number} lie nearer to another list")
        noted = shard.squared_norms[np.searchsorted(shard.rows, rows[which])]
        if not np.array_equal(noted, squared_norms_of(values)):
            problems.append(f"vectors of list {number} have other lengths than noted")
    return problems


def curve_again(folder: Folder) -> list[str]:
    """Measure the recall curve of a finished index once more; it must come out the same."""
    manifest = finished_output.read_manifest(folder, kind="index")
    if manifest.counts["codes"] is None:
        raise UsageError(
            f"--measure-recall: the codes of {folder.uri()} are not its vectors, so they cannot "
            "tell; run index with another --output, which measures anew"
        )
    settings, metric = finished_output.read_settings(folder), manifest.counts["metric"]
    shards = range(int(manifest.counts["shards"]))
    share = share_for(recall_curve.SAMPLE, int(manifest.counts["rows"]))
    drawn = [_drawn(_opened(folder, manifest, n), share, settings["seed"]) for n in shards]
    order = np.argsort(np.concatenate([rows for rows, _ in drawn]))
    rows = np.concatenate([rows for rows, _ in drawn])[order]
    vectors = np.concatenate([v for _, v in drawn])[order]
    counts = manifest.counts
    samples = samples_of(vectors, rows, int(counts["rows"]), counts["codes"])
    best: list[Neighbours | None] = [None] * len(samples)
    for shard in (_opened(folder, manifest, number) for number in shards):
        for place, sample in enumerate(samples):
            nearest_rows = nearest_of(shard, blocks_of_shard(shard), sample)
            parts = [part for part in (best[place], nearest_rows) if part is not None]
            best[place] = recall_curve.merge_neighbours(parts, sample.k)
    measure = list_metric(metric)
    centroids = block(centroids_of(from_bytes(folder.read(TRAINED))), measure)
    curve = pa.concat_tables(
        recall_curve.recall_curve(
            block(sample.vectors, measure), centroids,
            recall_curve.without_self(merged, sample.rows), sample.ks, seed=settings["seed"],
        )
        for sample, merged in zip(samples, best, strict=True)
        if merged is not None
    ).combine_chunks()  # fmt: skip
    digest = hashlib.sha256(sealed_parquet(curve)).hexdigest()
    if digest == manifest.files[RECALL_TABLE].sha256:
        return []
    return [
        f"{folder.uri(RECALL_TABLE)} is not what its vectors give when recall is measured again"
    ]


def _drawn(shard: Shard, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.generic]]:
    """Give the rows of a shard that belong to the sample, and their vectors."""
    table = shard.metadata.filter(shard.alive)
    hashes = hashes_of(table["image_id"].to_pylist(), seed, "curve")
    wanted = table["row"].to_numpy()[within(hashes, share)]
    rows, vectors = [np.empty(0, np.int64)], [np.empty((0, shard.index.d), shard.codes)]
    for number in range(shard.index.nlist):
        own, values = shard.listed(number)
        which = np.isin(own, wanted)
        rows.append(own[which])
        vectors.append(values[which])
    return np.concatenate(rows), np.concatenate(vectors)
