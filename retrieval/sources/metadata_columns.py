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
"""Column names of lookalike's own tables; columns of a source with these names are not kept."""


def metadata_schema(schema: pa.Schema, exclude: Collection[str | None] = ()) -> pa.Schema:
    """Return the columns that become metadata, with the types they are converted to.

    `exclude` names columns with another use. Columns that share a name are left out.
    """
    fields = []
    names = {name for name in schema.names if name not in {*exclude, *RESERVED}}
    for field in schema:
        kind = metadata_type(field.type)
        if kind is not None and field.name in names and schema.names.count(field.name) == 1:
            fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def metadata_type(kind: pa.DataType) -> pa.DataType | None:  # noqa: PLR0911 - one return per type
    """Return the type that metadata of type `kind` is converted to; None for nested types.

    Only types are used that every reader and DuckDB support: decimals become float64, times of any
    unit microseconds, categories their values.
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
    """Return the narrowest type that holds the values of two types returned by `metadata_type`.

    It is string where the types have no other common type. If the second is None, the first is
    returned; converting to it may fail.
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
    """Iterate over the metadata values of each row; a column that the batch lacks is null.

    Raises InputError, naming the file `path`, if a column cannot be converted.
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
    """Convert an array to a type that `metadata_type` returned.

    Times outside the years 1 to 9999 become null. Raises pa.ArrowException if a value does not fit.
    """
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
"""The years 1 to 9999 in days since 1970, without a day at both ends: time zones shift times."""


def _null_out_of_range(array: Any) -> Any:
    """Replace dates or times outside the range of Python and DuckDB by null."""
    kind = array.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":  # all int64 values are in 1677 to 2262
        return array
    ticks = 1 if pa.types.is_date32(kind) else _DAY_TICKS[getattr(kind, "unit", "ms")]
    numbers = array.cast(pa.int32() if pa.types.is_date32(kind) else pa.int64())
    early = pc.less(numbers, _FIRST_DAY * ticks)
    late = pc.greater_equal(numbers, (_LAST_DAY + 1) * ticks)
    return pc.if_else(pc.or_(early, late), pa.scalar(None, kind), array)


def text_values(batch: pa.RecordBatch, column: str | None, path: str) -> list[str | None]:
    """Return a column as strings, with None for empty values; all None where there is no column.

    `a.b` is the field b of a struct column a, unless a column has that name. Raises InputError,
    naming the file `path`, if the column cannot be converted.
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
    """Convert an array; raise InputError, naming its column and file, if that fails."""
    try:
        return convert_array(array, kind)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the column {column} of {path} holds {array.type}, which cannot be read as {kind} "
            f"({reason}); rename or drop it, or convert it"
        ) from error


def is_nested(kind: pa.DataType) -> bool:
    """Return whether a type is nested: a list, struct or map."""
    if pa.types.is_dictionary(kind):
        return is_nested(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return is_nested(kind.storage_type)
    return bool(pa.types.is_nested(kind))


def label_column(schema: pa.Schema, path: str) -> tuple[str | None, str | None]:
    """Return the label column and None, or None and the reason why the column label is not used.

    Both are None if there is no such column. Nested columns are not used: an image has one label.
    """
    name = find_column(schema.names, "label")
    if name is None:
        return None, None
    kind = schema.field(name).type
    if not is_nested(kind):
        return name, None
    return None, (
        f"the column {name} of {path} holds {kind}, which is no label: the images have no "
        "labels, unless --labels names a file with them"
    )


def find_column(names: list[str], name: str) -> str | None:
    """Return the column `name` (lower case), else the first that differs only in case, or None."""
    return name if name in names else next((n for n in names if n.casefold() == name), None)


def require_column(root: str, option: str, column: str | None, names: list[str]) -> None:
    """Raise UsageError if an option names a column that does not exist in the file `root`."""
    if column is not None and column not in names:
        raise UsageError(f"{option} {column} is no column of {root}; it has {', '.join(names)}")


def refuse_duplicate_columns(root: str, names: list[str]) -> None:
    """Raise InputError if two columns of the file `root` have the same name."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{root} has two columns {name}; rename or drop one")
