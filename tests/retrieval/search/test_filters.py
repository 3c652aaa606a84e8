"""Tests of --filter: SQL semantics against Python oracles, refused conditions, and the sandbox."""

from __future__ import annotations

import datetime as dt
import pickle
import re

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retrieval.core.errors import UsageError
from retrieval.search import filters
from retrieval.search.filter_conditions import FUNCTIONS
from retrieval.search.filters import Filter, matching_rows, parse_filter

UTC = dt.UTC
TABLE = pa.table(
    {
        "label": ["cat", "lynx", None, "dog", "", "50%", "O'Hara", "été"],
        "width": pa.array([100, 300, 250, None, 0, -7, 2**29, 201], pa.int32()),
        "Two words": pa.array([0.5, 1.5, None, -0.0, 1e300, 2.5, 3.5, 4.5]),
        'a"b': [True, False, None, True, False, None, True, False],
        "taken": pa.array(
            [dt.datetime(2019 + n, 1 + n, 2, 3, 4, tzinfo=UTC) for n in range(7)] + [None],
            pa.timestamp("us", "Europe/Berlin"),
        ),
        "tags": [["p"], None, [], ["q", "p"], ["p", "p"], [None], ["r"], ["p"]],
        "half": pa.array([1, 2, None, 4, 5, 6, 7, 8], pa.float16()),
    }
)
ROWS = TABLE.to_pylist()


def label_and_width(predicate):
    """Return a predicate over label and width that is false where either is null."""

    def check(row):
        return None not in (row["label"], row["width"]) and predicate(row["label"], row["width"])

    return check


def column(name, predicate):
    """Return a predicate over one column that is false where the column is null."""
    return lambda row: row[name] is not None and predicate(row[name])


PREDICATES = {
    "label in ('cat','lynx') and width > 200": label_and_width(
        lambda a, w: a in ("cat", "lynx") and w > 200
    ),
    "label = 'cat'": column("label", lambda a: a == "cat"),
    "LABEL = 'cat'": column("label", lambda a: a == "cat"),
    "label <> 'cat' -- and no dog": column("label", lambda a: a != "cat"),
    "label /* ' */ <> 'cat'": column("label", lambda a: a != "cat"),
    "label = 'O''Hara'": column("label", lambda a: a == "O'Hara"),
    "label = '1) FROM read_csv(''x'') --'": lambda row: False,
    "label not in ('cat', 'dog')": column("label", lambda a: a not in ("cat", "dog")),
    "label is null": lambda row: row["label"] is None,
    "label is not null": lambda row: row["label"] is not None,
    "label is distinct from 'cat'": lambda row: row["label"] != "cat",
    "not (width > 200)": column("width", lambda w: w <= 200),
    "width between 100 and 250": column("width", lambda w: 100 <= w <= 250),
    "width not between 100 and 250": column("width", lambda w: not 100 <= w <= 250),
    "width % 100 = 0 or width < 0": column("width", lambda w: w % 100 == 0 or w < 0),
    "-width * 2 + 1 < -200": column("width", lambda w: -w * 2 + 1 < -200),
    "width in (0, null)": column("width", lambda w: w == 0),
    "label like '%o%'": column("label", lambda a: "o" in a),
    "label not like '%o%'": column("label", lambda a: "o" not in a),
    "label like '50!%' escape '!'": column("label", lambda a: a == "50%"),
    "label ilike 'C%'": column("label", lambda a: a.lower().startswith("c")),
    "label glob '[cd]*'": column("label", lambda a: a[:1] in ("c", "d")),
    "label similar to '[a-d].+'": column("label", lambda a: re.fullmatch("[a-d].+", a)),
    "regexp_matches(label, '^.a')": column("label", lambda a: re.search("^.a", a)),
    "LOWER(Upper(label)) = 'été'": column("label", lambda a: a == "été"),
    "length(label) = 3": column("label", lambda a: len(a) == 3),
    "starts_with(label, 'c') or ends_with(label, 'g')": column(
        "label", lambda a: a.startswith("c") or a.endswith("g")
    ),
    "contains(label, 'yn')": column("label", lambda a: "yn" in a),
    "substr(label, 2, 1) = 'a'": column("label", lambda a: a[1:2] == "a"),
    "label || 's' = 'cats'": column("label", lambda a: a == "cat"),
    "coalesce(label, 'none') = 'none'": lambda row: row["label"] is None,
    "ifnull(width, 0) = 0": lambda row: not row["width"],
    "abs(width) = 7": column("width", lambda w: w == -7),
    "greatest(width, 200) = 200": lambda row: row["width"] is None or row["width"] <= 200,
    'round("Two words") = 2': column("Two words", lambda x: x == 1.5),  # half away from zero
    '"Two words" >= 1e300': column("Two words", lambda x: x >= 1e300),
    'width / "Two words" = 200': lambda row: (row["width"], row["Two words"]) in {(100, 0.5),
                                                                                (300, 1.5)},
    '"a""b"': lambda row: row['a"b'] is True,
    'not "a""b"': lambda row: row['a"b'] is False,
    '"a""b" is not true': lambda row: row['a"b'] is not True,
    "case when width > 200 then label = 'lynx' else label = 'cat' end": lambda row: (
        row["label"] == ("lynx" if (row["width"] or 0) > 200 else "cat")
    ),
    "cast(width as varchar) = '300'": column("width", lambda w: w == 300),
    "width::text like '2%'": column("width", lambda w: str(w).startswith("2")),
    "try_cast(label as integer) is null": lambda row: True,
    "year(taken) = 2021": column("taken", lambda t: t.astimezone(UTC).year == 2021),
    "extract(hour from taken) = 3": column("taken", lambda t: True),  # in UTC, not in Berlin
    "taken >= date '2022-01-01'": column(
        "taken", lambda t: t >= dt.datetime(2022, 1, 1, tzinfo=UTC)
    ),
    "taken + interval 1 day < timestamp '2020-02-03 04:00:00'": column(
        "taken", lambda t: t < dt.datetime(2020, 2, 2, 4, tzinfo=UTC)
    ),
    "list_contains(tags, 'p')": column("tags", lambda tags: "p" in tags),
    "'p' in tags": column("tags", lambda tags: "p" in tags),
    "tags[1] = 'p'": column("tags", lambda tags: tags[:1] == ["p"]),
    "half > 4": column("half", lambda x: x > 4),
}  # fmt: skip


