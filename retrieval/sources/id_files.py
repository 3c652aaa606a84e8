"""Ids that stand in a file of their own, one for each vector of an array, in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from retrieval.core.errors import InputError
from retrieval.sources import csv_rows
from retrieval.sources.metadata_columns import named, require, texts
from retrieval.sources.npy import NPY, opened_array
from retrieval.sources.parquet import PARQUET, opened_parquet
from retrieval.sources.path_list import CSV, TEXT
from retrieval.sources.walk import is_file
from retrieval.storage.input_files import open_uri, readable

ID_COLUMNS = ("image_id", "id")
"""Columns that hold ids, where none is named."""

_BATCH = 1 << 12


def read_ids(path: str, column: str | None, options: Mapping[str, Any]) -> Iterator[str | None]:
    """Give the ids of a .txt (a line each), a .npy of strings or whole numbers, a CSV or Parquet.

    Of the last two `column` names what holds them; None stands for an empty one.
    """
    kinds = {TEXT: _lines, NPY: _elements, CSV: _of_csv, PARQUET: _of_parquet}
    if not is_file(path, options):
        raise InputError(f"--ids {path} does not exist; name a .txt, .npy, .csv or .parquet file")
    for suffixes, read in kinds.items():
        if path.lower().endswith(suffixes):
            return read(path, column, options)
    raise InputError(
        f"--ids {path} is of no kind that is read; name a .txt, .npy, .csv or .parquet"
    )


def id_column(path: str, column: str | None, names: list[str]) -> str | None:
    """Give the column that holds ids: the one named, image_id or id; None where there is none."""
    require(path, "--id-column", column, names)
    return column or next(filter(None, (named(names, known) for known in ID_COLUMNS)), None)


def _lines(path: str, _: str | None, options: Mapping[str, Any]) -> Iterator[str | None]:
    try:
        with open_uri(path, options, block=1 << 20) as file:
            for number, line in enumerate(file):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
                yield readable(text.decode("utf-8", "surrogateescape").rstrip("\r\n")) or None
    except OSError as error:
        raise InputError(f"--ids {path} cannot be read ({error})") from error


def _elements(path: str, _: str | None, options: Mapping[str, Any]) -> Iterator[str | None]:
    with opened_array(path, options) as array:
        header = array.header
        if len(header.shape) != 1 or header.dtype.kind not in "USiu":
            raise InputError(
                f"--ids {path} holds {header.dtype} of shape {header.shape}; save one row of "
                "strings or of whole numbers"
            )
        for first in range(0, header.shape[0], _BATCH):
            for value in array.rows(first, min(_BATCH, header.shape[0] - first)).tolist():
                text = (
                    value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
                )
                yield readable(str(text)) or None


def _of_csv(path: str, column: str | None, options: Mapping[str, Any]) -> Iterator[str | None]:
    name = _only(path, column, csv_rows.names(path, options))
    for batch in csv_rows.typed(path, options, [name], pa.schema([(name, pa.string())])):
        yield from texts(batch, name, path)


def _of_parquet(path: str, column: str | None, options: Mapping[str, Any]) -> Iterator[str | None]:
    with opened_parquet(path, options) as parquet:
        name = _only(path, column, parquet.schema_arrow.names)
        for batch in parquet.iter_batches(_BATCH, columns=[name], use_threads=False):
            yield from texts(batch, name, path)


def _only(path: str, column: str | None, names: list[str]) -> str:
    found = id_column(path, column, names) or (names[0] if len(names) == 1 else None)
    if found is None:
        raise InputError(
            f"which column of --ids {path} holds ids cannot be told; name it with --id-column "
            f"(there are {', '.join(names)})"
        )
    return found
