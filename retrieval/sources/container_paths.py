"""How the path of an image, or of a vector, inside a container is written, and read again.

`tar://MEMBER::TAR` is fsspec's own chain, so that `fsspec.open` opens it too; a row of a Parquet
file, which fsspec knows nothing of, is `parquet://COLUMN/ROW::FILE` after its model, and one of an
array `npy://ROW::FILE`. The container stands behind the last `::`, so a member may hold one though
fsspec would not find it; a container may not (`sources/walk.py` refuses it).
"""

from __future__ import annotations

from dataclasses import dataclass

_TAR = "tar://"
_PARQUET = "parquet://"
_NPY = "npy://"


@dataclass(frozen=True)
class TarMember:
    """An image in a tar."""

    member: str
    container: str

    def __str__(self) -> str:
        return f"{_TAR}{self.member}::{self.container}"


@dataclass(frozen=True)
class ParquetRow:
    """An image or a vector in a column of a Parquet file; `row` counts from 0 in that file."""

    column: str
    row: int
    container: str

    def __str__(self) -> str:
        return f"{_PARQUET}{self.column}/{self.row}::{self.container}"


@dataclass(frozen=True)
class NpyRow:
    """A vector in an array; `row` counts from 0."""

    row: int
    container: str

    def __str__(self) -> str:
        return f"{_NPY}{self.row}::{self.container}"


Inside = TarMember | ParquetRow | NpyRow


def parse(path: str) -> Inside | None:
    """Read the path of an image or a vector; None where it is a file of its own."""
    if not path.startswith((_TAR, _PARQUET, _NPY)):
        return None
    inside, found, container = path.rpartition("::")
    if not found or not container:
        return None
    if inside.startswith(_TAR):
        return TarMember(inside.removeprefix(_TAR), container)
    if inside.startswith(_NPY):
        row = inside.removeprefix(_NPY)
        return NpyRow(int(row), container) if row.isdecimal() else None
    column, _, row = inside.removeprefix(_PARQUET).rpartition("/")
    return ParquetRow(column, int(row), container) if row.isdecimal() else None


def container_of(path: str) -> str | None:
    """Give the file an image lies in; None where it is a file of its own."""
    inside = parse(path)
    return None if inside is None else inside.container


def reading_order(path: str) -> tuple[str, int, str]:
    """Sort paths by this and each container is opened once and read from front to back."""
    inside = parse(path)
    if inside is None:
        return "", 0, path
    return inside.container, 0 if isinstance(inside, TarMember) else inside.row, path