@pytest.mark.parametrize("text", PREDICATES)
def test_condition_selects_the_rows_of_the_predicate(text):
    expected = [bool(PREDICATES[text](row)) for row in ROWS]
    condition = parse_filter(text, TABLE.schema)
    mask = matching_rows(pickle.loads(pickle.dumps(condition)), TABLE)
    assert mask.dtype == np.bool_
    assert mask.tolist() == expected


def test_filter_lists_its_columns_by_exact_name():
    text = "LABEL = 'x' or \"two words\" > 1 or width > 0 or width < 0"
    assert parse_filter(text, TABLE.schema) == Filter(text, ("Two words", "label", "width"))


# --- refused conditions ---------------------------------------------------------------------------

DISALLOWED = [
    # more than one expression
    "",
    " ",
    "--",
    "label = 'x';",
    "label = 'x'; select 1",
    "label = 'x'; drop table metadata",
    "label = 'x'; attach 'x.db'",
    "label = 'x'; set enable_external_access = true",
    "label = 'x'; copy metadata to 'out.csv'",
    "label = 'x'; install httpfs",
    "label = 'x'; load httpfs",
    "label = 'x', true",
    "label = 'x' as named",
    "label = 'x' named",
    "named: label = 'x'",
    "distinct label = 'x'",
    "distinct on (width) label = 'x'",
    "label = 'x' into other",
    "1) + (2",
    "width > 1) or (true",
    "label = 'x' /*",
    "label = 'x",
    '"label = 1',
    "$$label",
    # another table
    "label = 'x' from read_csv('/etc/passwd') --",
    "label = 'x' from read_csv('/etc/passwd') /*",
    "label = 'x') from read_csv('/etc/passwd') --",
    "label = 'x' from metadata union all select true",
    "label = 'x' from metadata, range(10) --",
    "label = 'x' from metadata where true --",
    "label = 'x' from metadata; --",
    "true from 'x.parquet' as metadata join",
    "label = 'x' union select true",
    "label = 'x' union select label from metadata union select 'x'",
    "label = 'x' where true",
    "label = 'x' limit 1",
    "label = 'x' order by 1",
    "label = 'x' group by all having true",
    "label = 'x' qualify true",
    # subqueries and table functions
    "label in (select label from metadata)",
    "(select true)",
    "exists (select 1)",
    "exists (from read_csv('/etc/passwd'))",
    "label = (select content from read_text('/etc/passwd'))",
    "width > all (select 1)",
    "label = any (['x'])",
    "label in (from glob('*'))",
    "array(select 1)[1] = width",
    "read_text('/etc/passwd') = label",
    "range(10) = label",
    "unnest(tags) = 'p'",
    # functions of the machine, the time, the settings or other rows
    "getenv('HOME') = label",
    "current_setting('threads') = width",
    "getvariable('x') = label",
    "now() > taken",
    "current_date > taken",
    "current_timestamp > taken",
    "today() > taken",
    "random() < 0.5 and width > 0",
    "uuid() = label",
    "gen_random_uuid() = label",
    "nextval('s') = width",
    "version() = label",
    "user = label",
    "current_user = label",
    "current_schema() = label",
    "current_database() = label",
    "pg_sleep(10) = width",
    "txid_current() = width",
    "setseed(0.5) = width",
    "error(label)",
    "write_log(label)",
    "query('select 1') = width",
    "rowid = 1",
    "age(taken) > interval 1 day",
    "sum(width) > 1",
    "count(*) > 1",
    "count() > 1",
    "max(label) = label",
    "any_value(label) = 'x'",
    "sum(width) over () > 1",
    "row_number() over (order by width) = 1",
    "lag(width) over (order by width) = 1",
    "lower(distinct label) = 'x'",
    "lower(label order by width) = 'x'",
    "lower(label) filter (where true) = 'x'",
    "grouping(label) = 1",
    # unbounded memory
    "repeat(label, 1000000000) = 'x'",
    "lpad(label, 1000000000, 'x') = 'x'",
    "replace(label, 'c', label) = 'x'",
    "list_sum(generate_series(1, 1000000000)) = width",
    "format('{:1000000000}', label) = 'x'",
    "printf('%1000000000d', width) = 'x'",
    # other syntax
    "* = 1",
    "*",
    "metadata.* = 1",
    "columns(*) = 1",
    "columns('w.*') > 1",
    "#2 > 1",
    "width > ?",
    "width > $1",
    "width > $limit",
    "list_filter(tags, x -> x = 'p') = tags",
    "list_filter(tags, lambda x: x = 'p') = tags",
    "[x for x in tags] = tags",
    "label collate nocase = 'X'",
    "cast(label as mine) = 'x'",
    "cast(label as enum('x')) = 'x'",
    "cast(label as json) = 'x'",
    "cast(taken as timestamptz) > timestamp '2020-01-01'",
    "cast(tags as varchar[]) = tags",
    "cast(label as main.varchar) = 'x'",
    "taken at time zone 'UTC' > taken",
    "system.main.getenv('HOME') = label",
    "pg_catalog.lower(label) = 'x'",
    "other.lower(label) = 'x'",
    "label.upper().lower() = 'x'",
    "lower(col := label) = 'x'",
    "try(width > 1)",
    "metadata is null",
    "metadata.label = 'x'",
    "default",
    "pragma_version() = label",
    "pragma version",
    "set threads = 4",
    "select true",
    "from metadata",
    "label = 'x'\0 or true",
    "label = '\ud800'",
    "(" * 100000 + "label = 'x'" + ")" * 100000,
    "not " * 100000 + "label = 'x'",
    "width" + "+ 1" * 100000 + " > 1",
]


