"""Kinds whose codes are not the vectors: what they propose is decided by the store's vectors."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.ranking.rank import summary
from retrieval.core.errors import Damaged, InputError, UsageError
from retrieval.index import quantized_codes, recall_curve, recall_interval
from retrieval.search.propose import codes_path
from retrieval.search.shard_search import candidates_path
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store.reader import open_store, vectors_of
from retrieval.vectors.scoring import block, pair_scores
from tests.jobs.embedding.test_store_sync import Source, picture
from tests.jobs.here import embed_here, index_here, rank_here
from tests.retrieval.sample_vectors import METRICS, exact_keys
from tests.retrieval.storage.faults import FailAt, Killed, operations, seam
from tests.stores import write_store

ROWS, QUERIES, DIMENSION = 500, 60, 16
FACTORIES = (
    "IVF6,SQ8",
    "IVF6,SQfp16",  # of float32 vectors: rounded
    "IVF6,PQ16x4fs",
    "IVF6,PQ8x4",
    "IVF6,RaBitQ",
    "IVF6,RaBitQfs,Refine(SQfp16)",
    "PCAR8,IVF6,Flat",
    "IVF6_HNSW32,Flat",
    "OPQ16,IVF6,PQ16x4",
    "IDMap,IVF6,Flat",
    "PCAR8,IVF6,SQ8,RFlat",
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Let each chunk of queries be a block, and few of them be sampled."""
    monkeypatch.setattr("retrieval.search.shard_search._BLOCK_BYTES", 1)
    monkeypatch.setattr(recall_interval, "LOOKS", (20, 30, 40))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Galleries of both kinds of number, clustered, with duplicates, and queries between them."""
    root = tmp_path_factory.mktemp("stores")
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(20, DIMENSION))
    rows = centres[generator.integers(0, 20, ROWS)] + generator.normal(size=(ROWS, DIMENSION)) / 2
    rows[100:160] = rows[:60]
    asked = centres[generator.integers(0, 20, QUERIES)]
    asked = asked + generator.normal(size=asked.shape)
    for dtype in ("float16", "float32"):
        write_store(root / dtype, rows.astype(dtype), chunk_rows=64)
        write_store(root / f"queries-{dtype}", asked.astype(dtype), chunk_rows=25)
    return root


def dtype_of(factory):
    """Half of the kinds are tried on each kind of number; what is lossless for one on the other."""
    return "float16" if FACTORIES.index(factory) % 2 == 0 or "IDMap" in factory else "float32"


def parts(matches):
    return {p.name: p.read_bytes() for p in sorted((matches / "matches").glob("*.parquet"))}


def table_of(matches):
    return pq.read_table(matches / "matches").to_pylist()


def vectors_in(path):
    """Give the vectors of a store by image_id."""
    found = {}
    for table in open_store(open_folder(str(path))).blocks():
        found.update(zip(table["image_id"].to_pylist(), vectors_of(table), strict=True))
    return found


EVERY = [
    pytest.param(
        factory,
        metric,
        marks=[] if number % 3 == which and "OPQ" not in factory else [pytest.mark.nightly],
    )
    for number, factory in enumerate(FACTORIES)
    for which, metric in enumerate(METRICS)
]
"""Each kind with one metric; at night with all, and OPQ, which trains for long."""


@pytest.mark.parametrize(("factory", "metric"), EVERY)
def test_any_number_of_shards_gives_the_same_matches_with_exact_scores(
    stores, tmp_path, factory, metric
):
    dtype = dtype_of(factory)
    made = []
    for name, rows_per_shard in (("one", 10**6), ("three", 180)):
        asked = {"index_factory": factory, "metric": metric, "rows_per_shard": rows_per_shard}
        index = index_here(stores / dtype, tmp_path / f"index-{name}", **asked)
        assert index.counts["codes"] is None
        assert not index.counts["probe_all"]
        assert index.counts["shards"] == (1 if name == "one" else 3)
        made.append(
            rank_here(
                tmp_path / f"index-{name}", stores / f"queries-{dtype}", tmp_path / name,
                recall=0.8, top_k=5,
            ).counts["certificate"]
        )  # fmt: skip
    assert parts(tmp_path / "one") == parts(tmp_path / "three")
    assert made[0] == made[1]
    for name in ("index-one", "index-three", "one"):
        assert [v.state for v in verify(open_folder(str(tmp_path / name)))] == ["finished"]
    curves = [pq.read_table(tmp_path / f"index-{name}/recall.parquet") for name in ("one", "three")]
    assert curves[0].equals(curves[1])
    check_scores(stores, tmp_path / "one", dtype, metric)
    check_recall(stores, tmp_path / "one", dtype, metric, made[0])


def check_scores(stores, matches, dtype, metric):
    """Each score is the one of `scoring.py`, to the last bit."""
    gallery, queries = vectors_in(stores / dtype), vectors_in(stores / f"queries-{dtype}")
    lines = table_of(matches)
    left = np.stack([queries[line["query_id"]] for line in lines])
    right = np.stack([gallery[line["image_id"]] for line in lines])
    each = np.arange(len(lines))
    wanted = pair_scores(block(left, metric), block(right, metric), each, each)
    assert [line["score"] for line in lines] == wanted.tolist()


def check_recall(stores, matches, dtype, metric, certificate):
    """The certified interval holds the recall counted by brute force, and meets the target."""
    gallery, queries = vectors_in(stores / dtype), vectors_in(stores / f"queries-{dtype}")
    names = sorted(gallery)
    keys = exact_keys(
        np.stack(list(queries.values())), np.stack([gallery[name] for name in names]), metric
    )
    found = {query: set() for query in queries}
    for line in table_of(matches):
        found[line["query_id"]].add(line["image_id"])
    shares = []
    for query, row in zip(queries, keys, strict=True):
        best = np.lexsort((np.arange(len(names)), -row))[:5]
        shares.append(len({names[n] for n in best} & found[query]) / 5)
    assert certificate["sample"] in (20, 30, 40)
    assert certificate["low"] <= np.mean(shares) <= certificate["high"]
    assert certificate["low"] >= 0.8 or certificate["nprobe"] == certificate["nlist"]
    assert sum(share == 1 for share in shares) >= certificate["sample"]  # their answers are exact


@pytest.mark.parametrize(
    "factory",
    [
        "IVF6,PQ8x4",
        *(pytest.param(f, marks=pytest.mark.nightly) for f in ("IVF6,RaBitQ", "PCAR8,IVF6,Flat")),
    ],
)
def test_the_curve_is_a_lower_bound_of_what_the_sample_gets(stores, tmp_path, factory, monkeypatch):
    """The sample's own rows, asked as queries for one match more, which is themselves."""
    monkeypatch.setattr(recall_curve, "SAMPLE", 10**6)
    monkeypatch.setattr(recall_interval, "LOOKS", (10**6,) * 3)
    index_here(stores / "float32", tmp_path / "index", index_factory=factory, rows_per_shard=180)
    curve = pq.read_table(tmp_path / "index/recall.parquet").to_pylist()
    for nprobe in (1, 2, 4, 6):
        manifest = rank_here(
            tmp_path / "index", stores / "float32", tmp_path / str(nprobe), nprobe=nprobe, top_k=11
        )
        promised = next(c["recall"] for c in curve if (c["k"], c["nprobe"]) == (10, nprobe))
        reached = (manifest.counts["certificate"]["search_recall"] * 11 - 1) / 10
        assert reached >= promised - 1e-9


