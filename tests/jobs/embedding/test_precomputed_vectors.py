"""Tests of precomputed vectors (Parquet, .npy): indexed, updated, and used as queries."""

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
from tests.commands import lookalike_here
from tests.jobs.here import without_ray
from tests.retrieval.sample_vectors import brute_force, exact_keys
from tests.stores import write_store

D, K = 6, 5
HERE = Cluster("local", None)


def drawn(count, seed=0, kind="float32"):
    return np.random.default_rng(seed).normal(size=(count, D)).astype(kind)


def put_parquet(path, vectors, names, kind=np.float32, **columns):
    values = pa.array(vectors.astype(kind).ravel())
    column = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    pq.write_table(pa.table({"id": names, "clip": column, **columns}), path)


def put_npy(root, vectors, names):
    np.save(root / "x.npy", vectors)
    (root / "ids.txt").write_text("".join(f"{name}\n" for name in names))
    return root / "x.npy"


def built(root, source, **options):
    asked = {"max_error_rate": 0.5, "rows_per_shard": 40, **options}
    settings = IndexSettings(embeddings=str(source), output=str(root / "index"), **asked)
    return index.build_index(settings, HERE)


def ranked(root, queries, name="matches", **options):
    asked = {"top_k": K, "max_error_rate": 0.5, **options}
    settings = RankSettings(
        index=str(root / "index"), queries=str(queries), output=str(root / name), **asked
    )
    manifest = rank.rank(settings, HERE)
    return manifest, pq.read_table(root / name / "matches/part-00000.parquet")


def nearest(queries, rows, names, metric):
    """The names of the closest rows by brute force, and their scores."""
    keys, places = brute_force(exact_keys(queries, rows, metric), np.arange(len(rows)), K)
    return [names[place] for place in places.ravel()], (-keys if metric == "l2" else keys).ravel()


# --- with Ray: from files to matches --------------------------------------------------------------


@pytest.mark.usefixtures("ray_here")
def test_from_parquet_and_npy_files_to_matches_as_brute_force_has_them(tmp_path):
    gallery, queries = drawn(100, kind="float64"), drawn(7, 1)
    gallery[3] = np.nan
    names = [f"g{row:03d}" for row in range(100)]
    (tmp_path / "files").mkdir()
    for number, part in enumerate(np.split(np.arange(100), 2)):
        put_parquet(
            tmp_path / f"files/{number}.parquet", gallery[part], [names[r] for r in part],
            np.float64, label=[f"l{row % 3}" for row in part], price=part.tolist(),
        )  # fmt: skip
    manifest = built(tmp_path, tmp_path / "files", metric="l2", embedding_dtype="float32")
    assert manifest.counts["rows"] == 99
    assert manifest.counts["shards"] == 3
    store = open_store(open_folder(str(tmp_path / "index/embeddings")))
    assert (store.rows, store.bundle, store.dtype) == (99, None, "float32")
    shard = pq.read_table(tmp_path / "index/shards/00000.rows.parquet")
    assert shard["price"].to_pylist()[:4] == [0, 1, 2, 4]
    assert shard["label"].to_pylist()[:4] == ["l0", "l1", "l2", "l1"]

    path = put_npy(tmp_path, queries, [f"q{row}" for row in range(7)])
    _, matches = ranked(tmp_path, path, ids=str(tmp_path / "ids.txt"))
    live = np.delete(np.arange(100), 3)
    wanted, scores = nearest(queries, gallery[live].astype(np.float32), np.array(names)[live], "l2")
    assert matches["query_id"].to_pylist() == [f"q{row}" for row in range(7) for _ in range(K)]
    assert matches["image_id"].to_pylist() == wanted
    np.testing.assert_allclose(matches["score"].to_numpy(), scores, rtol=1e-12)
    for output in ("index", "matches"):
        states = [verdict.state for verdict in verify(open_folder(str(tmp_path / output)))]
        assert states == ["finished", "finished"]


