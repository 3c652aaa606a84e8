"""Every record that travels between steps, a line a field. None of them lies on disk as it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.tables import Resize


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
