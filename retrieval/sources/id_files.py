"""Reading of id files (`--ids`): one id for each vector of an array, in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from retrieval.core.errors import InputError
from retrieval.sources import csv_rows
from retrieval.sources.container_paths import PARQUET
from retrieval.sources.metadata_columns import find_column, require_column, text_values
from retrieval.sources.npy import NPY, opened_array
from retrieval.sources.parquet import opened_parquet
from retrieval.sources.path_list import CSV, TEXT
from retrieval.sources.walk import is_file
from retrieval.storage.input_files import escape_non_utf8, open_uri

ID_COLUMNS = ("image_id", "id")
"""Default names of the id column, best first."""

_BATCH = 1 << 12


def read_ids(path: str, column: str | None, options: Mapping[str, Any]) -> Iterator[str | None]:
    """Iterate over the ids in a .txt (one per line), .npy (strings or integers), CSV or Parquet.

    `column` names the column of CSV and Parquet. An empty id is None. Raises InputError if the file
    does not exist, is of another type, or cannot be read.
    """
    readers = {TEXT: _read_text, NPY: _read_npy, CSV: _read_csv, PARQUET: _read_parquet}
    if not is_file(path, options):
        raise InputError(
            f"--ids {path} does not exist; specify a .txt, .npy, .csv or .parquet file"
        )
    for suffixes, read in readers.items():
        if path.lower().endswith(suffixes):
            return read(path, column, options)
    raise InputError(
        f"--ids {path} has an unsupported suffix; specify a .txt, .npy, .csv or .parquet file"
    )


def id_column(path: str, column: str | None, names: list[str]) -> str | None:
    """Return the id column: `column` if given, else image_id or id, or None.

    Raises UsageError if `column` does not exist.
    """
    require_column(path, "--id-column", column, names)
    return column or next(filter(None, (find_column(names, name) for name in ID_COLUMNS)), None)


def _read_text(path: str, _: str | None, options: Mapping[str, Any]) -> Iterator[str | None]:
    try:
        with open_uri(path, options, block=1 << 20) as file:
            for number, line in enumerate(file):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
                yield (
                    escape_non_utf8(text.decode("utf-8", "surrogateescape").rstrip("\r\n")) or None
                )
    except OSError as error:
        raise InputError(f"--ids {path} cannot be read ({error})") from error


def _read_npy(path: str, _: str | None, options: Mapping[str, Any]) -> Iterator[str | None]:
    with opened_array(path, options) as array:
        header = array.header
        if len(header.shape) != 1 or header.dtype.kind not in "USiu":
            raise InputError(
                f"--ids {path} holds {header.dtype} of shape {header.shape}; save a 1-D array of "
                "strings or integers"
            )
        for first in range(0, header.shape[0], _BATCH):
            for value in array.rows(first, min(_BATCH, header.shape[0] - first)).tolist():
                text = (
                    value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
                )
                yield escape_non_utf8(str(text)) or None


def _read_csv(path: str, column: str | None, options: Mapping[str, Any]) -> Iterator[str | None]:
    name = _choose_column(path, column, csv_rows.column_names(path, options))
    for batch in csv_rows.read_columns(path, options, [name], pa.schema([(name, pa.string())])):
        yield from text_values(batch, name, path)


def _read_parquet(
    path: str, column: str | None, options: Mapping[str, Any]
) -> Iterator[str | None]:
    with opened_parquet(path, options) as parquet:
        name = _choose_column(path, column, parquet.schema_arrow.names)
        for batch in parquet.iter_batches(_BATCH, columns=[name], use_threads=False):
            yield from text_values(batch, name, path)


def _choose_column(path: str, column: str | None, names: list[str]) -> str:
    name = id_column(path, column, names) or (names[0] if len(names) == 1 else None)
    if name is None:
        raise InputError(
            f"it is unclear which column of --ids {path} holds ids; specify it with --id-column "
            f"(columns: {', '.join(names)})"
        )
    return name