@pytest.mark.parametrize("text", DISALLOWED, ids=lambda text: ascii(text)[:60])
def test_disallowed_condition_is_refused_before_evaluation(text, monkeypatch):
    monkeypatch.setattr(filters, "_evaluate", None)
    with pytest.raises(UsageError, match=r"^--filter .*; ") as raised:
        parse_filter(text, TABLE.schema)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 'x'", 'no column colour; the columns are "label", "width"'),
        ("width", "evaluates to int32, not true or false"),
        ("label", "evaluates to string, not true or false"),
        ("width + 1", "not true or false"),
        ("null", "reads no column"),
        ("1 = 1", 'reads no column; read one of "label"'),
        ("width = 'wide'", "Conversion Error"),
        ("tags > 1", "Error"),
        ("year(label) = 1", "Error"),
        ("md5(label) = 'x'", "the function md5 is not allowed; use one of abs, "),
        (
            "cast(label as json) = 'x'",
            r"conversion to (json|unbound) is not allowed; use one of BIGINT, ",
        ),
        ("label.x = 'x'", 'label.x has a dot; write "label.x" in double quotes'),
        ("width > (select 1)", "a subquery is not allowed; write one condition"),
        ("width >", "syntax error"),
    ],
)
def test_refusal_names_reason_and_remedy(text, message):
    with pytest.raises(UsageError) as raised:
        parse_filter(text, TABLE.schema)
    assert re.search(message.lower(), str(raised.value).lower())


