"""Conversion of Arrow tables to the data frames of pandas and polars."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pyarrow as pa


def to_pandas(table: pa.Table) -> Any:
    """Return a pandas DataFrame; raise ImportError if pandas is not installed."""
    _import("pandas", "to_pandas")
    return table.to_pandas()


def to_polars(table: pa.Table) -> Any:
    """Return a polars DataFrame; raise ImportError if polars is not installed.

    Vectors of float16 become float32, since polars has no operations on float16.
    """
    polars = _import("polars", "to_polars")
    for number, field in enumerate(table.schema):
        kind = field.type
        if pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type):
            widened = table.column(number).cast(pa.list_(pa.float32(), kind.list_size))
            table = table.set_column(number, field.name, widened)
    return polars.from_arrow(table)


def _import(package: str, method: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{method} needs the package {package}, which is not installed; pip install {package}, "
            "or use to_arrow"
        ) from error
