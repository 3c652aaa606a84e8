"""Source of images stored as bytes in a column of Parquet files: a file, a folder or a glob.

The column holds binary values, or structs with a field `bytes` (Hugging Face). Listing reads
footers and the small columns, never the images. The metadata columns are those of the first file,
in order of names; a later file that lacks one has nulls there. The type of a column holds the
values of all files: int8 and int16 become int16, a number and a string become a string.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.core.errors import InputError
from retrieval.core.records import Item
from retrieval.sources.base import Source
from retrieval.sources.box_columns import BoxColumns, box_names, box_rows, cropped
from retrieval.sources.container_paths import PARQUET, ParquetRow
from retrieval.sources.metadata_columns import (
    common_type,
    label_column,
    metadata_rows,
    metadata_schema,
    metadata_type,
    refuse_duplicate_columns,
    require_column,
    text_values,
)
from retrieval.sources.walk import ListedFile, SkippedFiles, find_files, find_readable_files
from retrieval.storage.input_files import open_uri

_BATCH = 1 << 12
_BUFFER = 1 << 20
_FOOTER_THREADS = 16  # footers are read concurrently: of remote files the latency dominates


@dataclass
class ParquetSource(Source):
    """Images in Parquet; ids are those of the id column, else FILE/ROW.

    Subclassed for vectors in Parquet (`vectors.py`).
    """

    root: str
    image_column: str | None = None
    id_column: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    boxes: BoxColumns | None = None
    skipped_count: int = field(default=0, init=False, compare=False)
    skipped: SkippedFiles = field(
        default_factory=SkippedFiles, init=False, compare=False, repr=False
    )
    column_notes: tuple[str, ...] = field(default=(), init=False, compare=False)
    _cached_columns: tuple[list[ListedFile], pa.Schema] | None = field(
        default=None, init=False, compare=False, repr=False
    )
    """Cache of files and their common columns, for which every footer has been read."""

    def items(self) -> Iterator[Item]:
        """Iterate over all rows, file by file."""
        self.skipped = SkippedFiles()
        files, self.skipped_count = find_files(self.root, PARQUET, self.options, self.skipped)
        columns = self._common_columns([file for file in files if file.problem is None])
        for file in files:
            if file.problem is not None:
                yield file.unreadable_item(len(columns))
                continue
            with opened_parquet(file.path, self.options) as parquet:
                yield from self._rows(file, parquet, columns)

    def columns(self) -> pa.Schema:
        """Return the metadata columns of the first file, with types that hold all files' values."""
        files = find_readable_files(self.root, PARQUET, self.options)
        for file in files[:1]:
            _, note = label_column(self._schema_of(file), file.path)
            self.column_notes = () if note is None else (note,)
        return self._common_columns(files)

    def check_columns(self) -> None:
        """Raise UsageError or InputError if the first file lacks a column that an option names."""
        for file in find_readable_files(self.root, PARQUET, self.options)[:1]:
            self._metadata_columns(file, self._schema_of(file))

    def _schema_of(self, file: ListedFile) -> pa.Schema:
        with opened_parquet(file.path, self.options) as parquet:
            return parquet.schema_arrow

    def _common_columns(self, files: list[ListedFile]) -> pa.Schema:
        """Return the metadata columns of the first file, with types that hold the values of all."""
        if not files:
            return pa.schema([])
        if self._cached_columns is not None and self._cached_columns[0] == files:
            return self._cached_columns[1]
        self._cached_columns = files, self._read_common(files)
        return self._cached_columns[1]

    def _read_common(self, files: list[ListedFile]) -> pa.Schema:
        columns = list(self._metadata_columns(files[0], self._schema_of(files[0])))
        if not columns:
            return pa.schema([])
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            for schema in pool.map(self._schema_of, files[1:]):
                columns = [
                    column.with_type(
                        common_type(column.type, metadata_type(schema.field(column.name).type))
                    )
                    if schema.names.count(column.name) == 1
                    else column
                    for column in columns
                ]
        return pa.schema(columns)

    def _metadata_columns(self, file: ListedFile, schema: pa.Schema) -> pa.Schema:
        content = self._content_column(file, schema)
        if self.boxes is not None:
            self.boxes.check(file.path, schema)
        exclude = (content, self._id_column(file, schema), *box_names(self.boxes))
        return metadata_schema(schema, exclude)

    def _content_column(self, file: ListedFile, schema: pa.Schema) -> str:
        require_column(file.path, "--image-column", self.image_column, schema.names)
        column = self.image_column or image_bytes_column(schema)
        if column is None:
            raise InputError(
                f"it is unclear which column of {file.path} holds images; specify it with "
                f"--image-column (columns: {', '.join(schema.names)})"
            )
        if not holds_images(schema.field(column).type):
            raise InputError(
                f"the column {column} of {file.path} holds no bytes; specify another --image-column"
            )
        return column

    def _id_column(self, file: ListedFile, schema: pa.Schema) -> str | None:
        if not _is_field(schema, self.id_column):
            require_column(file.path, "--id-column", self.id_column, schema.names)
        return self.id_column or ("image_id" if "image_id" in schema.names else None)

    def _rows(
        self, file: ListedFile, parquet: pq.ParquetFile, columns: pa.Schema
    ) -> Iterator[Item]:
        schema = parquet.schema_arrow
        refuse_duplicate_columns(file.path, schema.names)
        content, name = self._content_column(file, schema), self._id_column(file, schema)
        label, _ = label_column(schema, file.path)
        names = class_names(schema, label)
        row = 0
        used = {column for column in (name, label, *box_names(self.boxes)) if column}
        small = {*columns.names} & {*schema.names} | used
        for batch in _batches(parquet, small):
            ids = text_values(batch, name, file.path)
            labels = [_named(text, names) for text in text_values(batch, label, file.path)]
            more_values = metadata_rows(batch, columns, file.path)
            rows = zip(ids, labels, more_values, box_rows(self.boxes, batch), strict=True)
            for image_id, label_text, more, box in rows:
                item = Item(
                    image_id=image_id or f"{file.name}/{row}",
                    path=str(ParquetRow(content, row, file.path)),
                    size=None,
                    mtime_ns=file.mtime_ns,
                    label=label_text,
                    place=row,
                    more=more,
                )
                yield cropped(item, self.boxes, box, row)
                row += 1


