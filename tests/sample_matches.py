"""Write generated matches in the format of `rank`, for any number of queries."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval.core.records import Certificate
from retrieval.core.schemas import FAILURES, GALLERY_LABELS, MATCHES
from retrieval.storage import transaction
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import open_folder

BLOCK = 4096  # queries per part
_STEP = 104729  # a prime: distance between the gallery positions of consecutive matches


def write_matches(
    output: Path,
    queries: list[str],
    gallery: list[str],
    *,
    top_k: int = 10,
    classes: int = 3,
    failed: tuple[str, ...] = (),
    seed: int = 0,
    block: int = BLOCK,
    finish: bool = True,
) -> Manifest | None:
    """Write `top_k` matches per query, and return the manifest if `finish` is set.

    `queries` are sorted paths, `gallery` the paths that matches are drawn from, `failed` the
    queries recorded in the ledger. Labels are "class 00000", … A gallery of fewer than `top_k`
    images gives invalid matches, in which a query has an image twice.
    """
    folder, generator = open_folder(str(output)), np.random.default_rng(seed)
    settings = {"queries": "/made/up", "index": "/made/up/index", "index_sha256": "",
                "top_k": top_k, "filter": None}  # fmt: skip
    transaction.claim_output(folder, "matches", settings)
    labels = pa.array([f"class {number:05d}" for number in range(classes)])
    images = pa.array([f"{number:07d}.jpg" for number in range(len(gallery))])
    paths = pa.array(gallery, pa.string())
    for part, first in enumerate(range(0, len(queries), block)):
        part_queries = pa.array(queries[first : first + block], pa.string())
        query_classes = generator.integers(classes, size=len(part_queries))
        first_positions = generator.integers(len(gallery), size=(len(part_queries), 1))
        # distinct positions of the matches of each query
        positions = ((first_positions + _STEP * np.arange(top_k)) % len(gallery)).ravel()
        scores = -np.sort(-generator.random((len(part_queries), top_k)), 1).ravel()
        ranks = np.tile(np.arange(1, top_k + 1, dtype=np.int32), len(part_queries))
        query_ids = part_queries.take(pa.array(np.repeat(np.arange(len(part_queries)), top_k)))
        query_labels = labels.take(pa.array(np.repeat(query_classes, top_k)))
        gallery_rows = pa.array(positions)
        table = pa.table(
            [query_ids, ranks, images.take(gallery_rows), scores, query_ids,
             paths.take(gallery_rows), query_labels, labels.take(pa.array(positions % classes)),
             pa.nulls(len(ranks), pa.float64())],
            names=MATCHES.schema.names,
        ).cast(MATCHES.schema)  # fmt: skip
        transaction.put_if_absent(
            folder, f"matches/part-{part:05d}.parquet", checksummed_parquet(table)
        )
    if failed:
        rows = [{"row": number, "image_id": name, "path": name, "stage": "decode", "label": None,
                 "error": "UnidentifiedImageError", "message": "cannot identify image file"}
                for number, name in enumerate(failed)]  # fmt: skip
        data = checksummed_parquet(pa.Table.from_pylist(rows, schema=FAILURES.schema))
        transaction.put_if_absent(folder, "failures/00000000.parquet", data)
    class_counts = np.bincount(np.arange(len(gallery)) % classes, minlength=classes)
    table = pa.table([labels, pa.array(class_counts, pa.int64())], schema=GALLERY_LABELS.schema)
    transaction.put_if_absent(folder, "labels.parquet", checksummed_parquet(table))
    counts = {
        "queries": len(queries), "failures": len(failed), "unmatched": 0, "gallery": len(gallery),
        "metric": "cosine", "certificate": asdict(Certificate(4, 4, 0.95, 1.0, 1.0, 1.0, 0, 1)),
    }  # fmt: skip
    return transaction.finish_output(folder, "matches", counts) if finish else None
