"""Images as bytes in a column of Parquet files, as data sets are published.

A file, a folder or a glob of them. The column holds binary values, or structs with a field `bytes`
(Hugging Face). Listing reads footers and the small columns, never the images. The columns are those
of the first file by name; a later file that lacks one has nulls there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import InputError
from retrieval.images.containers import ParquetRow
from retrieval.images.sources.metadata import (
    further,
    refuse_twins,
    require,
    texts,
    values,
)
from retrieval.images.sources.source import Source
from retrieval.images.sources.walk import Found, PassedOver, files_at
from retrieval.records import Item
from retrieval.storage.reading import open_uri

PARQUET = (".parquet", ".pq")

_BATCH = 1 << 12
_BUFFER = 1 << 20


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

    def items(self) -> Iterator[Item]:
        """Give every row, file by file."""
        columns: pa.Schema | None = None
        self.passed_over = PassedOver()
        files, self.others = files_at(self.root, PARQUET, self.options, self.passed_over)
        for file in files:
            with opened_parquet(file.path, self.options) as parquet:
                if columns is None:
                    columns = self._further(file, parquet.schema_arrow)
                yield from self._rows(file, parquet, columns)

    def columns(self) -> pa.Schema:
        """Give the further columns of the first file."""
        files, _ = files_at(self.root, PARQUET, self.options)
        for file in files[:1]:
            with opened_parquet(file.path, self.options) as parquet:
                return self._further(file, parquet.schema_arrow)
        return pa.schema([])

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
        named = label_names(schema)
        row = 0
        small = {"label", *columns.names} & {*schema.names} | ({name} if name else set())
        for batch in _batches(parquet, small):
            ids = texts(batch, name)
            labels = named(batch)
            for own, label, more in zip(ids, labels, values(batch, columns), strict=True):
                yield Item(
                    image_id=own or f"{file.name}/{row}",
                    path=str(ParquetRow(content, row, file.path)),
                    size=None,
                    mtime_ns=file.mtime_ns,
                    label=label,
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


def label_names(schema: pa.Schema) -> Callable[[pa.RecordBatch], list[str | None]]:
    """Give what reads the labels of a batch: as text, classes of Hugging Face by their names."""
    notes = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        feature = json.loads(notes)["info"]["features"]["label"]
        found = feature["names"] if feature.get("_type") == "ClassLabel" else []
    except (ValueError, LookupError, TypeError, AttributeError):
        found = []
    names = [found[key] for key in sorted(found, key=int)] if isinstance(found, dict) else found
    if not names or not pa.types.is_integer(schema.field("label").type):
        return lambda batch: texts(batch, "label")
    return lambda batch: [
        None if number is None or number < 0
        else names[number] if number < len(names) else str(number)
        for number in batch["label"].to_pylist()
    ]  # fmt: skip


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
