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
    if isinstance(kind, pa.UuidType | pa.JsonType):
        return pa.string()
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_float64(kind):
        return kind
    if types.is_float16(kind) or types.is_float32(kind):
        return pa.float32()
    if types.is_decimal(kind):
        return pa.float64()
    if types.is_date(kind):
        return pa.date32()
    if types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz if _is_known_zone(kind) else "UTC")
    return pa.string() if is_text(kind) or types.is_null(kind) else None


def is_text(kind: pa.DataType) -> bool:
    """Tell a column of strings, categories of strings included."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def common_type(first: pa.DataType, second: pa.DataType | None) -> pa.DataType:
    """Return the narrowest type that takes the values of two, both as `scalar` chose them.

    Strings take all. Where the second has none (None) it is left to the values to fail.
    """
    if second is None or first == second:
        return first
    schemas = [pa.schema([("", kind)]) for kind in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return pa.string()


def _is_known_zone(kind: pa.DataType) -> bool:
    """Return whether Python knows the time zone of a timestamp type."""
    try:
        pa.array([0], kind).to_pylist()
    except (pa.ArrowException, LookupError, ValueError):
        return False
    return True


def values(batch: pa.RecordBatch, columns: pa.Schema, path: str) -> Iterator[tuple[Any, ...]]:
    """Yield the metadata of each row; a column that the batch lacks is null.

    `path` is the file that is named where a column cannot be read so.
    """
    if not columns:
        return iter([()] * len(batch))
    lists = [
        _or_refused(batch[field.name], field.type, field.name, path).to_pylist()
        if field.name in batch.schema.names
        else [None] * len(batch)
        for field in columns
    ]
    return zip(*lists, strict=True)


def converted(array: Any, kind: pa.DataType) -> Any:
    """Convert an array to the type that `scalar` chose; times beyond the calendar become null."""
    if isinstance(array.type, pa.UuidType):
        array = pa.array([None if one is None else str(one) for one in array.to_pylist()])
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        return pc.cast(_of_the_calendar(array), kind, safe=False)
    return pc.cast(array, kind)


_DAY_TICKS = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000}
_FIRST_DAY, _LAST_DAY = -719_161, 2_932_895
"""The years 1 to 9999 as days since 1970, a day less at both ends, for zones shift times."""


def _of_the_calendar(array: Any) -> Any:
    """Return dates or times with null for those out of the years that Python and DuckDB have."""
    kind = array.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":  # all of them are in 1677 to 2262
        return array
    ticks = 1 if pa.types.is_date32(kind) else _DAY_TICKS[getattr(kind, "unit", "ms")]
    numbers = array.cast(pa.int32() if pa.types.is_date32(kind) else pa.int64())
    early = pc.less(numbers, _FIRST_DAY * ticks)
    late = pc.greater_equal(numbers, (_LAST_DAY + 1) * ticks)
    return pc.if_else(pc.or_(early, late), pa.scalar(None, kind), array)


def texts(batch: pa.RecordBatch, column: str | None, path: str) -> list[str | None]:
    """Give a column as strings, null where it is empty; only nulls where there is no column.

    `a.b` is the field b of a column a of structs, where no column has that name. `path` is the file
    that is named where the column is no text.
    """
    head, _, tail = (column or "").partition(".")
    if column is None or {column, head}.isdisjoint(batch.schema.names):
        return [None] * len(batch)
    array = batch[column] if column in batch.schema.names else pc.struct_field(batch[head], tail)
    if pa.types.is_floating(array.type):  # as pandas writes a missing number
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return [value or None for value in _or_refused(array, pa.string(), column, path).to_pylist()]


def _or_refused(array: Any, kind: pa.DataType, column: str, path: str) -> Any:
    """Convert an array, or refuse its column by name."""
    try:
        return converted(array, kind)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the column {column} of {path} holds {array.type}, which cannot be read as {kind} "
            f"({reason}); rename or drop it, or convert it"
        ) from error


def holds_several(kind: pa.DataType) -> bool:
    """Return whether a type holds several values per row: lists, structs, maps."""
    if pa.types.is_dictionary(kind):
        return holds_several(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return holds_several(kind.storage_type)
    return bool(pa.types.is_nested(kind))


def label_column(schema: pa.Schema, path: str) -> tuple[str | None, str | None]:
    """Return the column that holds the labels, if there is one, or why the one named so does not.

    An image has one label, so a list of them is none; the images are listed all the same.
    """
    name = named(schema.names, "label")
    if name is None:
        return None, None
    kind = schema.field(name).type
    if not holds_several(kind):
        return name, None
    return None, (
        f"the column {name} of {path} holds {kind}, which is no label: the images have none; "
        "--labels names some"
    )


def named(names: list[str], known: str) -> str | None:
    """Return the column of a known name, or else the first that differs in case alone."""
    return known if known in names else next((n for n in names if n.casefold() == known), None)


def require(root: str, option: str, column: str | None, names: list[str]) -> None:
    """Refuse a column that an option names and that is not there."""
    if column is not None and column not in names:
        raise UsageError(f"{option} {column} is no column of {root}; it has {', '.join(names)}")


def refuse_twins(root: str, names: list[str]) -> None:
    """Refuse a table with two columns of one name: which is meant cannot be told."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{root} has two columns {name}; rename or drop one")
