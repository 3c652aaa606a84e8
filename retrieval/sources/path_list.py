"""Source of images named by a list: text with one path or URI per line, CSV or Parquet.

Relative paths are relative to the folder of the list. Size and modification time are looked up for
local files only; for each remote file that would take a request. A list is streamed; a CSV file is
read twice, to infer the types of its columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from retrieval.core.errors import InputError
from retrieval.core.records import Item
from retrieval.images.box import split_box
from retrieval.sources import csv_rows
from retrieval.sources.base import Source
from retrieval.sources.box_columns import BoxColumns, box_names, box_rows, cropped
from retrieval.sources.container_paths import PARQUET
from retrieval.sources.image_names import is_image, parent_folder_name
from retrieval.sources.metadata_columns import (
    find_column,
    is_text,
    label_column,
    metadata_rows,
    metadata_schema,
    refuse_duplicate_columns,
    require_column,
    text_values,
)
from retrieval.sources.parquet import opened_parquet
from retrieval.sources.walk import is_file, storable_ns
from retrieval.storage.input_files import (
    describe_special_file,
    escape_non_utf8,
    open_uri,
    unescape_non_utf8,
)
from retrieval.storage.local import is_remote, local_path

TEXT = (".txt",)
CSV = (".csv",)
LISTS = (*TEXT, *CSV, *PARQUET)

PATH_COLUMNS = ("path", "uri", "url", "image_path", "file", "filename", "image")
"""Names of the column of paths, best first."""

_BATCH = 1 << 12


@dataclass(frozen=True)
class _Columns:
    """Names of the columns of a list by their meaning; `more` are the metadata columns."""

    path: str
    image_id: str | None
    label: str | None
    more: pa.Schema
    notes: tuple[str, ...]  # log messages on columns that are left out


@dataclass
class ListSource(Source):
    """Images named by a list; labels are from the label column, else the parent folders."""

    root: str
    image_column: str | None = None
    id_column: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    boxes: BoxColumns | None = None
    skipped_count: int = field(default=0, init=False, compare=False)
    column_notes: tuple[str, ...] = field(default=(), init=False, compare=False)

    def items(self) -> Iterator[Item]:
        """Iterate over the listed images in order.

        Missing files are included, since reading them records them in the ledger. Raises InputError
        if the list does not exist or cannot be read.
        """
        self.skipped_count = 0
        if not is_file(self.root, self.options):
            raise InputError(f"{self.root} does not exist; specify a list of images")
        if self._is(TEXT):
            return self._text_items()
        return self._table_items()

    def columns(self) -> pa.Schema:
        """Return the metadata columns: those other than path, id and label."""
        if self._is(TEXT):
            return pa.schema([])
        columns = self._columns(self._schema())
        self.column_notes = columns.notes
        return columns.more

    def _is(self, suffixes: tuple[str, ...]) -> bool:
        return self.root.lower().endswith(suffixes)

    def _text_items(self) -> Iterator[Item]:
        base = folder_of(self.root)
        try:
            with open_uri(self.root, self.options, block=1 << 20) as file:
                for number, line in enumerate(file):
                    if b"\0" in line:
                        raise csv_rows.not_utf8_text(self.root)
                    text = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
                    path = escape_non_utf8(text.decode("utf-8", "surrogateescape").rstrip("\r\n"))
                    if path.strip():
                        yield _item(base, path, path, parent_folder_name(path), ())
        except OSError as error:
            raise InputError(f"{self.root} cannot be read ({error})") from error

    def _schema(self) -> pa.Schema:
        """Return names and types of the columns; those of CSV are inferred from the whole file."""
        if self._is(CSV):
            names = csv_rows.column_names(self.root, self.options)
            text = {"image_id", "label", *PATH_COLUMNS}
            options = (self.image_column, self.id_column, *box_names(self.boxes))
            inferred = [n for n in names if n.casefold() not in text and n not in options]
            return csv_rows.infer_schema(self.root, self.options, inferred)
        with opened_parquet(self.root, self.options) as parquet:
            return parquet.schema_arrow

    def check_columns(self) -> None:
        """Raise UsageError if an option names a column that the list lacks."""
        if self._is(TEXT):
            return
        if self._is(CSV):
            names = csv_rows.column_names(self.root, self.options)
            schema = pa.schema([(name, pa.string()) for name in names])
        else:
            with opened_parquet(self.root, self.options) as parquet:
                schema = parquet.schema_arrow
        self._check_columns(schema)

    def _check_columns(self, schema: pa.Schema) -> None:
        require_column(self.root, "--image-column", self.image_column, schema.names)
        require_column(self.root, "--id-column", self.id_column, schema.names)
        if self.boxes is not None:
            self.boxes.check(self.root, schema)

    def _columns(self, schema: pa.Schema) -> _Columns:
        names = schema.names
        refuse_duplicate_columns(self.root, names)
        self._check_columns(schema)
        image_id = self.id_column or find_column(names, "image_id")
        label, note = label_column(schema, self.root)
        if self.image_column is not None and self.image_column == label:
            label, note = None, None
        strings = [field.name for field in schema if is_text(field.type)]
        paths = (find_column(strings, name) for name in PATH_COLUMNS)
        preferred = [name for name in paths if name and name != image_id]
        others = [name for name in strings if name not in (image_id, label, *box_names(self.boxes))]
        path = self.image_column or next(iter([*preferred, *others, *strings]), None)
        if path is None:
            raise InputError(f"{self.root} has no column of paths; specify it with --image-column")
        if self._is(CSV) and is_image(path):
            raise InputError(f"{self.root} begins with {path} and has no header; add one, as path")
        more = metadata_schema(schema, (path, image_id, label, *box_names(self.boxes)))
        return _Columns(path, image_id, label, more, () if note is None else (note,))

    def _table_items(self) -> Iterator[Item]:
        base = folder_of(self.root)
        columns = self._columns(self._schema())
        row = 0
        for batch in self._batches(columns):
            paths, ids, labels = (
                text_values(batch, name, self.root)
                for name in (columns.path, columns.image_id, columns.label)
            )
            more_values = metadata_rows(batch, columns.more, self.root)
            boxes = box_rows(self.boxes, batch)
            rows = zip(paths, ids, labels, more_values, boxes, strict=True)
            for path, listed_id, label, more, box in rows:
                row += 1
                if path is None:
                    name = listed_id or f"row {row} of the list"
                    problem = "the list names no path for it"
                    yield Item(name, self.root, None, None, label, None, problem, more)
                    continue
                image_id = listed_id or path
                if not columns.label and not columns.notes:
                    label = parent_folder_name(image_id)  # noqa: PLW2901 - null in all rows
                yield cropped(_item(base, path, image_id, label, more), self.boxes, box, row)

    def _batches(self, columns: _Columns) -> Iterator[pa.RecordBatch]:
        used = [columns.path, columns.image_id, columns.label, *columns.more.names,
                *box_names(self.boxes)]  # fmt: skip
        names = sorted({name for name in used if name is not None})
        if self._is(CSV):
            yield from csv_rows.read_columns(self.root, self.options, names, columns.more)
            return
        with opened_parquet(self.root, self.options) as parquet:
            yield from parquet.iter_batches(_BATCH, columns=names, use_threads=False)


def folder_of(root: str) -> str:
    """Return the folder of a list, which its relative paths start from."""
    if is_remote(root):
        return root.rpartition("/")[0]
    return os.path.dirname(local_path(root))


def _item(base: str, entry: str, image_id: str, label: str | None, more: tuple[Any, ...]) -> Item:
    path = absolute(base, entry)
    if split_box(path)[1] is not None:
        problem = "its path ends as that of a crop; list boxes in columns, with --box-columns"
        return Item(image_id, path, None, None, label, None, problem, more)
    if is_remote(path):
        return Item(image_id, path, None, None, label, more=more)
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        try:
            info = os.stat(unescape_non_utf8(path))
        except (OSError, ValueError):  # reading it fails later, and is recorded in the ledger
            return Item(image_id, path, None, None, label, more=more)
    return Item(
        image_id, path, info.st_size, storable_ns(info.st_mtime_ns), label,
        problem=describe_special_file(info.st_mode), more=more,
    )  # fmt: skip


def absolute(base: str, entry: str) -> str:
    """Return the absolute path or URI of an entry of a list in the folder `base`."""
    if is_remote(entry):
        return entry
    if entry.startswith(("file://", "/", "~/")):
        return escape_non_utf8(local_path(entry))
    return f"{base}/{entry}" if is_remote(base) else escape_non_utf8(local_path(f"{base}/{entry}"))
