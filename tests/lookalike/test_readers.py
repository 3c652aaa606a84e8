"""Test the readers of stores, indexes and matches against the files and exhaustive search."""

import html
import re
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import lookalike
from tests.conftest import draw_photos
from tests.jobs.in_process import index_in_process, rank_in_process
from tests.sample_stores import write_store


def test_matches_are_the_rows_of_the_files(photo_outputs):
    matches = lookalike.open_matches(photo_outputs / "matches")
    table = pq.read_table(photo_outputs / "matches/matches")
    assert matches.to_arrow().equals(table)
    pd.testing.assert_frame_equal(matches.to_pandas(), table.to_pandas())
    assert matches.to_polars().to_dicts() == table.to_pylist()
    assert pa.concat_tables(matches).equals(table)
    query = table["query_id"][5].as_py()
    rows = [row for row in table.to_pylist() if row["query_id"] == query]
    assert matches.for_query(query).to_pylist() == rows
    assert len(matches.for_query("nothing")) == 0
    assert (matches.queries, matches.metric) == (4, "cosine")


def test_missing_packages_are_named(photo_outputs, monkeypatch):
    matches = lookalike.open_matches(photo_outputs / "matches")
    for package in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=f"^to_{package} needs the package {package}, which"):
            getattr(matches, f"to_{package}")()


def test_pictures_of_matches(photo_outputs):
    matches = lookalike.open_matches(photo_outputs / "matches")
    query = matches.to_arrow()["query_id"][0].as_py()
    shown = matches.show([query], matches=3)._repr_html_()
    assert shown.count("data:image/jpeg;base64,") == 4
    for row in matches.for_query(query).to_pylist()[:3]:
        assert row["image_id"] in shown
        assert f"{row['rank']}: {row['score']:.4f}" in shown
    assert matches.show(matches=1).html.count("<tr>") == 4
    assert matches._repr_html_().count("<img") == 3 * 6
    with pytest.raises(lookalike.InputError, match=r"^'nothing' has no matches"):
        matches.show([query, "nothing"])
    with pytest.raises(lookalike.UsageError, match="matches 0: write at least 1"):
        matches.show(matches=0)


def test_html_is_escaped_and_bounded(tmp_path):
    from lookalike.match_reader import Matches

    evil = "<script>alert(1)</script>&\"'.jpg"
    rows = [
        {"query_id": f"{evil}{query:03d}", "rank": rank + 1, "image_id": f"{evil}{rank}",
         "score": 0.5, "query_path": f"/nowhere/{evil}{query}", "path": "", "query_label": evil,
         "label": "</td>"}
        for query in range(60) for rank in range(10)
    ]  # fmt: skip
    from retrieval.core.schemas import MATCHES

    table = pa.Table.from_pylist(rows, MATCHES.schema)
    matches = Matches(evil, 60, "cosine", lambda: [table])
    ids = table["query_id"].unique().to_pylist()
    for text in (matches._repr_html_(), matches.show(ids).html):
        assert "<script" not in text
        assert html.escape(evil) in text
        assert "</td></td>" not in text
    assert "15 further queries are not shown" in matches.show(ids).html
    result = lookalike.Result("verify", {"path": evil}, (evil,))
    assert "<script" not in result._repr_html_()


def test_pillow_settings_are_unchanged(photo_outputs):
    Image.MAX_IMAGE_PIXELS = 12345
    lookalike.open_matches(photo_outputs / "matches").show()
    lookalike.open_index(photo_outputs / "index").search(Image.new("RGB", (40, 40), "red"))
    assert Image.MAX_IMAGE_PIXELS == 12345


def test_store_rows(photo_outputs, tmp_path):
    store = lookalike.open_store(photo_outputs / "store")
    table = store.to_arrow()
    assert (len(store), store.dimension, store.dtype) == (12, table["embedding"].type.list_size,
                                                          "float16")  # fmt: skip
    parts = sorted((photo_outputs / "store").glob("segments/*/parts/*.parquet"))
    expected = pa.concat_tables([pq.read_table(path) for path in parts])
    assert table.equals(expected)
    assert [len(batch) for batch in store] == [3] * 4
    vectors = np.array(expected["embedding"].to_pylist(), np.float16)
    np.testing.assert_array_equal(store.embeddings(), vectors)
    mapped = store.embeddings(tmp_path / "v.npy")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, vectors)
    assert store.to_polars()["embedding"].to_list()[0] == vectors[0].astype(float).tolist()
    assert len(store.to_pandas()) == 12
    assert "12" in store._repr_html_()


