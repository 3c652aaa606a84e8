"""Test the selection, grading and order of shown queries against a loop."""

import numpy as np
import pyarrow as pa
import pytest

from retrieval.core.schemas import FAILURES, MATCHES
from retrieval.report.facets import LETTERS, facets_script, rank_margins
from retrieval.report.margin import compute_margins
from retrieval.report.page import STATES
from retrieval.report.rows import SHOWN_MATCHES, select_queries

LABELS = ("cat", "dog", "emu", "", "distractor", None)


def plain_margin(matches, metric):
    """The same by a loop: rows of one query, best first."""
    first = matches[0]
    if len(matches) == 1:
        return float("nan")
    if first["label"] in (None, ""):
        other = matches[1]
    else:  # each distractor is a class of its own
        same = first["label"] if first["label"] != "distractor" else None
        others = [m for m in matches[1:] if m["label"] not in (None, "", same)]
        other = others[0] if others else matches[-1]
    lead = first["score"] - other["score"]
    return -lead if metric == "l2" else lead


def made(generator, queries, top_k, metric, labels=LABELS):
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


def table(rows):
    return pa.Table.from_pylist(rows, schema=MATCHES.schema)


def failures(*names):
    return pa.Table.from_pylist(
        [{"row": 1, "image_id": name, "path": f"/q/{name}", "stage": "read", "error": "OSError",
          "message": "broken", "label": "cat"} for name in names],
        schema=FAILURES.schema,
    )  # fmt: skip


class Graded:
    """Grades by what the score says, each of the four kinds."""

    def grades(self, rows):
        return ((rows["score"].to_numpy() * 1e6).astype(np.int64) % 4 - 2).astype(np.int16)


def plain_state(matches):
    for each in matches:
        grade = int(each["score"] * 1e6) % 4 - 2
        if grade != -1:
            return {1: "right", 0: "wrong", -2: "unknown"}[grade]
    return "unknown"


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("parts", [1, 4])
def test_queries_are_gathered_judged_and_ordered_as_a_loop_would(metric, parts):
    generator = np.random.default_rng(7)
    names = [f"q{number:03}é.jpg" for number in generator.permutation(60)]
    blocks = [sorted(block) for block in np.array_split(names, parts)]
    rows = [made(generator, block, 30, metric) for block in blocks]
    shown, count = select_queries(
        lambda: map(table, rows), failures("q999", "a"), Graded(), metric, 1000
    )
    found = shown.cut(0, len(shown)).rows()
    assert count == 60
    of = {}
    for row in (row for block in rows for row in block if row["rank"] <= SHOWN_MATCHES):
        of.setdefault(row["query_id"], []).append(row)
    assert [query.query_id for query in found] == [*sorted(names), "a", "q999"]
    assert [query.number for query in found] == list(range(62))
    for query in found[:60]:
        expected = of[query.query_id]
        assert [cell.image_id for cell in query.matches] == [row["image_id"] for row in expected]
        assert [cell.score for cell in query.matches] == [row["score"] for row in expected]
        margin = plain_margin(expected, metric)
        assert query.margin == margin or (margin != margin and query.margin != query.margin)
        assert query.state == plain_state(expected)
        assert query.label == expected[0]["query_label"]
    assert found[60].failure == "OSError: broken"
    assert found[61].state == "failed"
    assert sum(shown.counts().values()) == 62


def test_a_bound_keeps_all_failed_ones_and_then_the_first_by_name():
    rows = [table(made(np.random.default_rng(1), [name], 3, "cosine")) for name in "dbca"]
    for most, expected in ((4, "abxy"), (3, "axy"), (2, "xy"), (1, "x"), (9, "abcdxy")):
        shown, _ = select_queries(lambda: rows, failures("x", "y"), None, "cosine", most)
        assert "".join(shown.queries["query_id"].to_pylist()) == expected
    assert set(shown.matches["grade"].to_pylist()) == {-2}
    assert not len(select_queries(list, failures(), None, "cosine", 5)[0])


def test_pictures_are_numbered_once_and_the_missing_have_none():
    rows = [table(made(np.random.default_rng(1), ["b", "a"][::-1], 9, "cosine"))]
    shown, _ = select_queries(lambda: rows, failures("x"), None, "cosine", 9)
    paths = shown.paths()
    assert paths == sorted({*shown.queries["path"].to_pylist(), *shown.matches["path"].to_pylist()})
    gone = paths.index("/q/a")
    numbered = shown.with_pictures(paths, [gone])
    for query in numbered.rows():
        expected = None if query.path == "/q/a" else paths.index(query.path)
        assert query.picture == expected
        assert [cell.picture for cell in query.matches] == [
            paths.index(cell.path) for cell in query.matches
        ]
    part = numbered.cut(1, 3)
    assert repr(part.rows()) == repr(numbered.rows()[1:])  # nan is not itself
    assert part.matches.nbytes < numbered.matches.nbytes


def test_margins_of_nothing_and_of_one():
    empty = np.zeros(0)
    assert len(compute_margins(empty, empty.astype(np.int64), np.zeros(1, np.int64), "cosine")) == 0
    lone = compute_margins(np.array([0.5]), np.array([0]), np.array([0, 1]), "l2")
    assert np.isnan(lone).all()
    odd = compute_margins(np.array([np.inf, 0.5]), np.array([0, 1]), np.array([0, 2]), "ip")
    assert np.isnan(odd).all()


def test_places_order_margins_exactly():
    values = np.array([0.3, np.nan, 0.1, 0.3, np.nextafter(0.3, 1), -0.0, 0.0])
    assert rank_margins(values).tolist() == [2, -1, 1, 2, 3, 0, 0]
    assert rank_margins(np.array([np.nan])).tolist() == [-1]


def test_facets_are_a_few_bytes_a_query():
    rows = [table(made(np.random.default_rng(1), [f"q{i}" for i in range(2000)], 2, "cosine"))]
    shown, _ = select_queries(lambda: rows, failures(), None, "cosine", 2000)
    assert len(facets_script(shown, None)) < 13 * 2000
    assert LETTERS == "rwuf"
    assert len(STATES) == 4