# --- without: the same stages ---------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch):
    """All stages in this process, one piece of work after another."""
    from retrieval.index.workers import InProcessWorkers

    monkeypatch.setattr(index, "RayWorkers", lambda cluster: InProcessWorkers())
    with without_ray():
        yield


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_query_stores_made_of_vectors(tmp_path, metric):
    gallery, queries = drawn(60, kind="float16"), drawn(5, 1, "float16")
    np.save(tmp_path / "g.npy", gallery)
    put_parquet(tmp_path / "q.parquet", queries, list("abcde"), np.float16)
    built(tmp_path, tmp_path / "g.npy", metric=metric)
    embed(
        EmbedSettings(
            input=str(tmp_path / "q.parquet"), output=str(tmp_path / "q"), embedding_column="clip"
        ),
        HERE,
    )
    wanted, scores = nearest(queries, gallery, [str(row) for row in range(60)], metric)
    for name, source in (("one", "q"), ("two", "q.parquet")):
        _, matches = ranked(tmp_path, tmp_path / source, name)
        assert matches["image_id"].to_pylist() == wanted
        np.testing.assert_allclose(matches["score"].to_numpy(), scores, rtol=1e-12)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("scale", "offset", "metric"), [(3e-7, 0, "cosine"), (1, 100, "l2")])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_matches_are_those_of_the_numbers_in_the_file(tmp_path, scale, offset, metric, kind):
    gallery = (drawn(400, kind="float64") * scale + offset).astype(kind)
    queries = (drawn(40, 1, "float64") * scale + offset).astype(kind)
    np.save(tmp_path / "g.npy", gallery)
    np.save(tmp_path / "q.npy", queries)
    built(tmp_path, tmp_path / "g.npy", metric=metric, rows_per_shard=None)
    _, matches = ranked(tmp_path, tmp_path / "q.npy", recall=1.0)
    wanted, _ = nearest(queries, gallery, [str(row) for row in range(400)], metric)
    found = {}
    for query, image in zip(
        *(matches[c].to_pylist() for c in ("query_id", "image_id")), strict=True
    ):
        found.setdefault(int(query), []).append(image)
    assert [image for query in range(40) for image in found[query]] == wanted


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("kind", "stored"),
    [("float16", "float16"), (">f2", "float16"), ("float32", "float32"), (">f4", "float32"),
     ("float64", "float32"), ("int8", "float32"), ("uint8", "float32"), ("int64", "float32")],
)  # fmt: skip
def test_an_array_keeps_its_precision(tmp_path, kind, stored):
    values = (drawn(20) * 20 + 100).astype(kind)
    np.save(tmp_path / "g.npy", values)
    embed(EmbedSettings(input=str(tmp_path / "g.npy"), output=str(tmp_path / "s")), HERE)
    store = open_store(open_folder(str(tmp_path / "s")))
    assert store.dtype == stored
    (block,) = store.blocks()
    np.testing.assert_array_equal(read_vectors(block), values.astype(stored))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("kinds", "stored"),
    [((pa.float16(),), "float16"), ((pa.float32(),), "float32"), ((pa.float64(),), "float32"),
     ((pa.int8(),), "float32"), ((pa.float16(), pa.float32()), "float32")],
)  # fmt: skip
def test_a_column_keeps_its_precision_all_files_counted(tmp_path, kinds, stored):
    (tmp_path / "files").mkdir()
    values = np.round(drawn(4) * 10)
    for number, kind in enumerate(kinds):
        flat = pa.array(values.ravel().astype(kind.to_pandas_dtype()), kind)
        column = pa.FixedSizeListArray.from_arrays(flat, D)
        pq.write_table(pa.table({"embedding": column}), tmp_path / f"files/{number}.parquet")
    asked = {"embedding_column": "embedding", "output": str(tmp_path / "s")}
    embed(EmbedSettings(input=str(tmp_path / "files"), **asked), HERE)
    job = json.loads((tmp_path / "s/job.json").read_text())["settings"]
    assert job["embedding_dtype"] == stored
    assert open_store(open_folder(str(tmp_path / "s"))).rows == 4 * len(kinds)


