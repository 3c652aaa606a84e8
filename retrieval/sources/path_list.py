"""A list of images that lie anywhere: a path or URI a line, or a column of a CSV or Parquet file.

Relative paths are relative to the list's own folder. Local files are looked up for size and time;
of remote ones that would be a request each, and both stay unknown. A list is streamed; a CSV file
is read twice, since the type of a column is known at its end only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from retrieval.core.errors import InputError
from retrieval.core.records import Item
from retrieval.sources import csv_rows
from retrieval.sources.base import Source
from retrieval.sources.image_names import is_image, parent
from retrieval.sources.metadata_columns import (
    further,
    is_text,
    label_column,
    named,
    refuse_twins,
    require,
    texts,
    values,
)
from retrieval.sources.parquet import PARQUET, opened_parquet
from retrieval.sources.walk import is_file, storable_ns
from retrieval.storage.input_files import not_a_file, not_utf8, open_uri, readable
from retrieval.storage.local import is_remote, local_path

TEXT = (".txt",)
CSV = (".csv",)
LISTS = (*TEXT, *CSV, *PARQUET)

_PATH_COLUMNS = ("path", "uri", "url", "image_path", "file", "filename", "image")
_BATCH = 1 << 12


@dataclass(frozen=True)
class _Columns:
    """Which column is what."""

    path: str
    image_id: str | None
    label: str | None
    more: pa.Schema
    notes: tuple[str, ...]  # on what is left out


@dataclass
class ListSource(Source):
    """Images that a list names; the label is a column, else the folder's name in the id."""

    root: str
    image_column: str | None = None
    id_column: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    others: int = field(default=0, init=False, compare=False)
    column_notes: tuple[str, ...] = field(default=(), init=False, compare=False)

    def items(self) -> Iterator[Item]:
        """Give what the list names, in its order; what is missing too, so that it is told of."""
        self.others = 0
        if not is_file(self.root, self.options):
            raise InputError(f"{self.root} does not exist; name a list of images")
        if self._is(TEXT):
            return self._lines()
        return self._rows()

    def columns(self) -> pa.Schema:
        """Give the columns beside path, id and label."""
        if self._is(TEXT):
            return pa.schema([])
        columns = self._columns(self._schema())
        self.column_notes = columns.notes
        return columns.more

    def _is(self, suffixes: tuple[str, ...]) -> bool:
        return self.root.lower().endswith(suffixes)

    def _lines(self) -> Iterator[Item]:
        base = folder_of(self.root)
        try:
            with open_uri(self.root, self.options, block=1 << 20) as file:
                for number, line in enumerate(file):
                    if b"\0" in line:
                        raise csv_rows.not_utf8_text(self.root)
                    text = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
                    path = readable(text.decode("utf-8", "surrogateescape").rstrip("\r\n"))
                    if path.strip():
                        yield _item(base, path, path, parent(path), ())
        except OSError as error:
            raise InputError(f"{self.root} cannot be read ({error})") from error

    def _schema(self) -> pa.Schema:
        """Give names and types; those of a CSV file are inferred from all of it."""
        if self._is(CSV):
            names = csv_rows.names(self.root, self.options)
            text = {"image_id", "label", *_PATH_COLUMNS}
            asked = (self.image_column, self.id_column)
            more = [n for n in names if n.casefold() not in text and n not in asked]
            return csv_rows.inferred(self.root, self.options, more)
        with opened_parquet(self.root, self.options) as parquet:
            return parquet.schema_arrow

    def check_columns(self) -> None:
        """Refuse options that name columns which are not there, before the list is read."""
        if self._is(TEXT):
            return
        if self._is(CSV):
            names = csv_rows.names(self.root, self.options)
        else:
            with opened_parquet(self.root, self.options) as parquet:
                names = parquet.schema_arrow.names
        require(self.root, "--image-column", self.image_column, names)
        require(self.root, "--id-column", self.id_column, names)

    def _columns(self, schema: pa.Schema) -> _Columns:
        names = schema.names
        refuse_twins(self.root, names)
        require(self.root, "--image-column", self.image_column, names)
        require(self.root, "--id-column", self.id_column, names)
        image_id = self.id_column or named(names, "image_id")
        label, note = label_column(schema, self.root)
        if self.image_column is not None and self.image_column == label:
            label, note = None, None
        strings = [one.name for one in schema if is_text(one.type)]
        paths = (named(strings, name) for name in _PATH_COLUMNS)
        known = [name for name in paths if name and name != image_id]
        rest = [name for name in strings if name not in (image_id, label)]
        path = self.image_column or next(iter([*known, *rest, *strings]), None)
        if path is None:
            raise InputError(f"{self.root} has no column of paths; name it with --image-column")
        if self._is(CSV) and is_image(path):
            raise InputError(f"{self.root} begins with {path} and has no header; put one, as path")
        more = further(schema, (path, image_id, label))
        return _Columns(path, image_id, label, more, () if note is None else (note,))

    def _rows(self) -> Iterator[Item]:
        base = folder_of(self.root)
        columns = self._columns(self._schema())
        row = 0
        for batch in self._batches(columns):
            paths, ids, labels = (
                texts(batch, name, self.root)
                for name in (columns.path, columns.image_id, columns.label)
            )
            more_values = values(batch, columns.more, self.root)
            for path, own, label, more in zip(paths, ids, labels, more_values, strict=True):
                row += 1
                if path is None:
                    name, problem = own or f"row {row} of the list", "the list names no path for it"
                    yield Item(name, self.root, None, None, label, None, problem, more)
                    continue
                image_id = own or path
                known = label if columns.label or columns.notes else parent(image_id)
                yield _item(base, path, image_id, known, more)

    def _batches(self, columns: _Columns) -> Iterator[pa.RecordBatch]:
        used = [columns.path, columns.image_id, columns.label, *columns.more.names]
        wanted = sorted({name for name in used if name is not None})
        if self._is(CSV):
            yield from csv_rows.typed(self.root, self.options, wanted, columns.more)
            return
        with opened_parquet(self.root, self.options) as parquet:
            yield from parquet.iter_batches(_BATCH, columns=wanted, use_threads=False)


def folder_of(root: str) -> str:
    """Give the folder a list lies in, from which its relative paths start."""
    if is_remote(root):
        return root.rpartition("/")[0]
    return os.path.dirname(local_path(root))


def _item(base: str, written: str, image_id: str, label: str | None, more: tuple[Any, ...]) -> Item:
    path = absolute(base, written)
    if is_remote(path):
        return Item(image_id, path, None, None, label, more=more)
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        try:
            info = os.stat(not_utf8(path))
        except (OSError, ValueError):  # it fails when it is read, and stands in the ledger
            return Item(image_id, path, None, None, label, more=more)
    return Item(
        image_id, path, info.st_size, storable_ns(info.st_mtime_ns), label,
        problem=not_a_file(info.st_mode), more=more,
    )  # fmt: skip


def absolute(base: str, written: str) -> str:
    """Give the path or URI that opens what a list names."""
    if is_remote(written):
        return written
    if written.startswith(("file://", "/", "~/")):
        return readable(local_path(written))
    return f"{base}/{written}" if is_remote(base) else readable(local_path(f"{base}/{written}"))
