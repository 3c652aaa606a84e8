"""CSV files as streams of typed columns.

pyarrow's own streaming reader infers types from the first megabyte and fails where a later one
differs, and its whole reader holds the file. So all columns are read as strings, twice: first to
see which type takes every value, then to give them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from retrieval.errors import InputError
from retrieval.storage.reading import open_uri

_TYPES = (
    pa.int64(), pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("us"),
    pa.timestamp("us", "UTC"),
)  # fmt: skip
"""What a column of strings may be, narrowest first; none of these: strings."""

_NULL = pa.array(["", "NA", "N/A", "null", "NULL", "nan", "NaN", "None"])
"""What stands for a missing value in a column of anything but strings; there only nothing does."""

_BLOCK = 1 << 20


def names(path: str, options: Mapping[str, Any]) -> list[str]:
    """Give the names in the first line."""
    with _opened(path, options, None) as reader:
        return list(reader.schema.names)


def inferred(path: str, options: Mapping[str, Any], infer: list[str]) -> pa.Schema:
    """Give names and types, looking at every value of the columns in `infer`; others are text."""
    every = names(path, options)
    left = {name: list(_TYPES) for name in infer if every.count(name) == 1}
    told: set[str] = set()  # columns that have a value; without any it is text
    with _opened(path, options, every) as reader:
        for batch in reader:
            for name, types in left.items():
                array = _without_null(batch[name])
                left[name] = [kind for kind in types if _takes(kind, array)]
                if array.null_count < len(array):
                    told.add(name)
    return pa.schema(
        [(name, left[name][0] if name in told and left[name] else pa.string()) for name in every]
    )


def typed(
    path: str, options: Mapping[str, Any], wanted: list[str], types: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Give the rows of some columns, those in `types` as these say, the others as text."""
    with _opened(path, options, names(path, options)) as reader:
        for batch in reader:
            arrays = [
                _as(batch[name], types.field(name).type) if name in types.names else batch[name]
                for name in wanted
            ]
            yield pa.record_batch(arrays, names=wanted)


@contextmanager
def _opened(
    path: str, options: Mapping[str, Any], text: list[str] | None
) -> Iterator[pacsv.CSVStreamingReader]:
    convert = pacsv.ConvertOptions(
        column_types={name: pa.string() for name in text or ()}, strings_can_be_null=False
    )
    try:
        with (
            open_uri(path, options, block=_BLOCK) as file,
            pacsv.open_csv(
                file,
                read_options=pacsv.ReadOptions(block_size=_BLOCK, use_threads=False),
                parse_options=pacsv.ParseOptions(newlines_in_values=True),
                convert_options=convert,
            ) as reader,
        ):
            yield reader
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as CSV ({error}); mend that line") from error


def _without_null(array: Any) -> Any:
    return pc.if_else(pc.is_in(array, _NULL), pa.scalar(None, pa.string()), array)


def _takes(kind: pa.DataType, array: Any) -> bool:
    try:
        pc.cast(array, kind)
    except pa.ArrowInvalid:
        return False
    return True


def _as(array: Any, kind: pa.DataType) -> Any:
    if pa.types.is_string(kind):
        return pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)
    return pc.cast(_without_null(array), kind)
