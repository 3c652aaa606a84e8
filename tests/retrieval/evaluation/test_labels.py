"""Test ground truth by labels: grades, unknown labels, excluded pairs, relevant counts."""

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


def judged(table=RANKED, ground_truth=None):
    return grade_rankings(table, ground_truth or Labels(GALLERY))


def test_labels_in_the_matches_decide_and_the_unlabelled_are_left_out_and_counted():
    found = judged()
    assert found.query_ids.to_pylist() == ["q1", "q2"]
    assert found.labels.to_pylist() == ["cat", "dog"]
    assert found.hits.tolist() == [[True, False], [False, True]]
    assert found.relevant.tolist() == [3, 1]
    assert found.filled.tolist() == [2, 2]
    assert (found.left_out, found.junk) == (2, 0)


def test_labels_of_a_file_replace_them():
    ground_truth = Labels(
        gallery(cat=1, dog=1), labels(q1="dog", q2=None, q3="cat"), labels(a="cat")
    )
    found = judged(ground_truth=ground_truth)
    assert found.query_ids.to_pylist() == ["q1", "q3"]
    assert found.hits[:, 0].tolist() == [False, True]  # b has no label in the file
    assert found.relevant.tolist() == [1, 1]
    assert found.left_out == 2


def test_a_file_that_labels_no_image_leaves_no_label_of_the_matches():
    found = judged(ground_truth=Labels(GALLERY, labels(), labels()))
    assert len(found.query_ids) == 0
    assert found.left_out == 4


@pytest.mark.parametrize(("nothing", "of_q1"), [("", -2), ("distractor", 0), (None, -2)])
def test_distractors_and_empty_labels_match_nothing_on_either_side(nothing, of_q1):
    """Of an image without a label nobody knows; a distractor is known to be wrong."""
    table = matches(("q1", "cat", 1, "a", nothing), ("q2", nothing, 1, "b", nothing))
    ground_truth = Labels(gallery(cat=1, distractor=5))
    assert ground_truth.grades(table).tolist() == [of_q1, UNKNOWN]
    found = judged(table, ground_truth)
    assert found.query_ids.to_pylist() == ["q1"]
    assert found.hits.tolist() == [[False]]
    assert found.scored.num_rows == (of_q1 == 0)
    assert found.left_out == 1


def test_ranks_decide_and_not_the_order_of_the_table():
    turned = RANKED.take([3, 5, 1, 0, 4, 2])
    found = judged(turned)
    assert dict(zip(found.query_ids.to_pylist(), found.hits.tolist(), strict=True)) == {
        "q1": [True, False],
        "q2": [False, True],
    }


def test_a_query_with_fewer_matches_than_others_misses_the_rest():
    table = matches(("q1", "cat", 1, "a", "cat"), ("q2", "cat", 1, "a", "cat"),
                    ("q2", "cat", 2, "b", "cat"))  # fmt: skip
    found = judged(table)
    assert found.hits.tolist() == [[True, False], [True, True]]
    assert found.filled.tolist() == [1, 2]


def test_an_image_that_a_query_has_twice_is_refused():
    """Also of a query that is not judged: it is the ranking that is wrong."""
    table = matches(("p", "cat", 1, "a", "cat"), ("q", None, 1, "b", "cat"),
                    ("q", None, 2, "a", "dog"), ("q", None, 3, "b", "cat"))  # fmt: skip
    with pytest.raises(Damaged, match=r"^the ranking: the matches of q hold b more than once; "):
        judged(table)


def test_a_class_the_gallery_lacks_has_nothing_relevant_and_still_counts():
    found = judged(matches(("q", "unicorn", 1, "a", "cat")))
    assert (found.relevant.tolist(), found.hits.tolist()) == ([0], [[False]])


def test_images_kept_from_being_a_match_are_not_missed():
    """Of three cats one is the query itself and one is barred from another query."""
    ground_truth = Labels(
        GALLERY,
        excluded_pairs=excluded_pairs(("q1", "a", "cat"), ("q1", "x", "dog"), ("qq", "b", "cat")),
    )
    assert judged(ground_truth=ground_truth).relevant.tolist() == [3 - 1, 1]
    file = labels(a="dog", x="cat", b="dog")
    relabelled = Labels(GALLERY, labels(q1="cat"), file, ground_truth.excluded_pairs)
    assert judged(ground_truth=relabelled).relevant.tolist() == [3 - 1]  # x, which is a cat there


def test_queries_without_an_answer_are_all_wrong_if_they_have_a_label():
    found = grade_unanswered(queries(q7="cat", q8=None, q9="dog"), Labels(GALLERY))
    assert found.query_ids.to_pylist() == ["q7", "q9"]
    assert found.hits.tolist() == [[False], [False]]
    assert found.relevant.tolist() == [3, 1]
    assert found.filled.tolist() == [0, 0]
    assert found.left_out == 1


def test_scores_are_of_what_is_right_or_wrong():
    found = judged().scored.to_pydict()
    assert found == {
        "score": [0.99, 0.98, 0.99, 0.98],
        "query": [0, 0, 1, 1],
        "right": [True, False, False, True],
    }


def test_nothing_is_judged_to_nothing():
    found = judged(RANKED.slice(0, 0))
    assert found.hits.shape == (0, 1)
