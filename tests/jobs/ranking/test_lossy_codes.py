"""Test indexes with lossy codes, whose proposals are scored by the vectors of the store."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.ranking.rank import summary
from retrieval.core.errors import Damaged, UsageError
from retrieval.index import recall_curve, recall_interval
from retrieval.index.probing import Probing
from retrieval.search import propose
from retrieval.search.candidates_file import read_candidates
from retrieval.search.propose import proposed_path
from retrieval.search.shard_search import candidates_path
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store.reader import open_store, read_vectors
from retrieval.vectors.scoring import block, score_pairs
from tests.jobs.embedding.test_store_sync import Source, make_picture
from tests.jobs.in_process import embed_in_process, index_in_process, rank_in_process
from tests.retrieval.sample_vectors import METRICS, exact_keys
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults, record_operations
from tests.sample_stores import write_store

ROWS, QUERIES, DIMENSION = 500, 60, 16
DTYPES = {"IVF6,SQ8": "float16", "IVF6,PQ8x4fs": "float16", "IVF6,SQfp16": "float32"}
"""The factories with lossy codes, each with the dtype of the vectors that it loses something of."""


@pytest.fixture(autouse=True)
def small_blocks_and_samples(monkeypatch):
    """Search in small blocks of queries, with small samples and a tenth of the random draws."""
    monkeypatch.setattr("retrieval.search.shard_search._BLOCK_BYTES", 1)
    monkeypatch.setattr(recall_interval, "LOOK_SIZES", (20, 30, 40))
    monkeypatch.setattr(recall_interval, "DRAWS", 1000)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Return clustered galleries of both dtypes with duplicates, and queries between clusters."""
    root = tmp_path_factory.mktemp("stores")
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(20, DIMENSION))
    rows = centres[generator.integers(0, 20, ROWS)] + generator.normal(size=(ROWS, DIMENSION)) / 2
    rows[100:160] = rows[:60]
    query_vectors = centres[generator.integers(0, 20, QUERIES)]
    query_vectors = query_vectors + generator.normal(size=query_vectors.shape)
    for dtype in ("float16", "float32"):
        write_store(root / dtype, rows.astype(dtype), chunk_rows=64)
        write_store(root / f"queries-{dtype}", query_vectors.astype(dtype), chunk_rows=25)
    return root


def read_parts(matches):
    return {p.name: p.read_bytes() for p in sorted((matches / "matches").glob("*.parquet"))}


def read_table(matches):
    return pq.read_table(matches / "matches").to_pylist()


def read_store_vectors(path):
    """Return the vectors of a store by image_id."""
    vectors_by_id = {}
    for table in open_store(open_folder(str(path))).blocks():
        vectors_by_id.update(zip(table["image_id"].to_pylist(), read_vectors(table), strict=True))
    return vectors_by_id


FACTORY_CASES = [
    pytest.param(factory, metric, marks=[] if number == offset else [pytest.mark.nightly])
    for number, factory in enumerate(DTYPES)
    for offset, metric in enumerate(METRICS)
]
"""Each kind of codes with one metric; with all metrics nightly."""


@pytest.mark.parametrize(("factory", "metric"), FACTORY_CASES)
def test_matches_and_scores_are_independent_of_shards(stores, tmp_path, factory, metric):
    dtype = DTYPES[factory]
    certificates = []
    for name, rows_per_shard in (("one", 10**6), ("three", 180)):
        options = {"index_factory": factory, "metric": metric, "rows_per_shard": rows_per_shard}
        index = index_in_process(stores / dtype, tmp_path / f"index-{name}", **options)
        assert index.counts["codes"] is None
        assert not index.counts["probe_all"]
        assert index.counts["shards"] == (1 if name == "one" else 3)
        certificates.append(
            rank_in_process(
                tmp_path / f"index-{name}", stores / f"queries-{dtype}", tmp_path / name,
                recall=0.8, top_k=5,
            ).counts["certificate"]
        )  # fmt: skip
    assert read_parts(tmp_path / "one") == read_parts(tmp_path / "three")
    assert certificates[0] == certificates[1]
    for name in ("index-one", "index-three", "one"):
        assert [v.state for v in verify(open_folder(str(tmp_path / name)))] == ["finished"]
    curves = [pq.read_table(tmp_path / f"index-{name}/recall.parquet") for name in ("one", "three")]
    assert curves[0].equals(curves[1])
    check_scores(stores, tmp_path / "one", dtype, metric)
    check_recall(stores, tmp_path / "one", dtype, metric, certificates[0])


