"""Every table on disk and every record that travels, a line a column.

Whoever wants to know what a file holds reads this one; ARCHITECTURE.md prints it. A folder that a
command writes is an *output*; its kind (`KINDS`) says which files may lie in it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FORMAT = 1
"""Version of the layout on disk; another one is refused."""

Metric = Literal["cosine", "ip", "l2"]
Pooling = Literal["avg", "max", "gem"]
Resize = Literal["crop", "squash", "pad", "squash-crop"]
Vectors = NDArray[np.float16] | NDArray[np.float32]
"""(n, d) vectors as they are stored."""

Kind = Literal["store", "index", "matches", "run", "bundle"]


@dataclass(frozen=True)
class Column:
    """One column of a table on disk."""

    name: str
    type: pa.DataType
    meaning: str


@dataclass(frozen=True)
class Table:
    """One table on disk; its rows stand in the order that `order` says."""

    name: str
    order: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema every file of this table has."""
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
        Column("stage", pa.string(), "list, read, decode or embed"),
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
        Column("norm", pa.float64(), "Euclidean length of the stored vector"),
    ),
)

RECALL = Table(
    "recall",
    "k, nprobe",
    (
        Column("k", pa.int32(), "neighbours asked for"),
        Column("nprobe", pa.int32(), "lists probed"),
        Column("recall", pa.float64(), "mean share of the k exact neighbours found, 0 to 1"),
        Column("low", pa.float64(), "lower end of its 95 % bootstrap interval over samples"),
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

GALLERY_LABELS = Table(
    "gallery labels",
    "label, by bytes",
    (
        Column("label", pa.string(), "class"),
        Column("images", pa.int64(), "gallery images of that class that could be a match"),
    ),
)

HISTORY = Table(
    "history",
    "epoch",
    (
        Column("epoch", pa.int32(), "from 1"),
        Column("loss", pa.float64(), "mean training loss, nats"),
        Column("accuracy", pa.float64(), "share of validation images classified right, 0 to 1"),
        Column("top1", pa.float64(), "share whose nearest other validation image shares the class"),
    ),
)

TABLES = (
    LISTING,
    DELETED,
    FAILURES,
    FILES,
    SHARD_ROWS,
    RECALL,
    MATCHES,
    GALLERY_LABELS,
    HISTORY,
)


def part_table(dimension: int, dtype: str, more: pa.Schema | None = None) -> Table:
    """Give the table of a store's parts: `dimension` numbers a row, as float16 or float32.

    `more` are further columns of the source.
    """
    number = pa.float16() if dtype == "float16" else pa.float32()
    further = tuple(Column(f.name, f.type, "of the source") for f in more or ())
    embedding = Column("embedding", pa.list_(number, dimension), "the vector")
    fixed = (_ROW, _ID, _PATH, _WIDTH, _HEIGHT, _SHA256, _LABEL)
    return Table("part", "row", (*fixed, *further, embedding))


def further_columns(schema: pa.Schema, table: Table) -> pa.Schema:
    """Give the columns of a file beyond those that its table has in any case."""
    return pa.schema([field for field in schema if field.name not in table.schema.names])


CANDIDATES = pa.schema(
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
"""What one shard answers for many queries. It travels and never lies on disk."""


WORK = "work/"
"""Where an output keeps what it no longer needs when it is finished; no part of it."""

COMPACTED = f"{WORK}compacted"
"""While this file is there, a compaction replaces the segments of a store file by file: those that
are there already may not fit together."""

# Files that may lie in an output, by kind; anything else there is foreign.
_COMMON = (r"job\.json", r"manifest\.json", r"files\.parquet", r"run\.json")
_MODEL = (r"model/bundle\.json", r"model/(weights|projection)\.safetensors")
KINDS: dict[str, tuple[str, ...]] = {
    "bundle": (*_COMMON, *_MODEL, r"history\.parquet"),
    "store": (
        *_COMMON,
        *_MODEL,
        r"segments/\d{5}/listing\.parquet",
        r"segments/\d{5}/segment\.json",
        r"segments/\d{5}/deleted\.parquet",
        r"segments/\d{5}/(parts|failures)/\d{8}(-\d+)?\.parquet",
    ),
    "index": (
        *_COMMON,
        *_MODEL,
        r"trained\.(faiss|json)",
        r"(recall|labels|deleted)\.parquet",
        r"shards/\d{5}\.(faiss|rows\.parquet|json)",
    ),
    "matches": (
        *_COMMON,
        r"labels\.parquet",
        r"matches/part-\d{5}\.parquet",
        r"failures/\d{8}\.parquet",
    ),
    "run": (*_COMMON, r"report\.html"),
}


@dataclass(frozen=True)
class Item:
    """One image that a source offers, before it has a row.

    `path` opens it again: a path or URI of its own, or `tar://MEMBER::TAR` (as fsspec writes it),
    or `parquet://COLUMN/ROW::FILE`, or for a vector `npy://ROW::FILE`. `place` is its position in
    such a container. An item with a `problem` goes to the ledger unread. `more` are the values of
    the source's further columns.
    """

    image_id: str
    path: str
    size: int | None
    mtime_ns: int | None
    label: str | None
    place: int | None = None
    problem: str | None = None
    more: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """The unit of work and of loss: lines first <= line < last of one segment's listing.

    `base` is the row of the segment's first line. `retry` counts how often what failed of the chunk
    was tried again; 0 is the first time, for all of it.
    """

    segment: int
    number: int
    first: int
    last: int
    base: int = 0
    retry: int = 0


@dataclass(frozen=True)
class FileRecord:
    """One line of files.parquet."""

    path: str
    rows: int | None
    size: int
    sha256: str


@dataclass(frozen=True)
class ChunkResult:
    """What remains to be said of a chunk once its part is on disk."""

    number: int
    rows: int
    failures: int
    files: tuple[FileRecord, ...]
    read_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Transform:
    """How pixels become what the network reads; stands in the bundle.

    `resize_size` is the length in pixels that the shorter side gets (crop; both sides: squash-crop)
    and `image_size` the side of the square that comes out; squash and pad use the latter alone.
    `mean` and `std` are those of the network, for values between 0 and 1.
    """

    resize: Resize
    resize_size: int
    image_size: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def to_json(self) -> dict[str, Any]:
        """Give plain values, tuples as lists, as JSON has them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Transform:
        """Read what `to_json` gave."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return Transform(**plain)


@dataclass(frozen=True)
class IndexPlan:
    """How a gallery becomes an index; a pure function of its description (`index/sizing.py`)."""

    factory: str  # what faiss.index_factory takes
    nlist: int
    codes: str | None  # float16 or float32: the codes are the vectors; None: they lose something
    sample_rows: int  # rows that train the centroids, about
    rows_per_shard: int
    bytes_per_vector: int
    probe_all: bool  # every query reads every list: recall is 1 by construction
    reasons: tuple[str, ...]  # a sentence a decision


@dataclass(frozen=True)
class ShardResult:
    """What remains to be said of a shard once it is on disk."""

    number: int
    rows: int  # that are alive
    labels: dict[str, int]  # images a class, of these
    files: tuple[FileRecord, ...]
    spread: float = 0.0  # mean distance of its vectors to their centroids, from a sample of them


@dataclass(frozen=True)
class Neighbours:
    """The closest rows of some part of the gallery to each of s sampled vectors.

    All are (s, k), closest first; `rows` is -1 where there are fewer than k.
    """

    keys: NDArray[np.float64]
    rows: NDArray[np.int64]
    lists: NDArray[np.int64]


@dataclass(frozen=True)
class Certificate:
    """Which recall a ranking reached, and how that is known."""

    nprobe: int
    nlist: int
    target: float
    recall: float
    low: float
    high: float
    sample: int  # queries that were also searched exactly; 0: all lists probed, nothing to sample
    passes: int

    def sentence(self) -> str:
        """Say in one line which recall it is and how that is known."""
        if self.sample == 0:
            return f"recall 1.000: all {self.nlist} lists were read"
        return (
            f"recall {self.recall:.3f} [{self.low:.3f}, {self.high:.3f}] against exact search of "
            f"{self.sample} of the queries, {self.nprobe} of {self.nlist} lists read "
            f"(asked for {self.target:g})"
        )
