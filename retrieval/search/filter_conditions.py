"""What may stand in a condition of `--filter`: a list, and a walk that refuses all else.

The tree is the one that DuckDB's parser gives as JSON, of 1.5 and of 2.0, without the places in the
text. It is walked without recursion, so that a deep one cannot exhaust the stack.
"""

from __future__ import annotations

from typing import Any

from retrieval.core.errors import UsageError

_EXAMPLE = "label in ('cat','lynx') and width > 200"
_BELOW = ("left", "right", "input", "lower", "upper", "child", "else_expr", "type_expr")
_NODES = {
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
"""What may stand in a tree, and which keys such a node may have, in DuckDB 1.5 and 2.0.

A key that is set and not listed (distinct, filter, alias, …) changes what the node means.
"""
_NAMED = {
    "SUBQUERY": "a subquery",
    "STAR": "a star",
    "WINDOW": "a window function",
    "PARAMETER": "a parameter",
    "LAMBDA": "a lambda",
    "COLLATE": "a collation",
    "POSITIONAL_REFERENCE": "a column's number",
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
_SIGNS = {
    "+", "-", "*", "/", "//", "%", "**", "^", "||", "&", "|", "<<", ">>", "^@", "~~", "!~~",
    "~~*", "!~~*", "~~~",
}  # fmt: skip
_SPELLED = {
    "like_escape", "not_like_escape", "ilike_escape", "not_ilike_escape", "to_years",
    "to_months", "to_weeks", "to_days", "to_hours", "to_minutes", "to_seconds", "list_value",
}  # fmt: skip
"""What operators, INTERVAL and […] are called in a tree."""
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
"""What a condition may call: each gives one value a row, from that row alone, and none is much
longer than what it is given. Hence no replace or repeat, which fill the memory, and nothing that
knows the time, the settings or the machine."""
_TYPES = {
    "BOOLEAN", "BOOL", "TINYINT", "SMALLINT", "INTEGER", "INT", "BIGINT", "HUGEINT",
    "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT", "INT2", "INT4", "INT8",
    "FLOAT", "REAL", "DOUBLE", "FLOAT4", "FLOAT8", "DECIMAL", "NUMERIC", "VARCHAR", "TEXT",
    "STRING", "CHAR", "BLOB", "DATE", "TIME", "TIMESTAMP", "DATETIME", "TIMESTAMP_S",
    "TIMESTAMP_MS", "TIMESTAMP_US", "TIMESTAMP_NS", "INTERVAL",
}  # fmt: skip


def names_in(text: str, root: dict[str, Any]) -> list[str]:
    """Walk the tree of a condition and give the columns it names, as often as it does.

    UsageError at the first node that may not stand in it, or not so.
    """
    names, rest = [], [root]
    while rest:
        node = rest.pop()
        kind = node["class"]
        if kind not in _NODES:
            raise refused(text, f"{_NAMED.get(kind, kind.lower())} may not stand in it")
        unknown = node.keys() - _NODES[kind] - {"class", "type"}
        if unknown:
            raise refused(text, f"{', '.join(sorted(unknown)).upper()} may not stand in it")
        _check_node(text, node)
        if kind == "COLUMN_REF":
            names.append(node["column_names"][0])
        rest += _below(text, node)
    return names


def _below(text: str, node: dict[str, Any]) -> list[dict[str, Any]]:
    found = [node[key] for key in _BELOW if key in node]
    found += node.get("children", [])
    for check in node.get("case_checks", []):
        found += [check["when_expr"], check["then_expr"]]
    for argument in node.get("arguments", []):
        if argument.keys() != {"expression"}:
            raise refused(text, "a named argument may not stand in it")
        found.append(argument["expression"])
    return found


def _check_node(text: str, node: dict[str, Any]) -> None:
    kind = node["class"]
    if kind == "COLUMN_REF" and len(node["column_names"]) != 1:
        name = ".".join(node["column_names"])
        raise refused(text, f"{name} has a dot", f'write "{name}" in double quotes')
    if kind == "OPERATOR" and node["type"] not in _OPERATORS:
        raise refused(text, f"{node['type']} may not stand in it")
    if kind == "FUNCTION":
        _check_function(text, node)
    if kind == "TYPE":
        _check_type(text, node["type_name"], node.get("qualified_name", {}).get("path", []))
    if "cast_type" in node:  # as DuckDB 1.5 writes it
        chosen = node["cast_type"]
        decimal = chosen["id"] == "DECIMAL"
        _check_type(text, chosen["id"], [] if decimal else list(chosen.get("type_info", ())))


def _check_function(text: str, node: dict[str, Any]) -> None:
    name = node["function_name"]
    path = node.get("qualified_name", {}).get("path", [name])
    qualified = path != [name] or node.get("schema", "main") != "main"
    if name not in FUNCTIONS | _SIGNS | _SPELLED or qualified:
        called = ".".join(path) if len(path) > 1 else name
        known = ", ".join(sorted(FUNCTIONS))
        raise refused(text, f"it may not call {called}", f"what it may call is {known}")
    if node.get("order_bys", {}).keys() - {"type"}:
        raise refused(text, "ORDER BY may not stand in it")


def _check_type(text: str, name: str, further: list[str]) -> None:
    if name.upper() not in _TYPES or further not in ([], [name]):  # main.varchar, or a collation
        known = ", ".join(sorted(_TYPES))
        raise refused(text, f"it may not convert to {name}", f"the types are {known}")


def refused(text: str, why: str, way: str = "") -> UsageError:
    """Say why a condition is refused, and the way out."""
    shown = text if len(text) <= 200 else text[:200] + "…"
    way = way or f"write one condition over columns, as {_EXAMPLE}"
    return UsageError(f"--filter {shown!r}: {why}; {way}")
