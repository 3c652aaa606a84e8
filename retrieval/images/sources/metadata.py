"""Further columns of a list or of Parquet: which become metadata, as what type."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from retrieval.errors import InputError, UsageError

RESERVED = frozenset(
    (
        "row", "image_id", "path", "width", "height", "sha256", "label", "embedding", "size",
        "mtime_ns", "place", "problem", "squared_norm",
    )
)  # fmt: skip
"""Names that our own tables use; a column of the user's that has one is no metadata."""


def further(schema: pa.Schema, but: Collection[str | None] = ()) -> pa.Schema:
    """Give the columns that become metadata, with the types they get; `but` names used ones.

    Of two columns of one name neither does.
    """
    fields = []
    left = {name for name in schema.names if name not in {*but, *RESERVED}}
    for field in schema:
        kind = scalar(field.type)
        if kind is not None and field.name in left and schema.names.count(field.name) == 1:
            fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def scalar(kind: pa.DataType) -> pa.DataType | None:  # noqa: PLR0911 - a table, a line a type
    """Give the type that values of `kind` are kept as; None where it holds more than a value.

    Few types, so that every reader and DuckDB know them: decimals become float64, times of any
    unit microseconds, categories their values.
    """
    types = pa.types
    if types.is_dictionary(kind):
        return scalar(kind.value_type)
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_float64(kind):
        return kind
    if types.is_float16(kind) or types.is_float32(kind):
        return pa.float32()
    if types.is_decimal(kind):
        return pa.float64()
    if types.is_date(kind):
        return pa.date32()
    if types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.string() if is_text(kind) or types.is_null(kind) else None


def is_text(kind: pa.DataType) -> bool:
    """Tell a column of strings, categories of strings included."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def values(batch: pa.RecordBatch, columns: pa.Schema) -> Iterator[tuple[Any, ...]]:
    """Give the metadata of each row, a column that the batch lacks as null."""
    if not columns:
        return iter([()] * len(batch))
    lists = [
        converted(batch[field.name], field.type).to_pylist()
        if field.name in batch.schema.names
        else [None] * len(batch)
        for field in columns
    ]
    return zip(*lists, strict=True)


def converted(array: Any, kind: pa.DataType) -> Any:
    """Give an array as the type that `scalar` chose for it."""
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    return pc.cast(array, kind, safe=not pa.types.is_timestamp(kind))


def texts(batch: pa.RecordBatch, column: str | None) -> list[str | None]:
    """Give a column as strings, null where it is empty; only nulls where there is no column.

    `a.b` is the field b of a column a of structs, where no column has that name.
    """
    head, _, tail = (column or "").partition(".")
    if column is None or {column, head}.isdisjoint(batch.schema.names):
        return [None] * len(batch)
    if column not in batch.schema.names:
        field = pc.struct_field(batch[head], tail)
        return [value or None for value in converted(field, pa.string()).to_pylist()]
    return [value or None for value in converted(batch[column], pa.string()).to_pylist()]


def require(root: str, option: str, column: str | None, names: list[str]) -> None:
    """Refuse a column that an option names and that is not there."""
    if column is not None and column not in names:
        raise UsageError(f"{option} {column} is no column of {root}; it has {', '.join(names)}")


def refuse_twins(root: str, names: list[str]) -> None:
    """Refuse a table with two columns of one name: which is meant cannot be told."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{root} has two columns {name}; rename or drop one")
