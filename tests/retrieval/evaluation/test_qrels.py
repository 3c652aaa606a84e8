"""Tests of ground truth from qrels: strict parsing, junk images, queries without judgements."""

import numpy as np
import pyarrow as pa
import pytest

from retrieval.core.errors import InputError
from retrieval.evaluation.ground_truth import JUNK, UNKNOWN, WRONG
from retrieval.evaluation.qrels import build_qrels, read_qrels
from retrieval.evaluation.relevance import grade_rankings, grade_unanswered
from tests.retrieval.evaluation.tables import matches, queries

FILE = b"""\
q1 0 a 1
q1 0 b 0
q1 0 c -1
q1\t0  d   2
q2 0 a -1

q3 0 a%20b.jpg 1
"""


def ground_truth(text=FILE, **options):
    return build_qrels(read_qrels(text, "qrels.txt"), **options)


def ranked(query, *images):
    return matches(*((query, None, rank, image, None) for rank, image in enumerate(images, 1)))


def test_unlisted_pairs_are_graded_wrong():
    assert ground_truth().grades(ranked("q1", "a", "b", "c", "d", "z")).tolist() == [
        1,
        0,
        JUNK,
        2,
        WRONG,
    ]
    assert ground_truth().levels.tolist() == [2, 1]


def test_junk_images_are_removed_from_rankings():
    graded = grade_rankings(ranked("q1", "c", "z", "d", "a"), ground_truth())
    assert graded.grades.tolist() == [[0, 2, 1]]
    assert graded.counts.tolist() == [[1, 1]]
    assert (graded.relevant.tolist(), graded.junk) == ([2], 1)


def test_junk_grade_is_configurable():
    graded = grade_rankings(ranked("q1", "b", "c", "d"), ground_truth(junk=0))
    assert graded.grades.tolist() == [[0, 2]]  # b is junk and removed, c is not relevant


@pytest.mark.parametrize("query", ["q2", "q9"])
def test_query_without_relevant_images_is_skipped(query):
    table = ranked(query, "a", "z")
    assert ground_truth().grades(table).tolist() == [UNKNOWN, UNKNOWN]
    graded = grade_rankings(table, ground_truth())
    assert (len(graded.query_ids), graded.left_out) == (0, 1)


def test_unknown_images_match_no_pair_of_another_query():
    """Pairs are encoded as one integer: an unknown image must not yield the key of another pair."""
    table = pa.concat_tables([ranked("q1", "unknown"), ranked("q3", "unknown", "a", "a b.jpg")])
    assert ground_truth().grades(table).tolist() == [0, 0, 0, 1]


def test_percent_encoded_ids_are_decoded():
    assert ground_truth().judged_queries().to_pylist() == ["q1", "q3"]
    assert ground_truth().grades(ranked("q3", "a b.jpg")).tolist() == [1]


def test_judged_queries_without_matches_are_counted():
    graded = grade_unanswered(queries(q1="cat", q2=None), ground_truth())
    assert graded.query_ids.to_pylist() == ["q1"]
    assert graded.counts.tolist() == [[1, 1]]


def test_grades_equal_dict_lookup():
    generator = np.random.default_rng(0)
    grade_by_pair = {
        (f"q{query}", f"x{image}"): int(generator.integers(-1, 4))
        for query, image in generator.integers(0, [12, 40], (200, 2))
    }
    text = (
        "".join(f"{query} 0 {image} {grade}\n" for (query, image), grade in grade_by_pair.items())
        + "q0 0 relevant 1"
    )
    qrels = ground_truth(text.encode())
    pairs = [(f"q{query}", f"x{image}") for query, image in np.ndindex(14, 45)]
    table = matches(*((query, None, 1, image, None) for query, image in pairs))
    judged = {query for (query, _), grade in grade_by_pair.items() if grade > 0} | {"q0"}
    expected = [grade_by_pair.get(pair, 0) if pair[0] in judged else UNKNOWN for pair in pairs]
    assert qrels.grades(table).tolist() == expected
    for name in judged:
        (counts,) = qrels.query_relevance(queries(**{name: None})).counts.tolist()
        grades = [grade for (query, _), grade in grade_by_pair.items() if query == name] + [1] * (
            name == "q0"
        )
        assert counts == [grades.count(level) for level in (3, 2, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"q1 0 a\n", "'q1 0 a' is not of the form query_id 0 image_id grade"),
        (b"q1 0 a 1\nq1 0 b 1 more\n", "'q1 0 b 1 more' is not of the form"),
        (b"q1 0 a yes\n", "'q1 0 a yes' is not of the form"),
        (b"q1 0 a 1.5\n", "'q1 0 a 1.5' is not of the form"),
        (b"q1 0 a 1\nq2 0 a 1\nq1 0 a 0\n", "grades a twice for q1; keep one line per pair"),
        (b"q1 0 a 0\nq1 0 b -1\n", "contains no relevant image"),
        (b"", "contains no relevant image"),
        (b"\xff\xfe\x00", "cannot be read as text"),
        (b'"q1" 0 "a" 2\n"q 1" 0 a 1\n', "is not of the form"),
    ],
)
def test_malformed_qrels_file_raises_with_line(text, message):
    with pytest.raises(InputError, match=r"--qrels qrels.txt") as error:
        ground_truth(text)
    assert message in str(error.value)


def test_byte_order_mark_crlf_and_blank_lines_are_accepted():
    text = b"\xef\xbb\xbf  q1 0 a 1  \r\n\r\nq1 0 b 0\r\n"
    assert ground_truth(text).grades(ranked("q1", "a", "b")).tolist() == [1, 0]
