"""Schemas of all tables on disk, with the meaning of every column.

docs/tables.md is generated from this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FORMAT_VERSION = 1
"""Version of the layout on disk; outputs of another version are rejected."""

Metric = Literal["cosine", "ip", "l2"]
Pooling = Literal["avg", "max", "gem", "each"]
"""`each` is all three side by side, used by `compare` only; it is no value of --pooling."""
Resize = Literal["crop", "squash", "pad", "squash-crop"]
Vectors = NDArray[np.float16] | NDArray[np.float32]
"""(n, d) stored vectors."""
Paths = Any
"""(n,) file paths: a pyarrow StringArray, for which there are no type stubs."""


@dataclass(frozen=True)
class Column:
    """One column of a table on disk."""

    name: str
    type: pa.DataType
    meaning: str


@dataclass(frozen=True)
class Table:
    """One table on disk; `order` describes the order of its rows."""

    name: str
    order: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """Return the Arrow schema of every file of this table."""
        return pa.schema([(column.name, column.type) for column in self.columns])


_ROW = Column("row", pa.int64(), "position in the listings, from 0; never changes, may have holes")
_ID = Column("image_id", pa.string(), "path below the root, '/'-separated; unique in a store")
_PATH = Column("path", pa.string(), "absolute path or URI that opens the image (or vector) again")
_WIDTH = Column(
    "width", pa.int32(), "pixels, after EXIF orientation; null of a vector made elsewhere"
)
_HEIGHT = Column("height", pa.int32(), "pixels, after EXIF orientation; null as width is")
_SHA256 = Column("sha256", pa.string(), "of the image's bytes, or the vector's in its file; hex")
_LABEL = Column("label", pa.string(), "class of the image; null where unknown")
_ROWS = Column("rows", pa.int64(), "rows of a Parquet file; null for other files")

LISTING = Table(
    "listing",
    "image_id, by bytes; what lies in containers: by container and place",
    (
        _ROW,
        _ID,
        _PATH,
        Column("size", pa.int64(), "bytes; null where only reading would tell"),
        Column("mtime_ns", pa.int64(), "last change, nanoseconds since 1970; null where unknown"),
        _LABEL,
        Column("place", pa.int64(), "inside its container: byte of a tar, row of Parquet or .npy"),
        Column("problem", pa.string(), "why it cannot be an image though it was listed; else null"),
    ),
)

DELETED = Table(
    "deleted",
    "row",
    (Column("row", pa.int64(), "of an earlier segment; its image is gone, or a newer row has it"),),
)

FAILURES = Table(
    "failures",
    "row",
    (
        _ROW,
        _ID,
        _PATH,
        Column("stage", pa.string(), "list, read, decode or embed; of matches also: rank"),
        Column("error", pa.string(), "class of the error"),
        Column("message", pa.string(), "one line"),
        _LABEL,
    ),
)

FILES = Table(
    "files",
    "path, by bytes",
    (
        Column("path", pa.string(), "below the output, '/'-separated"),
        _ROWS,
        Column("size", pa.int64(), "bytes"),
        Column("sha256", pa.string(), "of the file's bytes, hex"),
    ),
)

SHARD_ROWS = Table(
    "shard rows",
    "row",
    (
        _ROW,
        _ID,
        _PATH,
        _WIDTH,
        _HEIGHT,
        _SHA256,
        _LABEL,
        Column("squared_norm", pa.float64(), "sum of the squares of the stored vector"),
    ),
)

RECALL = Table(
    "recall",
    "k, nprobe",
    (
        Column("k", pa.int32(), "neighbours asked for"),
        Column("nprobe", pa.int32(), "lists probed"),
        Column("recall", pa.float64(), "mean share of the k exact neighbours found, 0 to 1"),
        Column("low", pa.float64(), "lower end of its 95 % interval over samples"),
        Column("high", pa.float64(), "upper end"),
        Column("sample", pa.int32(), "gallery rows measured, each against all others"),
    ),
)

MATCHES = Table(
    "matches",
    "query_id by bytes, rank",
    (
        Column("query_id", pa.string(), "image_id of the query"),
        Column("rank", pa.int32(), "1 is the best"),
        Column("image_id", pa.string(), "of the gallery image"),
        Column("score", pa.float64(), "cosine or dot (more is closer), squared distance (less is)"),
        Column("query_path", pa.string(), "opens the query"),
        Column("path", pa.string(), "opens the gallery image"),
        Column("query_label", pa.string(), "class of the query; null where unknown"),
        Column("label", pa.string(), "class of the gallery image; null where unknown"),
    ),
)

PAIRS = Table(
    "pairs",
    "closest first, image_id, other_id",
    (
        Column("image_id", pa.string(), "the one that comes first by bytes"),
        Column("other_id", pa.string(), "an image that has it, or that it has, among its matches"),
        Column("score", pa.float64(), "as that of a match"),
        Column("path", pa.string(), "opens the image"),
        Column("other_path", pa.string(), "opens the other"),
        Column("label", pa.string(), "class of the image; null where unknown"),
        Column("other_label", pa.string(), "class of the other; null where unknown"),
    ),
)

GALLERY_LABELS = Table(
    "gallery labels",
    "label, by bytes",
    (
        Column("label", pa.string(), "class"),
        Column("images", pa.int64(), "gallery images of that class that could be a match"),
    ),
)

EXCLUSIONS = Table(
    "barred",
    "query_id, image_id, by bytes",
    (
        Column("query_id", pa.string(), "image_id of the query"),
        Column("image_id", pa.string(), "gallery image that --exclude-self keeps from being one"),
        Column("label", pa.string(), "class of the gallery image; null where unknown"),
    ),
)

HISTORY = Table(
    "history",
    "epoch",
    (
        Column("epoch", pa.int32(), "from 1"),
        Column("loss", pa.float64(), "mean training loss, nats"),
        Column("accuracy", pa.float64(), "share of validation images told right; null: unknown"),
        Column("top1", pa.float64(), "share whose nearest other validation image shares the class"),
        Column("map", pa.float64(), "mean average precision of each among all the others"),
    ),
)

SPLIT = Table(
    "split",
    "image_id, by bytes",
    (
        Column("image_id", pa.string(), "of an image that has a class to be trained"),
        Column("label", pa.string(), "its class"),
        Column("part", pa.string(), "training, validation, or unreadable"),
    ),
)

PREDICTIONS = Table(
    "predictions",
    "row of the store, by chunks",
    (
        _ID,
        _PATH,
        Column("predicted", pa.string(), "class that the bundle's classifier tells"),
        Column("confidence", pa.float64(), "its share of all classes, 0 to 1"),
        Column("second", pa.string(), "the class that comes next"),
        Column("second_confidence", pa.float64(), "its share"),
        _LABEL,
    ),
)

CONFUSION = Table(
    "confusion",
    "images, the most first, label, predicted",
    (
        Column("label", pa.string(), "class of validation images"),
        Column("predicted", pa.string(), "class that they were taken for"),
        Column("images", pa.int64(), "how many of them; those that were told right are not here"),
        Column("of", pa.int64(), "validation images of the class"),
    ),
)

COMPARISON = Table(
    "comparison",
    "map, the highest first; backbone, pooling, pca, metric",
    (
        Column("backbone", pa.string(), "as --backbones names it; of --bundle: its path"),
        Column("pooling", pa.string(), "avg, max or gem"),
        Column("pca", pa.int32(), "dimensions that --pca left; null without"),
        Column("metric", pa.string(), "cosine; ip and l2 are of vectors as the network gave them"),
        Column("dimension", pa.int32(), "numbers a vector"),
        *(
            Column(f"{name}{end}", pa.float64(), f"{what}{of}")
            for name, what in (("top1", "share of queries whose closest other image is right"),
                               ("top3", "with a right image among the closest 3"),
                               ("top10", "with a right image among the closest 10"),
                               ("map", "mean average precision, of the whole ranking"))
            for end, of in (("", ""), ("_low", ": lower end of its 95 % interval; null: none"),
                            ("_high", ": upper end"))
        ),
        Column("queries", pa.int64(), "images that were ranked against all others"),
        Column("images", pa.int64(), "images that have a vector"),
        Column("images_per_second", pa.float64(), "of one worker; differs from run to run"),
        Column("parameters", pa.int64(), "of the network, without its classifier"),
        Column("weight_bytes", pa.int64(), "size of these parameters"),
    ),
)  # fmt: skip

TABLES = (LISTING, DELETED, FAILURES, FILES, SHARD_ROWS, RECALL, MATCHES, PAIRS, GALLERY_LABELS,
          EXCLUSIONS, HISTORY, SPLIT, CONFUSION, PREDICTIONS, COMPARISON)  # fmt: skip


def part_table(dimension: int, dtype: str, more: pa.Schema | None = None) -> Table:
    """Return the table of a store's parts, with `dimension` numbers per row.

    `dtype` is float16 or float32; `more` holds the metadata columns of the source.
    """
    number = pa.float16() if dtype == "float16" else pa.float32()
    further = tuple(Column(f.name, f.type, "of the source") for f in more or ())
    embedding = Column("embedding", pa.list_(number, dimension), "the vector")
    fixed = (_ROW, _ID, _PATH, _WIDTH, _HEIGHT, _SHA256, _LABEL)
    return Table("part", "row", (*fixed, *further, embedding))


def extra_columns(schema: pa.Schema, table: Table) -> pa.Schema:
    """Return the columns of a file that are not columns of its table: the source's metadata."""
    return pa.schema([field for field in schema if field.name not in table.schema.names])


CANDIDATES_SCHEMA = pa.schema(
    [
        ("query", pa.int64()),  # position of the query in its store, from 0
        ("key", pa.float64()),  # the score, negated for l2: more is closer
        ("row", pa.int64()),
        ("list", pa.int32()),  # inverted list the row lies in
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
    ]
)
"""Candidates of one shard for a block of queries; on disk only until they are ranked."""


WORK_FOLDER = "work/"
"""Folder of intermediate files within an output; emptied when the output is finished."""

COMPACTION_MARKER = f"{WORK_FOLDER}compacted"
"""Exists while a compaction replaces the segments of a store file by file; until it is removed, the
segments may be inconsistent."""