@pytest.mark.usefixtures("here")
def test_query_vectors_keep_the_precision_they_have(tmp_path):
    np.save(tmp_path / "g.npy", drawn(60, kind="float16"))
    queries = drawn(9, 1)
    column = pa.array(queries.tolist(), pa.list_(pa.float64()))
    pq.write_table(pa.table({"id": list("abcdefghi"), "embedding": column}), tmp_path / "q.parquet")
    built(tmp_path, tmp_path / "g.npy", metric="l2")
    _, matches = ranked(tmp_path, tmp_path / "q.parquet")
    names = [str(row) for row in range(60)]
    wanted, scores = nearest(queries, drawn(60, kind="float16"), names, "l2")
    assert matches["image_id"].to_pylist() == wanted
    np.testing.assert_allclose(matches["score"].to_numpy(), scores, rtol=1e-12)
    assert open_store(open_folder(str(tmp_path / "matches/queries"))).dtype == "float32"


@pytest.mark.usefixtures("here")
def test_what_rounding_lost_is_said_and_stands_in_run_json(tmp_path):
    gallery = drawn(50) * np.float32(3e-7)
    np.save(tmp_path / "g.npy", gallery)
    asked = {"embeddings": str(tmp_path / "g.npy"), "output": str(tmp_path / "index")}
    answer = index.start(IndexSettings(**asked))
    assert answer.values["rounding_changed"] == 0
    assert not any("rounded" in line for line in answer.lines)
    answer = index.start(IndexSettings(**asked, embedding_dtype="float16", overwrite=True))
    assert answer.values["rounding_vectors"] == answer.values["rounding_changed"] == 50
    assert 2e-5 < answer.values["rounding_largest"] < 2.0**-11
    assert any(line.startswith("50 of 50 vectors were rounded") for line in answer.lines)
    for output in ("index", "index/embeddings"):
        run = json.loads((tmp_path / output / "run.json").read_text())
        assert run["rounding"]["largest"] == answer.values["rounding_largest"]


@pytest.mark.usefixtures("here")
def test_what_grew_is_appended_and_what_changed_is_replaced(tmp_path):
    gallery, queries = drawn(90, kind="float16"), drawn(4, 1, "float16")
    path = tmp_path / "g.npy"
    np.save(path, gallery[:60])
    built(tmp_path, path, metric="l2")
    assert finished_output.is_finished(open_folder(str(tmp_path / "index")))
    shards = (tmp_path / "index/shards/00000.faiss").read_bytes()
    gallery[7] = drawn(1, 3, "float16")
    np.save(path, gallery)
    manifest = built(tmp_path, path, metric="l2")
    store = open_store(open_folder(str(tmp_path / "index/embeddings")))
    assert len(store.segments) == 2
    assert manifest.counts["rows"] == store.rows == 90
    assert store.deleted.tolist() == [7]
    assert (tmp_path / "index/shards/00000.faiss").read_bytes() == shards
    np.save(tmp_path / "q.npy", queries)
    _, matches = ranked(tmp_path, tmp_path / "q.npy")
    wanted, _ = nearest(queries, gallery, [str(row) for row in range(90)], "l2")
    assert matches["image_id"].to_pylist() == wanted
    again = built(tmp_path, path, metric="l2")
    assert again.sha256 == manifest.sha256
    verdicts = verify(open_folder(str(tmp_path / "index")))
    assert [verdict.state for verdict in verdicts] == ["finished", "finished"]


@pytest.mark.usefixtures("here")
def test_zeros_have_a_distance_and_no_cosine(tmp_path):
    gallery = np.concatenate([drawn(20), np.zeros((1, D), np.float32)])
    np.save(tmp_path / "g.npy", gallery)
    assert built(tmp_path, tmp_path / "g.npy", metric="l2").counts["rows"] == 21
    assert built(tmp_path, tmp_path / "g.npy", overwrite=True).counts["rows"] == 20
    with pytest.raises(TooManyFailures, match="1 of 21 vectors failed"):
        built(tmp_path, tmp_path / "g.npy", overwrite=True, max_error_rate=0.01)
    assert not finished_output.is_finished(open_folder(str(tmp_path / "index")))


