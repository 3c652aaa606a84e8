"""Schemas of all tables on disk, with the meaning of every column.

docs/tables.md is generated from this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FORMAT_VERSION = 3
"""Version of the layout on disk; outputs of another version are rejected."""

Metric = Literal["cosine", "ip", "l2"]
ScoreKind = Literal["cosine", "ip", "l2", "unitless"]
"""What the scores of matches are: those of a metric, or numbers that only order the matches of a
query, higher is closer: of a re-ranking."""
Pooling = Literal["avg", "max", "gem", "each"]
"""`each` concatenates all others; only `compare` uses it, and --pooling does not accept it."""
Resize = Literal["crop", "squash", "pad", "squash-crop"]
Augmentation = Literal["none", "flip"]
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
_ID = Column(
    "image_id",
    pa.string(),
    "path below the root, '/'-separated; of a crop with its box at the end; unique in a store",
)
_PATH = Column(
    "path",
    pa.string(),
    "absolute path or URI that opens the image (or vector) again; of a crop with its box at the "
    "end",
)
_WIDTH = Column(
    "width", pa.int32(), "pixels of the upright image or crop; null for an imported vector"
)
_HEIGHT = Column("height", pa.int32(), "pixels of the upright image or crop; null where width is")
_SHA256 = Column(
    "sha256",
    pa.string(),
    "SHA-256 of the bytes of the image file, which its crops share, or of the vector in its file; "
    "hex",
)
_LABEL = Column("label", pa.string(), "class of the image; null where unknown")
_ROWS = Column("rows", pa.int64(), "rows of a Parquet file; null for other files")

LISTING = Table(
    "listing",
    "image_id, by bytes; items in containers: by container and place",
    (
        _ROW,
        _ID,
        _PATH,
        Column("size", pa.int64(), "bytes; null where unknown before reading"),
        Column(
            "mtime_ns", pa.int64(), "modification time, nanoseconds since 1970; null where unknown"
        ),
        _LABEL,
        Column(
            "place",
            pa.int64(),
            "in its container: byte offset in a tar, row of Parquet or .npy",
        ),
        Column("problem", pa.string(), "why the listed item cannot be read as an image; else null"),
    ),
)

DELETED = Table(
    "deleted",
    "row",
    (Column("row", pa.int64(), "row of an earlier segment whose image was removed or replaced"),),
)

FAILURES = Table(
    "failures",
    "row",
    (
        _ROW,
        _ID,
        _PATH,
        Column("stage", pa.string(), "list, read, decode or embed; in matches also rank"),
        Column("error", pa.string(), "exception class of the error"),
        Column("message", pa.string(), "message of the error, one line"),
        _LABEL,
    ),
)

FILES = Table(
    "files",
    "path, by bytes",
    (
        Column("path", pa.string(), "path below the output, '/'-separated"),
        _ROWS,
        Column("size", pa.int64(), "bytes"),
        Column("sha256", pa.string(), "SHA-256 of the file's bytes, hex"),
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

GENERATION = Table(
    "generation",
    "chunk, then retry",
    (
        Column("path", pa.string(), "part of the store whose rows the generation holds"),
        Column("sha256", pa.string(), "SHA-256 of the part's bytes, hex"),
        Column("rows", pa.int64(), "rows of the part, deleted ones included"),
        Column("chunk", pa.int64(), "number of its chunk, with 10^8 numbers for each segment"),
    ),
)

RECALL = Table(
    "recall",
    "k, gap, nprobe",
    (
        Column("k", pa.int32(), "number of neighbours"),
        Column(
            "gap",
            pa.float64(),
            "largest difference to the score of a query's best centroid at which a list is read "
            "(cosine, ip: of the dot products, divided by the query's length; l2: of the "
            "distances); infinite where a query reads `nprobe` lists",
        ),
        Column("nprobe", pa.int32(), "largest number of lists read per query"),
        Column("lists", pa.float64(), "mean number of lists read per query"),
        Column(
            "recall", pa.float64(), "mean share of the k exact neighbours that are found, 0 to 1"
        ),
        Column("low", pa.float64(), "lower end of its 95 % interval over samples"),
        Column("high", pa.float64(), "upper end of that interval"),
        Column(
            "sample", pa.int32(), "number of sampled gallery rows, each searched among all others"
        ),
    ),
)

MATCHES = Table(
    "matches",
    "query_id by bytes, rank",
    (
        Column("query_id", pa.string(), "image_id of the query"),
        Column("rank", pa.int32(), "1 is the best"),
        Column("image_id", pa.string(), "image_id of the gallery image"),
        Column(
            "score",
            pa.float64(),
            "cosine or inner product (higher is closer), or squared distance (lower is closer); "
            "after --rerank a number that orders the matches of a query (higher is closer)",
        ),
        Column("query_path", pa.string(), "path or URI of the query"),
        Column("path", pa.string(), "path or URI of the gallery image"),
        Column("query_label", pa.string(), "class of the query; null where unknown"),
        Column("label", pa.string(), "class of the gallery image; null where unknown"),
        Column(
            "probability",
            pa.float64(),
            "how likely the match is right, 0 to 1, by --calibration; null without it",
        ),
    ),
)

PAIRS = Table(
    "pairs",
    "closest first, image_id, other_id",
    (
        Column("image_id", pa.string(), "image_id of the pair that comes first by bytes"),
        Column(
            "other_id",
            pa.string(),
            "image_id of the other; at least one of the two is a match of the other",
        ),
        Column("score", pa.float64(), "as in matches"),
        Column("path", pa.string(), "path or URI of the image"),
        Column("other_path", pa.string(), "path or URI of the other"),
        Column("label", pa.string(), "class of the image; null where unknown"),
        Column("other_label", pa.string(), "class of the other; null where unknown"),
    ),
)

GROUPS = Table(
    "groups",
    "group; the image to keep, then the others by size, largest first",
    (
        Column("group", pa.int64(), "from 1, by the number of images, descending, then image_id"),
        _ID,
        _PATH,
        Column("keep", pa.bool_(), "whether the image is kept; true for one image of a group"),
        Column(
            "reason",
            pa.string(),
            "why it is kept (most pixels, largest file, first image_id: the first that decides) or "
            "not (fewer pixels, smaller file, later image_id)",
        ),
        Column(
            "score",
            pa.float64(),
            "of its pair with the kept image; null for the kept image, and for an image that only "
            "a chain of pairs links to it",
        ),
    ),
)

LEAKS = Table(
    "leaks",
    "closest first, query_id, image_id",
    (
        Column("query_id", pa.string(), "image_id of the query"),
        Column("image_id", pa.string(), "image_id of a gallery image that is one of its matches"),
        Column("score", pa.float64(), "as in matches"),
        Column("query_path", pa.string(), "path or URI of the query"),
        Column("path", pa.string(), "path or URI of the gallery image"),
        Column("query_label", pa.string(), "class of the query; null where unknown"),
        Column("label", pa.string(), "class of the gallery image; null where unknown"),
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
        Column(
            "image_id", pa.string(), "gallery image that --exclude-self excludes from its matches"
        ),
        Column("label", pa.string(), "class of the gallery image; null where unknown"),
    ),
)

HISTORY = Table(
    "history",
    "epoch",
    (
        Column("epoch", pa.int32(), "from 1"),
        Column("loss", pa.float64(), "mean training loss, nats"),
        Column(
            "accuracy",
            pa.float64(),
            "share of validation images classified correctly; null where unknown",
        ),
        Column(
            "top1", pa.float64(), "share whose nearest other validation image has the same class"
        ),
        Column(
            "map",
            pa.float64(),
            "mean average precision of each validation image ranked against all others",
        ),
    ),
)

SPLIT = Table(
    "split",
    "image_id, by bytes",
    (
        Column("image_id", pa.string(), "image that has a label used in training"),
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
        Column("predicted", pa.string(), "most probable class, by the classifier of the bundle"),
        Column("confidence", pa.float64(), "probability of that class, 0 to 1"),
        Column("second", pa.string(), "second most probable class"),
        Column("second_confidence", pa.float64(), "probability of the second class"),
        _LABEL,
    ),
)

CONFUSION = Table(
    "confusion",
    "images, descending; label, predicted",
    (
        Column("label", pa.string(), "class of validation images"),
        Column("predicted", pa.string(), "class predicted for them"),
        Column("images", pa.int64(), "number of such images; correct predictions are not listed"),
        Column("of", pa.int64(), "number of validation images of the class"),
    ),
)

COMPARISON = Table(
    "comparison",
    "map, descending; backbone, pooling, pca, metric",
    (
        Column("backbone", pa.string(), "name as in --backbones, or the path of a --bundle"),
        Column("pooling", pa.string(), "name as in --pooling"),
        Column("pca", pa.int32(), "dimensions after --pca; null without --pca"),
        Column("metric", pa.string(), "cosine; or ip or l2, on vectors that are not normalised"),
        Column("dimension", pa.int32(), "components per vector"),
        *(
            Column(f"{name}{end}", pa.float64(), f"{meaning}{qualifier}")
            for name, meaning in (
                ("top1", "share of queries whose closest other image has their class"),
                ("top3", "share of queries with an image of their class in the top 3"),
                ("top10", "share of queries with an image of their class in the top 10"),
                ("map", "mean average precision of the whole ranking"),
            )
            for end, qualifier in (("", ""), ("_low", ": lower end of its 95 % interval, or null"),
                            ("_high", ": upper end"))
        ),
        Column("queries", pa.int64(), "number of images that were ranked against all others"),
        Column("images", pa.int64(), "number of images that have a vector"),
        Column("images_per_second", pa.float64(), "images embedded per second by one worker"),
        Column("parameters", pa.int64(), "parameters of the network, without its classifier"),
        Column("weight_bytes", pa.int64(), "size of these parameters in bytes"),
    ),
)  # fmt: skip

TABLES = (LISTING, DELETED, FAILURES, FILES, GENERATION, SHARD_ROWS, RECALL, MATCHES, PAIRS, GROUPS,
          LEAKS, GALLERY_LABELS, EXCLUSIONS, HISTORY, SPLIT, CONFUSION, PREDICTIONS,
          COMPARISON)  # fmt: skip


def part_table(dimension: int, dtype: str, more: pa.Schema | None = None) -> Table:
    """Return the table of a store's parts, with vectors of `dimension` components.

    `dtype` is float16 or float32; `more` holds the metadata columns of the source.
    """
    component = pa.float16() if dtype == "float16" else pa.float32()
    metadata = tuple(Column(f.name, f.type, "of the source") for f in more or ())
    embedding = Column("embedding", pa.list_(component, dimension), "the vector")
    fixed = (_ROW, _ID, _PATH, _WIDTH, _HEIGHT, _SHA256, _LABEL)
    return Table("part", "row", (*fixed, *metadata, embedding))


def extra_columns(schema: pa.Schema, table: Table) -> pa.Schema:
    """Return the columns of a file that are not columns of its table: the source's metadata."""
    return pa.schema([field for field in schema if field.name not in table.schema.names])


CANDIDATES_SCHEMA = pa.schema(
    [
        ("query", pa.int64()),  # position of the query in its store, from 0
        ("key", pa.float64()),  # the score, negated for l2: higher is closer
        ("row", pa.int64()),
        ("list", pa.int32()),  # inverted list that contains the row
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
