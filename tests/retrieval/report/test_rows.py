"""Tests of the selection, grading and order of shown queries against a plain loop."""

import numpy as np
import pyarrow as pa
import pytest

from retrieval.core.schemas import FAILURES, MATCHES
from retrieval.report.facets import LETTERS, facets_script, rank_margins
from retrieval.report.margin import compute_margins
from retrieval.report.page import STATES
from retrieval.report.rows import SHOWN_MATCHES, select_queries

LABELS = ("cat", "dog", "emu", "", "distractor", None)


def expected_margin(matches, metric):
    """Return the margin of one query from its matches, best first, by a plain loop."""
    first = matches[0]
    if len(matches) == 1:
        return float("nan")
    if first["label"] in (None, ""):
        other = matches[1]
    else:  # each distractor is a class of its own
        first_class = first["label"] if first["label"] != "distractor" else None
        others = [match for match in matches[1:] if match["label"] not in (None, "", first_class)]
        other = others[0] if others else matches[-1]
    difference = first["score"] - other["score"]
    return -difference if metric == "l2" else difference


def random_matches(generator, queries, top_k, metric, labels=LABELS):
    rows = []
    for name in queries:
        scores = np.sort(generator.random(generator.integers(1, top_k + 1)))
        for rank, score in enumerate(scores if metric == "l2" else scores[::-1], start=1):
            image = f"g{generator.integers(50):02}.jpg"
            rows.append({
                "query_id": name, "rank": rank, "image_id": image, "score": float(score),
                "query_path": f"/q/{name}", "path": f"/g/{image}",
                "query_label": labels[sum(map(ord, name)) % len(labels)],
                "label": labels[generator.integers(len(labels))],
            })  # fmt: skip
    return rows


def matches_table(rows):
    return pa.Table.from_pylist(rows, schema=MATCHES.schema)


def failures_table(*names):
    return pa.Table.from_pylist(
        [{"row": 1, "image_id": name, "path": f"/q/{name}", "stage": "read", "error": "OSError",
          "message": "broken", "label": "cat"} for name in names],
        schema=FAILURES.schema,
    )  # fmt: skip


class ScoreDependentGrades:
    """Grades of all four kinds, which depend on the digits of the score."""

    def grades(self, rows):
        return ((rows["score"].to_numpy() * 1e6).astype(np.int64) % 4 - 2).astype(np.int16)


def expected_state(matches):
    for match in matches:
        grade = int(match["score"] * 1e6) % 4 - 2
        if grade != -1:
            return {1: "right", 0: "wrong", -2: "unknown"}[grade]
    return "unknown"


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("parts", [1, 4])
def test_shown_queries_equal_loop(metric, parts):
    generator = np.random.default_rng(7)
    names = [f"q{number:03}é.jpg" for number in generator.permutation(60)]
    blocks = [sorted(block) for block in np.array_split(names, parts)]
    rows = [random_matches(generator, block, 30, metric) for block in blocks]
    shown, count = select_queries(
        lambda: map(matches_table, rows),
        failures_table("q999", "a"),
        ScoreDependentGrades(),
        metric,
        1000,
    )
    rows_shown = shown.cut(0, len(shown)).rows()
    assert count == 60
    rows_by_query = {}
    for row in (row for block in rows for row in block if row["rank"] <= SHOWN_MATCHES):
        rows_by_query.setdefault(row["query_id"], []).append(row)
    assert [query.query_id for query in rows_shown] == [*sorted(names), "a", "q999"]
    assert [query.number for query in rows_shown] == list(range(62))
    for query in rows_shown[:60]:
        expected = rows_by_query[query.query_id]
        assert [cell.image_id for cell in query.matches] == [row["image_id"] for row in expected]
        assert [cell.score for cell in query.matches] == [row["score"] for row in expected]
        margin = expected_margin(expected, metric)
        assert query.margin == margin or (margin != margin and query.margin != query.margin)
        assert query.state == expected_state(expected)
        assert query.label == expected[0]["query_label"]
    assert rows_shown[60].failure == "OSError: broken"
    assert rows_shown[61].state == "failed"
    assert sum(shown.counts().values()) == 62


