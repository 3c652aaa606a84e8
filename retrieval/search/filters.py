"""Which gallery images may be a match: `--filter`, one condition over their metadata.

The condition is DuckDB's SQL, and it comes from whoever starts the job, who may not be who owns the
cluster. So it is read by DuckDB's own parser and nothing else, and its tree is walked with a list
of what may stand in it: columns, literals, operators and functions that give the same for the same
row wherever and whenever they run. What is not on the list is refused, not the other way round.
What passes runs as the very text that was read, in a database that holds one table and can reach
nothing.
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

from retrieval.search.filter_conditions import names_in, refused

_CLOSED = (
    "memory_limit = '1GB'",
    "enable_progress_bar = false",  # it would go to stdout
    "temp_directory = ''",  # what does not fit is refused, not written
    "autoload_known_extensions = false",
    "autoinstall_known_extensions = false",
    "python_enable_replacements = false",  # else a name may mean a variable of ours
    "enable_external_access = false",
)

_PLACES = {"query_location", "query_location_length"}


@dataclass(frozen=True)
class Filter:
    """A condition that `parse_filter` has checked: its text, and the columns it reads."""

    text: str
    columns: tuple[str, ...]


def parse_filter(text: str, schema: pa.Schema) -> Filter:
    """Check a condition over the columns of `schema`; UsageError where it is not one.

    A column is found by its exact name, else by one that differs in the case of ASCII letters
    alone. Times with a zone are compared in UTC. The condition must read at least one column.
    """
    columns = sorted({_column(text, name, schema) for name in names_in(text, _expression(text))})
    if not columns:
        raise refused(text, "it reads no column", f"read one of {_listed(schema)}")
    # DuckDB takes Path for path: of two such columns in one table it would rename one
    if len({_folded(name) for name in columns}) < len(columns):
        raise refused(text, f"it reads {_quoted(columns)}, of which two differ in case alone")
    found = Filter(text, tuple(columns))
    # one row of nulls: types are checked, and literals that cannot be converted are met
    _evaluated(found, pa.table({name: pa.nulls(1, schema.field(name).type) for name in columns}))
    return found


def passing(wanted: Filter, table: pa.Table) -> NDArray[np.bool_]:
    """Tell which rows of a table pass: (rows,) bool, in their order; null does not pass.

    A row's answer depends on that row alone, so it does not matter how a gallery is cut into
    tables. UsageError where a value cannot be converted, as a label to a number; KeyError where
    the table lacks a column.
    """
    answer = pc.fill_null(_evaluated(wanted, table), fill_value=False)
    assert len(answer) == len(table)
    mask: NDArray[np.bool_] = answer.to_numpy()
    return mask


def _evaluated(wanted: Filter, table: pa.Table) -> pa.ChunkedArray:
    chosen = table.select(list(wanted.columns))
    with _database() as base:
        try:
            base.register("metadata", _readable(chosen))
            base.execute("SET lock_configuration = true")
            answer = base.sql(_statement(wanted.text)).to_arrow_table().column(0)
        except (duckdb.Error, pa.ArrowException) as error:
            raise refused(wanted.text, _first_line(error)) from error
    if not pa.types.is_boolean(answer.type):
        raise refused(wanted.text, f"it gives {answer.type}, not true or false")
    return answer


@contextmanager
def _database() -> Iterator[Any]:
    """Open an empty database in memory that reaches no file, network, extension or variable."""
    with duckdb.connect(":memory:", config={"threads": 1}) as base:
        for setting in _CLOSED:
            base.execute(f"SET {setting}")
        yield base


def _readable(table: pa.Table) -> pa.Table:
    """Give columns as DuckDB reads them: no halves, and times without a zone, which are UTC."""
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
    # in no parentheses, which the text could close; the newline ends a comment in it
    return f"SELECT {text}\nFROM metadata"


def _parsed(text: str) -> dict[str, Any]:
    """Have DuckDB read a condition, and give the tree of the whole statement."""
    brief = "skip_null := true, skip_empty := true, skip_default := true"
    ask = f"SELECT json_serialize_sql(?, {brief})"
    with _database() as base:
        base.execute("SET lock_configuration = true")
        try:
            text.encode()  # what no file could hold is not left to DuckDB to read
            answer = base.execute(ask, [_statement(text)]).fetchone()[0]
            tree: dict[str, Any] = json.loads(answer, object_hook=_without_places)
        except (duckdb.Error, RecursionError, UnicodeError) as error:
            raise refused(text, _first_line(error)) from error
    if tree["error"]:
        raise refused(text, tree["error_message"].partition("\n")[0])
    return tree


def _without_places(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in _PLACES}


def _expression(text: str) -> dict[str, Any]:
    """Give the tree of the condition; UsageError where the statement holds more than it."""
    tree = _parsed(text)
    selected = _selected(tree)
    if tree != _frame() or len(selected) != 1:
        raise refused(text, "it holds more than one condition")
    return selected[0]


@cache
def _frame() -> dict[str, Any]:
    """Give what the tree of a statement is but for its condition; it depends on DuckDB alone."""
    tree = _parsed("1")
    _selected(tree)
    return tree


def _selected(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Take what is selected out of the tree of a statement."""
    node = tree["statements"][0]["node"]
    found: list[dict[str, Any]] = node.pop("select_list", [])
    return found


# --- columns ------------------------------------------------------------------------------------


def _column(text: str, name: str, schema: pa.Schema) -> str:
    """Find the column that a name means, as DuckDB does: exactly, or in other letters' case."""
    exact = [known for known in schema.names if known == name]
    alike = exact or [known for known in schema.names if _folded(known) == _folded(name)]
    if not alike:
        raise refused(text, f"there is no column {name}", f"the columns are {_listed(schema)}")
    if len(alike) > 1:
        raise refused(text, f"{name} may mean {_quoted(alike)}", "write the one that is meant")
    return str(alike[0])


def _folded(name: str) -> bytes:
    return name.encode().lower()  # of bytes: ASCII letters alone, as DuckDB does


def _listed(schema: pa.Schema) -> str:
    return _quoted(schema.names) or "none"


def _quoted(names: list[str]) -> str:
    return ", ".join('"' + name.replace('"', '""') + '"' for name in names)


def _first_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return str(error).partition("\n")[0].strip().rstrip(".")
