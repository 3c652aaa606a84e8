"""Small outputs of every kind, written by the library in the same way as by the jobs."""

import hashlib
import shutil
from contextlib import contextmanager

import pyarrow as pa

from retrieval.core.schemas import (
    COMPARISON,
    FAILURES,
    GALLERY_LABELS,
    HISTORY,
    LISTING,
    MATCHES,
    PREDICTIONS,
    RECALL,
    SHARD_ROWS,
    Table,
    part_table,
)
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import checksummed_json, checksummed_parquet
from retrieval.storage.local import LocalFolder


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def rows_of(table: Table, count=3):
    """A sealed Parquet file of a table, filled with whatever its types allow."""
    return checksummed_parquet(filled(table.schema, count))


def filled(schema, count):
    def column(kind):
        if pa.types.is_fixed_size_list(kind):
            return [[float(row + place) for place in range(kind.list_size)] for row in range(count)]
        return [str(row) if pa.types.is_string(kind) else row for row in range(count)]

    return pa.table([pa.array(column(f.type)).cast(f.type) for f in schema], schema=schema)


def put_model(folder):
    weights = bytes(range(97))
    folder.put_new("model/weights.safetensors", weights)
    files = {"weights.safetensors": sha256(weights)}
    folder.put_new("model/bundle.json", checksummed_json({"format": 1, "files": files}))


def put_bundle(folder):
    put_model(folder)
    folder.put_new("history.parquet", rows_of(HISTORY, 2))
    told = b"weights" * 9
    folder.put_new("classifier.safetensors", told)
    folder.put_new(
        "classifier.json", checksummed_json({"files": {"classifier.safetensors": sha256(told)}})
    )


def put_store(folder):
    put_model(folder)
    listing = rows_of(LISTING, 6)
    folder.put_new("segments/00000/listing.parquet", listing)
    segment = {"images": 6, "chunk_rows": 3, "chunks": 2, "base": 0, "deleted": 0}
    segment["files"] = {"segments/00000/listing.parquet": sha256(listing)}
    folder.put_new("segments/00000/segment.json", checksummed_json(segment))
    folder.put_new("segments/00000/failures/00000000.parquet", rows_of(FAILURES, 1))
    for number in range(2):
        part = rows_of(part_table(2, "float16"), 2 + number)
        folder.put_new(f"segments/00000/parts/{number:08d}.parquet", part)


def put_index(folder):
    put_model(folder)
    trained = b"centroids" * 9
    folder.put_new("trained.faiss", trained)
    folder.put_new("trained.json", checksummed_json({"files": {"trained.faiss": sha256(trained)}}))
    folder.put_new("recall.parquet", rows_of(RECALL))
    folder.put_new("labels.parquet", rows_of(GALLERY_LABELS))
    shard = b"lists" * 9
    folder.put_new("shards/00000.faiss", shard)
    rows = rows_of(SHARD_ROWS, 2)
    folder.put_new("shards/00000.rows.parquet", rows)
    files = {"shards/00000.faiss": sha256(shard), "shards/00000.rows.parquet": sha256(rows)}
    folder.put_new("shards/00000.json", checksummed_json({"files": files}))


def put_matches(folder):
    folder.put_new("labels.parquet", rows_of(GALLERY_LABELS))
    folder.put_new("failures/00000000.parquet", rows_of(FAILURES, 1))
    for number in range(2):
        folder.put_new(f"matches/part-{number:05d}.parquet", rows_of(MATCHES, 2 + number))


def put_predictions(folder):
    folder.put_new("predictions/part-00000.parquet", rows_of(PREDICTIONS, 2))


def put_comparison(folder):
    folder.put_new("backbones/one.json", checksummed_json({"rows": []}))
    folder.put_new("compare.parquet", rows_of(COMPARISON, 2))


PUT = {
    "bundle": put_bundle, "store": put_store, "index": put_index, "matches": put_matches,
    "predictions": put_predictions, "comparison": put_comparison,
}  # fmt: skip
VOUCHED = [
    ("bundle", "model/weights.safetensors"),
    ("bundle", "classifier.safetensors"),
    ("store", "model/weights.safetensors"),
    ("store", "segments/00000/listing.parquet"),
    ("index", "trained.faiss"),
    ("index", "shards/00000.faiss"),
    ("index", "shards/00000.rows.parquet"),
]
"""Files whose checksum another file names."""

RUN_JSON = b'{"seconds": 1.5}'


def begin(folder, kind, **settings):
    transaction.claim_output(folder, kind, settings)
    PUT[kind](folder)
    return folder


def made(folder, kind, **settings):
    """A finished output of a kind, with its run.json."""
    transaction.finish_output(
        begin(folder, kind, **settings), kind, {"rows": 5, "segments": 1, "shards": 1}
    )
    folder.put(finished_output.RUN, RUN_JSON)
    return folder


def job(folder):
    """A finished run: the outputs of its stages lie in it."""
    transaction.claim_output(folder, "run", {"top_k": 10})
    made(folder.child("gallery"), "store")
    made(folder.child("index"), "index")
    matches = begin(folder.child("matches"), "matches")
    made(matches.child("queries"), "store")
    transaction.finish_output(matches, "matches", {"rows": 5})
    transaction.finish_output(folder, "run", {"queries": 5})
    folder.put(finished_output.RUN, RUN_JSON)
    return folder


def paths(folder):
    """Every file of an output but run.json, outputs inside it included."""
    return sorted(e.path for e in folder.entries() if not e.path.endswith(finished_output.RUN))


def flip(data, position, bit):
    altered = bytearray(data)
    altered[position] ^= 1 << bit
    return bytes(altered)


@contextmanager
def instead(folder: LocalFolder, path, change):
    """Let a file be changed by `change(path on disk)`, and as it was before afterwards."""
    at, kept = folder.uri(path), folder.read(path)
    try:
        change(at)
        yield
    finally:
        shutil.rmtree(at, ignore_errors=True)
        folder.delete(path)
        folder.put(path, kept)