def test_value_that_cannot_be_converted_is_a_usage_error():
    condition = parse_filter("cast(label as integer) = 1", TABLE.schema)
    assert matching_rows(condition, pa.table({"label": ["1", None, "2"]})).tolist() == [
        True,
        False,
        False,
    ]
    with pytest.raises(UsageError, match=r"^--filter .*'cat'"):
        matching_rows(condition, TABLE)
    with pytest.raises(UsageError, match=r"^--filter .*'cat'"):
        matching_rows(parse_filter("label and true", TABLE.schema), TABLE)


def test_long_condition_is_shortened_in_errors():
    with pytest.raises(UsageError) as raised:
        parse_filter("label = " + "'x'" * 10_000 + " or", TABLE.schema)
    assert len(str(raised.value)) < 500


def test_allowed_functions_are_deterministic():
    stable = duckdb.sql(
        "SELECT function_name FROM duckdb_functions() WHERE function_type IN ('scalar', 'macro') "
        "AND coalesce(stability, 'CONSISTENT') IN ('CONSISTENT', 'CONSISTENT_WITHIN_QUERY')"
    ).fetchall()
    rewritten = {"if", "nullif"}  # the parser may rewrite them
    assert FUNCTIONS - {name for (name,) in stable} <= rewritten


def test_sandbox_blocks_unchecked_conditions(tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("label\nx\n")
    for text in (
        f"true FROM read_csv('{secret}') --",
        f"true FROM '{secret}' --",
        "true FROM TABLE --",  # the name of a variable of this module
        "getenv('HOME') IS NOT NULL",
    ):
        with pytest.raises(UsageError, match="--filter"):
            matching_rows(Filter(text, ("label",)), TABLE)


# --- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["x", None]),
        pa.array(["x", None], pa.large_string()),
        pa.array(["x", None], pa.string_view()),
        pa.array(["x", None]).dictionary_encode(),
        pa.array([b"x", None]),
        pa.array([1, None], pa.uint8()),
        pa.array([1, None], pa.float16()),
        pa.array([1, None], pa.decimal128(9, 2)),
        pa.array([1, None], pa.date32()),
        pa.array([1, None], pa.timestamp("ns")),
        pa.array([1, None], pa.timestamp("s", "Asia/Tokyo")),
        pa.array([1, None], pa.time64("us")),
        pa.array([1, None], pa.duration("ms")),
        pa.array([{"a": 1}, None]),
        pa.array([[1, 2], None], pa.list_(pa.float32(), 2)),
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    ],
    ids=lambda array: str(array.type),
)
def test_column_of_any_type_can_be_filtered(array):
    table = pa.table({"other": [1, 2], "x": array})
    assert matching_rows(parse_filter("x is null", table.schema), table).tolist() == [False, True]


