"""Reading of CSV files as streams of typed columns.

pyarrow's streaming reader infers types from the first megabyte and fails where later values differ;
its other reader holds the whole file. So all columns are read as strings, twice: first to infer the
narrowest type that takes every value, then to convert them.
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

from retrieval.core.errors import InputError
from retrieval.storage.input_files import open_uri

_TYPES = (
    pa.int64(), pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("us"),
    pa.timestamp("us", "UTC"),
)  # fmt: skip
"""Types that may be inferred for a column of strings, narrowest first; else it remains text."""

MISSING = ("", "NA", "N/A", "null", "NULL", "nan", "NaN", "None")
"""Spellings of a missing value in columns that are not text; in text only an empty one is null."""

_LEADING_ZEROS, _MANY_DIGITS = r"^\s*[+-]?0[0-9]", r"^\s*[+-]?[0-9]{16,}\s*$"
"""Digits that form an identifier rather than a number: leading zeros, or more than 15 digits."""

_BLOCK = 1 << 20

OpenFile = Callable[[], Any]
"""Function that opens the file from its start; it may be called repeatedly."""


def column_names(path: str, options: Mapping[str, Any]) -> list[str]:
    """Return the column names in the first line, without surrounding blanks."""
    return _stripped(_read_header(path, partial(open_uri, path, options, block=_BLOCK)))


def infer_schema(path: str, options: Mapping[str, Any], infer: list[str]) -> pa.Schema:
    """Return names and types, inferred from all values of the columns in `infer`; others are text.

    Raises InputError if the file is not CSV in UTF-8.
    """
    return _infer_schema(path, partial(open_uri, path, options, block=_BLOCK), infer)


def read_columns(
    path: str, options: Mapping[str, Any], columns: list[str], types: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Iterate over batches of some columns, with the types in `types`, or else as text."""
    return _read_columns(path, partial(open_uri, path, options, block=_BLOCK), columns, types)


def parse_csv(data: bytes, name: str, text: Collection[str]) -> pa.Table:
    """Parse the bytes of a CSV file; the columns in `text` (casefolded names) are read as text.

    Empty values of these columns are empty strings, not null. For a file with two columns of the
    same name an empty table with both names is returned, for the caller to reject. `name` is the
    file's name in messages.

    Raises InputError if the file is not CSV in UTF-8.
    """
    open_file = partial(io.BytesIO, data)
    names = _stripped(_read_header(name, open_file))
    types = _infer_schema(
        name, open_file, [column for column in names if column.casefold() not in text]
    )
    inferred = pa.schema([field for field in types if field.name.casefold() not in text])
    if len(set(names)) < len(names):
        return pa.table([pa.array([], pa.string())] * len(names), names=names)
    batches = list(_read_columns(name, open_file, names, inferred))
    return pa.Table.from_batches(batches, batches[0].schema if batches else types)


def _infer_schema(path: str, open_file: OpenFile, infer: list[str]) -> pa.Schema:
    names = _stripped(_read_header(path, open_file))
    candidates = {name: list(_TYPES) for name in infer if names.count(name) == 1}
    non_null: set[str] = set()  # columns that have a value; a column without any is text
    for batch in _read_batches(path, open_file):
        for name, types in candidates.items():
            array = _replace_null(batch[name])
            candidates[name] = [kind for kind in types if _converts_losslessly(kind, array)]
            if array.null_count < len(array):
                non_null.add(name)
    return pa.schema(
        [
            (name, candidates[name][0] if name in non_null and candidates[name] else pa.string())
            for name in names
        ]
    )


def _read_columns(
    path: str, open_file: OpenFile, columns: list[str], types: pa.Schema
) -> Iterator[pa.RecordBatch]:
    for batch in _read_batches(path, open_file):
        arrays = [
            _convert(batch[name], types.field(name).type) if name in types.names else batch[name]
            for name in columns
        ]
        yield pa.record_batch(arrays, names=columns)


def _read_header(path: str, open_file: OpenFile) -> list[str]:
    """Return the names in the first line, unchanged; raise InputError for another separator."""
    with _open_reader(path, open_file, None) as reader:
        names = list(reader.schema.names)
    separator = next((mark for mark in (";", "\t", "|") if mark in names[0]), None)
    if len(names) == 1 and separator:
        raise InputError(
            f"{path} is separated by {'tabs' if separator == chr(9) else separator}, as "
            f"{names[0]!r} shows; write it with commas"
        )
    return names


def _stripped(header: list[str]) -> list[str]:
    return [name.strip() for name in header]


def _read_batches(path: str, open_file: OpenFile) -> Iterator[pa.RecordBatch]:
    """Iterate over all columns as text; where column names have blanks around, strip values too."""
    header = _read_header(path, open_file)
    names = _stripped(header)
    with _open_reader(path, open_file, header) as reader:
        for batch in reader:
            if names == header:
                yield batch
            else:
                columns = [pc.utf8_trim_whitespace(column) for column in batch.columns]
                yield pa.record_batch(columns, names=names)


@contextmanager
def _open_reader(
    path: str, open_file: OpenFile, text: list[str] | None
) -> Iterator[pacsv.CSVStreamingReader]:
    """Open pyarrow's streaming reader, with the columns in `text` as strings."""
    convert = pacsv.ConvertOptions(
        column_types={name: pa.string() for name in text or ()}, strings_can_be_null=False
    )
    try:
        with open_file() as file:
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
        raise InputError(f"{path} cannot be read as CSV ({error}); correct that line") from error


def not_utf8_text(path: str) -> InputError:
    """Return the error of a file that is in UTF-16 or contains zero bytes."""
    return InputError(f"{path} is no text in UTF-8 (UTF-16?); save it as UTF-8")


def _replace_null(array: Any) -> Any:
    return pc.if_else(pc.is_in(array, pa.array(MISSING)), pa.scalar(None, pa.string()), array)


def _converts_losslessly(kind: pa.DataType, array: Any) -> bool:
    """Return whether all values of a string array convert to a type without loss.

    Digits with leading zeros, as 00120, are an identifier, and so are integers that only a double
    would hold, inexactly.
    """
    identifiers = {
        pa.int64(): _LEADING_ZEROS,
        pa.float64(): f"{_LEADING_ZEROS}|{_MANY_DIGITS}",
    }.get(kind)
    if identifiers and pc.any(pc.match_substring_regex(array, identifiers)).as_py():
        return False
    try:
        pc.cast(array, kind)
    except pa.ArrowInvalid:
        return False
    return True


def _convert(array: Any, kind: pa.DataType) -> Any:
    if pa.types.is_string(kind):
        return pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)
    return pc.cast(_replace_null(array), kind)
