"""Check the syntax tree of a --filter condition against an allowlist.

The tree is the JSON of DuckDB's parser, of versions 1.5 and 2.0, without text locations. It is
walked without recursion, so that a deep tree cannot exhaust the stack.
"""

from __future__ import annotations

from typing import Any

from retrieval.core.errors import UsageError

_EXAMPLE = "label in ('cat','lynx') and width > 200"
_CHILD_KEYS = ("left", "right", "input", "lower", "upper", "child", "else_expr", "type_expr")
_NODE_KEYS = {
    "COLUMN_REF": {"column_names"},
    "CONSTANT": {"literal", "value"},
    "COMPARISON": {"left", "right"},
    "CONJUNCTION": {"children"},
    "OPERATOR": {"children"},
    "BETWEEN": {"input", "lower", "upper"},
    "CASE": {"case_checks", "else_expr"},
    "CAST": {"child", "try_cast", "type_expr", "cast_type"},
    "TYPE": {"type_name", "children", "qualified_name"},
    "FUNCTION": {"function_name", "schema", "qualified_name", "children", "arguments",
                 "order_bys", "is_operator"},
}  # fmt: skip
"""Node classes that are allowed, with the keys each may have, in DuckDB 1.5 and 2.0.

Other keys (distinct, filter, alias, …) would change the meaning of a node.
"""
_NODE_NAMES = {
    "SUBQUERY": "a subquery",
    "STAR": "a star",
    "WINDOW": "a window function",
    "PARAMETER": "a parameter",
    "LAMBDA": "a lambda",
    "COLLATE": "a collation",
    "POSITIONAL_REFERENCE": "a column number",
    "DEFAULT": "DEFAULT",
}
_OPERATORS = {
    "COMPARE_IN",
    "COMPARE_NOT_IN",
    "OPERATOR_NOT",
    "OPERATOR_IS_NULL",
    "OPERATOR_IS_NOT_NULL",
    "OPERATOR_COALESCE",
    "ARRAY_EXTRACT",
}
_OPERATOR_FUNCTIONS = {
    "+", "-", "*", "/", "//", "%", "**", "^", "||", "&", "|", "<<", ">>", "^@", "~~", "!~~",
    "~~*", "!~~*", "~~~",
}  # fmt: skip
_SYNTAX_FUNCTIONS = {
    "like_escape", "not_like_escape", "ilike_escape", "not_ilike_escape", "to_years",
    "to_months", "to_weeks", "to_days", "to_hours", "to_minutes", "to_seconds", "list_value",
}  # fmt: skip
"""Names of functions in a tree that stand for operators, INTERVAL and […]."""
FUNCTIONS = frozenset({
    "abs", "array_contains", "array_extract", "ceil", "ceiling", "concat", "contains",
    "date_part", "date_trunc", "day", "dayname", "dayofweek", "dayofyear", "ends_with",
    "floor", "greatest", "hour", "if", "isfinite", "isinf", "isnan", "isodow",
    "least", "left", "len", "length", "list_contains", "lower", "ltrim", "minute", "month",
    "monthname", "nullif", "position", "prefix", "quarter", "regexp_extract",
    "regexp_full_match", "regexp_matches", "right", "round", "rtrim", "second", "sign",
    "split_part", "starts_with", "strftime", "strip_accents", "strpos", "struct_extract",
    "substr", "substring", "suffix", "trim", "trunc", "upper", "week", "year",
})  # fmt: skip
"""Functions that a condition may call.

Each returns one value per row, from that row alone, not much longer than its arguments. Hence no
replace or repeat, which could fill the memory, and nothing that depends on the time, the settings
or the machine.
"""
_TYPES = {
    "BOOLEAN", "BOOL", "TINYINT", "SMALLINT", "INTEGER", "INT", "BIGINT", "HUGEINT",
    "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT", "INT2", "INT4", "INT8",
    "FLOAT", "REAL", "DOUBLE", "FLOAT4", "FLOAT8", "DECIMAL", "NUMERIC", "VARCHAR", "TEXT",
    "STRING", "CHAR", "BLOB", "DATE", "TIME", "TIMESTAMP", "DATETIME", "TIMESTAMP_S",
    "TIMESTAMP_MS", "TIMESTAMP_US", "TIMESTAMP_NS", "INTERVAL",
}  # fmt: skip


