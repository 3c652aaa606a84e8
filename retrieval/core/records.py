"""Every record that travels between steps, a line a field. None of them lies on disk as it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import Resize


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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One line of files.parquet."""

    path: str
    rows: int | None
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Rounding:
    """What storing vectors in a narrower type cost them: |x - stored x| / |x| of each."""

    vectors: int = 0  # that were measured
    changed: int = 0  # of these, that are not stored exactly
    largest: float = 0.0
    total: float = 0.0

    def __add__(self, other: Rounding) -> Rounding:
        """Combine the measurements of different vectors."""
        return Rounding(
            self.vectors + other.vectors, self.changed + other.changed,
            max(self.largest, other.largest), self.total + other.total,
        )  # fmt: skip

    def sentence(self, what: str) -> str:
        """Format what rounding changed as one line; `what` names the vectors."""
        return (
            f"{self.changed} of {self.vectors} {what} were rounded to be stored: by "
            f"{self.total / self.vectors:.2g} of their length on average, {self.largest:.2g} at "
            "most"
        )


@dataclass(frozen=True)
class ChunkResult:
    """What remains to be said of a chunk once its part is on disk."""

    number: int
    rows: int
    failures: int
    files: tuple[FileRecord, ...]
    read_bytes: int = 0
    seconds: float = 0.0
    rounding: Rounding = Rounding()  # of vectors made elsewhere, that this attempt stored


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
class Spread:
    """Distances of vectors to the centroids of their lists, from a sample (`index/drift.py`)."""

    mean: float
    deviation: float  # standard deviation of a distance
    count: float  # vectors measured; of several shards: as many as would tell as much


@dataclass(frozen=True)
class ShardResult:
    """What remains to be said of a shard once it is on disk."""

    number: int
    rows: int  # that are alive
    labels: dict[str, int]  # images a class, of these
    files: tuple[FileRecord, ...]
    spread: Spread  # of a sample of its vectors


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
    """Which recall the matches of a ranking have, and how that is known.

    Sampled queries were also searched exactly. Their recall is that of the search, an estimate for
    all queries; their exact answers are among the matches, of which the recall is therefore higher.
    `low` and `high` are the ends of 95 % intervals, of all looks at growing samples together.
    """

    nprobe: int
    nlist: int
    target: float
    recall: float  # of the matches, where sampled queries count as 1
    low: float
    high: float
    sample: int  # queries that were also searched exactly; 0: all lists probed, nothing to sample
    passes: int
    search_recall: float = 1.0  # of the search, before exact answers replaced its own
    search_low: float = 1.0
    search_high: float = 1.0
    queries: int = 0
    extrapolated: int = 0  # the largest k that was measured, where more matches were asked for

    def sentence(self) -> str:
        """Return one line: which recall it is and how that is known."""
        if self.extrapolated:
            return f"{self._measured()}; {_EXTRAPOLATED.format(self.extrapolated)}"
        return self._measured()

    def _measured(self) -> str:
        if self.sample == 0:
            return f"recall 1.000: all {self.nlist} lists were read"
        if self.sample == self.queries:
            known = f"recall 1.000: each of the {self.queries} queries was also searched exactly"
        else:
            known = (
                f"recall {self.recall:.3f} [{self.low:.3f}, {self.high:.3f}] of the matches, exact "
                f"for {self.sample} sampled of {self.queries} queries"
            )
        searched = f"{self.search_recall:.3f}"
        if self.search_low < self.search_high:
            searched += f" [{self.search_low:.3f}, {self.search_high:.3f}]"
        return (
            f"{known} (asked for {self.target:g}); {self.nprobe} of {self.nlist} lists read, whose "
            f"search alone has {searched}"
        )


_EXTRAPOLATED = (
    "how many lists to read was extrapolated from the {} closest, which the index was measured for"
)
