"""Evaluate --filter, one SQL condition over the metadata of gallery images.

The condition is untrusted: whoever starts the job need not own the cluster. DuckDB's own parser
reads it, and `filter_conditions.py` checks the tree against an allowlist of columns, literals,
operators and deterministic functions of one row. The checked text itself then runs in a database
that holds one table and has no access to files, network, extensions or variables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.search.filter_conditions import filter_error, referenced_columns

_SANDBOX_SETTINGS = (
    "memory_limit = '1GB'",
    "enable_progress_bar = false",  # it would be printed to stdout
    "temp_directory = ''",  # fail rather than spill to disk
    "autoload_known_extensions = false",
    "autoinstall_known_extensions = false",
    "python_enable_replacements = false",  # else a name may refer to a Python variable
    "enable_external_access = false",
)

_LOCATION_KEYS = {"query_location", "query_location_length"}


@dataclass(frozen=True)
class Filter:
    """A condition that `parse_filter` has checked: its text, and the columns it reads."""

    text: str
    columns: tuple[str, ...]


def parse_filter(text: str, schema: pa.Schema) -> Filter:
    """Return a checked condition over the columns of `schema`; UsageError if it is not allowed.

    A column is found by its exact name, else by a name that differs only in the case of ASCII
    letters. Times with a zone are compared in UTC. The condition must read at least one column.
    """
    columns = sorted(
        {
            _resolve_column(text, name, schema)
            for name in referenced_columns(text, _parse_condition(text))
        }
    )
    if not columns:
        raise filter_error(text, "it reads no column", f"read one of {_quoted_columns(schema)}")
    # DuckDB ignores case: it would rename one of two such columns
    if len({_fold_ascii_case(name) for name in columns}) < len(columns):
        raise filter_error(text, f"it reads {_quoted(columns)}, of which two differ in case alone")
    condition = Filter(text, tuple(columns))
    # evaluating a row of nulls checks types and the conversion of literals
    _evaluate(condition, pa.table({name: pa.nulls(1, schema.field(name).type) for name in columns}))
    return condition


def matching_rows(condition: Filter, table: pa.Table) -> NDArray[np.bool_]:
    """Return which rows of a table pass the filter, (rows,) bool; null does not pass.

    The result for a row depends on that row alone, so a gallery may be cut into tables in any way.
    Raise UsageError if a value cannot be converted, such as a label to a number, and KeyError if
    the table lacks a column.
    """
    result = pc.fill_null(_evaluate(condition, table), fill_value=False)
    assert len(result) == len(table)
    mask: NDArray[np.bool_] = result.to_numpy()
    return mask


def _evaluate(condition: Filter, table: pa.Table) -> pa.ChunkedArray:
    columns = table.select(list(condition.columns))
    with _database() as database:
        try:
            database.register("metadata", _to_duckdb_types(columns))
            database.execute("SET lock_configuration = true")
            result = database.sql(_statement(condition.text)).to_arrow_table().column(0)
        except (duckdb.Error, pa.ArrowException) as error:
            raise filter_error(condition.text, _first_line(error)) from error
    if not pa.types.is_boolean(result.type):
        raise filter_error(condition.text, f"it evaluates to {result.type}, not true or false")
    return result


@contextmanager
def _database() -> Iterator[Any]:
    """Open an empty database in memory that reaches no file, network, extension or variable."""
    with duckdb.connect(":memory:", config={"threads": 1}) as database:
        for setting in _SANDBOX_SETTINGS:
            database.execute(f"SET {setting}")
        yield database


def _to_duckdb_types(table: pa.Table) -> pa.Table:
    """Return columns as DuckDB reads them: float32 for float16, times in UTC without a zone."""
    fields = []
    for field in table.schema:
        if pa.types.is_timestamp(field.type):
            fields.append(pa.field(field.name, pa.timestamp(field.type.unit)))
        elif pa.types.is_float16(field.type):
            fields.append(pa.field(field.name, pa.float32()))
        else:
            fields.append(pa.field(field.name, field.type))
    return table.cast(pa.schema(fields))


# --- the tree -----------------------------------------------------------------------------------


def _statement(text: str) -> str:
    # without parentheses, which the text could close; the newline ends a comment in it
    return f"SELECT {text}\nFROM metadata"


def _parse(text: str) -> dict[str, Any]:
    """Return the syntax tree of the statement as DuckDB parses it."""
    omitted = "skip_null := true, skip_empty := true, skip_default := true"
    query = f"SELECT json_serialize_sql(?, {omitted})"
    with _database() as database:
        database.execute("SET lock_configuration = true")
        try:
            text.encode()  # refuse text that is not valid Unicode
            result = database.execute(query, [_statement(text)]).fetchone()[0]
            tree: dict[str, Any] = json.loads(result, object_hook=_without_locations)
        except (duckdb.Error, RecursionError, UnicodeError) as error:
            raise filter_error(text, _first_line(error)) from error
    if tree["error"]:
        raise filter_error(text, tree["error_message"].partition("\n")[0])
    return tree


def _without_locations(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in _LOCATION_KEYS}


def _parse_condition(text: str) -> dict[str, Any]:
    """Return the tree of the condition; UsageError if the text holds more than one condition."""
    tree = _parse(text)
    selected = _pop_select_list(tree)
    if tree != _statement_without_condition() or len(selected) != 1:
        raise filter_error(text, "it holds more than one condition")
    return selected[0]


@cache
def _statement_without_condition() -> dict[str, Any]:
    """Return the tree of a statement without its condition; it depends on DuckDB only."""
    tree = _parse("1")
    _pop_select_list(tree)
    return tree


def _pop_select_list(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Remove and return the list of selected expressions of a statement."""
    node = tree["statements"][0]["node"]
    selected: list[dict[str, Any]] = node.pop("select_list", [])
    return selected


# --- columns ------------------------------------------------------------------------------------


def _resolve_column(text: str, name: str, schema: pa.Schema) -> str:
    """Return the column of a name as DuckDB resolves it: exactly, else ignoring ASCII case."""
    exact = [column for column in schema.names if column == name]
    candidates = exact or [
        column for column in schema.names if _fold_ascii_case(column) == _fold_ascii_case(name)
    ]
    if not candidates:
        raise filter_error(
            text, f"there is no column {name}", f"the columns are {_quoted_columns(schema)}"
        )
    if len(candidates) > 1:
        raise filter_error(
            text, f"{name} is ambiguous: {_quoted(candidates)}", "write the exact name"
        )
    return str(candidates[0])


def _fold_ascii_case(name: str) -> bytes:
    return name.encode().lower()  # bytes.lower changes ASCII letters only, like DuckDB


def _quoted_columns(schema: pa.Schema) -> str:
    return _quoted(schema.names) or "none"


def _quoted(names: list[str]) -> str:
    return ", ".join('"' + name.replace('"', '""') + '"' for name in names)


def _first_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return str(error).partition("\n")[0].strip().rstrip(".")