def test_other_outputs_are_refused(photo_outputs, tmp_path):
    with pytest.raises(lookalike.Mismatch, match="is of kind store; specify one of kind index"):
        lookalike.open_index(photo_outputs / "store")
    with pytest.raises(lookalike.InputError, match="is not an output of lookalike"):
        lookalike.open_matches(tmp_path)


def test_altered_files_are_refused(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    write_store(tmp_path / "store", vectors)
    index_in_process(tmp_path / "store", tmp_path / "index")
    rank_in_process(tmp_path / "index", tmp_path / "store", tmp_path / "matches")
    readers = {
        "store/segments/00000/parts/*.parquet": lambda: lookalike.open_store(
            tmp_path / "store"
        ).embeddings(),
        "index/shards/*.faiss": lambda: lookalike.open_index(tmp_path / "index").search(vectors),
        "matches/matches/*.parquet": lambda: lookalike.open_matches(
            tmp_path / "matches"
        ).to_arrow(),
    }
    for pattern, read in readers.items():
        read()
        (path,) = tmp_path.glob(pattern)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(lookalike.Damaged, match=re.escape(str(path))):
            read()


def expected_neighbours(vectors, queries, metric, k):
    """Return the rows and scores of the k closest vectors of each query, ties to the smaller."""
    if metric == "cosine":
        left, right = (
            (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float64)
            for v in (queries.astype(np.float64), vectors.astype(np.float64))
        )
        scores = left @ right.T
        keys = -scores
    else:
        difference = queries[:, None].astype(np.float64) - vectors[None].astype(np.float64)
        scores = keys = (difference**2).sum(-1)
    rows = np.argsort(np.round(keys, 12), axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_search_is_exact(vector_index, dtype):
    root, vectors, metric = vector_index
    queries = np.concatenate([vectors[3:4], np.random.default_rng(1).normal(size=(20, 12))])
    queries = queries.astype(dtype)
    index = lookalike.open_index(root / "index")
    result = index.search(queries, k=7).to_arrow()
    rows, scores = expected_neighbours(vectors, queries, metric, 7)
    assert result["query_id"].to_pylist() == sorted(str(n) for n in range(21) for _ in range(7))
    order = np.array([int(query) for query in result["query_id"].to_pylist()[::7]])
    names = [f"a{row:05d}.jpg" for row in rows[order].ravel()]
    assert result["image_id"].to_pylist() == names
    np.testing.assert_allclose(result["score"].to_numpy(), scores[order].ravel(), atol=1e-9)
    assert index.search(queries[0], k=1).to_arrow()["image_id"].to_pylist() == names[:1]
    unlimited = lookalike.open_index(root / "index", memory=1).search(queries, k=7)
    assert unlimited.to_arrow().equals(result)


def test_search_of_some_lists_finds_what_rank_finds(vector_index):
    root, vectors, _ = vector_index
    matches = root / "ranked"
    if not matches.exists():
        rank_in_process(root / "index", root / "store", matches, nprobe=2, top_k=5)
    sampled = lookalike.open_matches(matches)
    index = lookalike.open_index(root / "index")
    ids = [f"a{row:05d}.jpg" for row in range(900)]
    result = index.search(vectors, k=5, nprobe=2, query_ids=ids).to_pandas()
    expected = sampled.to_pandas()
    merged = expected.merge(result, on=["query_id", "rank"], suffixes=("", "_here"))
    assert len(merged) == len(expected) == 4500
    # rank searches its sample of 250 queries exhaustively
    different = merged[merged["image_id"] != merged["image_id_here"]]["query_id"].nunique()
    assert different <= 250
    exact = index.search(vectors, k=5, query_ids=ids).to_arrow()
    assert index.search(vectors, k=5, nprobe=99, query_ids=ids).to_arrow().equals(exact)
    assert index.search(vectors, k=5, gap=1e9, query_ids=ids).to_arrow().equals(exact)
    narrow = index.search(vectors, k=5, gap=0.0, query_ids=ids).to_arrow()
    one_list = index.search(vectors, k=5, nprobe=1, query_ids=ids).to_arrow()
    assert narrow.equals(one_list)


@pytest.mark.parametrize("probing", [{"nprobe": 0}, {"gap": -1.0}, {"gap": float("nan")}, {"k": 0}])
def test_invalid_limits_of_a_search_are_refused(vector_index, probing):
    root, vectors, _ = vector_index
    with pytest.raises(lookalike.UsageError):
        lookalike.open_index(root / "index").search(vectors[:1], **probing)


def test_invalid_queries_are_refused(vector_index, tmp_path):
    root, vectors, _ = vector_index
    index = lookalike.open_index(root / "index")
    with pytest.raises(lookalike.Mismatch, match=r"dimension 3, and .* has 12"):
        index.search(np.ones((2, 3)))
    with pytest.raises(lookalike.UsageError, match="NaN"):
        index.search(np.full((1, 12), np.nan))
    with pytest.raises(lookalike.UsageError, match="pass vectors"):
        index.search([{"a": 1}])
    with pytest.raises(lookalike.UsageError, match="2 ids; pass 1"):
        index.search(vectors[:1], query_ids=["a", "b"])
    with pytest.raises(lookalike.InputError, match=r"nothing.jpg cannot be read"):
        index.search(str(tmp_path / "nothing.jpg"))
    assert len(index.search([]).to_arrow()) == len(index.search(vectors[:0]).to_arrow()) == 0


def test_index_with_lossy_codes_is_searched_by_its_stored_vectors(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    write_store(tmp_path / "store", vectors)
    index_in_process(tmp_path / "store", tmp_path / "index", index_factory="IVF4,SQ8", metric="l2")
    index = lookalike.open_index(tmp_path / "index")
    result = index.search(vectors[:5] + 0.01, k=4).to_arrow()
    rows, _ = expected_neighbours(vectors, vectors[:5] + np.float32(0.01), "l2", 4)
    assert result["image_id"].to_pylist() == [f"a{row:05d}.jpg" for row in rows.ravel()]
    with pytest.raises(lookalike.UsageError, match="has lossy codes"):
        index.search(vectors, nprobe=1)
    (tmp_path / "store").rename(tmp_path / "moved")
    assert index.search(vectors[:5] + 0.01, k=4).to_arrow().equals(result)


def test_images_are_embedded_as_by_rank(photo_outputs):
    index = lookalike.open_index(photo_outputs / "index")
    ranked = lookalike.open_matches(photo_outputs / "matches").to_arrow()
    paths = ranked["query_path"].unique().to_pylist()
    ids = ranked["query_id"].unique().to_pylist()
    result = index.search(paths, k=5, query_ids=ids)
    columns = ["query_id", "rank", "image_id", "query_path", "path"]
    assert result.to_arrow().select(columns).equals(ranked.select(columns))
    np.testing.assert_allclose(
        result.to_arrow()["score"].to_numpy(), ranked["score"].to_numpy(), atol=1e-3
    )
    with pytest.raises(lookalike.UsageError, match="queries repeat a path"):
        index.search([paths[0], paths[0]])
    images = [Image.open(path) for path in paths]
    in_memory = index.search(images, k=5)
    assert in_memory.to_pandas()["score"].min() > 0.9
    assert in_memory._repr_html_().count("<img") == 18
    draw_photos(photo_outputs / "other", 1)


def test_images_need_the_bundle_of_the_index(tmp_path):
    index_in_process(_npy(tmp_path), tmp_path / "index")
    index = lookalike.open_index(tmp_path / "index")
    assert index.search(np.eye(4), k=1).to_arrow()["image_id"].to_pylist() == ["0", "1", "2", "3"]
    with pytest.raises(lookalike.Mismatch, match="holds imported vectors without a model"):
        index.search(Image.new("RGB", (9, 9)))


def _npy(folder):
    np.save(folder / "v.npy", np.eye(4, dtype=np.float32))
    return folder / "v.npy"


def test_faiss_index_has_all_rows(vector_index):
    root, vectors, metric = vector_index
    index = lookalike.open_index(root / "index")
    merged = index.to_faiss()
    assert merged.ntotal == len(index) == 900
    queries = np.random.default_rng(2).normal(size=(10, 12)).astype(np.float32)
    if metric == "cosine":
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    merged.nprobe = index.nlist
    _, rows = merged.search(queries, 3)
    images = index.images()
    assert images["row"].to_pylist() == list(range(900))
    expected = expected_neighbours(vectors, queries, metric, 3)[0]
    if metric == "l2":
        np.testing.assert_array_equal(rows, expected)
    names = images["image_id"].to_pylist()
    result = index.search(queries, k=1).to_arrow()
    if metric == "l2":
        assert result["image_id"].to_pylist() == [names[row] for row in rows[:, 0]]
