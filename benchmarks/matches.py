"""Write made-up matches of any size in the layout of `rank`, for benchmarks that read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.core.schemas import GALLERY_LABELS, MATCHES
from retrieval.storage import transaction
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.local import open_folder

CLASSES = 200
_BLOCK = 4096  # queries per part


def write_matches(path: Path, queries: int, top_k: int, images: list[str] | None = None) -> None:
    """Write matches of a gallery ten times as large as the queries, in classes of equal size.

    Matches at later ranks are relevant less often. `images` are paths of existing images, which are
    used in turn; without them, paths do not exist.
    """
    gallery = 10 * queries
    folder = open_folder(str(path))
    settings = {"index": str(path / "no-index"), "index_sha256": "", "queries": str(path / "none"),
                "queries_sha256": "", "top_k": top_k, "filter": None, "exclude_self": False,
                "min_score": None, "rerank": None, "nprobe": None}  # fmt: skip
    transaction.claim_output(folder, "matches", settings)
    names = pa.array([f"class{n % CLASSES:03d}" for n in range(CLASSES)])
    for number, first in enumerate(range(0, queries, _BLOCK)):
        table = _part(first, min(first + _BLOCK, queries), top_k, gallery, names, images)
        folder.put(f"matches/part-{number:05d}.parquet", checksummed_parquet(table))
    counts = pa.table([names, [gallery // CLASSES] * CLASSES], schema=GALLERY_LABELS.schema)
    folder.put("labels.parquet", checksummed_parquet(counts))
    certificate = {"nprobe": 1, "nlist": 1, "target": 0.95, "recall": 1.0, "low": 1.0, "high": 1.0,
                   "sample": 0, "passes": 1}  # fmt: skip
    manifest_counts = {"queries": queries, "failures": 0, "unmatched": 0, "gallery": gallery,
            "metric": "cosine", "certificate": certificate}  # fmt: skip
    transaction.finish_output(folder, "matches", manifest_counts)


def _part(
    first: int, last: int, top_k: int, gallery: int, names: pa.Array, images: list[str] | None
) -> pa.Table:
    generator = np.random.default_rng(first)
    query = np.repeat(np.arange(first, last), top_k)
    rank = np.tile(np.arange(1, top_k + 1), last - first)
    step = gallery // CLASSES
    is_relevant = generator.random(len(rank)) < 0.8 / np.sqrt(rank)
    class_number = np.where(is_relevant, query % CLASSES, generator.integers(0, CLASSES, len(rank)))
    # within a query all images differ: ranks are spread over the class
    image = class_number + CLASSES * ((rank * 31 + query) % step)
    score = 1 - rank / (2 * top_k) + generator.random(len(rank)) / (4 * top_k)

    def path(prefix: str, numbers: np.ndarray, ids: pa.Array) -> pa.Array:
        if images is None:
            return pa.compute.binary_join_element_wise(f"/{prefix}/", ids, "")
        return pa.array(images).take(pa.array(numbers % len(images)))

    query_id = pa.array([f"query{number:07d}.jpg" for number in range(first, last)]).take(
        query - first
    )
    image_id = pa.compute.binary_join_element_wise("image", pa.array(image).cast(pa.string()),
                                                   ".jpg", "")  # fmt: skip
    columns = [
        query_id, rank.astype(np.int32), image_id, score, path("queries", query, query_id),
        path("gallery", image, image_id), names.take(query % CLASSES), names.take(class_number),
        pa.nulls(len(rank), pa.float64()),
    ]  # fmt: skip
    return pa.table(columns, schema=MATCHES.schema)


def trec_run(path: Path) -> dict[str, dict[str, float]]:
    """Return matches as the run of pytrec_eval: {query: {image: score}}, scores being -rank."""
    run: dict[str, dict[str, float]] = {}
    for part in sorted(path.glob("matches/*.parquet")):
        table = pq.read_table(part, columns=["query_id", "image_id", "rank"])
        for query, image, rank in zip(
            *(column.to_pylist() for column in table.columns), strict=True
        ):
            run.setdefault(query, {})[image] = float(-rank)
    return run
