"""Test precomputed vectors (Parquet, .npy): indexed, updated, and used as queries."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings, IndexSettings, RankSettings
from jobs.embedding.embed import embed
from jobs.indexing import index
from jobs.ranking import rank
from retrieval.core.errors import Mismatch, TooManyFailures, UsageError
from retrieval.storage import finished_output
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store.reader import open_store, read_vectors
from tests.commands import run_command_in_process
from tests.jobs.in_process import without_ray
from tests.retrieval.sample_vectors import brute_force, exact_keys
from tests.sample_stores import write_store

DIMENSION, K = 6, 5
LOCAL_CLUSTER = Cluster("local", None)


def draw_vectors(count, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(dtype)


def write_parquet(path, vectors, names, dtype=np.float32, **columns):
    values = pa.array(vectors.astype(dtype).ravel())
    column = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    pq.write_table(pa.table({"id": names, "clip": column, **columns}), path)


def write_npy(root, vectors, names):
    np.save(root / "x.npy", vectors)
    (root / "ids.txt").write_text("".join(f"{name}\n" for name in names))
    return root / "x.npy"


def build_index(root, source, **options):
    defaults = {"max_error_rate": 0.5, "rows_per_shard": 40, **options}
    settings = IndexSettings(embeddings=str(source), output=str(root / "index"), **defaults)
    return index.build_index(settings, LOCAL_CLUSTER)


def run_rank(root, queries, name="matches", **options):
    defaults = {"top_k": K, "max_error_rate": 0.5, **options}
    settings = RankSettings(
        index=str(root / "index"), queries=str(queries), output=str(root / name), **defaults
    )
    manifest = rank.rank(settings, LOCAL_CLUSTER)
    return manifest, pq.read_table(root / name / "matches/part-00000.parquet")


def nearest(queries, rows, names, metric):
    """Return the names and scores of the K nearest rows of each query by brute force."""
    keys, positions = brute_force(exact_keys(queries, rows, metric), np.arange(len(rows)), K)
    return [names[position] for position in positions.ravel()], (
        -keys if metric == "l2" else keys
    ).ravel()


# --- with Ray ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local_ray")
def test_matches_of_parquet_and_npy_files_equal_brute_force(tmp_path):
    gallery, queries = draw_vectors(100, dtype="float64"), draw_vectors(7, 1)
    gallery[3] = np.nan
    names = [f"g{row:03d}" for row in range(100)]
    (tmp_path / "files").mkdir()
    for number, part in enumerate(np.split(np.arange(100), 2)):
        write_parquet(
            tmp_path / f"files/{number}.parquet", gallery[part], [names[r] for r in part],
            np.float64, label=[f"l{row % 3}" for row in part], price=part.tolist(),
        )  # fmt: skip
    manifest = build_index(tmp_path, tmp_path / "files", metric="l2", embedding_dtype="float32")
    assert manifest.counts["rows"] == 99
    store = open_store(open_folder(str(tmp_path / "index/embeddings")))
    assert (store.rows, store.bundle, store.dtype) == (99, None, "float32")
    shard = pq.read_table(tmp_path / "index/shards/00000.rows.parquet")
    assert shard["price"].to_pylist()[:4] == [0, 1, 2, 4]
    assert shard["label"].to_pylist()[:4] == ["l0", "l1", "l2", "l1"]

    path = write_npy(tmp_path, queries, [f"q{row}" for row in range(7)])
    _, matches = run_rank(tmp_path, path, ids=str(tmp_path / "ids.txt"))
    valid_rows = np.delete(np.arange(100), 3)
    expected, scores = nearest(
        queries, gallery[valid_rows].astype(np.float32), np.array(names)[valid_rows], "l2"
    )
    assert matches["query_id"].to_pylist() == [f"q{row}" for row in range(7) for _ in range(K)]
    assert matches["image_id"].to_pylist() == expected
    np.testing.assert_allclose(matches["score"].to_numpy(), scores, rtol=1e-12)
    for output in ("index", "matches"):
        states = [verdict.state for verdict in verify(open_folder(str(tmp_path / output)))]
        assert states == ["finished", "finished"]


# --- without Ray ---------------------------------------------------------------------------------


@pytest.fixture
def in_process():
    """Run all stages in this process."""
    with without_ray():
        yield


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_query_store_of_imported_vectors(tmp_path, metric):
    gallery, queries = draw_vectors(60, dtype="float16"), draw_vectors(5, 1, "float16")
    np.save(tmp_path / "g.npy", gallery)
    write_parquet(tmp_path / "q.parquet", queries, list("abcde"), np.float16)
    build_index(tmp_path, tmp_path / "g.npy", metric=metric)
    embed(
        EmbedSettings(
            input=str(tmp_path / "q.parquet"), output=str(tmp_path / "q"), embedding_column="clip"
        ),
        LOCAL_CLUSTER,
    )
    expected, scores = nearest(queries, gallery, [str(row) for row in range(60)], metric)
    for name, source in (("one", "q"), ("two", "q.parquet")):
        _, matches = run_rank(tmp_path, tmp_path / source, name)
        assert matches["image_id"].to_pylist() == expected
        np.testing.assert_allclose(matches["score"].to_numpy(), scores, rtol=1e-12)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("scale", "offset", "metric"), [(3e-7, 0, "cosine"), (1, 100, "l2")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matches_use_the_precision_of_the_file(tmp_path, scale, offset, metric, dtype):
    gallery = (draw_vectors(400, dtype="float64") * scale + offset).astype(dtype)
    queries = (draw_vectors(40, 1, "float64") * scale + offset).astype(dtype)
    np.save(tmp_path / "g.npy", gallery)
    np.save(tmp_path / "q.npy", queries)
    build_index(tmp_path, tmp_path / "g.npy", metric=metric, rows_per_shard=None)
    _, matches = run_rank(tmp_path, tmp_path / "q.npy", recall=1.0)
    expected, _ = nearest(queries, gallery, [str(row) for row in range(400)], metric)
    images_by_query = {}
    for query, image in zip(
        *(matches[c].to_pylist() for c in ("query_id", "image_id")), strict=True
    ):
        images_by_query.setdefault(int(query), []).append(image)
    assert [image for query in range(40) for image in images_by_query[query]] == expected


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("dtype", "expected_dtype"),
    [("float16", "float16"), (">f2", "float16"), ("float32", "float32"), (">f4", "float32"),
     ("float64", "float32"), ("int8", "float32"), ("uint8", "float32"), ("int64", "float32")],
)  # fmt: skip
def test_dtype_of_an_imported_array(tmp_path, dtype, expected_dtype):
    values = (draw_vectors(20) * 20 + 100).astype(dtype)
    np.save(tmp_path / "g.npy", values)
    embed(EmbedSettings(input=str(tmp_path / "g.npy"), output=str(tmp_path / "s")), LOCAL_CLUSTER)
    store = open_store(open_folder(str(tmp_path / "s")))
    assert store.dtype == expected_dtype
    (block,) = store.blocks()
    np.testing.assert_array_equal(read_vectors(block), values.astype(expected_dtype))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("types", "expected_dtype"),
    [((pa.float16(),), "float16"), ((pa.float32(),), "float32"), ((pa.float64(),), "float32"),
     ((pa.int8(),), "float32"), ((pa.float16(), pa.float32()), "float32")],
)  # fmt: skip
def test_dtype_of_imported_columns(tmp_path, types, expected_dtype):
    (tmp_path / "files").mkdir()
    values = np.round(draw_vectors(4) * 10)
    for number, dtype in enumerate(types):
        flat_values = pa.array(values.ravel().astype(dtype.to_pandas_dtype()), dtype)
        column = pa.FixedSizeListArray.from_arrays(flat_values, DIMENSION)
        pq.write_table(pa.table({"embedding": column}), tmp_path / f"files/{number}.parquet")
    options = {"embedding_column": "embedding", "output": str(tmp_path / "s")}
    embed(EmbedSettings(input=str(tmp_path / "files"), **options), LOCAL_CLUSTER)
    job = json.loads((tmp_path / "s/job.json").read_text())["settings"]
    assert job["embedding_dtype"] == expected_dtype
    assert open_store(open_folder(str(tmp_path / "s"))).rows == 4 * len(types)


@pytest.mark.usefixtures("in_process")
def test_query_vectors_keep_their_precision(tmp_path):
    np.save(tmp_path / "g.npy", draw_vectors(60, dtype="float16"))
    queries = draw_vectors(9, 1)
    column = pa.array(queries.tolist(), pa.list_(pa.float64()))
    pq.write_table(pa.table({"id": list("abcdefghi"), "embedding": column}), tmp_path / "q.parquet")
    build_index(tmp_path, tmp_path / "g.npy", metric="l2")
    _, matches = run_rank(tmp_path, tmp_path / "q.parquet")
    names = [str(row) for row in range(60)]
    expected, scores = nearest(queries, draw_vectors(60, dtype="float16"), names, "l2")
    assert matches["image_id"].to_pylist() == expected
    np.testing.assert_allclose(matches["score"].to_numpy(), scores, rtol=1e-12)
    assert open_store(open_folder(str(tmp_path / "matches/queries"))).dtype == "float32"


@pytest.mark.usefixtures("in_process")
def test_rounding_is_reported_and_recorded_in_run_json(tmp_path):
    gallery = draw_vectors(50) * np.float32(3e-7)
    np.save(tmp_path / "g.npy", gallery)
    options = {"embeddings": str(tmp_path / "g.npy"), "output": str(tmp_path / "index")}
    result = index.start(IndexSettings(**options))
    assert result.values["rounding_changed"] == 0
    assert not any("rounded" in line for line in result.lines)
    result = index.start(IndexSettings(**options, embedding_dtype="float16", overwrite=True))
    assert result.values["rounding_vectors"] == result.values["rounding_changed"] == 50
    assert 2e-5 < result.values["rounding_largest"] < 2.0**-11
    assert any(line.startswith("50 of 50 vectors were rounded") for line in result.lines)
    for output in ("index", "index/embeddings"):
        run = json.loads((tmp_path / output / "run.json").read_text())
        assert run["rounding"]["largest"] == result.values["rounding_largest"]


@pytest.mark.usefixtures("in_process")
def test_new_vectors_are_appended_and_changed_ones_replaced(tmp_path):
    gallery, queries = draw_vectors(90, dtype="float16"), draw_vectors(4, 1, "float16")
    path = tmp_path / "g.npy"
    np.save(path, gallery[:60])
    build_index(tmp_path, path, metric="l2")
    assert finished_output.is_finished(open_folder(str(tmp_path / "index")))
    first_shard = (tmp_path / "index/shards/00000.faiss").read_bytes()
    gallery[7] = draw_vectors(1, 3, "float16")
    np.save(path, gallery)
    manifest = build_index(tmp_path, path, metric="l2")
    store = open_store(open_folder(str(tmp_path / "index/embeddings")))
    assert len(store.segments) == 2
    assert manifest.counts["rows"] == store.rows == 90
    assert store.deleted.tolist() == [7]
    assert (tmp_path / "index/shards/00000.faiss").read_bytes() == first_shard
    np.save(tmp_path / "q.npy", queries)
    _, matches = run_rank(tmp_path, tmp_path / "q.npy")
    expected, _ = nearest(queries, gallery, [str(row) for row in range(90)], "l2")
    assert matches["image_id"].to_pylist() == expected
    second_manifest = build_index(tmp_path, path, metric="l2")
    assert second_manifest.sha256 == manifest.sha256
    verdicts = verify(open_folder(str(tmp_path / "index")))
    assert [verdict.state for verdict in verdicts] == ["finished", "finished"]


@pytest.mark.usefixtures("in_process")
def test_zero_vectors_fail_for_cosine_only(tmp_path):
    gallery = np.concatenate([draw_vectors(20), np.zeros((1, DIMENSION), np.float32)])
    np.save(tmp_path / "g.npy", gallery)
    assert build_index(tmp_path, tmp_path / "g.npy", metric="l2").counts["rows"] == 21
    assert build_index(tmp_path, tmp_path / "g.npy", overwrite=True).counts["rows"] == 20
    with pytest.raises(TooManyFailures, match="1 of 21 vectors failed"):
        build_index(tmp_path, tmp_path / "g.npy", overwrite=True, max_error_rate=0.01)
    assert not finished_output.is_finished(open_folder(str(tmp_path / "index")))


@pytest.mark.usefixtures("in_process")
def test_job_json_names_source_and_store(tmp_path):
    np.save(tmp_path / "g.npy", draw_vectors(20))
    build_index(tmp_path, tmp_path / "g.npy")
    job = json.loads((tmp_path / "index/job.json").read_text())["settings"]
    assert job["vectors"] == str(tmp_path / "g.npy")
    assert job["embeddings"] == str(tmp_path / "index/embeddings")
    assert job["bundle"] is None
    assert not (tmp_path / "index/model").exists()
    with pytest.raises(Mismatch, match="metric was cosine, is l2"):
        build_index(tmp_path, tmp_path / "g.npy", metric="l2")


@pytest.mark.usefixtures("in_process")
def test_mismatched_queries_and_galleries_are_refused(tmp_path, photos):
    np.save(tmp_path / "g.npy", draw_vectors(20))
    np.save(tmp_path / "long.npy", np.ones((2, DIMENSION + 1), np.float32))
    build_index(tmp_path, tmp_path / "g.npy")
    write_store(tmp_path / "embedded", draw_vectors(4, 1, "float16"))
    for queries, message in (
        (photos("pictures", 3), "holds images"),
        (tmp_path / "long.npy", "vectors of dimension 7"),
        (tmp_path / "embedded", "was embedded with a model"),
    ):
        with pytest.raises(Mismatch, match=message):
            run_rank(tmp_path, queries)
        assert not (tmp_path / "matches").exists()
    embed(
        EmbedSettings(input=str(tmp_path / "long.npy"), output=str(tmp_path / "long")),
        LOCAL_CLUSTER,
    )
    with pytest.raises(Mismatch, match="vectors of dimension 7"):
        run_rank(tmp_path, tmp_path / "long")
    np.save(tmp_path / "g.npy", np.ones((2, DIMENSION + 1), np.float32))
    with pytest.raises(Mismatch, match="dimension was 6, is 7"):
        build_index(tmp_path, tmp_path / "g.npy")


def test_invalid_arguments_are_refused_before_any_work(tmp_path):
    np.save(tmp_path / "g.npy", draw_vectors(20))
    (tmp_path / "empty").mkdir()
    for exit_code, message, *arguments in (
        (3, "nowhere.npy does not exist", tmp_path / "nowhere.npy"),
        (3, "empty contains no vectors", tmp_path / "empty"),
        (2, "s3://b/f is no local path", tmp_path / "g.npy", "--export-faiss", "s3://b/f"),
        (3, "ids.txt does not exist", tmp_path / "g.npy", "--ids", tmp_path / "ids.txt"),
    ):
        result = run_command_in_process(
            "index", "--output", tmp_path / "index", "--embeddings", *arguments
        )
        assert result.exit_code == exit_code, result.stderr
        assert message in result.error
    assert not (tmp_path / "index/embeddings").exists()


@pytest.mark.usefixtures("in_process")
def test_imported_query_vectors_for_an_embedded_gallery_are_refused(tmp_path):
    write_store(tmp_path / "store", draw_vectors(30, 0, "float16"))
    np.save(tmp_path / "q.npy", draw_vectors(2))
    build_index(tmp_path, tmp_path / "store", max_error_rate=0.01)
    embed(EmbedSettings(input=str(tmp_path / "q.npy"), output=str(tmp_path / "q")), LOCAL_CLUSTER)
    for queries in ("q.npy", "q"):
        with pytest.raises(Mismatch, match="holds imported vectors"):
            run_rank(tmp_path, tmp_path / queries)


def test_inapplicable_options_are_refused(tmp_path):
    write_store(tmp_path / "store", draw_vectors(30, 0, "float16"))
    settings = {"embeddings": str(tmp_path / "store"), "output": str(tmp_path / "index")}
    for option, value in (("ids", "x"), ("limit", 3), ("embedding_dtype", "float32")):
        with pytest.raises(
            UsageError, match=f"--{option.replace('_', '-')} is for precomputed vectors"
        ):
            index.start(IndexSettings(**settings, **{option: value}))
    np.save(tmp_path / "g.npy", draw_vectors(20))
    embed_options = {"input": str(tmp_path / "g.npy"), "output": str(tmp_path / "s")}
    with pytest.raises(UsageError, match="--pca is for images"):
        embed(EmbedSettings(**embed_options, pca=3), LOCAL_CLUSTER)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"--ids is for \.npy files"):
        embed(
            EmbedSettings(input=str(tmp_path / "photos"), output=embed_options["output"], ids="x"),
            LOCAL_CLUSTER,
        )
    assert not (tmp_path / "s").exists()