def referenced_columns(text: str, root: dict[str, Any]) -> list[str]:
    """Return the columns that the tree of a condition references, with repetitions.

    Raise UsageError at the first node that is not allowed.
    """
    names, pending = [], [root]
    while pending:
        node = pending.pop()
        node_class = node["class"]
        if node_class not in _NODE_KEYS:
            raise filter_error(
                text, f"{_NODE_NAMES.get(node_class, node_class.lower())} is not allowed"
            )
        unknown = node.keys() - _NODE_KEYS[node_class] - {"class", "type"}
        if unknown:
            raise filter_error(text, f"{', '.join(sorted(unknown)).upper()} is not allowed")
        _check_node(text, node)
        if node_class == "COLUMN_REF":
            names.append(node["column_names"][0])
        pending += _child_nodes(text, node)
    return names


def _child_nodes(text: str, node: dict[str, Any]) -> list[dict[str, Any]]:
    children = [node[key] for key in _CHILD_KEYS if key in node]
    children += node.get("children", [])
    for check in node.get("case_checks", []):
        children += [check["when_expr"], check["then_expr"]]
    for argument in node.get("arguments", []):
        if argument.keys() != {"expression"}:
            raise filter_error(text, "a named argument is not allowed")
        children.append(argument["expression"])
    return children


def _check_node(text: str, node: dict[str, Any]) -> None:
    node_class = node["class"]
    if node_class == "COLUMN_REF" and len(node["column_names"]) != 1:
        name = ".".join(node["column_names"])
        raise filter_error(text, f"{name} has a dot", f'write "{name}" in double quotes')
    if node_class == "OPERATOR" and node["type"] not in _OPERATORS:
        raise filter_error(text, f"{node['type']} is not allowed")
    if node_class == "FUNCTION":
        _check_function(text, node)
    if node_class == "TYPE":
        _check_type(text, node["type_name"], node.get("qualified_name", {}).get("path", []))
    if "cast_type" in node:  # in the tree of DuckDB 1.5
        cast_type = node["cast_type"]
        decimal = cast_type["id"] == "DECIMAL"
        _check_type(text, cast_type["id"], [] if decimal else list(cast_type.get("type_info", ())))


def _check_function(text: str, node: dict[str, Any]) -> None:
    name = node["function_name"]
    path = node.get("qualified_name", {}).get("path", [name])
    qualified = path != [name] or node.get("schema", "main") != "main"
    if name not in FUNCTIONS | _OPERATOR_FUNCTIONS | _SYNTAX_FUNCTIONS or qualified:
        called = ".".join(path) if len(path) > 1 else name
        allowed = ", ".join(sorted(FUNCTIONS))
        raise filter_error(text, f"the function {called} is not allowed", f"use one of {allowed}")
    if node.get("order_bys", {}).keys() - {"type"}:
        raise filter_error(text, "ORDER BY is not allowed")


def _check_type(text: str, name: str, modifiers: list[str]) -> None:
    if name.upper() not in _TYPES or modifiers not in ([], [name]):  # main.varchar, or a collation
        allowed = ", ".join(sorted(_TYPES))
        raise filter_error(text, f"conversion to {name} is not allowed", f"use one of {allowed}")


def filter_error(text: str, reason: str, remedy: str = "") -> UsageError:
    """Return the error for a refused condition, with the reason and a remedy."""
    excerpt = text if len(text) <= 200 else text[:200] + "…"
    remedy = remedy or f"write one condition over columns, such as {_EXAMPLE}"
    return UsageError(f"--filter {excerpt!r}: {reason}; {remedy}")
