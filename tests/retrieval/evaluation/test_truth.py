"""Who is judged, by which labels, and what counts against."""

import pyarrow as pa
import pytest

from retrieval.errors import InputError
from retrieval.evaluation.truth import judge
from retrieval.tables import FAILURES, MATCHES


def matches(*rows):
    """Make matches from (query, its label, rank, image, its label)."""
    columns = {
        "query_id": [r[0] for r in rows],
        "rank": [r[2] for r in rows],
        "image_id": [r[3] for r in rows],
        "score": [0.0] * len(rows),
        "query_path": [""] * len(rows),
        "path": [""] * len(rows),
        "query_label": [r[1] for r in rows],
        "label": [r[4] for r in rows],
    }
    return pa.table(columns, schema=MATCHES.schema)


def failed(*names):
    rows = [{"row": 0, "image_id": name, "path": "", "stage": "read"} for name in names]
    return pa.Table.from_pylist(rows, FAILURES.schema)


RANKED = matches(
    ("q1", "cat", 1, "a", "cat"),
    ("q1", "cat", 2, "b", "dog"),
    ("q2", "dog", 1, "a", "cat"),
    ("q2", "dog", 2, "b", "dog"),
    ("q3", None, 1, "a", "cat"),
    ("q4", "distractor", 1, "d", "distractor"),
)


def test_labels_in_the_matches_decide_and_the_unlabelled_are_left_out_and_counted():
    found = judge(RANKED, failed(), {"cat": 3, "dog": 1}, None, None)
    assert found.query_ids == ("q1", "q2")
    assert found.hits.tolist() == [[True, False], [False, True]]
    assert found.relevant.tolist() == [3, 1]
    assert found.left_out == 2


def test_labels_of_a_file_replace_them():
    queries = {"q1": "dog", "q2": None, "q3": "cat"}
    found = judge(RANKED, failed(), {"cat": 1, "dog": 1}, queries, {"a": "cat", "b": "dog"})
    assert found.query_ids == ("q1", "q3")
    assert found.hits.tolist() == [[False, True], [True, False]]


def test_a_failed_query_with_a_label_counts_against():
    found = judge(RANKED, failed("q9"), {"cat": 1}, {"q1": "cat", "q9": "cat"}, {"a": "cat"})
    assert found.query_ids == ("q1", "q9")
    assert found.hits.any(1).tolist() == [True, False]


def test_an_unlabelled_match_is_no_hit():
    found = judge(matches(("q", "cat", 1, "a", None)), failed(), {"cat": 1}, None, None)
    assert not found.hits.any()


def test_only_some_labels():
    found = judge(RANKED, failed(), {}, None, None, frozenset({"dog"}))
    assert found.query_ids == ("q2",)


def test_nothing_to_judge_is_refused_and_not_a_quiet_zero():
    with pytest.raises(InputError, match="--labels"):
        judge(matches(("q", None, 1, "a", "cat")), failed(), {"cat": 1}, None, None)