@pytest.mark.parametrize("moments_tried", [4, pytest.param(60, marks=pytest.mark.nightly)])
def test_killed_at_any_moment_it_ends_the_same(stores, tmp_path, moments_tried):
    asked = {"index_factory": "IVF6,PQ16x4fs", "rows_per_shard": 180}

    def both(name):
        index_here(stores / "float16", tmp_path / name / "index", **asked)
        rank_here(
            tmp_path / name / "index", stores / "queries-float16", tmp_path / name / "matches",
            recall=0.5,
        )  # fmt: skip

    moments = operations(lambda: both("whole"))
    index, matches = contents(tmp_path / "whole/index"), parts(tmp_path / "whole/matches")
    for number in range(len(moments) // 8, len(moments), max(1, len(moments) // moments_tried)):

        def kill(*moment):
            raise Killed(moment)

        with seam(FailAt(number, kill)), pytest.raises(Killed):
            both("again")
        both("again")
        assert contents(tmp_path / "again/index") == index, moments[number]
        assert parts(tmp_path / "again/matches") == matches, moments[number]
        shutil.rmtree(tmp_path / "again")


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json" and not path.name.startswith(".")
    }


@pytest.fixture
def small(stores, tmp_path):
    """A gallery of its own that may be moved, and its index."""
    shutil.copytree(stores / "float16", tmp_path / "gallery")
    index_here(tmp_path / "gallery", tmp_path / "index", index_factory="IVF6,SQ8")
    return tmp_path, stores / "queries-float16"


def test_a_store_that_moved_is_named_or_missed(small):
    root, queries = small
    rank_here(root / "index", queries, root / "before")
    (root / "gallery").rename(root / "elsewhere")
    with pytest.raises(InputError, match=r"gallery holds no finished store.*--embeddings$"):
        rank_here(root / "index", queries, root / "after")
    rank_here(root / "index", queries, root / "after", embeddings=str(root / "elsewhere"))
    assert parts(root / "after") == parts(root / "before")
    with pytest.raises(Damaged, match="is not the store that"):
        rank_here(root / "index", queries, root / "other", embeddings=str(queries))


