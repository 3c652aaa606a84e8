"""Images as bytes in a column of Parquet files, as data sets are published.

A file, a folder or a glob of them. The column holds binary values, or structs with a field `bytes`
(Hugging Face). Listing reads footers and the small columns, never the images. The columns are those
of the first file by name; a later file that lacks one has nulls there. A column's type is one that
takes the values of all files: int8 and int16 make int16, a number and a string make a string.
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

from retrieval.errors import InputError
from retrieval.images.containers import ParquetRow
from retrieval.images.sources.metadata import (
    common_type,
    further,
    label_column,
    refuse_twins,
    require,
    scalar,
    texts,
    values,
)
from retrieval.images.sources.source import Source
from retrieval.images.sources.walk import Found, PassedOver, files_at, readable_files_at
from retrieval.records import Item
from retrieval.storage.reading import open_uri

PARQUET = (".parquet", ".pq")

_BATCH = 1 << 12
_BUFFER = 1 << 20
_FOOTERS = 16  # files whose footers are read at a time: behind a URI it is waiting that costs


@dataclass
class ParquetSource(Source):
    """Images in Parquet; id and label are columns, or FILE/ROW and none.

    Vectors in Parquet are listed in the same way (`vectors.py`).
    """

    root: str
    image_column: str | None = None
    id_column: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    others: int = field(default=0, init=False, compare=False)
    passed_over: PassedOver = field(
        default_factory=PassedOver, init=False, compare=False, repr=False
    )
    column_notes: tuple[str, ...] = field(default=(), init=False, compare=False)
    _common: tuple[list[Found], pa.Schema] | None = field(
        default=None, init=False, compare=False, repr=False
    )
    """The common columns of files: every footer is read for them, which is not done twice."""

    def items(self) -> Iterator[Item]:
        """Yield every row, file by file."""
        self.passed_over = PassedOver()
        files, self.others = files_at(self.root, PARQUET, self.options, self.passed_over)
        columns = self._common_columns([file for file in files if file.problem is None])
        for file in files:
            if file.problem is not None:
                yield file.unread(len(columns))
                continue
            with opened_parquet(file.path, self.options) as parquet:
                yield from self._rows(file, parquet, columns)

    def columns(self) -> pa.Schema:
        """Return the further columns of the first file, with types that fit all files."""
        files = readable_files_at(self.root, PARQUET, self.options)
        for file in files[:1]:
            _, note = label_column(self._schema_of(file), file.path)
            self.column_notes = () if note is None else (note,)
        return self._common_columns(files)

    def check_columns(self) -> None:
        """Refuse options that name columns which are not there, by the first file."""
        for file in readable_files_at(self.root, PARQUET, self.options)[:1]:
            self._further(file, self._schema_of(file))

    def _schema_of(self, file: Found) -> pa.Schema:
        with opened_parquet(file.path, self.options) as parquet:
            return parquet.schema_arrow

    def _common_columns(self, files: list[Found]) -> pa.Schema:
        """Return the further columns of the first file, with types that take the values of all."""
        if not files:
            return pa.schema([])
        if self._common is not None and self._common[0] == files:
            return self._common[1]
        self._common = files, self._read_common(files)
        return self._common[1]

    def _read_common(self, files: list[Found]) -> pa.Schema:
        columns = list(self._further(files[0], self._schema_of(files[0])))
        if not columns:
            return pa.schema([])
        with ThreadPoolExecutor(_FOOTERS) as pool:
            for schema in pool.map(self._schema_of, files[1:]):
                columns = [
                    column.with_type(
                        common_type(column.type, scalar(schema.field(column.name).type))
                    )
                    if schema.names.count(column.name) == 1
                    else column
                    for column in columns
                ]
        return pa.schema(columns)

    def _further(self, file: Found, schema: pa.Schema) -> pa.Schema:
        content = self._content_column(file, schema)
        return further(schema, (content, self._id_column(file, schema)))

    def _content_column(self, file: Found, schema: pa.Schema) -> str:
        require(file.path, "--image-column", self.image_column, schema.names)
        column = self.image_column or image_bytes_column(schema)
        if column is None:
            raise InputError(
                f"which column of {file.path} holds images cannot be told; name it with "
                f"--image-column (there are {', '.join(schema.names)})"
            )
        if not holds_images(schema.field(column).type):
            raise InputError(
                f"the column {column} of {file.path} holds no bytes; name another --image-column"
            )
        return column

    def _id_column(self, file: Found, schema: pa.Schema) -> str | None:
        if not _is_field(schema, self.id_column):
            require(file.path, "--id-column", self.id_column, schema.names)
        return self.id_column or ("image_id" if "image_id" in schema.names else None)

    def _rows(self, file: Found, parquet: pq.ParquetFile, columns: pa.Schema) -> Iterator[Item]:
        schema = parquet.schema_arrow
        refuse_twins(file.path, schema.names)
        content, name = self._content_column(file, schema), self._id_column(file, schema)
        label, _ = label_column(schema, file.path)
        names = class_names(schema, label)
        row = 0
        small = {*columns.names} & {*schema.names} | {one for one in (name, label) if one}
        for batch in _batches(parquet, small):
            ids = texts(batch, name, file.path)
            labels = [_named(text, names) for text in texts(batch, label, file.path)]
            more_values = values(batch, columns, file.path)
            for own, label_text, more in zip(ids, labels, more_values, strict=True):
                yield Item(
                    image_id=own or f"{file.name}/{row}",
                    path=str(ParquetRow(content, row, file.path)),
                    size=None,
                    mtime_ns=file.mtime_ns,
                    label=label_text,
                    place=row,
                    more=more,
                )
                row += 1


@contextmanager
def opened_parquet(path: str, options: Mapping[str, Any]) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file and refuse it by name where it cannot be read."""
    try:
        with (
            open_uri(path, options, block=_BUFFER) as file,
            pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as parquet,
        ):
            yield parquet
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path} cannot be read as Parquet ({error}); fetch or make it again, or remove it"
        ) from error


