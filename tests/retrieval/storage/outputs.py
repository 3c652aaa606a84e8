"""Builders of small outputs of every kind, written with the storage functions the jobs use."""

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


def table_bytes(table: Table, count=3):
    """Return the bytes of a checksummed Parquet file of a table with `count` filled rows."""
    return checksummed_parquet(filled_table(table.schema, count))


def filled_table(schema, count):
    """Return an Arrow table of `count` rows, every column filled by its type."""

    def column(data_type):
        if pa.types.is_fixed_size_list(data_type):
            return [
                [float(row + position) for position in range(data_type.list_size)]
                for row in range(count)
            ]
        return [str(row) if pa.types.is_string(data_type) else row for row in range(count)]

    return pa.table(
        [pa.array(column(field.type)).cast(field.type) for field in schema], schema=schema
    )


def put_model(folder):
    weights = bytes(range(97))
    folder.put_new("model/weights.safetensors", weights)
    files = {"weights.safetensors": sha256(weights)}
    folder.put_new("model/bundle.json", checksummed_json({"format": 1, "files": files}))


def put_bundle(folder):
    put_model(folder)
    folder.put_new("history.parquet", table_bytes(HISTORY, 2))
    classifier = b"weights" * 9
    folder.put_new("classifier.safetensors", classifier)
    folder.put_new(
        "classifier.json",
        checksummed_json({"files": {"classifier.safetensors": sha256(classifier)}}),
    )


def put_store(folder):
    put_model(folder)
    listing = table_bytes(LISTING, 6)
    folder.put_new("segments/00000/listing.parquet", listing)
    segment = {"images": 6, "chunk_rows": 3, "chunks": 2, "base": 0, "deleted": 0}
    segment["files"] = {"segments/00000/listing.parquet": sha256(listing)}
    folder.put_new("segments/00000/segment.json", checksummed_json(segment))
    folder.put_new("segments/00000/failures/00000000.parquet", table_bytes(FAILURES, 1))
    for number in range(2):
        part = table_bytes(part_table(2, "float16"), 2 + number)
        folder.put_new(f"segments/00000/parts/{number:08d}.parquet", part)


def put_index(folder):
    put_model(folder)
    centroids = b"centroids" * 9
    folder.put_new("trained.faiss", centroids)
    folder.put_new(
        "trained.json", checksummed_json({"files": {"trained.faiss": sha256(centroids)}})
    )
    folder.put_new("recall.parquet", table_bytes(RECALL))
    folder.put_new("labels.parquet", table_bytes(GALLERY_LABELS))
    lists = b"lists" * 9
    folder.put_new("shards/00000.faiss", lists)
    rows = table_bytes(SHARD_ROWS, 2)
    folder.put_new("shards/00000.rows.parquet", rows)
    files = {"shards/00000.faiss": sha256(lists), "shards/00000.rows.parquet": sha256(rows)}
    folder.put_new("shards/00000.json", checksummed_json({"files": files}))


def put_matches(folder):
    folder.put_new("labels.parquet", table_bytes(GALLERY_LABELS))
    folder.put_new("failures/00000000.parquet", table_bytes(FAILURES, 1))
    for number in range(2):
        folder.put_new(f"matches/part-{number:05d}.parquet", table_bytes(MATCHES, 2 + number))


def put_predictions(folder):
    folder.put_new("predictions/part-00000.parquet", table_bytes(PREDICTIONS, 2))


def put_comparison(folder):
    folder.put_new("backbones/one.json", checksummed_json({"rows": []}))
    folder.put_new("compare.parquet", table_bytes(COMPARISON, 2))


FILE_WRITERS = {
    "bundle": put_bundle, "store": put_store, "index": put_index, "matches": put_matches,
    "predictions": put_predictions, "comparison": put_comparison,
}  # fmt: skip
CHECKSUMMED_FILES = [
    ("bundle", "model/weights.safetensors"),
    ("bundle", "classifier.safetensors"),
    ("store", "model/weights.safetensors"),
    ("store", "segments/00000/listing.parquet"),
    ("index", "trained.faiss"),
    ("index", "shards/00000.faiss"),
    ("index", "shards/00000.rows.parquet"),
]
"""(kind, path) of files whose SHA-256 is recorded in another file of the output."""

RUN_JSON = b'{"seconds": 1.5}'


def make_unfinished_output(folder, kind, **settings):
    """Claim the folder and write all files of a kind, but no manifest; return the folder."""
    transaction.claim_output(folder, kind, settings)
    FILE_WRITERS[kind](folder)
    return folder


def make_finished_output(folder, kind, **settings):
    """Write a finished output of a kind, with its run.json; return the folder."""
    transaction.finish_output(
        make_unfinished_output(folder, kind, **settings),
        kind,
        {"rows": 5, "segments": 1, "shards": 1},
    )
    folder.put(finished_output.RUN, RUN_JSON)
    return folder


def make_run_output(folder):
    """Write a finished output of kind `run`, with those of its stages inside; return the folder."""
    transaction.claim_output(folder, "run", {"top_k": 10})
    make_finished_output(folder.child("gallery"), "store")
    make_finished_output(folder.child("index"), "index")
    matches = make_unfinished_output(folder.child("matches"), "matches")
    make_finished_output(matches.child("queries"), "store")
    transaction.finish_output(matches, "matches", {"rows": 5})
    transaction.finish_output(folder, "run", {"queries": 5})
    folder.put(finished_output.RUN, RUN_JSON)
    return folder


def output_paths(folder):
    """Return the sorted paths of all files of an output, nested outputs included, but run.json."""
    return sorted(
        entry.path for entry in folder.entries() if not entry.path.endswith(finished_output.RUN)
    )


def flip_bit(data, position, bit):
    """Return a copy of the bytes with one bit flipped."""
    altered = bytearray(data)
    altered[position] ^= 1 << bit
    return bytes(altered)


@contextmanager
def temporarily_changed(folder: LocalFolder, path, change):
    """Call `change(path on disk)` on a file, and restore the file on exit."""
    disk_path, original = folder.uri(path), folder.read(path)
    try:
        change(disk_path)
        yield
    finally:
        shutil.rmtree(disk_path, ignore_errors=True)
        folder.delete(path)
        folder.put(path, original)
