"""Which source a path means: what is there decides, then the suffix, then the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrieval.core.errors import InputError
from retrieval.sources.base import Source
from retrieval.sources.folder import FolderSource
from retrieval.sources.image_names import is_image
from retrieval.sources.metadata_columns import is_text, require
from retrieval.sources.parquet import (
    PARQUET,
    ParquetSource,
    holds_images,
    image_bytes_column,
    opened_parquet,
)
from retrieval.sources.path_list import CSV, TEXT, ListSource
from retrieval.sources.walk import files_at, is_file, is_folder, is_glob, readable_files_at, walk
from retrieval.sources.webdataset import COMPRESSED, TAR, TarSource

_FORMS = "a folder of images, a list (.txt, .csv, .parquet), .tar or Parquet files, or a glob"


def open_source(
    root: str,
    *,
    image_column: str | None = None,
    id_column: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """Give the source at a path or URI; what is not there or cannot be one is refused.

    The columns are those of lists and Parquet; other sources have none and take no notice.
    """
    plain = options or {}
    if is_folder(root, plain):
        suffix = _kind_of_folder(root, plain)
    elif is_file(root, plain):
        suffix = root.lower()
    elif is_glob(root):
        suffix = files_at(root, (), plain)[0][0].path.lower()
        if not suffix.endswith((*TAR, *COMPRESSED, *PARQUET)):
            raise InputError(f"{root} matches files that are neither .tar nor Parquet; name such")
    else:
        raise InputError(f"{root} does not exist; name {_FORMS}")
    if not suffix:
        return FolderSource(root, plain)
    if suffix.endswith((*TAR, *COMPRESSED)):
        return TarSource(root, plain)
    if suffix.endswith((*TEXT, *CSV)):
        found = ListSource(root, image_column, id_column, plain)
        found.check_columns()
        return found
    if suffix.endswith(PARQUET):
        return _of_parquet(root, image_column, id_column, plain)
    raise InputError(f"{root} is not a folder and no list or container; name {_FORMS}")


def _kind_of_folder(root: str, options: Mapping[str, Any]) -> str:
    """Give the suffix of what a folder without images holds, tars first; else nothing."""
    found = ""
    for file in walk(root, options):
        name = file.name.lower()
        if file.problem is not None:
            continue
        if is_image(name):
            return ""
        if name.endswith(TAR):
            found = TAR[0]
        elif name.endswith(PARQUET):
            found = found or PARQUET[0]
    return found


def _of_parquet(
    root: str, image_column: str | None, id_column: str | None, options: Mapping[str, Any]
) -> Source:
    """Tell images in Parquet from a list of paths in it, by the type of the column that is meant.

    Where none is named a column of bytes comes first: such files often name their images as well.
    """
    first = readable_files_at(root, PARQUET, options)[0]
    with opened_parquet(first.path, options) as parquet:
        schema = parquet.schema_arrow
    require(first.path, "--image-column", image_column, schema.names)
    column = image_column or image_bytes_column(schema)
    if column is not None and holds_images(schema.field(column).type):
        images = ParquetSource(root, image_column, id_column, options)
        images.check_columns()
        return images
    require(first.path, "--id-column", id_column, schema.names)
    if any(holds_images(field.type) for field in schema) and image_column is None:
        return ParquetSource(root, None, id_column, options)  # which asks for the column
    if not is_file(root, options):
        raise InputError(f"{first.path} is a list of paths, and {root} names several; name one")
    if not any(is_text(field.type) for field in schema):
        raise InputError(f"{root} has neither images nor paths in it; name {_FORMS}")
    return ListSource(root, image_column, id_column, options)