def check_scores(stores, matches, dtype, metric):
    """Check that each score equals that of `scoring.py`, to the last bit."""
    gallery, queries = (
        read_store_vectors(stores / dtype),
        read_store_vectors(stores / f"queries-{dtype}"),
    )
    rows = read_table(matches)
    left = np.stack([queries[row["query_id"]] for row in rows])
    right = np.stack([gallery[row["image_id"]] for row in rows])
    positions = np.arange(len(rows))
    expected = score_pairs(block(left, metric), block(right, metric), positions, positions)
    assert [row["score"] for row in rows] == expected.tolist()


def check_recall(stores, matches, dtype, metric, certificate):
    """Check that the interval holds the recall counted by brute force, and meets the target."""
    gallery, queries = (
        read_store_vectors(stores / dtype),
        read_store_vectors(stores / f"queries-{dtype}"),
    )
    names = sorted(gallery)
    keys = exact_keys(
        np.stack(list(queries.values())), np.stack([gallery[name] for name in names]), metric
    )
    images_by_query = {query: set() for query in queries}
    for match in read_table(matches):
        images_by_query[match["query_id"]].add(match["image_id"])
    recalls = []
    for query, query_keys in zip(queries, keys, strict=True):
        best = np.lexsort((np.arange(len(names)), -query_keys))[:5]
        recalls.append(len({names[n] for n in best} & images_by_query[query]) / 5)
    assert certificate["sample"] in (20, 30, 40)
    assert certificate["low"] <= np.mean(recalls) <= certificate["high"]
    assert certificate["low"] >= 0.8 or certificate["gap"] is None
    # sampled queries have exact matches
    assert sum(recall == 1 for recall in recalls) >= certificate["sample"]


@pytest.mark.parametrize("factory", ["IVF6,PQ4x4fs", "IVF6,SQ8"])
def test_recall_curve_is_a_lower_bound_for_its_sample(stores, tmp_path, factory, monkeypatch):
    """The rows of the sample are the queries; top_k is 11, since each row matches itself."""
    monkeypatch.setattr(recall_curve, "SAMPLE_SIZE", 10**6)
    monkeypatch.setattr(recall_interval, "LOOK_SIZES", (10**6,) * 3)
    index_in_process(
        stores / "float32", tmp_path / "index", index_factory=factory, rows_per_shard=180
    )
    curve = pq.read_table(tmp_path / "index/recall.parquet").to_pylist()
    for nprobe in (1, 3, 6):
        manifest = rank_in_process(
            tmp_path / "index", stores / "float32", tmp_path / str(nprobe), nprobe=nprobe, top_k=11
        )
        estimated = next(
            c["recall"] for c in curve if (c["k"], c["nprobe"], c["gap"]) == (10, nprobe, np.inf)
        )
        measured = (manifest.counts["certificate"]["search_recall"] * 11 - 1) / 10
        assert measured >= estimated - 1e-9


@pytest.mark.parametrize("kill_count", [3, pytest.param(60, marks=pytest.mark.nightly)])
def test_killed_index_and_rank_resume(stores, tmp_path, kill_count):
    options = {"index_factory": "IVF6,PQ8x4fs", "rows_per_shard": 180}

    def index_and_rank(name):
        index_in_process(stores / "float16", tmp_path / name / "index", **options)
        rank_in_process(
            tmp_path / name / "index", stores / "queries-float16", tmp_path / name / "matches",
            recall=0.5,
        )  # fmt: skip

    operations = record_operations(lambda: index_and_rank("whole"))
    index, matches = read_files(tmp_path / "whole/index"), read_parts(tmp_path / "whole/matches")
    for number in range(
        len(operations) // 8, len(operations), max(1, len(operations) // kill_count)
    ):

        def kill(*operation):
            raise Killed(operation)

        with inject_faults(FailAt(number, kill)), pytest.raises(Killed):
            index_and_rank("again")
        index_and_rank("again")
        assert read_files(tmp_path / "again/index") == index, operations[number]
        assert read_parts(tmp_path / "again/matches") == matches, operations[number]
        shutil.rmtree(tmp_path / "again")


def read_files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json" and not path.name.startswith(".")
    }


@pytest.fixture
def small_index(stores, tmp_path):
    """Return a gallery that may be moved, and its index."""
    shutil.copytree(stores / "float16", tmp_path / "gallery")
    index_in_process(tmp_path / "gallery", tmp_path / "index", index_factory="IVF6,SQ8")
    return tmp_path, stores / "queries-float16"


def test_ranking_needs_no_store(small_index):
    """The stored vectors are in the index too."""
    root, queries = small_index
    rank_in_process(root / "index", queries, root / "before")
    shutil.rmtree(root / "gallery")
    rank_in_process(root / "index", queries, root / "after")
    assert read_parts(root / "after") == read_parts(root / "before")


