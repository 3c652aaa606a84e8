"""Choice of the source class for a path: by what exists there, then its suffix, then its schema."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from retrieval.core.errors import InputError
from retrieval.sources.base import Source
from retrieval.sources.box_columns import BoxColumns
from retrieval.sources.container_paths import COMPRESSED, CONTAINER_SUFFIXES, PARQUET, TAR
from retrieval.sources.folder import FolderSource
from retrieval.sources.image_names import is_image
from retrieval.sources.metadata_columns import is_text, require_column
from retrieval.sources.parquet import (
    ParquetSource,
    holds_images,
    image_bytes_column,
    opened_parquet,
)
from retrieval.sources.path_list import CSV, TEXT, ListSource
from retrieval.sources.walk import (
    find_files,
    find_readable_files,
    is_file,
    is_folder,
    is_glob,
    walk_files,
)
from retrieval.sources.webdataset import TarSource

_SUPPORTED_INPUTS = (
    "a folder of images, a list (.txt, .csv, .parquet), .tar or Parquet files, or a glob"
)


def open_source(
    root: str,
    *,
    image_column: str | None = None,
    id_column: str | None = None,
    boxes: BoxColumns | None = None,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """Open the source at a path or URI.

    Args:
        root: A folder, a file or a glob.
        image_column: Column with images or their paths, for lists and Parquet; else ignored.
        id_column: Column with image ids, for lists and Parquet; else ignored.
        boxes: Columns with a box per row, for lists in tables and Parquet; else ignored.
        options: Arguments of the fsspec file system.

    Raises:
        InputError: If nothing exists there, or nothing that is supported.
        UsageError: If an option names a column that does not exist.
    """
    fs_options = options or {}
    if is_folder(root, fs_options):
        suffix = _container_suffix(root, fs_options)
    elif is_file(root, fs_options):
        suffix = root.lower()
    elif is_glob(root):
        suffix = find_files(root, (), fs_options)[0][0].path.lower()
        if not suffix.endswith(CONTAINER_SUFFIXES):
            raise InputError(f"{root} matches files that are neither .tar nor Parquet files")
    else:
        raise InputError(_describe_missing(root))
    if not suffix:
        return FolderSource(root, fs_options)
    if suffix.endswith((*TAR, *COMPRESSED)):
        return TarSource(root, fs_options)
    if suffix.endswith((*TEXT, *CSV)):
        source = ListSource(root, image_column, id_column, fs_options, boxes)
        source.check_columns()
        return source
    if suffix.endswith(PARQUET):
        return _open_parquet_source(root, image_column, id_column, boxes, fs_options)
    raise InputError(
        f"{root} is neither a folder, a list nor a container; specify {_SUPPORTED_INPUTS}"
    )


def _container_suffix(root: str, options: Mapping[str, Any]) -> str:
    """Return the suffix of the containers in a folder without images, tars first; else empty."""
    suffix = ""
    for file in walk_files(root, options):
        name = file.name.lower()
        if file.problem is not None:
            continue
        if is_image(name):
            return ""
        if name.endswith(TAR):
            suffix = TAR[0]
        elif name.endswith(PARQUET):
            suffix = suffix or PARQUET[0]
    return suffix


def _open_parquet_source(
    root: str,
    image_column: str | None,
    id_column: str | None,
    boxes: BoxColumns | None,
    options: Mapping[str, Any],
) -> Source:
    """Open Parquet as images, or as a list of paths, depending on the type of the image column.

    Where --image-column is not given, a column of bytes takes precedence over one of paths, since
    files with images often hold their paths as well.
    """
    first = find_readable_files(root, PARQUET, options)[0]
    with opened_parquet(first.path, options) as parquet:
        schema = parquet.schema_arrow
    require_column(first.path, "--image-column", image_column, schema.names)
    column = image_column or image_bytes_column(schema)
    if column is not None and holds_images(schema.field(column).type):
        images = ParquetSource(root, image_column, id_column, options, boxes)
        images.check_columns()
        return images
    if any(holds_images(field.type) for field in schema) and image_column is None:
        return ParquetSource(root, None, id_column, options, boxes)  # its error asks for the column
    if not is_file(root, options):
        raise InputError(f"{first.path} is a list of paths, and {root} names several; specify one")
    if not any(is_text(field.type) for field in schema):
        raise InputError(f"{root} has no column of images or paths; specify {_SUPPORTED_INPUTS}")
    source = ListSource(root, image_column, id_column, options, boxes)
    source.check_columns()
    return source


def _describe_missing(root: str) -> str:
    if root.startswith("hf://") and os.environ.get("HF_HUB_OFFLINE"):
        return (
            f"{root} is read from the hub, and HF_HUB_OFFLINE is set; unset it, or download the "
            "files with `hf download` and specify their folder"
        )
    return f"{root} does not exist; specify {_SUPPORTED_INPUTS}"