@contextmanager
def opened_parquet(path: str, options: Mapping[str, Any]) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; raise InputError, naming it, if it cannot be read."""
    try:
        with (
            open_uri(path, options, block=_BUFFER) as file,
            pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as parquet,
        ):
            yield parquet
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path} cannot be read as Parquet ({error}); download or recreate it, or remove it"
        ) from error


def image_bytes_column(schema: pa.Schema) -> str | None:
    """Return the column image if it holds bytes, else the only column that does, or None."""
    names = [field.name for field in schema if holds_images(field.type)]
    if "image" in names:
        return "image"
    return names[0] if len(names) == 1 else None


def holds_images(kind: pa.DataType) -> bool:
    """Return whether a type is binary, or a struct with a binary field `bytes` (Hugging Face)."""
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and holds_images(kind.field(position).type)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def class_names(schema: pa.Schema, label: str | None) -> dict[str, str]:
    """Return {class number: class name} of a Hugging Face label column; empty for other columns."""
    if label is None or not pa.types.is_integer(schema.field(label).type):
        return {}
    metadata = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        feature = json.loads(metadata)["info"]["features"][label]
        names = feature["names"] if feature.get("_type") == "ClassLabel" else []
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}
    numbered = names.items() if isinstance(names, dict) else enumerate(names)
    return {str(number): str(name) for number, name in numbered}


def _named(label: str | None, names: dict[str, str]) -> str | None:
    """Return the class name of a label; None for a negative number, which means no class."""
    if label is None or not names:
        return label
    return None if label.startswith("-") else names.get(label, label)


def _is_field(schema: pa.Schema, name: str | None) -> bool:
    """Return whether a name such as `image.path` (Hugging Face) is a field of a struct column."""
    head, dot, tail = (name or "").partition(".")
    if not dot or name in schema.names or head not in schema.names:
        return False
    kind = schema.field(head).type
    return bool(pa.types.is_struct(kind) and kind.get_field_index(tail) >= 0)


def _batches(parquet: pq.ParquetFile, columns: set[str]) -> Iterator[pa.RecordBatch]:
    """Iterate over batches of some columns; without columns, over batches of nulls."""
    if columns:
        yield from parquet.iter_batches(_BATCH, columns=sorted(columns), use_threads=False)
        return
    remaining = parquet.metadata.num_rows
    while remaining > 0:
        rows = min(remaining, _BATCH)
        yield pa.record_batch([pa.nulls(rows)], names=[""])
        remaining -= rows