def test_limit_keeps_failed_queries_then_first_by_name():
    rows = [
        matches_table(random_matches(np.random.default_rng(1), [name], 3, "cosine"))
        for name in "dbca"
    ]
    for limit, expected in ((4, "abxy"), (3, "axy"), (2, "xy"), (1, "x"), (9, "abcdxy")):
        shown, _ = select_queries(lambda: rows, failures_table("x", "y"), None, "cosine", limit)
        assert "".join(shown.queries["query_id"].to_pylist()) == expected
    assert set(shown.matches["grade"].to_pylist()) == {-2}
    assert not len(select_queries(list, failures_table(), None, "cosine", 5)[0])


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1, ["x"]), (3, ["a", "b", "x"]), (5, ["a", "b", "c", "m", "x"]),
     (9, ["a", "b", "c", "m", "n", "x"])],
)  # fmt: skip
def test_queries_without_a_match_fill_the_remaining_places(limit, expected):
    """With --min-score most queries may have no match; they do not displace those that have one."""
    rows = [matches_table(random_matches(np.random.default_rng(0), "abc", 3, "cosine"))]
    failures = failures_table("n", "x", "m")
    stages = ["read" if name == "x" else "rank" for name in failures["image_id"].to_pylist()]
    position = FAILURES.schema.get_field_index("stage")
    failures = failures.set_column(position, "stage", pa.array(stages))
    shown, count = select_queries(lambda: rows, failures, None, "cosine", limit)
    assert shown.queries["query_id"].to_pylist() == expected
    assert count == 3


def test_thumbnails_are_numbered_and_missing_ones_are_null():
    rows = [matches_table(random_matches(np.random.default_rng(1), ["b", "a"][::-1], 9, "cosine"))]
    shown, _ = select_queries(lambda: rows, failures_table("x"), None, "cosine", 9)
    paths = shown.paths()
    assert paths == sorted({*shown.queries["path"].to_pylist(), *shown.matches["path"].to_pylist()})
    missing = paths.index("/q/a")
    numbered = shown.with_pictures(paths, [missing])
    for query in numbered.rows():
        expected = None if query.path == "/q/a" else paths.index(query.path)
        assert query.picture == expected
        assert [cell.picture for cell in query.matches] == [
            paths.index(cell.path) for cell in query.matches
        ]
    rows_slice = numbered.cut(1, 3)
    # repr, since nan is not equal to itself
    assert repr(rows_slice.rows()) == repr(numbered.rows()[1:])
    assert rows_slice.matches.nbytes < numbered.matches.nbytes


def test_margins_of_no_single_and_infinite_scores():
    empty = np.zeros(0)
    assert len(compute_margins(empty, empty.astype(np.int64), np.zeros(1, np.int64), "cosine")) == 0
    single = compute_margins(np.array([0.5]), np.array([0]), np.array([0, 1]), "l2")
    assert np.isnan(single).all()
    infinite = compute_margins(np.array([np.inf, 0.5]), np.array([0, 1]), np.array([0, 2]), "ip")
    assert np.isnan(infinite).all()


def test_margin_ranks_are_exact():
    values = np.array([0.3, np.nan, 0.1, 0.3, np.nextafter(0.3, 1), -0.0, 0.0])
    assert rank_margins(values).tolist() == [2, -1, 1, 2, 3, 0, 0]
    assert rank_margins(np.array([np.nan])).tolist() == [-1]


def test_facets_take_at_most_13_bytes_per_query():
    rows = [
        matches_table(
            random_matches(np.random.default_rng(1), [f"q{i}" for i in range(2000)], 2, "cosine")
        )
    ]
    shown, _ = select_queries(lambda: rows, failures_table(), None, "cosine", 2000)
    assert len(facets_script(shown, None)) < 13 * 2000
    assert LETTERS == "rwuf"
    assert len(STATES) == 4
