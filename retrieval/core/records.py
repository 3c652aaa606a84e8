"""Dataclasses that the steps of the pipeline pass to one another; none is a file format."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import Resize


@dataclass(frozen=True)
class Item:
    """One image (or vector) of a source, before it is assigned a row.

    `path` opens it again: the path or URI of a file, or `tar://MEMBER::TAR` (as fsspec writes it),
    or `parquet://COLUMN/ROW::FILE`, or for a vector `npy://ROW::FILE`; that of a crop ends with its
    box (`images/box.py`), and so does its image_id. `place` is its position in
    such a container: a byte offset in a tar, else a row number. An item with a `problem` is not
    read but recorded in the ledger. `more` holds the values of the source's metadata columns.
    """

    image_id: str
    path: str
    size: int | None
    mtime_ns: int | None
    label: str | None
    place: int | None = None
    problem: str | None = None
    more: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Unit of work: the lines first <= line < last of one segment's listing.

    `base` is the row of the segment's first line. `retry` counts the retries of the chunk's failed
    images; 0 is the first attempt, at all of them.
    """

    segment: int
    number: int
    first: int
    last: int
    base: int = 0
    retry: int = 0


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One row of files.parquet: path, number of rows (Parquet only), size in bytes, SHA-256."""

    path: str
    rows: int | None
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Rounding:
    """Relative rounding errors |x - stored x| / |x| of vectors stored in a narrower type."""

    vectors: int = 0  # measured vectors
    changed: int = 0  # vectors that are not stored exactly
    largest: float = 0.0  # largest error
    total: float = 0.0  # sum of errors

    def __add__(self, other: Rounding) -> Rounding:
        """Combine the measurements of different vectors."""
        return Rounding(
            self.vectors + other.vectors, self.changed + other.changed,
            max(self.largest, other.largest), self.total + other.total,
        )  # fmt: skip

    def sentence(self, unit: str) -> str:
        """Format the effect of rounding as one line; `unit` is a plural noun for the vectors."""
        return (
            f"{self.changed} of {self.vectors} {unit} were rounded to be stored: by "
            f"{self.total / self.vectors:.2g} of their length on average, {self.largest:.2g} at "
            "most"
        )


@dataclass(frozen=True)
class ChunkResult:
    """Summary of an embedded chunk whose part is on disk."""

    number: int
    rows: int
    failures: int
    files: tuple[FileRecord, ...]
    read_bytes: int = 0
    seconds: float = 0.0
    rounding: Rounding = Rounding()  # of the imported vectors that this attempt stored


@dataclass(frozen=True)
class Transform:
    """Image preprocessing of a network; part of its bundle.

    `resize_size` is the target length in pixels of the shorter side (crop) or of both sides
    (squash-crop), and `image_size` the side of the resulting square; squash and pad use only the
    latter. `mean` and `std` are the network's, per channel, for values between 0 and 1.
    """

    resize: Resize
    resize_size: int
    image_size: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Transform:
        """Build a transform from the values that `to_json` returned."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return Transform(**plain)


@dataclass(frozen=True)
class IndexPlan:
    """Parameters of an index; a pure function of the gallery's description (`index/plan.py`)."""

    factory: str  # argument of faiss.index_factory
    nlist: int
    codes: str | None  # float16 or float32: codes are the vectors themselves; None: lossy codes
    sample_rows: int  # approximate number of rows that train the centroids
    rows_per_shard: int
    bytes_per_vector: int
    probe_all: bool  # every query reads every list: recall is 1 by construction
    reasons: tuple[str, ...]  # one sentence per decision


@dataclass(frozen=True)
class Spread:
    """Distances of sampled vectors to the centroids of their lists (`index/drift.py`)."""

    mean: float
    deviation: float  # standard deviation of a distance
    count: float  # measured vectors; of several shards combined: the effective number


@dataclass(frozen=True)
class ShardResult:
    """Summary of a built shard that is on disk."""

    number: int
    rows: int  # live rows
    labels: dict[str, int]  # number of live images per class
    files: tuple[FileRecord, ...]
    spread: Spread  # of a sample of its vectors


@dataclass(frozen=True)
class Neighbours:
    """The k closest rows of a part of the gallery to each of s sampled vectors.

    All arrays are (s, k), closest first; `rows` is -1 where there are fewer than k.
    """

    keys: NDArray[np.float64]  # scores, negated for l2: higher is closer
    rows: NDArray[np.int64]
    lists: NDArray[np.int64]  # inverted list of each row


@dataclass(frozen=True)
class Certificate:
    """Measured recall of the matches of a ranking, with its confidence interval.

    Sampled queries were also searched exactly. Their search recall estimates that of all queries;
    their exact answers replace the searched ones, so that the recall of the matches is higher.
    `low` and `high` are the ends of 95 % intervals that hold for all interim looks at growing
    samples together.
    """

    nprobe: int
    nlist: int
    target: float
    recall: float  # of the matches; sampled queries count as 1
    low: float
    high: float
    sample: int  # number of queries also searched exactly; 0: all lists probed, nothing to sample
    passes: int
    search_recall: float = 1.0  # of the search, before exact answers replaced sampled ones
    search_low: float = 1.0
    search_high: float = 1.0
    queries: int = 0
    extrapolated: int = 0  # largest measured k, where more matches were requested; else 0
    gap: float | None = None  # of the lists that a query read (`index/probing.py`); None: any
    lists: float = 0.0  # mean number of lists that a query read
    most_lists: int = 0  # of one query
    rows_read: float = 1.0  # mean share of the rows that a query read

    @property
    def reads_all_lists(self) -> bool:
        """Return whether every query read every list."""
        return self.nprobe >= self.nlist and self.gap is None

    def sentence(self) -> str:
        """Format the recall and how it was measured as one line."""
        if self.extrapolated:
            return f"{self._format_measured()}; {_EXTRAPOLATED.format(self.extrapolated)}"
        return self._format_measured()

    def _format_measured(self) -> str:
        if self.sample == 0:
            return f"recall 1.000: all {self.nlist} lists were read"
        if self.sample == self.queries:
            recall = f"recall 1.000: each of the {self.queries} queries was also searched exactly"
        else:
            recall = (
                f"recall {self.recall:.3f} [{self.low:.3f}, {self.high:.3f}] of the matches, exact "
                f"for {self.sample} sampled of {self.queries} queries"
            )
        search_recall = f"{self.search_recall:.3f}"
        if self.search_low < self.search_high:
            search_recall += f" [{self.search_low:.3f}, {self.search_high:.3f}]"
        return (
            f"{recall} (target {self.target:g}); the search alone, which read {self.format_lists()}"
            f", has recall {search_recall}"
        )

    def format_lists(self) -> str:
        """Format how many lists and rows a query read."""
        share = f"{100 * self.rows_read:.3g} % of the rows"
        if self.gap is None:
            return f"{self.nprobe} of {self.nlist} lists per query ({share})"
        return (
            f"{format_mean(self.lists)} of {self.nlist} lists per query on average, at most "
            f"{self.most_lists} ({share})"
        )


def format_mean(value: float) -> str:
    """Format a mean number of lists, with a decimal where it is small and not whole."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


_EXTRAPOLATED = (
    "the lists to read were extrapolated: the recall of the index was measured for {} matches per "
    "query at most"
)
