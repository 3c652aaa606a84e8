"""Many shards' candidates become one ranking, in an order that is total."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.ranking.merge import matches_of, merge_candidates
from retrieval.tables import CANDIDATES


def candidates(rows):
    """Make candidates from (query, key, image_id)."""
    columns = {
        "query": [r[0] for r in rows], "key": [r[1] for r in rows],
        "row": list(range(len(rows))), "list": [0] * len(rows), "image_id": [r[2] for r in rows],
        "path": [r[2] for r in rows], "label": [None] * len(rows),
    }  # fmt: skip
    return pa.table(columns, schema=CANDIDATES)


@settings(deadline=None)
@given(
    keys=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.1, 0.2, 0.3])), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    k=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_the_ranking_does_not_depend_on_how_the_gallery_was_cut(keys, cuts, k, seed):
    rows = [(query, key, f"image{place:02d}") for place, (query, key) in enumerate(keys)]
    order = np.random.default_rng(seed).permutation(len(rows))
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    parts = [[rows[i] for i in order[a:b]] for a, b in pairwise(edges)]
    found, rank = merge_candidates([candidates(part) for part in parts], k)
    expected = []
    for query in range(4):
        own = sorted((row for row in rows if row[0] == query), key=lambda r: (-r[1], r[2]))
        expected += [(*row, place + 1) for place, row in enumerate(own[:k])]
    columns = (found[name].to_pylist() for name in ("query", "key", "image_id"))
    assert list(zip(*columns, rank.tolist(), strict=True)) == expected


def test_matches_are_ordered_by_query_id_and_l2_scores_are_distances():
    asked = pa.table(
        {"row": [4, 7], "image_id": ["z.jpg", "a.jpg"], "path": ["/z", "/a"], "label": ["x", None]}
    )
    parts = [candidates([(4, -2.0, "m"), (7, -1.0, "m"), (4, -0.5, "n")])]
    found = matches_of(parts, 2, asked, "l2")
    assert found["query_id"].to_pylist() == ["a.jpg", "z.jpg", "z.jpg"]
    assert found["rank"].to_pylist() == [1, 1, 2]
    assert found["score"].to_pylist() == [1.0, 0.5, 2.0]
    assert found["query_label"].to_pylist() == [None, "x", "x"]