def test_altered_vector_is_detected(small_index):
    root, queries = small_index
    path = root / "index/shards/00000.vectors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(Damaged, match="was altered"):
        rank_in_process(root / "index", queries, root / "matches")


def test_recall_lost_by_codes_is_exit_code_5_with_a_hint(stores, tmp_path, monkeypatch):
    monkeypatch.setattr(propose, "CANDIDATES_PER_MATCH", 1)
    index_in_process(stores / "float16", tmp_path / "index", index_factory="IVF6,PQ2x4fs")
    manifest = rank_in_process(
        tmp_path / "index", stores / "queries-float16", tmp_path / "matches", recall=1.0
    )
    result = summary(str(tmp_path / "matches"), manifest)
    assert result.exit_code == 5
    assert result.values["nprobe"] == result.values["nlist"]
    assert 0 < result.values["recall"] < 1
    assert "the compressed codes cause the loss" in result.lines[-1]


def test_second_pass_corrects_a_misleading_curve(stores, tmp_path, monkeypatch):
    index_in_process(stores / "float16", tmp_path / "index", index_factory="IVF6,PQ8x4fs")
    monkeypatch.setattr(recall_curve, "choose_probing", lambda *_: Probing(1))
    certificate = rank_in_process(
        tmp_path / "index", stores / "queries-float16", tmp_path / "matches", recall=0.9
    ).counts["certificate"]
    assert certificate["passes"] == 2
    assert certificate["nprobe"] > 1
    assert certificate["low"] >= 0.9 or (certificate["nprobe"] == 6 and certificate["gap"] is None)


def test_more_code_words_than_vectors_are_refused(tmp_path):
    write_store(tmp_path / "few", np.eye(16, dtype=np.float32)[:10])
    with pytest.raises(UsageError, match=r"cannot be trained on 10 vectors, at least 16 are"):
        index_in_process(tmp_path / "few", tmp_path / "index", index_factory="IVF2,PQ16x4fs")


def test_kmeans_leaves_lists_beyond_the_vectors_empty(tmp_path):
    write_store(tmp_path / "few", np.eye(16, dtype=np.float32)[:10])
    index_in_process(tmp_path / "few", tmp_path / "index", index_factory="IVF50,SQ8")
    rank_in_process(tmp_path / "index", tmp_path / "few", tmp_path / "matches", recall=1.0, top_k=1)
    assert all(row["score"] == 1 for row in read_table(tmp_path / "matches"))


@pytest.mark.parametrize("factory", ["IVF2,SQ8", "IVF2,PQ16x4fs"])
def test_deleted_rows_are_not_proposed(tmp_path, factory):
    source = Source(tmp_path / "photos")
    for number, name in enumerate("abcdeghijklmnopq"):
        source.put(f"{name}.jpg", make_picture(number))
    store, index = tmp_path / "store", tmp_path / "index"
    embed_in_process(source.root, store)
    options = {"index_factory": factory, "rows_per_shard": 7}
    index_in_process(store, index, **options)
    source.put("f.jpg", make_picture(1))
    source.put("b.jpg", make_picture(0))
    source.delete("d.jpg")
    embed_in_process(source.root, store)
    index_in_process(store, index, **options)
    rank_in_process(index, store, tmp_path / "matches", recall=1.0, top_k=20)
    images_by_query = {}
    for row in read_table(tmp_path / "matches"):
        images_by_query.setdefault(row["query_id"], []).append(row["image_id"])
    live_ids = [f"{name}.jpg" for name in "abcefghijklmnopq"]
    assert {query: sorted(images) for query, images in images_by_query.items()} == dict.fromkeys(
        live_ids, live_ids
    )


def test_existing_files_are_not_computed_again(stores, tmp_path, monkeypatch):
    index_in_process(
        stores / "float16", tmp_path / "index", index_factory="IVF6,SQ8", rows_per_shard=180
    )

    def stop(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("retrieval.search.recall_check.certify", stop)
        with pytest.raises(Killed):
            rank_in_process(
                tmp_path / "index", stores / "queries-float16", tmp_path / "m", nprobe=2
            )
    mtimes = modification_times(tmp_path / "m/work")
    names = {p.relative_to(tmp_path / "m").as_posix() for p in mtimes}
    assert {proposed_path(Probing(2), 1, 2), candidates_path(Probing(2), 2, 0)} <= names
    with monkeypatch.context() as patch:
        patch.setattr("retrieval.search.recall_check.certify", stop)
        with pytest.raises(Killed):
            rank_in_process(
                tmp_path / "index", stores / "queries-float16", tmp_path / "m", nprobe=2
            )
    assert modification_times(tmp_path / "m/work") == mtimes
    written = read_candidates(open_folder(str(tmp_path / "m")), candidates_path(Probing(2), 2, 0))
    assert len(written.pairs)


def modification_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
