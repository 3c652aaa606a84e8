"""Tests of label-based ground truth: grades, unknown labels, excluded pairs, relevant counts."""

import pytest

from retrieval.core.errors import Damaged
from retrieval.evaluation.ground_truth import UNKNOWN
from retrieval.evaluation.labels import Labels
from retrieval.evaluation.relevance import grade_rankings, grade_unanswered
from tests.retrieval.evaluation.tables import excluded_pairs, gallery, labels, matches, queries

RANKED = matches(
    ("q1", "cat", 1, "a", "cat"),
    ("q1", "cat", 2, "b", "dog"),
    ("q2", "dog", 1, "a", "cat"),
    ("q2", "dog", 2, "b", "dog"),
    ("q3", None, 1, "a", "cat"),
    ("q4", "distractor", 1, "d", "distractor"),
)
GALLERY = gallery(cat=3, dog=1)


def grade(table=RANKED, ground_truth=None):
    return grade_rankings(table, ground_truth or Labels(GALLERY))


def test_labels_of_matches_define_relevance_and_unlabelled_queries_are_skipped():
    graded = grade()
    assert graded.query_ids.to_pylist() == ["q1", "q2"]
    assert graded.labels.to_pylist() == ["cat", "dog"]
    assert graded.hits.tolist() == [[True, False], [False, True]]
    assert graded.relevant.tolist() == [3, 1]
    assert graded.filled.tolist() == [2, 2]
    assert (graded.left_out, graded.junk) == (2, 0)


def test_labels_file_replaces_labels_of_matches():
    ground_truth = Labels(
        gallery(cat=1, dog=1), labels(q1="dog", q2=None, q3="cat"), labels(a="cat")
    )
    graded = grade(ground_truth=ground_truth)
    assert graded.query_ids.to_pylist() == ["q1", "q3"]
    assert graded.hits[:, 0].tolist() == [False, True]  # b has no label in the file
    assert graded.relevant.tolist() == [1, 1]
    assert graded.left_out == 2


def test_empty_labels_file_removes_all_labels():
    graded = grade(ground_truth=Labels(GALLERY, labels(), labels()))
    assert len(graded.query_ids) == 0
    assert graded.left_out == 4


@pytest.mark.parametrize(("label", "expected_grade"), [("", -2), ("distractor", 0), (None, -2)])
def test_distractors_and_empty_labels_are_never_relevant(label, expected_grade):
    """The grade of an unlabelled image is unknown; a distractor is graded wrong."""
    table = matches(("q1", "cat", 1, "a", label), ("q2", label, 1, "b", label))
    ground_truth = Labels(gallery(cat=1, distractor=5))
    assert ground_truth.grades(table).tolist() == [expected_grade, UNKNOWN]
    graded = grade(table, ground_truth)
    assert graded.query_ids.to_pylist() == ["q1"]
    assert graded.hits.tolist() == [[False]]
    assert graded.scored.num_rows == (expected_grade == 0)
    assert graded.left_out == 1


def test_ranks_define_order_not_table_rows():
    permuted = RANKED.take([3, 5, 1, 0, 4, 2])
    graded = grade(permuted)
    assert dict(zip(graded.query_ids.to_pylist(), graded.hits.tolist(), strict=True)) == {
        "q1": [True, False],
        "q2": [False, True],
    }


def test_missing_matches_of_short_rankings_count_as_wrong():
    table = matches(("q1", "cat", 1, "a", "cat"), ("q2", "cat", 1, "a", "cat"),
                    ("q2", "cat", 2, "b", "cat"))  # fmt: skip
    graded = grade(table)
    assert graded.hits.tolist() == [[True, False], [True, True]]
    assert graded.filled.tolist() == [1, 2]


def test_duplicate_image_in_ranking_raises_damaged():
    """This includes queries without ground truth, since the ranking itself is invalid."""
    table = matches(("p", "cat", 1, "a", "cat"), ("q", None, 1, "b", "cat"),
                    ("q", None, 2, "a", "dog"), ("q", None, 3, "b", "cat"))  # fmt: skip
    with pytest.raises(Damaged, match=r"^the ranking: the matches of q hold b more than once; "):
        grade(table)


def test_query_class_missing_in_gallery_has_no_relevant_images():
    graded = grade(matches(("q", "unicorn", 1, "a", "cat")))
    assert (graded.relevant.tolist(), graded.hits.tolist()) == ([0], [[False]])


def test_excluded_images_do_not_count_as_relevant():
    """Of three cats one is excluded for q1; the pair of another query must not change its count."""
    ground_truth = Labels(
        GALLERY,
        excluded_pairs=excluded_pairs(("q1", "a", "cat"), ("q1", "x", "dog"), ("qq", "b", "cat")),
    )
    assert grade(ground_truth=ground_truth).relevant.tolist() == [3 - 1, 1]
    file = labels(a="dog", x="cat", b="dog")
    relabelled = Labels(GALLERY, labels(q1="cat"), file, ground_truth.excluded_pairs)
    assert grade(ground_truth=relabelled).relevant.tolist() == [
        3 - 1
    ]  # x, a cat in the labels file


def test_labelled_queries_without_matches_are_graded_wrong():
    graded = grade_unanswered(queries(q7="cat", q8=None, q9="dog"), Labels(GALLERY))
    assert graded.query_ids.to_pylist() == ["q7", "q9"]
    assert graded.hits.tolist() == [[False], [False]]
    assert graded.relevant.tolist() == [3, 1]
    assert graded.filled.tolist() == [0, 0]
    assert graded.left_out == 1


def test_scored_matches_pair_scores_with_relevance():
    graded = grade().scored.to_pydict()
    assert graded == {
        "score": [0.99, 0.98, 0.99, 0.98],
        "query": [0, 0, 1, 1],
        "right": [True, False, False, True],
    }


def test_empty_matches_give_empty_rankings():
    graded = grade(RANKED.slice(0, 0))
    assert graded.hits.shape == (0, 1)
