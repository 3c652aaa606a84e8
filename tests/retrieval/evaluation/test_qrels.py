"""Test ground truth by qrels: strict parsing, junk images, queries that are not judged."""

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


def test_pairs_are_graded_and_what_is_not_named_is_wrong():
    assert ground_truth().grades(ranked("q1", "a", "b", "c", "d", "z")).tolist() == [
        1,
        0,
        JUNK,
        2,
        WRONG,
    ]
    assert ground_truth().levels.tolist() == [2, 1]


def test_junk_is_passed_over_as_if_it_were_not_there():
    found = grade_rankings(ranked("q1", "c", "z", "d", "a"), ground_truth())
    assert found.grades.tolist() == [[0, 2, 1]]
    assert found.counts.tolist() == [[1, 1]]
    assert (found.relevant.tolist(), found.junk) == ([2], 1)


def test_another_grade_may_be_junk():
    found = grade_rankings(ranked("q1", "b", "c", "d"), ground_truth(junk=0))
    assert found.grades.tolist() == [[0, 2]]  # b is passed over, c is only not relevant


@pytest.mark.parametrize("query", ["q2", "q9"])
def test_a_query_without_a_relevant_image_is_not_judged(query):
    table = ranked(query, "a", "z")
    assert ground_truth().grades(table).tolist() == [UNKNOWN, UNKNOWN]
    found = grade_rankings(table, ground_truth())
    assert (len(found.query_ids), found.left_out) == (0, 1)


def test_a_pair_is_no_other_pair():
    """Query and image are one number inside: an unknown image is not the last of a query before."""
    table = pa.concat_tables([ranked("q1", "nobody"), ranked("q3", "nobody", "a", "a b.jpg")])
    assert ground_truth().grades(table).tolist() == [0, 0, 0, 1]


def test_ids_are_decoded_as_the_trec_format_encodes_them():
    assert ground_truth().judged_queries().to_pylist() == ["q1", "q3"]
    assert ground_truth().grades(ranked("q3", "a b.jpg")).tolist() == [1]


def test_queries_that_found_nothing_are_judged_too():
    found = grade_unanswered(queries(q1="cat", q2=None), ground_truth())
    assert found.query_ids.to_pylist() == ["q1"]
    assert found.counts.tolist() == [[1, 1]]


def test_any_pairs_are_looked_up_as_a_dict_would():
    generator = np.random.default_rng(0)
    known = {
        (f"q{q}", f"x{x}"): int(generator.integers(-1, 4))
        for q, x in generator.integers(0, [12, 40], (200, 2))
    }
    text = "".join(f"{q} 0 {x} {grade}\n" for (q, x), grade in known.items()) + "q0 0 sure 1"
    found = ground_truth(text.encode())
    pairs = [(f"q{q}", f"x{x}") for q, x in np.ndindex(14, 45)]
    table = matches(*((q, None, 1, x, None) for q, x in pairs))
    judged = {q for (q, _), grade in known.items() if grade > 0} | {"q0"}
    expected = [known.get(pair, 0) if pair[0] in judged else UNKNOWN for pair in pairs]
    assert found.grades(table).tolist() == expected
    for query in judged:
        (counts,) = found.query_relevance(queries(**{query: None})).counts.tolist()
        grades = [g for (q, _), g in known.items() if q == query] + [1] * (query == "q0")
        assert counts == [grades.count(level) for level in (3, 2, 1)]


@pytest.mark.parametrize(
    ("text", "said"),
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
def test_what_is_no_qrels_file_is_refused_with_the_line(text, said):
    with pytest.raises(InputError, match=r"--qrels qrels.txt") as refused:
        ground_truth(text)
    assert said in str(refused.value)


def test_windows_lines_marks_and_blanks_do_no_harm():
    text = b"\xef\xbb\xbf  q1 0 a 1  \r\n\r\nq1 0 b 0\r\n"
    assert ground_truth(text).grades(ranked("q1", "a", "b")).tolist() == [1, 0]
