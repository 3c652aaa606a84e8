"""Matches are one order of all candidates, however the gallery was cut."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.core.errors import Damaged
from retrieval.core.schemas import CANDIDATES, MATCHES
from retrieval.search.candidates import best_of, first_repeated
from retrieval.search.merge import matches_of
from tests.retrieval.sample_vectors import image_ids, quick, seeds

Line = tuple[int, float, str]  # query, key, image_id


def candidates(lines: list[Line]) -> pa.Table:
    """Make a table of candidates; row, path and label follow from the id."""
    columns = {
        "query": [query for query, _, _ in lines],
        "key": [key for _, key, _ in lines],
        "row": [crc32(name.encode()) for _, _, name in lines],
        "list": [0] * len(lines),
        "image_id": [name for _, _, name in lines],
        "path": [f"/gallery/{name}" for _, _, name in lines],
        "label": [name[:1] or None for _, _, name in lines],
    }
    return pa.table(
        [pa.array(columns[field.name], field.type) for field in CANDIDATES], schema=CANDIDATES
    )


@st.composite
def cut_candidates(draw: st.DrawFn) -> tuple[list[Line], list[list[Line]]]:
    """Draw candidates with many equal keys, and the same ones shuffled and cut into parts."""
    ids = image_ids(draw(st.integers(1, 12)))
    keys = st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 1e-300, 0.5, np.nextafter(0.5, 1)])
    pairs = draw(st.sets(st.tuples(st.integers(0, 4), st.sampled_from(ids)), max_size=40))
    lines = [(query, draw(keys), name) for query, name in sorted(pairs)]
    shuffled = draw(st.permutations(lines))
    at = sorted(draw(st.lists(st.integers(0, len(lines)), max_size=4)))
    parts = [shuffled[a:b] for a, b in zip([0, *at], [*at, len(lines)], strict=True)]
    return lines, parts


@quick
@given(cut_candidates(), st.integers(1, 6))
def test_the_best_k_of_each_query_by_score_then_bytes_of_image_id(cut, k):
    lines, parts = cut
    order = sorted(lines, key=lambda line: (line[0], -line[1], line[2].encode()))
    expected, ranks = [], []
    for query in range(5):
        best = [line for line in order if line[0] == query][:k]
        expected += best
        ranks += range(len(best))
    table, rank = best_of([candidates(part) for part in parts], k)
    found = zip(*(table[name].to_pylist() for name in ("query", "key", "image_id")), strict=True)
    assert list(found) == expected
    assert rank.tolist() == ranks
    assert table["path"].to_pylist() == [f"/gallery/{name}" for _, _, name in expected]


@quick
@given(cut_candidates(), st.integers(1, 6), seeds)
def test_the_parts_and_their_order_do_not_matter(cut, k, seed):
    lines, parts = cut
    shuffled = np.random.default_rng(seed).permutation(len(parts))
    table, rank = best_of([candidates(parts[place]) for place in shuffled], k)
    whole, whole_rank = best_of([candidates(lines)], k)
    assert table.drop_columns("key").equals(whole.drop_columns("key"))
    np.testing.assert_array_equal(table["key"], whole["key"])  # -0.0 is 0.0
    assert rank.tolist() == whole_rank.tolist()


def test_nothing_merges_to_nothing():
    table, rank = best_of([], 3)
    assert table.schema.equals(CANDIDATES)
    assert len(table) == len(rank) == 0


# --- matches ------------------------------------------------------------------------------------

QUERIES = pa.table(
    {
        "row": [3, 5, 8],
        "image_id": ["b", "a", "c"],
        "path": ["/queries/b", "/queries/a", "/queries/c"],
        "label": ["x", None, "z"],
    }
)
FOUND = [
    candidates([(3, -4.0, "p"), (8, -1.0, "q"), (5, -9.0, "r")]),
    candidates([(3, -2.0, "s"), (8, -1.0, "p"), (5, -0.0, "t"), (3, -7.0, "u")]),
]


@pytest.mark.parametrize(("metric", "sign"), [("cosine", 1), ("ip", 1), ("l2", -1)])
def test_matches_say_who_asked_and_what_was_found(metric, sign):
    table = matches_of(FOUND, 2, QUERIES, metric)
    assert table.schema.equals(MATCHES.schema)
    names = ("query_id", "query_path", "query_label", "rank", "image_id", "path", "label", "score")
    lines = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    assert lines == [
        ("a", "/queries/a", None, 1, "t", "/gallery/t", "t", 0.0),
        ("a", "/queries/a", None, 2, "r", "/gallery/r", "r", sign * -9.0),
        ("b", "/queries/b", "x", 1, "s", "/gallery/s", "s", sign * -2.0),
        ("b", "/queries/b", "x", 2, "p", "/gallery/p", "p", sign * -4.0),
        ("c", "/queries/c", "z", 1, "p", "/gallery/p", "p", sign * -1.0),
        ("c", "/queries/c", "z", 2, "q", "/gallery/q", "q", sign * -1.0),
    ]


def test_a_query_that_nothing_was_found_for_has_no_match():
    table = matches_of([candidates([(3, 1.0, "p")])], 2, QUERIES, "cosine")
    assert table["query_id"].to_pylist() == ["b"]
    assert len(matches_of([], 2, QUERIES, "cosine")) == 0


def test_a_missing_label_is_null():
    table = matches_of([candidates([(3, 1.0, "")])], 2, QUERIES, "cosine")
    assert table["label"].to_pylist() == [None]


@pytest.mark.parametrize("key", [1.0, 0.5])
def test_a_row_that_a_query_has_twice_stops_the_ranking(key):
    """Whether both are of one shard or of two, and whether or not their scores agree."""
    one, other = (3, 1.0, "p"), (3, key, "p")
    for parts in ([[one, other]], [[one], [other]], [[one, (3, 2.0, "s")], [(8, 1.0, "p"), other]]):
        with pytest.raises(RuntimeError, match=r"\(p\) more than once for query row 3, "):
            matches_of([candidates(part) for part in parts], 4, QUERIES, "cosine")
    assert len(matches_of([candidates([one, (8, 1.0, "p")])], 4, QUERIES, "cosine")) == 2


def test_two_rows_of_one_name_stop_the_ranking():
    found = candidates([(3, 1.0, "p"), (3, 0.5, "s")])
    found = found.set_column(found.column_names.index("image_id"), "image_id", [["p", "p"]])
    with pytest.raises(Damaged, match="more than one row of the name p, found for b"):
        matches_of([found], 4, QUERIES, "cosine")


@pytest.mark.parametrize("scale", [1, 2**40, 2**62])
def test_repeated_pairs_are_found_however_large_the_numbers_are(scale):
    """So large that the product of both leaves 64 bits, where other pairs may seem the same."""
    query, image = np.array([0, 1, 1, 0, 1]), np.array([1, 0, 1, 0, 1])
    assert first_repeated(query[:4] * scale, image[:4] * scale) is None
    assert first_repeated(query * scale, image * scale) == 4
    assert first_repeated(np.array([scale, 0]), np.array([0, 1])) is None
    assert first_repeated(query[:0], image[:0]) is None
