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


def failed(*names, label=None):
    rows = [{"row": 0, "image_id": n, "path": "", "stage": "read", "label": label} for n in names]
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


def test_a_failed_query_whose_label_is_its_folder_counts_against():
    found = judge(RANKED, failed("cat/q9", label="cat"), {"cat": 1}, None, None)
    assert found.query_ids == ("cat/q9", "q1", "q2")


def test_a_failed_query_without_a_label_is_left_out_and_counted():
    found = judge(RANKED, failed("q9", "q8"), {"cat": 1}, None, None)
    assert found.query_ids == ("q1", "q2")
    assert found.left_out == 2 + 2


def test_if_all_queries_failed_all_are_wrong():
    found = judge(matches(), failed("q1", "q2"), {"cat": 3}, {"q1": "cat", "q2": "dog"}, {})
    assert found.hits.tolist() == [[False], [False]]
    assert found.relevant.tolist() == [3, 0]


def test_distractors_and_empty_labels_are_left_out_and_counted():
    labels = {"q1": "cat", "q2": "distractor", "q3": "", "q4": None}
    found = judge(RANKED, failed("q5"), {"cat": 1}, labels, {"a": "cat"})
    assert found.query_ids == ("q1",)
    assert found.left_out == 4


def test_a_file_that_labels_no_image_leaves_no_label_of_the_matches():
    """Else hits would be counted by one set of labels and relevant images by another."""
    found = judge(RANKED, failed(), {}, {"q1": "cat", "q2": "dog"}, {})
    assert not found.hits.any()
    with pytest.raises(InputError, match="no query has a label"):
        judge(RANKED, failed(), {"cat": 3}, {}, {"a": "cat"})


def test_ranks_decide_and_not_the_order_of_the_table():
    rows = [
        ("q", "cat", rank, name, label) for rank, name, label in [(3, "c", "cat"), (1, "a", "dog")]
    ]
    assert judge(matches(*rows), failed(), {"cat": 1}, None, None).hits.tolist() == [
        [False, False, True]
    ]


def test_a_query_with_fewer_matches_than_others_misses_the_rest():
    rows = [("q", "cat", 1, "a", "cat"), ("r", "cat", 1, "a", "cat"), ("r", "cat", 2, "b", "cat")]
    assert judge(matches(*rows), failed(), {"cat": 2}, None, None).hits.tolist() == [
        [True, False],
        [True, True],
    ]


def test_a_class_the_gallery_lacks_has_nothing_relevant_and_still_counts():
    found = judge(RANKED, failed(), {"cat": 3}, None, None)
    assert found.query_ids == ("q1", "q2")
    assert found.relevant.tolist() == [3, 0]


def test_an_unlabelled_match_is_no_hit():
    found = judge(matches(("q", "cat", 1, "a", None)), failed(), {"cat": 1}, None, None)
    assert not found.hits.any()


def test_only_some_labels():
    found = judge(RANKED, failed(), {}, None, None, frozenset({"dog"}))
    assert found.query_ids == ("q2",)


def test_nothing_to_judge_is_refused_and_not_a_quiet_zero():
    with pytest.raises(InputError, match="--labels"):
        judge(matches(("q", None, 1, "a", "cat")), failed(), {"cat": 1}, None, None)