@pytest.mark.usefixtures("here")
def test_the_job_names_the_source_and_where_its_vectors_are(tmp_path):
    np.save(tmp_path / "g.npy", drawn(20))
    built(tmp_path, tmp_path / "g.npy")
    job = json.loads((tmp_path / "index/job.json").read_text())["settings"]
    assert job["vectors"] == str(tmp_path / "g.npy")
    assert job["embeddings"] == str(tmp_path / "index/embeddings")
    assert job["bundle"] is None
    assert not (tmp_path / "index/model").exists()
    with pytest.raises(Mismatch, match="metric was cosine, is l2"):
        built(tmp_path, tmp_path / "g.npy", metric="l2")


@pytest.mark.usefixtures("here")
def test_what_does_not_belong_together_is_refused(tmp_path, photos):
    np.save(tmp_path / "g.npy", drawn(20))
    np.save(tmp_path / "long.npy", np.ones((2, D + 1), np.float32))
    built(tmp_path, tmp_path / "g.npy")
    write_store(tmp_path / "embedded", drawn(4, 1, "float16"))
    for queries, why in (
        (photos("pictures", 3), "holds images"),
        (tmp_path / "long.npy", "vectors of 7 numbers"),
        (tmp_path / "embedded", "was embedded with a model"),
    ):
        with pytest.raises(Mismatch, match=why):
            ranked(tmp_path, queries)
        assert not (tmp_path / "matches").exists()
    embed(EmbedSettings(input=str(tmp_path / "long.npy"), output=str(tmp_path / "long")), HERE)
    with pytest.raises(Mismatch, match="vectors of 7 numbers"):
        ranked(tmp_path, tmp_path / "long")
    np.save(tmp_path / "g.npy", np.ones((2, D + 1), np.float32))
    with pytest.raises(Mismatch, match="dimension was 6, is 7"):
        built(tmp_path, tmp_path / "g.npy")


def test_refusals_of_the_command_line_come_before_any_work(tmp_path):
    np.save(tmp_path / "g.npy", drawn(20))
    (tmp_path / "empty").mkdir()
    for code, said, *words in (
        (3, "nowhere.npy does not exist", tmp_path / "nowhere.npy"),
        (3, "empty holds no vectors", tmp_path / "empty"),
        (2, "s3://b/f is no local path", tmp_path / "g.npy", "--export-faiss", "s3://b/f"),
        (3, "ids.txt does not exist", tmp_path / "g.npy", "--ids", tmp_path / "ids.txt"),
    ):
        ended = lookalike_here("index", "--output", tmp_path / "index", "--embeddings", *words)
        assert ended.code == code, ended.err
        assert said in ended.error
    assert not (tmp_path / "index/embeddings").exists()


@pytest.mark.usefixtures("here")
def test_vectors_without_a_model_against_an_index_with_one(tmp_path):
    write_store(tmp_path / "store", drawn(30, 0, "float16"))
    np.save(tmp_path / "q.npy", drawn(2))
    built(tmp_path, tmp_path / "store", max_error_rate=0.01)
    embed(EmbedSettings(input=str(tmp_path / "q.npy"), output=str(tmp_path / "q")), HERE)
    for queries in ("q.npy", "q"):
        with pytest.raises(Mismatch, match="holds imported vectors"):
            ranked(tmp_path, tmp_path / queries)


def test_options_that_do_not_fit(tmp_path):
    write_store(tmp_path / "store", drawn(30, 0, "float16"))
    settings = {"embeddings": str(tmp_path / "store"), "output": str(tmp_path / "index")}
    for option, value in (("ids", "x"), ("limit", 3), ("embedding_dtype", "float32")):
        with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} is for vectors"):
            index.start(IndexSettings(**settings, **{option: value}))
    np.save(tmp_path / "g.npy", drawn(20))
    asked = {"input": str(tmp_path / "g.npy"), "output": str(tmp_path / "s")}
    with pytest.raises(UsageError, match="--pca is for images"):
        embed(EmbedSettings(**asked, pca=3), HERE)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"--ids is for \.npy files"):
        embed(EmbedSettings(input=str(tmp_path / "photos"), output=asked["output"], ids="x"), HERE)
    assert not (tmp_path / "s").exists()
