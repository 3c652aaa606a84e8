"""Paths of images and vectors inside containers: formatting and parsing.

`tar://MEMBER::TAR` uses fsspec's URL chaining, so that `fsspec.open` opens it too.
`parquet://COLUMN/ROW::FILE` for a row of a Parquet file and `npy://ROW::FILE` for a row of an array
follow the same form. The container follows the last `::`: the name of a member may contain `::`,
that of a container may not (`walk.py` rejects it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from retrieval.images.box import split_box

TAR = (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
PARQUET = (".parquet", ".pq")
CONTAINER_SUFFIXES = (*TAR, *COMPRESSED, *PARQUET)
"""Suffixes of containers of images; those of compressed tars are known only to be refused."""

_TAR = "tar://"
_PARQUET = "parquet://"
_NPY = "npy://"


@dataclass(frozen=True)
class TarMember:
    """An image in a tar file."""

    holds_vectors: ClassVar[bool] = False

    member: str
    container: str

    def __str__(self) -> str:
        return f"{_TAR}{self.member}::{self.container}"

    @property
    def position(self) -> int:
        """Return 0: members of a tar are ordered by their names."""
        return 0


@dataclass(frozen=True)
class ParquetRow:
    """An image or a vector in a column of a Parquet file; `row` counts from 0 in that file."""

    holds_vectors: ClassVar[bool] = True

    column: str
    row: int
    container: str

    def __str__(self) -> str:
        return f"{_PARQUET}{self.column}/{self.row}::{self.container}"

    @property
    def position(self) -> int:
        """Return the row, by which the paths of one file are ordered."""
        return self.row


@dataclass(frozen=True)
class NpyRow:
    """A vector in a .npy file; `row` counts from 0."""

    holds_vectors: ClassVar[bool] = True

    row: int
    container: str

    def __str__(self) -> str:
        return f"{_NPY}{self.row}::{self.container}"

    @property
    def position(self) -> int:
        """Return the row, by which the paths of one file are ordered."""
        return self.row


ContainerPath = TarMember | ParquetRow | NpyRow
"""Each class has a `container`, a `position` in it, and whether it may hold vectors."""


def parse_container_path(path: str) -> ContainerPath | None:
    """Parse the path of an image, crop or vector inside a container; None for other paths."""
    path, _ = split_box(path)
    if not path.startswith((_TAR, _PARQUET, _NPY)):
        return None
    member, separator, container = path.rpartition("::")
    if not separator or not container:
        return None
    if member.startswith(_TAR):
        return TarMember(member.removeprefix(_TAR), container)
    if member.startswith(_NPY):
        row = member.removeprefix(_NPY)
        return NpyRow(int(row), container) if row.isdecimal() else None
    column, _, row = member.removeprefix(_PARQUET).rpartition("/")
    return ParquetRow(column, int(row), container) if row.isdecimal() else None


def container_of(path: str) -> str | None:
    """Return the path of the container of an image; None where the image is a file of its own."""
    location = parse_container_path(path)
    return None if location is None else location.container


def reading_order(path: str) -> tuple[str, int, str]:
    """Return a sort key: in its order each container is opened once and read from front to back."""
    location = parse_container_path(path)
    if location is None:
        return "", 0, path
    return location.container, location.position, path