@pytest.mark.parametrize("name", ["Ü b", 'q"q', "select", "rowid", "metadata", "now", "a.b", "\n"])
def test_column_of_any_name_can_be_filtered(name):
    table = pa.table({"other": [1, 2], name: ["x", None]})
    quoted = '"' + name.replace('"', '""') + '"'
    condition = parse_filter(f"{quoted} is null", table.schema)
    assert condition.columns == (name,)
    assert matching_rows(condition, table).tolist() == [False, True]


def test_column_type_unknown_to_duckdb_is_refused():
    table = pa.table({"x": pa.array([1], pa.decimal256(60)), "y": [1]})
    assert matching_rows(parse_filter("y = 1", table.schema), table).tolist() == [True]
    with pytest.raises(UsageError, match="--filter"):
        parse_filter("x is null", table.schema)


def test_columns_that_differ_in_case_are_distinguished_or_refused():
    table = pa.table({"Path": ["a", "b"], "path": ["b", "b"], "n": [1, 2]})
    assert matching_rows(parse_filter("Path = 'b'", table.schema), table).tolist() == [False, True]
    assert matching_rows(parse_filter("path = 'b'", table.schema), table).tolist() == [True, True]
    with pytest.raises(UsageError, match='PATH is ambiguous: "Path", "path"; write the exact name'):
        parse_filter("PATH = 'b'", table.schema)
    with pytest.raises(UsageError, match="differ in case alone"):
        parse_filter("Path = path", table.schema)


def test_struct_field_can_be_filtered():
    table = pa.table({"camera": [{"model": "x"}, {"model": "y"}, None]})
    condition = parse_filter("struct_extract(camera, 'model') = 'y'", table.schema)
    assert matching_rows(condition, table).tolist() == [False, True, False]


# --- random conditions ----------------------------------------------------------------------------

TOKENS = st.sampled_from(
    [
        *("label", "width", '"Two words"', "taken", "tags", "nothing", "metadata", "*", "?"),
        *("'cat'", "'", '"', "1", "-2.5", "1e400", "null", "true", "[1]", "$1", "$$", "\0", "é"),
        *("=", "<", ">=", "<>", "and", "or", "not", "in", "between", "like", "is", "~", "||", "+"),
        *("(", ")", ",", ";", "--", "/*", "*/", "\n", ".", "::", "int", "varchar", ":", "->"),
        *("lower(", "abs(", "sum(", "getenv(", "read_csv(", "coalesce(", "cast(", "as", "over"),
        *("select", "from", "where", "union", "case", "when", "then", "else", "end", "limit"),
        *("distinct", "filter", "order by", "interval", "day", "date", "exists", "any", "escape"),
    ]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(TOKENS, max_size=12).map(" ".join) | st.text(max_size=20))
@example("width = 1 and\0")
def test_random_condition_is_refused_or_returns_one_value_per_row(text):
    try:
        mask = matching_rows(parse_filter(text, TABLE.schema), TABLE)
    except UsageError:
        return
    assert mask.dtype == np.bool_
    assert mask.shape == (len(TABLE),)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(PREDICATES)), st.lists(st.integers(0, 8), max_size=3).map(sorted))
def test_result_does_not_depend_on_table_boundaries(text, cuts):
    condition = parse_filter(text, TABLE.schema)
    bounds = list(zip([0, *cuts], [*cuts, len(TABLE)], strict=True))
    parts = [matching_rows(condition, TABLE.slice(first, last - first)) for first, last in bounds]
    whole = matching_rows(condition, TABLE)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    chunked = pa.concat_tables([TABLE.slice(first, last - first) for first, last in bounds])
    np.testing.assert_array_equal(matching_rows(condition, chunked), whole)


def test_large_table_preserves_row_order():
    width = np.random.default_rng(0).integers(0, 1000, 300_000)
    table = pa.table({"width": width, "label": np.where(width % 2, "cat", "dog")})
    mask = matching_rows(parse_filter("width > 500 and label = 'cat'", table.schema), table)
    np.testing.assert_array_equal(mask, (width > 500) & (width % 2 == 1))