def test_an_altered_vector_is_found(small):
    root, queries = small
    part = next((root / "gallery").rglob("parts/*.parquet"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(Damaged, match="was altered"):
        rank_here(root / "index", queries, root / "matches")


def test_what_codes_lose_is_exit_5_and_says_so(stores, tmp_path, monkeypatch):
    monkeypatch.setattr(quantized_codes, "CANDIDATES_PER_MATCH", 1)
    monkeypatch.setattr("retrieval.search.propose.CANDIDATES_PER_MATCH", 1)
    index_here(stores / "float16", tmp_path / "index", index_factory="IVF6,PQ2x4")
    manifest = rank_here(
        tmp_path / "index", stores / "queries-float16", tmp_path / "matches", recall=1.0
    )
    result = summary(str(tmp_path / "matches"), manifest)
    assert result.exit_code == 5
    assert result.values["nprobe"] == result.values["nlist"]
    assert 0 < result.values["recall"] < 1
    assert "lost by the codes" in result.lines[-1]


def test_one_wider_pass_where_the_curve_misleads(stores, tmp_path, monkeypatch):
    index_here(stores / "float16", tmp_path / "index", index_factory="IVF6,RaBitQfs")
    monkeypatch.setattr(recall_curve, "choose_nprobe", lambda *_: 1)
    certificate = rank_here(
        tmp_path / "index", stores / "queries-float16", tmp_path / "matches", recall=0.9
    ).counts["certificate"]
    assert certificate["passes"] == 2
    assert certificate["nprobe"] > 1
    assert certificate["low"] >= 0.9 or certificate["nprobe"] == 6


def test_more_lists_or_words_than_vectors_are_refused(tmp_path):
    write_store(tmp_path / "few", np.eye(16, dtype=np.float32)[:10])
    for factory in ("PCAR8,IVF50,Flat", "IVF2,PQ16x4"):
        with pytest.raises(UsageError, match=r"cannot be trained on 10 vectors .*; name fewer"):
            index_here(tmp_path / "few", tmp_path / factory, index_factory=factory)
    with pytest.raises(UsageError, match="keeps equal vectors once"):
        index_here(tmp_path / "few", tmp_path / "dedup", index_factory="IVF2,FlatDedup")


def test_more_lists_than_vectors_stay_empty_where_they_are_ours(tmp_path):
    write_store(tmp_path / "few", np.eye(16, dtype=np.float32)[:10])
    index_here(tmp_path / "few", tmp_path / "index", index_factory="IVF50,SQ8")
    rank_here(tmp_path / "index", tmp_path / "few", tmp_path / "matches", recall=1.0, top_k=1)
    assert all(line["score"] == 1 for line in table_of(tmp_path / "matches"))


@pytest.mark.parametrize("factory", ["IVF2,SQ8", "IDMap,IVF2,Flat", "IVF2,RaBitQfs,Refine(SQfp16)"])
def test_what_was_deleted_is_proposed_to_nobody(tmp_path, factory):
    source = Source(tmp_path / "photos")
    for number, name in enumerate("abcde"):
        source.put(f"{name}.jpg", picture(number))
    store, index = tmp_path / "store", tmp_path / "index"
    embed_here(source.root, store)
    asked = {"index_factory": factory, "rows_per_shard": 2}
    index_here(store, index, **asked)
    source.put("f.jpg", picture(1))
    source.put("b.jpg", picture(0))
    source.delete("d.jpg")
    embed_here(source.root, store)
    index_here(store, index, **asked)
    rank_here(index, store, tmp_path / "matches", recall=1.0, top_k=10)
    found = {}
    for line in table_of(tmp_path / "matches"):
        found.setdefault(line["query_id"], []).append(line["image_id"])
    live = [f"{name}.jpg" for name in "abcef"]
    assert {query: sorted(images) for query, images in found.items()} == dict.fromkeys(live, live)


def test_answers_that_are_there_are_not_made_again(stores, tmp_path, monkeypatch):
    index_here(stores / "float16", tmp_path / "index", index_factory="IVF6,SQ8", rows_per_shard=180)

    def stop(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("retrieval.search.recall_check.certify", stop)
        with pytest.raises(Killed):
            rank_here(tmp_path / "index", stores / "queries-float16", tmp_path / "m", nprobe=2)
    work = {p: p.stat().st_mtime_ns for p in (tmp_path / "m/work").rglob("*.parquet")}
    names = {p.relative_to(tmp_path / "m").as_posix() for p in work}
    assert {codes_path(2, 1, 2), candidates_path(2, 2, 0)} <= names
    with monkeypatch.context() as patch:
        patch.setattr("retrieval.search.recall_check.certify", stop)
        with pytest.raises(Killed):
            rank_here(tmp_path / "index", stores / "queries-float16", tmp_path / "m", nprobe=2)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "m/work").rglob("*.parquet")} == work
    data = io.BytesIO((tmp_path / "m" / candidates_path(2, 2, 0)).read_bytes())
    assert len(pq.read_table(data))
