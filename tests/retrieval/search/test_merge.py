"""Tests of merging candidates: total order, independence of part boundaries, repeated rows."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.core.errors import Damaged
from retrieval.core.schemas import CANDIDATE_IMAGES_SCHEMA, CANDIDATES_SCHEMA, MATCHES
from retrieval.search.candidates import Candidates, first_repeated_pair, top_candidates
from retrieval.search.merge import rank_candidates
from tests.retrieval.sample_vectors import image_ids, quick, seeds

Row = tuple[int, float, str]  # query, key, image_id


def candidates(rows: list[Row]) -> Candidates:
    """Return candidates; row, path and label are derived from the id."""
    pairs = {
        "query": [query for query, _, _ in rows],
        "key": [key for _, key, _ in rows],
        "row": [row_of(name) for _, _, name in rows],
        "list": [0] * len(rows),
    }
    names = sorted({name for _, _, name in rows})
    images = {
        "row": [row_of(name) for name in names],
        "image_id": names,
        "path": [f"/gallery/{name}" for name in names],
        "label": [name[:1] or None for name in names],
    }
    return Candidates(
        pa.table(pairs, schema=CANDIDATES_SCHEMA),
        lambda: pa.table(images, schema=CANDIDATE_IMAGES_SCHEMA),
    )


def row_of(name: str) -> int:
    return crc32(name.encode())


@st.composite
def cut_candidates(draw: st.DrawFn) -> tuple[list[Row], list[list[Row]]]:
    """Draw candidates with many equal keys, and the same candidates shuffled and cut into parts."""
    ids = image_ids(draw(st.integers(1, 12)))
    keys = st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 1e-300, 0.5, np.nextafter(0.5, 1)])
    pairs = draw(st.sets(st.tuples(st.integers(0, 4), st.sampled_from(ids)), max_size=40))
    rows = [(query, draw(keys), name) for query, name in sorted(pairs)]
    shuffled = draw(st.permutations(rows))
    bounds = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    parts = [
        shuffled[first:last] for first, last in zip([0, *bounds], [*bounds, len(rows)], strict=True)
    ]
    return rows, parts


@quick
@given(cut_candidates(), st.integers(1, 6))
def test_top_candidates_are_ordered_by_score_then_bytes_of_image_id(cut, k):
    rows, parts = cut
    order = sorted(rows, key=lambda candidate: (candidate[0], -candidate[1], candidate[2].encode()))
    expected, ranks = [], []
    for query in range(5):
        best = [candidate for candidate in order if candidate[0] == query][:k]
        expected += best
        ranks += range(len(best))
    best, rank = top_candidates([candidates(part) for part in parts], k)
    table = best.table()
    result = zip(*(table[name].to_pylist() for name in ("query", "key", "image_id")), strict=True)
    assert list(result) == expected
    assert rank.tolist() == ranks
    assert table["path"].to_pylist() == [f"/gallery/{name}" for _, _, name in expected]


@quick
@given(cut_candidates(), st.integers(1, 6), seeds)
def test_result_does_not_depend_on_parts_or_their_order(cut, k, seed):
    rows, parts = cut
    shuffled = np.random.default_rng(seed).permutation(len(parts))
    merged, rank = top_candidates([candidates(parts[position]) for position in shuffled], k)
    best, whole_rank = top_candidates([candidates(rows)], k)
    table, whole = merged.table(), best.table()
    assert table.drop_columns("key").equals(whole.drop_columns("key"))
    np.testing.assert_array_equal(table["key"], whole["key"])  # -0.0 equals 0.0
    assert rank.tolist() == whole_rank.tolist()


def test_images_are_read_only_where_scores_tie():
    """Ties may span more parts than are merged at once."""

    def fail():
        raise AssertionError("images were read")

    parts = [
        Candidates(candidates([(0, float(number), f"{number:02}")]).pairs, fail)
        for number in range(40)
    ]
    best, _ = top_candidates(parts, 3)
    assert best.pairs["key"].to_pylist() == [39.0, 38.0, 37.0]
    with pytest.raises(AssertionError, match="images were read"):
        best.table()
    tied = [candidates([(0, 1.0, f"{39 - number:02}")]) for number in range(40)]
    best, _ = top_candidates(tied, 3)
    assert best.table()["image_id"].to_pylist() == ["00", "01", "02"]


def test_no_candidates_merge_to_an_empty_table():
    best, rank = top_candidates([], 3)
    assert best.pairs.schema.equals(CANDIDATES_SCHEMA)
    assert len(best.table()) == len(rank) == 0


# --- matches --------------------------------------------------------------------------------------

QUERIES = pa.table(
    {
        "row": [3, 5, 8],
        "image_id": ["b", "a", "c"],
        "path": ["/queries/b", "/queries/a", "/queries/c"],
        "label": ["x", None, "z"],
    }
)
PARTS = [
    candidates([(3, -4.0, "p"), (8, -1.0, "q"), (5, -9.0, "r")]),
    candidates([(3, -2.0, "s"), (8, -1.0, "p"), (5, -0.0, "t"), (3, -7.0, "u")]),
]


@pytest.mark.parametrize(("metric", "sign"), [("cosine", 1), ("ip", 1), ("l2", -1)])
def test_matches_have_the_columns_of_query_and_image(metric, sign):
    table = rank_candidates(PARTS, 2, QUERIES, metric)
    assert table.schema.equals(MATCHES.schema)
    names = ("query_id", "query_path", "query_label", "rank", "image_id", "path", "label", "score")
    rows = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    assert rows == [
        ("a", "/queries/a", None, 1, "t", "/gallery/t", "t", 0.0),
        ("a", "/queries/a", None, 2, "r", "/gallery/r", "r", sign * -9.0),
        ("b", "/queries/b", "x", 1, "s", "/gallery/s", "s", sign * -2.0),
        ("b", "/queries/b", "x", 2, "p", "/gallery/p", "p", sign * -4.0),
        ("c", "/queries/c", "z", 1, "p", "/gallery/p", "p", sign * -1.0),
        ("c", "/queries/c", "z", 2, "q", "/gallery/q", "q", sign * -1.0),
    ]


def test_query_without_candidates_has_no_match():
    table = rank_candidates([candidates([(3, 1.0, "p")])], 2, QUERIES, "cosine")
    assert table["query_id"].to_pylist() == ["b"]
    assert len(rank_candidates([], 2, QUERIES, "cosine")) == 0


def test_missing_label_is_null():
    table = rank_candidates([candidates([(3, 1.0, "")])], 2, QUERIES, "cosine")
    assert table["label"].to_pylist() == [None]


@pytest.mark.parametrize("key", [1.0, 0.5])
def test_repeated_row_of_a_query_is_an_error(key):
    """The rows may come from one shard or from two, with equal or different scores."""
    candidate, repeated = (3, 1.0, "p"), (3, key, "p")
    for parts in (
        [[candidate, repeated]],
        [[candidate], [repeated]],
        [[candidate, (3, 2.0, "s")], [(8, 1.0, "p"), repeated]],
    ):
        with pytest.raises(RuntimeError, match=r"\(p\) more than once for query row 3, "):
            rank_candidates([candidates(part) for part in parts], 4, QUERIES, "cosine")
    assert len(rank_candidates([candidates([candidate, (8, 1.0, "p")])], 4, QUERIES, "cosine")) == 2


def test_rows_with_equal_image_ids_are_an_error():
    parts = candidates([(3, 1.0, "p"), (3, 0.5, "s")])
    images = parts.images().set_column(1, "image_id", [["p", "p"]])
    result = Candidates(parts.pairs, lambda: images)
    with pytest.raises(Damaged, match="more than one row with the image_id p, found for b"):
        rank_candidates([result], 4, QUERIES, "cosine")


@pytest.mark.parametrize("scale", [1, 2**40, 2**62])
def test_repeated_pairs_of_large_numbers_are_detected(scale):
    """The combined keys overflow 64 bits here, where different pairs may collide."""
    query, image = np.array([0, 1, 1, 0, 1]), np.array([1, 0, 1, 0, 1])
    assert first_repeated_pair(query[:4] * scale, image[:4] * scale) is None
    assert first_repeated_pair(query * scale, image * scale) == 4
    assert first_repeated_pair(np.array([scale, 0]), np.array([0, 1])) is None
    assert first_repeated_pair(query[:0], image[:0]) is None
