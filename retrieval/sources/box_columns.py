"""Columns of a list or of Parquet with a box per row: one crop of an image.

A row whose values are all missing is the whole image. A row whose box is wrong becomes an item with
a `problem`, which is recorded in the ledger.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from retrieval.core.errors import InputError, UsageError
from retrieval.core.records import Item
from retrieval.images.box import Box, BoxUnits, make_box
from retrieval.sources.csv_rows import MISSING
from retrieval.sources.metadata_columns import is_text, require_column

_VALUES = 4  # x, y, width, height

BoxValues = Sequence[Any]
"""Values of a row as they are in the file: numbers, text or None."""


@dataclass(frozen=True)
class BoxColumns:
    """Four columns with x, y, width and height, or one column of lists of these four numbers."""

    names: tuple[str, ...]
    units: BoxUnits

    def __post_init__(self) -> None:
        """Raise UsageError for another number of columns."""
        if len(self.names) not in (1, _VALUES) or len({*self.names}) != len(self.names):
            raise UsageError(
                f"--box-columns {','.join(self.names)}: write four columns x,y,width,height, or "
                "one column of lists of these numbers"
            )

    def check(self, root: str, schema: pa.Schema) -> None:
        """Raise UsageError if a file lacks a column, InputError if one does not hold numbers."""
        for name in self.names:
            require_column(root, "--box-columns", name, schema.names)
            kind = schema.field(schema.names.index(name)).type
            if len(self.names) > 1 and not _is_number_or_text(kind):
                raise InputError(
                    f"the column {name} of {root} holds {kind}, not numbers; specify four columns "
                    "x,y,width,height with --box-columns"
                )
            if len(self.names) == 1 and not _is_list(kind):
                raise InputError(
                    f"the column {name} of {root} holds {kind}, not lists of four numbers; specify "
                    "four columns x,y,width,height with --box-columns"
                )

    def rows(self, batch: pa.RecordBatch) -> Iterator[BoxValues]:
        """Iterate over the values of each row; a row of a missing list has four missing values."""
        if len(self.names) == 1:
            for values in batch[self.names[0]].to_pylist():
                yield [None] * _VALUES if values is None else values
            return
        yield from zip(*(batch[name].to_pylist() for name in self.names), strict=True)


def box_names(columns: BoxColumns | None) -> tuple[str, ...]:
    """Return the names of the columns; none without boxes."""
    return () if columns is None else columns.names


def box_rows(columns: BoxColumns | None, batch: pa.RecordBatch) -> Iterator[BoxValues]:
    """Iterate over the values of each row; without columns of boxes they are empty."""
    return iter([()] * len(batch)) if columns is None else columns.rows(batch)


def cropped(item: Item, columns: BoxColumns | None, values: BoxValues, row: int) -> Item:
    """Return the item of a row with its box in image_id and path; the whole image without one.

    Where the box is wrong, the item has a problem, and `row` in its image_id: there is no box that
    could tell several such rows of an image apart.
    """
    if columns is None or all(_is_missing(value) for value in values):
        return item
    try:
        box = _parse(values, columns.units)
    except ValueError as error:
        name = f"{item.image_id}#row={row}"
        return dataclasses.replace(item, image_id=name, problem=item.problem or str(error))
    return dataclasses.replace(item, image_id=f"{item.image_id}{box}", path=f"{item.path}{box}")


def _parse(values: BoxValues, units: BoxUnits) -> Box:
    shown = ", ".join(map(_format, values))
    if len(values) != _VALUES or any(_is_missing(value) for value in values):
        raise ValueError(f"the box has {shown}; it needs x, y, width and height")
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"the box {shown} is not four numbers") from None
    return make_box(numbers, units)


def _is_missing(value: Any) -> bool:
    """Return whether a value is null, NaN (as pandas writes missing numbers) or such a text."""
    if isinstance(value, str):
        return value.strip() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def _format(value: Any) -> str:
    if _is_missing(value):
        return "nothing"
    return f"{value:.6g}" if isinstance(value, int | float) else str(value)


def _is_number_or_text(kind: pa.DataType) -> bool:
    types = pa.types
    checks: Collection[Any] = (types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    return is_text(kind) or any(check(kind) for check in checks)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(lists and _is_number_or_text(kind.value_type))