def image_bytes_column(schema: pa.Schema) -> str | None:
    """Give the column named image if it holds bytes, or the only one that does."""
    found = [field.name for field in schema if holds_images(field.type)]
    if "image" in found:
        return "image"
    return found[0] if len(found) == 1 else None


def holds_images(kind: pa.DataType) -> bool:
    """Tell a column of bytes, or of structs with a field of them, as Hugging Face writes them."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and holds_images(kind.field(place).type)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def class_names(schema: pa.Schema, label: str | None) -> dict[str, str]:
    """Return the names of Hugging Face's classes by their numbers; none where it has none."""
    if label is None or not pa.types.is_integer(schema.field(label).type):
        return {}
    notes = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        feature = json.loads(notes)["info"]["features"][label]
        names = feature["names"] if feature.get("_type") == "ClassLabel" else []
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}
    numbered = names.items() if isinstance(names, dict) else enumerate(names)
    return {str(number): str(name) for number, name in numbered}


def _named(label: str | None, names: dict[str, str]) -> str | None:
    """Return the name of a class; a negative number stands for no class."""
    if label is None or not names:
        return label
    return None if label.startswith("-") else names.get(label, label)


def _is_field(schema: pa.Schema, name: str | None) -> bool:
    """Tell `image.path`, a field of a column of structs, as Hugging Face keeps names of files."""
    head, dot, tail = (name or "").partition(".")
    if not dot or name in schema.names or head not in schema.names:
        return False
    kind = schema.field(head).type
    return bool(pa.types.is_struct(kind) and kind.get_field_index(tail) >= 0)


def _batches(parquet: pq.ParquetFile, columns: set[str]) -> Iterator[pa.RecordBatch]:
    """Read some columns in order; where none is wanted, batches that have rows and nothing else."""
    if columns:
        yield from parquet.iter_batches(_BATCH, columns=sorted(columns), use_threads=False)
        return
    left = parquet.metadata.num_rows
    while left > 0:
        rows = min(left, _BATCH)
        yield pa.record_batch([pa.nulls(rows)], names=[""])
        left -= rows
