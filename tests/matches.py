"""Finished matches of made-up queries, as `rank` would put them, however many there are."""

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

BLOCK = 4096  # queries a part
_STEP = 104729  # a prime number: the images of a query are this far apart


def put_matches(
    where: Path,
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
    """Put matches of queries, given as sorted paths, drawn from a gallery; of classes by number.

    A gallery of fewer than `top_k` images gives matches that no ranking has: images come twice.
    """
    folder, generator = open_folder(str(where)), np.random.default_rng(seed)
    settings = {"queries": "/made/up", "index": "/made/up/index", "index_sha256": "",
                "top_k": top_k, "filter": None}  # fmt: skip
    transaction.claim_output(folder, "matches", settings)
    labels = pa.array([f"class {number:05d}" for number in range(classes)])
    images = pa.array([f"{number:07d}.jpg" for number in range(len(gallery))])
    paths = pa.array(gallery, pa.string())
    for part, first in enumerate(range(0, len(queries), block)):
        some = pa.array(queries[first : first + block], pa.string())
        own = generator.integers(classes, size=len(some))
        first_chosen, places = (
            generator.integers(len(gallery), size=(len(some), 1)),
            np.arange(top_k),
        )
        chosen = ((first_chosen + _STEP * places) % len(gallery)).ravel()  # all different
        scores = -np.sort(-generator.random((len(some), top_k)), 1).ravel()
        owner = pa.array(np.repeat(np.arange(len(some)), top_k))
        table = pa.table(
            [some.take(owner), np.tile(np.arange(1, top_k + 1, dtype=np.int32), len(some)),
             images.take(pa.array(chosen)), scores, some.take(owner), paths.take(pa.array(chosen)),
             labels.take(pa.array(np.repeat(own, top_k))), labels.take(pa.array(chosen % classes))],
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
    counted = np.bincount(np.arange(len(gallery)) % classes, minlength=classes)
    table = pa.table([labels, pa.array(counted, pa.int64())], schema=GALLERY_LABELS.schema)
    transaction.put_if_absent(folder, "labels.parquet", checksummed_parquet(table))
    counts = {
        "queries": len(queries), "failures": len(failed), "unmatched": 0, "gallery": len(gallery),
        "metric": "cosine", "certificate": asdict(Certificate(4, 4, 0.95, 1.0, 1.0, 1.0, 0, 1)),
    }  # fmt: skip
    return transaction.finish_output(folder, "matches", counts) if finish else None
