"""CSV files as streams of typed columns.

pyarrow's own streaming reader infers types from the first megabyte and fails where a later one
differs, and its whole reader holds the file. So all columns are read as strings, twice: first to
see which type takes every value, then to give them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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

_ZEROS, _LONG = r"^\s*[+-]?0[0-9]", r"^\s*[+-]?[0-9]{16,}\s*$"
"""Digits that are rather a name than a number, since a number would be written otherwise."""

_BLOCK = 1 << 20

Opened = Callable[[], Any]
"""Opens the file from its start, as often as it is called."""


def names(path: str, options: Mapping[str, Any]) -> list[str]:
    """Return the names in the first line, without the blanks around them."""
    return _stripped(_header(path, partial(open_uri, path, options, block=_BLOCK)))


def inferred(path: str, options: Mapping[str, Any], infer: list[str]) -> pa.Schema:
    """Give names and types, looking at every value of the columns in `infer`; others are text."""
    return _inferred(path, partial(open_uri, path, options, block=_BLOCK), infer)


def typed(
    path: str, options: Mapping[str, Any], wanted: list[str], types: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Yield batches of some columns: those in `types` as that type, the others as text."""
    return _typed(path, partial(open_uri, path, options, block=_BLOCK), wanted, types)


def read(data: bytes, name: str, text: Collection[str]) -> pa.Table:
    """Return the table in the bytes of a file; the columns in `text` are text, whatever is in it.

    Those are meant in any case; an empty text is not null there.
    """
    opened = partial(io.BytesIO, data)
    every = _stripped(_header(name, opened))
    types = _inferred(name, opened, [one for one in every if one.casefold() not in text])
    more = pa.schema([field for field in types if field.name.casefold() not in text])
    if len(set(every)) < len(every):  # whoever reads it refuses twins by name
        return pa.table([pa.array([], pa.string())] * len(every), names=every)
    batches = list(_typed(name, opened, every, more))
    return pa.Table.from_batches(batches, batches[0].schema if batches else types)


def _inferred(path: str, opened: Opened, infer: list[str]) -> pa.Schema:
    every = _stripped(_header(path, opened))
    left = {name: list(_TYPES) for name in infer if every.count(name) == 1}
    told: set[str] = set()  # columns that have a value; without any it is text
    for batch in _batches(path, opened):
        for name, types in left.items():
            array = _without_null(batch[name])
            left[name] = [kind for kind in types if _takes(kind, array)]
            if array.null_count < len(array):
                told.add(name)
    return pa.schema(
        [(name, left[name][0] if name in told and left[name] else pa.string()) for name in every]
    )


def _typed(
    path: str, opened: Opened, wanted: list[str], types: pa.Schema
) -> Iterator[pa.RecordBatch]:
    for batch in _batches(path, opened):
        arrays = [
            _as(batch[name], types.field(name).type) if name in types.names else batch[name]
            for name in wanted
        ]
        yield pa.record_batch(arrays, names=wanted)


def _header(path: str, opened: Opened) -> list[str]:
    """Return the names in the first line as they stand there."""
    with _reader(path, opened, None) as reader:
        found = list(reader.schema.names)
    mark = next((mark for mark in (";", "\t", "|") if mark in found[0]), None)
    if len(found) == 1 and mark:
        raise InputError(
            f"{path} is separated by {'tabs' if mark == chr(9) else mark}, as {found[0]!r} shows; "
            "write it with commas"
        )
    return found


def _stripped(header: list[str]) -> list[str]:
    return [name.strip() for name in header]


def _batches(path: str, opened: Opened) -> Iterator[pa.RecordBatch]:
    """Yield all columns as text; where names have blanks around them, values are stripped too."""
    header = _header(path, opened)
    every = _stripped(header)
    with _reader(path, opened, header) as reader:
        for batch in reader:
            if every == header:
                yield batch
            else:
                columns = [pc.utf8_trim_whitespace(column) for column in batch.columns]
                yield pa.record_batch(columns, names=every)


@contextmanager
def _reader(
    path: str, opened: Opened, text: list[str] | None
) -> Iterator[pacsv.CSVStreamingReader]:
    convert = pacsv.ConvertOptions(
        column_types={name: pa.string() for name in text or ()}, strings_can_be_null=False
    )
    try:
        with opened() as file:
            if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise not_utf8_text(path)
            file.seek(0)
            with pacsv.open_csv(
                file,
                read_options=pacsv.ReadOptions(block_size=_BLOCK, use_threads=False),
                parse_options=pacsv.ParseOptions(newlines_in_values=True),
                convert_options=convert,
            ) as reader:
                yield reader
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as CSV ({error}); mend that line") from error


def not_utf8_text(path: str) -> InputError:
    """Return the refusal of a file in UTF-16, or with zeros in it."""
    return InputError(f"{path} is no text in UTF-8 (UTF-16?); save it as UTF-8")


def _without_null(array: Any) -> Any:
    return pc.if_else(pc.is_in(array, _NULL), pa.scalar(None, pa.string()), array)


def _takes(kind: pa.DataType, array: Any) -> bool:
    """Return whether a type takes all values, and is not one that changes what is a name.

    A number with leading zeros, as 00120, is the name of something, and so is a whole number that
    only a double would hold, and not exactly.
    """
    names = {pa.int64(): _ZEROS, pa.float64(): f"{_ZEROS}|{_LONG}"}.get(kind)
    if names and pc.any(pc.match_substring_regex(array, names)).as_py():
        return False
    try:
        pc.cast(array, kind)
    except pa.ArrowInvalid:
        return False
    return True


def _as(array: Any, kind: pa.DataType) -> Any:
    if pa.types.is_string(kind):
        return pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)
    return pc.cast(_without_null(array), kind)
