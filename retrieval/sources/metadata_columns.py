"""Metadata columns of path lists and Parquet: selection, types and conversion."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from retrieval.core.errors import InputError, UsageError

RESERVED = frozenset(
    (
        "row", "image_id", "path", "width", "height", "sha256", "label", "embedding", "size",
        "mtime_ns", "place", "problem", "squared_norm",
    )
)  # fmt: skip
"""Column names of our own tables; a user's column of such a name is not kept as metadata."""


def metadata_schema(schema: pa.Schema, but: Collection[str | None] = ()) -> pa.Schema:
    """Return the columns that become metadata, with the types they are converted to.

    `but` names columns with another use. Columns that share a name are left out.
    """
    fields = []
    left = {name for name in schema.names if name not in {*but, *RESERVED}}
    for field in schema:
        kind = metadata_type(field.type)
        if kind is not None and field.name in left and schema.names.count(field.name) == 1:
            fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def metadata_type(kind: pa.DataType) -> pa.DataType | None:  # noqa: PLR0911 - one return per type
    """Return the type that metadata of type `kind` is converted to; None for nested types.

    Only few types are used, which every reader and DuckDB support: decimals become float64, times
    of any unit microseconds, categories their values.
    """
    types = pa.types
    if types.is_dictionary(kind):
        return metadata_type(kind.value_type)
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
    """Return whether a type is a string type, or a dictionary of strings."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def common_type(first: pa.DataType, second: pa.DataType | None) -> pa.DataType:
    """Return the narrowest type that holds the values of two results of `metadata_type`.

    Strings hold all. Where the second is None, the first is returned, and converting may fail.
    """
    if second is None or first == second:
        return first
    schemas = [pa.schema([("", kind)]) for kind in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return pa.string()


def _is_known_zone(kind: pa.DataType) -> bool:
    """Return whether the time zone of a timestamp type is known on this machine."""
    try:
        pa.array([0], kind).to_pylist()
    except (pa.ArrowException, LookupError, ValueError):
        return False
    return True


def metadata_rows(
    batch: pa.RecordBatch, columns: pa.Schema, path: str
) -> Iterator[tuple[Any, ...]]:
    """Iterate over the metadata of each row; a column that the batch lacks is null.

    Raises InputError, naming the file `path`, where a column cannot be converted.
    """
    if not columns:
        return iter([()] * len(batch))
    lists = [
        _convert_column(batch[field.name], field.type, field.name, path).to_pylist()
        if field.name in batch.schema.names
        else [None] * len(batch)
        for field in columns
    ]
    return zip(*lists, strict=True)


def convert_array(array: Any, kind: pa.DataType) -> Any:
    """Convert an array to a type of `metadata_type`; times outside the years 1 to 9999 are null."""
    if isinstance(array.type, pa.UuidType):
        array = pa.array([None if value is None else str(value) for value in array.to_pylist()])
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        return pc.cast(_null_out_of_range(array), kind, safe=False)
    return pc.cast(array, kind)


_DAY_TICKS = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000}
_FIRST_DAY, _LAST_DAY = -719_161, 2_932_895
"""The years 1 to 9999 as days since 1970, less a day at both ends since time zones shift times."""


def _null_out_of_range(array: Any) -> Any:
    """Replace dates or times outside the range of Python and DuckDB by null."""
    kind = array.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":  # all of them are in 1677 to 2262
        return array
    ticks = 1 if pa.types.is_date32(kind) else _DAY_TICKS[getattr(kind, "unit", "ms")]
    numbers = array.cast(pa.int32() if pa.types.is_date32(kind) else pa.int64())
    early = pc.less(numbers, _FIRST_DAY * ticks)
    late = pc.greater_equal(numbers, (_LAST_DAY + 1) * ticks)
    return pc.if_else(pc.or_(early, late), pa.scalar(None, kind), array)


def text_values(batch: pa.RecordBatch, column: str | None, path: str) -> list[str | None]:
    """Return a column as strings, with None for empty values; all None where there is no column.

    `a.b` is the field b of a struct column a, unless a column has that name. Raises InputError,
    naming the file `path`, where the column cannot be converted.
    """
    head, _, tail = (column or "").partition(".")
    if column is None or {column, head}.isdisjoint(batch.schema.names):
        return [None] * len(batch)
    array = batch[column] if column in batch.schema.names else pc.struct_field(batch[head], tail)
    if pa.types.is_floating(array.type):  # as pandas writes a missing number
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    converted = _convert_column(array, pa.string(), column, path)
    return [value or None for value in converted.to_pylist()]


def _convert_column(array: Any, kind: pa.DataType, column: str, path: str) -> Any:
    """Convert an array; InputError, naming its column and file, where that fails."""
    try:
        return convert_array(array, kind)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the column {column} of {path} holds {array.type}, which cannot be read as {kind} "
            f"({reason}); rename or drop it, or convert it"
        ) from error


def holds_several(kind: pa.DataType) -> bool:
    """Return whether a type is nested: a list, struct or map."""
    if pa.types.is_dictionary(kind):
        return holds_several(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return holds_several(kind.storage_type)
    return bool(pa.types.is_nested(kind))


def label_column(schema: pa.Schema, path: str) -> tuple[str | None, str | None]:
    """Return the label column, or else the reason why the column named label is not used.

    Both are None where there is none. A nested column is no label, since an image has one.
    """
    name = find_column(schema.names, "label")
    if name is None:
        return None, None
    kind = schema.field(name).type
    if not holds_several(kind):
        return name, None
    return None, (
        f"the column {name} of {path} holds {kind}, which is no label: the images have none; "
        "--labels names some"
    )


def find_column(names: list[str], known: str) -> str | None:
    """Return the column of a lower-case name, or else the first that differs only in case."""
    return known if known in names else next((n for n in names if n.casefold() == known), None)


def require_column(root: str, option: str, column: str | None, names: list[str]) -> None:
    """Raise UsageError where an option names a column that does not exist."""
    if column is not None and column not in names:
        raise UsageError(f"{option} {column} is no column of {root}; it has {', '.join(names)}")


def refuse_duplicate_columns(root: str, names: list[str]) -> None:
    """Raise InputError for a table with two columns of one name."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{root} has two columns {name}; rename or drop one")
