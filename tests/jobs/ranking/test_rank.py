"""Test `rank` without Ray: equality with brute force, match constraints and resuming."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cluster.resources import Cluster
from jobs.config.settings import RankSettings
from jobs.ranking.output_formats import parse_formats
from jobs.ranking.rank import summary
from retrieval.core.errors import Damaged, UsageError
from retrieval.index import plan, recall_interval
from retrieval.search import fill_matches, shard_search
from retrieval.search.query_expansion import expand_queries
from retrieval.search.reranking.rerank_block import METHODS, pairwise_cosines
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.vectors.matmul import FLOAT32_PRODUCT, HalfPrecisionProduct
from tests.jobs.in_process import index_in_process, rank_in_process
from tests.retrieval.sample_vectors import METRICS, exact_keys, metrics, seeds
from tests.retrieval.storage.faults import Killed
from tests.sample_stores import write_store

ROWS, QUERIES, K = 400, 60, 7
every_metric = pytest.mark.parametrize("metric", METRICS)
metrics_of_kinds = pytest.mark.parametrize(
    ("kind", "metric"), [*(("IVF12,SQfp16", metric) for metric in METRICS), ("IVF12,SQ8", "l2")]
)


@pytest.fixture(autouse=True)
def small_blocks_and_samples(monkeypatch):
    """Search few of many lists despite the small gallery, in small blocks, with small samples.

    Intervals take a tenth of the random draws, since half the time of a small index goes into them.
    """
    monkeypatch.setattr(plan, "PROBE_ALL_ROWS", 0)
    monkeypatch.setattr(shard_search, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(recall_interval, "LOOK_SIZES", (8, 16, 32))
    monkeypatch.setattr(recall_interval, "DRAWS", 1000)


def draw_vectors(dtype="float16"):
    """Return a clustered gallery with copies and near-copies, and queries distributed otherwise."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(25, 12))
    gallery = centres[generator.integers(0, 25, ROWS)] + 0.3 * generator.normal(size=(ROWS, 12))
    gallery[300:340] = gallery[:40]  # copies of rows in other shards
    gallery[340:360] = gallery[:20] * (1 + 1e-3 * generator.normal(size=(20, 12)))
    queries = generator.normal(size=(QUERIES, 12))
    queries[:20] = gallery[:20]
    return gallery.astype(dtype), queries.astype(dtype)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    gallery, queries = draw_vectors()
    sums = [f"{row % 300:064x}" for row in range(ROWS)]  # copies have equal checksums
    write_store(root / "gallery", gallery, sha256=sums, chunk_rows=64)
    query_sums = [f"{row:064x}" if row < 20 else None for row in range(QUERIES)]
    write_store(root / "queries", queries, sha256=query_sums, chunk_rows=25)
    return root


def make_index(stores, path, metric="cosine", **options):
    """Write an index to `path`: a copy, if another test has built one with the same options."""
    index_options = {
        "index_factory": "IVF12,SQfp16",
        "rows_per_shard": 130,
        "metric": metric,
        **options,
    }
    built = stores / "indexes" / " ".join(map(str, index_options.values()))
    if not built.exists():
        index_in_process(stores / "gallery", built, **index_options)
    shutil.copytree(built, path)
    return path


def read_matches(path) -> list[tuple[str, str, float]]:
    table = pq.read_table(path / "matches")
    columns = (table[name].to_pylist() for name in ("query_id", "image_id", "score"))
    return list(zip(*columns, strict=True))


def brute_force_matches(metric, k=K, row_filter=None, excluded=None, queries=None, min_key=-np.inf):
    """Return the matches of a brute-force search in float64, in the form of `read_matches`."""
    gallery, drawn_queries = draw_vectors()
    queries = drawn_queries if queries is None else queries
    keys = exact_keys(queries, gallery, metric)
    if row_filter is not None:
        keys[:, ~row_filter] = -np.inf
    if excluded is not None:
        keys[excluded] = -np.inf
    keys[keys < min_key] = -np.inf
    results = []
    for query, row in enumerate(keys):
        order = np.lexsort((np.arange(ROWS), -row))[:k]
        scores = -row if metric == "l2" else row
        names = [(f"a{query:05d}.jpg", f"a{x:05d}.jpg") for x in order]
        results += [
            (*name, float(scores[x]))
            for name, x in zip(names, order, strict=True)
            if row[x] > -np.inf
        ]
    return results


def check_verified(path):
    (verdict,) = verify(open_folder(str(path)))
    assert (verdict.state, verdict.problems) == ("finished", ())


PRODUCTS = [FLOAT32_PRODUCT, HalfPrecisionProduct("cpu")]

# --- equality with brute force ------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    metric=metrics, shard=st.sampled_from([25, 70, 130, 400]),
    block_bytes=st.sampled_from([1, 10**6]), product=st.sampled_from(PRODUCTS),
    nprobe=st.sampled_from([1, 3, 12]), workers=st.sampled_from([1, 60]), seed=seeds,
)  # fmt: skip
def test_matches_are_independent_of_shards_blocks_workers_and_products(
    stores, tmp_path_factory, metric, shard, block_bytes, product, nprobe, workers, seed
):
    """Shards are searched in random order, since a search uses the keys of earlier shards."""
    root = tmp_path_factory.mktemp("rank")
    single_shard_index = make_index(stores, root / "plain", metric, rows_per_shard=400)
    rank_in_process(single_shard_index, stores / "queries", root / "a", nprobe=nprobe, top_k=K)
    sharded_index = make_index(stores, root / "other", metric, rows_per_shard=shard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_search, "_BLOCK_BYTES", block_bytes)
        patch.setattr(shard_search, "choose_search_product", lambda *_: product)
        patch.setattr(shard_search, "_PART_QUERIES", 1)
        patch.setattr(Cluster, "workers", property(lambda _: workers))
        generator = np.random.default_rng(seed)
        patch.setattr(
            "tests.jobs.in_process._run_tasks",
            lambda cluster, function, items, **_: map(
                function, generator.permutation(items).tolist()
            ),
        )
        rank_in_process(sharded_index, stores / "queries", root / "b", nprobe=nprobe, top_k=K)
    assert read_matches(root / "a") == read_matches(root / "b")
    if nprobe == 12:
        assert read_matches(root / "a") == brute_force_matches(metric)


@every_metric
def test_list_that_is_split_between_shards_is_searched_in_each(stores, tmp_path, metric):
    """Half of the memory holds 256 vectors of 240 bytes, and all 400 are in one list."""
    index = make_index(
        stores, tmp_path / "index", metric, index_factory="IVF1,SQfp16", rows_per_shard=None,
        max_index_memory=2 * 256 * 240,
    )  # fmt: skip
    assert len(list((index / "shards").glob("*.faiss"))) == 2
    rank_in_process(index, stores / "queries", tmp_path / "m", nprobe=1, top_k=K)
    assert read_matches(tmp_path / "m") == brute_force_matches(metric)


@every_metric
def test_recall_one_equals_brute_force(stores, tmp_path, metric):
    index = make_index(stores, tmp_path / "index", metric)
    manifest = rank_in_process(index, stores / "queries", tmp_path / "m", recall=1.0, top_k=K)
    assert read_matches(tmp_path / "m") == brute_force_matches(metric)
    assert manifest.counts["certificate"]["recall"] == 1


def test_each_shard_is_read_once(stores, tmp_path, monkeypatch):
    index = make_index(stores, tmp_path / "index")
    opened = []
    open_shard = shard_search.open_shard
    monkeypatch.setattr(
        shard_search,
        "open_shard",
        lambda *arguments: opened.append(arguments[2]) or open_shard(*arguments),
    )
    rank_in_process(index, stores / "queries", tmp_path / "m", nprobe=3, top_k=K)
    assert sorted(opened) == [0, 1, 2, 3]  # once for three query blocks and the certificate


# --- match constraints --------------------------------------------------------------------------


@every_metric
def test_filter_returns_k_matching_rows(stores, tmp_path, metric):
    """Two of seven labels and two of five widths pass, so few lists hold such a row."""
    index = make_index(stores, tmp_path / "index", metric)
    condition = "label in ('class1', 'class2') and width > 2"
    rank_in_process(index, stores / "queries", tmp_path / "m", nprobe=1, top_k=K, filter=condition)
    rows = np.arange(ROWS)
    row_filter = np.isin(rows % 7, [1, 2]) & (rows % 5 > 2)
    results = read_matches(tmp_path / "m")
    assert len(results) == QUERIES * K
    assert {int(name[1:6]) for _, name, _ in results} <= set(rows[row_filter])
    rank_in_process(
        index, stores / "queries", tmp_path / "all", recall=1.0, top_k=K, filter=condition
    )
    assert read_matches(tmp_path / "all") == brute_force_matches(metric, row_filter=row_filter)


def test_filter_passing_fewer_than_k_returns_all_rows(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    rank_in_process(index, stores / "queries", tmp_path / "m", nprobe=1, top_k=K, filter="row < 3")
    assert read_matches(tmp_path / "m") == brute_force_matches(
        "cosine", row_filter=np.arange(ROWS) < 3
    )
    options = {"nprobe": 1, "top_k": K, "filter": "row < 0"}
    manifest = rank_in_process(index, stores / "queries", tmp_path / "none", **options)
    assert read_matches(tmp_path / "none") == []
    expected_text = f"{QUERIES} queries have no match with the options of the ranking"
    assert expected_text in summary(str(tmp_path / "none"), manifest).lines
    check_verified(tmp_path / "none")


FEW_ROWS = "label in ('class1', 'class2') and width > 2"  # 46 of 400 rows


@metrics_of_kinds
def test_filter_that_leaves_few_rows_is_searched_exhaustively(
    stores, tmp_path, metric, kind, monkeypatch
):
    index = make_index(stores, tmp_path / "index", metric, index_factory=kind)
    rows = np.arange(ROWS)
    row_filter = np.isin(rows % 7, [1, 2]) & (rows % 5 > 2)
    monkeypatch.setattr(plan, "PROBE_ALL_ROWS", int(row_filter.sum()))
    monkeypatch.setattr(fill_matches, "search_all_lists", None)  # a further pass would call it
    manifest = rank_in_process(
        index, stores / "queries", tmp_path / "m", recall=0.5, top_k=K, filter=FEW_ROWS
    )
    certificate = manifest.counts["certificate"]
    assert (certificate["nprobe"], certificate["gap"]) == (12, None)
    assert certificate["recall"] == 1
    assert certificate["sample"] == (8 if kind.endswith("SQ8") else 0)
    assert read_matches(tmp_path / "m") == brute_force_matches(metric, row_filter=row_filter)


def test_filter_that_leaves_more_rows_reads_some_lists(stores, tmp_path, monkeypatch):
    """Deleted rows are not counted: the gallery has none, so the count is that of the filter."""
    index = make_index(stores, tmp_path / "index")
    monkeypatch.setattr(plan, "PROBE_ALL_ROWS", 45)
    manifest = rank_in_process(
        index, stores / "queries", tmp_path / "m", recall=0.5, top_k=K, filter=FEW_ROWS
    )
    assert manifest.counts["certificate"]["sample"] > 0
    assert len(read_matches(tmp_path / "m")) == QUERIES * K  # lists of fewer than k rows are filled


@pytest.mark.parametrize("condition", ["colour = 'red'", "label", "read_text('/etc/passwd')"])
def test_invalid_filter_is_refused_before_any_work(stores, tmp_path, condition):
    index = make_index(stores, tmp_path / "index")
    with pytest.raises(UsageError, match="--filter"):
        rank_in_process(index, stores / "queries", tmp_path / "m", filter=condition)
    assert not (tmp_path / "m").exists()


@metrics_of_kinds
def test_exclude_self_of_the_index_store_excludes_each_row(stores, tmp_path, metric, kind):
    """A copy of an image is a match, the image itself is not."""
    index = make_index(stores, tmp_path / "index", metric, index_factory=kind)
    manifest = rank_in_process(
        index, stores / "gallery", tmp_path / "m", recall=1.0, top_k=K, exclude_self=True,
        unique_pairs=True, format="csv",
    )  # fmt: skip
    gallery, _ = draw_vectors()
    expected = brute_force_matches(metric, excluded=np.diag_indices(ROWS), queries=gallery)
    assert read_matches(tmp_path / "m") == expected
    pairs = pq.read_table(tmp_path / "m/pairs.parquet").to_pylist()
    unique_pairs = {(*sorted([query, image]), score) for query, image, score in expected}
    assert len(pairs) == len(unique_pairs)
    assert {(p["image_id"], p["other_id"], p["score"]) for p in pairs} == unique_pairs
    scores = [p["score"] for p in pairs]
    assert scores == sorted(scores, reverse=metric != "l2")
    expected_text = summary(str(tmp_path / "m"), manifest).lines
    assert f"{len(pairs)} pairs, closest first: pairs.parquet" in expected_text
    assert "further files: matches.csv" in expected_text
    check_verified(tmp_path / "m")


@pytest.mark.parametrize("kind", ["IVF12,SQfp16", "IVF12,SQ8"])
def test_exclude_self_of_other_queries_excludes_equal_checksums(stores, tmp_path, kind):
    index = make_index(stores, tmp_path / "index", index_factory=kind)
    rank_in_process(
        index, stores / "queries", tmp_path / "m", recall=1.0, top_k=K, exclude_self=True
    )
    excluded = np.zeros((QUERIES, ROWS), np.bool_)
    for query in range(20):  # the other queries have no checksum
        excluded[query, [query, 300 + query]] = True
    assert read_matches(tmp_path / "m") == brute_force_matches("cosine", excluded=excluded)
    barred = pq.read_table(tmp_path / "m/barred").sort_by("query_id")
    pairs = zip(*(barred[name].to_pylist() for name in ("query_id", "image_id")), strict=True)
    assert sorted(pairs) == [
        (f"a{q:05d}.jpg", f"a{x:05d}.jpg") for q, x in zip(*np.nonzero(excluded), strict=True)
    ]


def test_exclude_self_without_checksums_is_refused(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    write_store(tmp_path / "bare", draw_vectors()[1], sha256=[None] * QUERIES)
    with pytest.raises(UsageError, match="--exclude-self needs checksums"):
        rank_in_process(index, tmp_path / "bare", tmp_path / "m", exclude_self=True)


@metrics_of_kinds
def test_min_score_excludes_matches_below_it(stores, tmp_path, metric, kind):
    index = make_index(stores, tmp_path / "index", metric, index_factory=kind)
    min_key = {"cosine": 0.5, "ip": 4.0, "l2": 12.0}[metric]
    manifest = rank_in_process(
        index, stores / "queries", tmp_path / "m", recall=1.0, top_k=K, min_score=min_key
    )
    results = read_matches(tmp_path / "m")
    assert results == brute_force_matches(metric, min_key=-min_key if metric == "l2" else min_key)
    assert QUERIES < len(results) < QUERIES * K
    assert manifest.counts["unmatched"] == QUERIES - len({query for query, *_ in results})


@pytest.mark.parametrize(("metric", "min_key"), [("cosine", 1.0), ("l2", 0.0)])
def test_min_score_of_equal_vectors_includes_all_of_them(stores, tmp_path, metric, min_key):
    """In a gallery ranked against itself each image matches itself and its copies."""
    index = make_index(stores, tmp_path / "index", metric)
    options = {"min_score": min_key, "top_k": K, "recall": 1.0}
    rank_in_process(index, stores / "gallery", tmp_path / "m", **options)
    gallery, _ = draw_vectors()
    equal_rows = (gallery[:, None] == gallery).all(-1)
    results = {(query, match) for query, match, _ in read_matches(tmp_path / "m")}
    assert {score for *_, score in read_matches(tmp_path / "m")} == {min_key}
    expected_pairs = [
        (f"a{q:05d}.jpg", f"a{x:05d}.jpg") for q, x in zip(*np.nonzero(equal_rows), strict=True)
    ]
    assert results == set(expected_pairs)
    assert len(expected_pairs) == ROWS + 2 * 40


def test_limit_with_a_query_store_is_refused(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    with pytest.raises(UsageError, match="--limit applies to images"):
        rank_in_process(index, stores / "queries", tmp_path / "m", limit=3)


def test_unique_pairs_is_refused_without_a_meaning(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    with pytest.raises(UsageError, match="--unique-pairs needs --min-score for queries of another"):
        rank_in_process(index, stores / "queries", tmp_path / "m", unique_pairs=True)
    with pytest.raises(UsageError, match="--unique-pairs and --rerank are mutually exclusive"):
        rank_in_process(
            index, stores / "gallery", tmp_path / "m", unique_pairs=True, rerank="expand:3"
        )


DUPLICATE_FILES = ("groups.json", "groups.parquet", "keep.txt", "pairs.parquet", "remove.txt")


@every_metric
def test_groups_of_a_gallery_ranked_against_itself(stores, tmp_path, metric):
    """Rows 300 to 339 are copies of rows 0 to 39, rows 340 to 359 near-copies of 0 to 19."""
    index = make_index(stores, tmp_path / "index", metric)
    threshold = {"cosine": 0.9999, "ip": 1e-9, "l2": 0.01}[metric]
    options = {"recall": 1.0, "exclude_self": True, "min_score": threshold, "unique_pairs": True}
    top_k = ROWS if metric == "ip" else K  # ip: all rows of positive product are "duplicates"
    manifest = rank_in_process(
        index, stores / "gallery", tmp_path / "m", top_k=top_k, format="csv", **options
    )
    gallery, _ = draw_vectors()
    keys = exact_keys(gallery, gallery, metric)
    near = (keys >= (-threshold if metric == "l2" else threshold)) & ~np.eye(ROWS, dtype=bool)
    reachable = near | near.T
    for _ in range(9):  # paths of up to 2^9 pairs
        reachable |= (reachable.astype(np.float32) @ reachable.astype(np.float32)) > 0
    expected = {
        frozenset(np.flatnonzero(reachable[row] | (np.arange(ROWS) == row)))
        for row in np.flatnonzero(reachable.any(1))
    }
    groups = pq.read_table(tmp_path / "m/groups.parquet").to_pylist()
    rows_by_group = {}
    for line in groups:
        rows_by_group.setdefault(line["group"], []).append(int(line["image_id"][1:6]))
    assert {frozenset(rows) for rows in rows_by_group.values()} == expected
    for rows in rows_by_group.values():  # the width of a row is row % 5, its height 1
        assert rows == sorted(rows, key=lambda row: (-(row % 5), row))
    assert [line["keep"] for line in groups] == [
        position == 0 for rows in rows_by_group.values() for position in range(len(rows))
    ]
    removed = [line["path"] for line in groups if not line["keep"]]
    assert (tmp_path / "m/remove.txt").read_text().splitlines() == removed
    kept = [f"/nowhere/a{row:05d}.jpg" for row in range(ROWS)]
    assert (tmp_path / "m/keep.txt").read_text().splitlines() == [
        path for path in kept if path not in removed
    ]
    counts = manifest.counts
    assert (counts["groups"], counts["grouped_images"]) == (len(expected), len(groups))
    assert (counts["removed_images"], counts["unlisted_paths"]) == (len(removed), 0)
    result = summary(str(tmp_path / "m"), manifest)
    assert result.values["groups"] == len(expected)
    count = "1 group" if len(expected) == 1 else f"{len(expected)} groups"
    assert any(line.startswith(f"{count} of") for line in result.lines)
    check_verified(tmp_path / "m")


def test_groups_are_added_to_finished_matches_and_survive_other_formats(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    options = {"recall": 1.0, "top_k": 3, "exclude_self": True, "min_score": 0.9999}
    rank_in_process(index, stores / "gallery", tmp_path / "m", **options)
    assert not (tmp_path / "m/groups.parquet").exists()
    rank_in_process(index, stores / "gallery", tmp_path / "m", unique_pairs=True, **options)
    at_once = rank_in_process(index, stores / "gallery", tmp_path / "n", unique_pairs=True,
                              format="csv", **options)  # fmt: skip
    later = rank_in_process(index, stores / "gallery", tmp_path / "m", format="csv", **options)
    assert later.counts == at_once.counts
    for name in DUPLICATE_FILES:
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes()
    check_verified(tmp_path / "m")
    for name in DUPLICATE_FILES:
        data = bytearray((tmp_path / "m" / name).read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "n" / name).write_bytes(data)
        assert verify(open_folder(str(tmp_path / "n")))[0].state == "damaged", name
        (tmp_path / "n" / name).write_bytes((tmp_path / "m" / name).read_bytes())


def test_report_shows_groups_and_leaks(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    options = {"recall": 1.0, "top_k": 3, "min_score": 0.9999, "unique_pairs": True,
               "format": "html"}  # fmt: skip
    manifest = rank_in_process(
        index, stores / "gallery", tmp_path / "m", exclude_self=True, **options
    )
    page = (tmp_path / "m/report.html").read_text()
    assert page.count('<article class="group"') == manifest.counts["groups"] > 20
    assert page.count("remove</span>") == manifest.counts["removed_images"]
    rank_in_process(index, stores / "queries", tmp_path / "n", **options)
    page = (tmp_path / "n/report.html").read_text()
    assert '<article class="group"' not in page
    leaks = pq.read_metadata(tmp_path / "n/leaks.parquet").num_rows
    assert f"<bdi>{leaks} pairs of 20 queries and " in page


def test_full_lists_are_counted(stores, tmp_path):
    """With --top-k 1 each image with a duplicate has a full list."""
    index = make_index(stores, tmp_path / "index")
    manifest = rank_in_process(
        index, stores / "gallery", tmp_path / "m", recall=1.0, top_k=1, exclude_self=True,
        min_score=0.9999, unique_pairs=True,
    )  # fmt: skip
    full = len(read_matches(tmp_path / "m"))
    assert manifest.counts["full_lists"] == full
    assert (
        f"{full} images have 1 or more duplicates; with a larger --top-k none is left out"
        in summary(str(tmp_path / "m"), manifest).lines
    )


@every_metric
def test_leaks_between_two_sets(stores, tmp_path, metric):
    index = make_index(stores, tmp_path / "index", metric)
    threshold = {"cosine": 0.9999, "ip": 4.0, "l2": 0.01}[metric]
    options = {"recall": 1.0, "top_k": K, "min_score": threshold, "unique_pairs": True}
    manifest = rank_in_process(index, stores / "queries", tmp_path / "m", **options)
    matches = read_matches(tmp_path / "m")
    sign = 1 if metric == "l2" else -1
    leaks = pq.read_table(tmp_path / "m/leaks.parquet").to_pylist()
    assert [(row["query_id"], row["image_id"], row["score"]) for row in leaks] == sorted(
        matches, key=lambda match: (sign * match[2], match[0], match[1])
    )
    assert leaks[0]["query_path"].startswith("/nowhere/")
    expected = {
        "leaks": len(matches),
        "leaked_queries": len({query for query, *_ in matches}),
        "leaked_images": len({image for _, image, _ in matches}),
    }
    result = summary(str(tmp_path / "m"), manifest)
    assert {key: result.values[key] for key in expected} == expected
    assert not (tmp_path / "m/groups.parquet").exists()
    check_verified(tmp_path / "m")


# --- query expansion ----------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "alpha"), [("cosine", 3.0), ("ip", 1.0), ("l2", 0.0)])
@pytest.mark.parametrize(
    "kind", ["IVF12,SQfp16", pytest.param("IVF12,SQ8", marks=pytest.mark.nightly)]
)
def test_expanded_queries_are_searched_again(stores, tmp_path, metric, alpha, kind):
    index = make_index(stores, tmp_path / "index", metric, index_factory=kind)
    rank_in_process(
        index, stores / "queries", tmp_path / "m", recall=1.0, top_k=K,
        rerank=f"expand:4,{alpha:g}",
    )  # fmt: skip
    gallery, queries = draw_vectors()
    first = brute_force_matches(metric, k=4)
    rows = np.array([int(name[1:6]) for _, name, _ in first]).reshape(QUERIES, 4)
    scores = np.array([score for *_, score in first]).reshape(QUERIES, 4)
    expanded = expand_queries(
        queries, gallery[rows], scores, np.ones(rows.shape, bool), alpha, metric
    )
    assert read_matches(tmp_path / "m") == brute_force_matches(metric, queries=expanded)


def rerank_by_definition(method, count, k, excluded=None, min_key=-np.inf):
    """Return the matches whose first `count` are ordered anew by a method, k of each query."""
    gallery, queries = draw_vectors()
    matches = brute_force_matches("cosine", k=ROWS, excluded=excluded, min_key=min_key)
    results = []
    for query in range(QUERIES):
        by_cosine = [match for match in matches if match[0] == f"a{query:05d}.jpg"]
        rows = [int(name[1:6]) for _, name, _ in by_cosine[:count]]
        similarities = METHODS[method](pairwise_cosines(queries[query], gallery[rows]))
        scores = [*(1 + similarities).tolist(), *(score for *_, score in by_cosine[count:])]
        rescored = [
            (name, image, score) for (name, image, _), score in zip(by_cosine, scores, strict=True)
        ]
        results += sorted(rescored, key=lambda match: (-match[2], match[1]))[:k]
    return results


@pytest.mark.parametrize(
    ("method", "count", "k", "kind"),
    [
        ("k-reciprocal", 30, K, "IVF12,SQfp16"),  # candidates beyond the k matches
        ("augment", 5, K, "IVF12,SQfp16"),  # matches beyond the re-ranked ones
        pytest.param("augment", 30, K, "IVF12,SQ8", marks=pytest.mark.nightly),
    ],
)
def test_first_matches_are_reranked(stores, tmp_path, method, count, k, kind):
    index = make_index(stores, tmp_path / "index", index_factory=kind)
    rank_in_process(
        index, stores / "queries", tmp_path / "m", recall=1.0, top_k=k, rerank=f"{method}:{count}"
    )
    assert read_matches(tmp_path / "m") == rerank_by_definition(method, count, k)
    check_verified(tmp_path / "m")


def test_message_on_a_small_gallery_states_top_k_alone(tmp_path, capsys):
    write_store(tmp_path / "store", draw_vectors()[0][:9])
    index_in_process(tmp_path / "store", tmp_path / "index")
    for k, output in ((3, "few"), (20, "all")):
        rank_in_process(
            tmp_path / "index", tmp_path / "store", tmp_path / output, top_k=k,
            rerank="k-reciprocal",
        )  # fmt: skip
    messages = [line for line in capsys.readouterr().err.splitlines() if "size of" in line]
    assert messages == ["--top-k 20 exceeds the size of the gallery: each query gets at most 9"]


def test_excluded_matches_and_low_scores_are_not_reranked(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    rank_in_process(
        index, stores / "queries", tmp_path / "m", recall=1.0, top_k=K, exclude_self=True,
        min_score=0.5, rerank="augment:20", format="html",
    )  # fmt: skip
    page = (tmp_path / "m/report.html").read_text()
    assert "the top 20 matches, by augment" in page
    assert "here after a re-ranking" in page
    excluded = np.arange(QUERIES)[:, None] == np.arange(ROWS) % 300
    excluded &= np.arange(QUERIES)[:, None] < 20
    expected = rerank_by_definition("augment", 20, K, excluded, 0.5)
    assert read_matches(tmp_path / "m") == expected


def test_reranked_matches_are_independent_of_shards_and_blocks(stores, tmp_path, monkeypatch):
    files = []
    for rows, block_bytes in ((130, 1), (ROWS, 1 << 26)):
        monkeypatch.setattr(shard_search, "_BLOCK_BYTES", block_bytes)
        index = make_index(stores, tmp_path / f"index{rows}", rows_per_shard=rows)
        output = tmp_path / f"m{rows}"
        rank_in_process(
            index, stores / "queries", output, recall=1.0, top_k=K, rerank="k-reciprocal:25"
        )
        files.append(read_matches(output))
    assert files[0] == files[1]


def test_invalid_reranking_is_refused(stores, tmp_path):
    index = make_index(stores, tmp_path / "index", "l2")
    for text, message in (
        ("many", "is no re-ranking"),
        ("expand:3,2", "which l2 does not have"),
        ("augment", "compares cosines, and the index has the metric l2"),
    ):
        with pytest.raises(UsageError, match=message):
            rank_in_process(index, stores / "queries", tmp_path / "m", rerank=text)


# --- resuming after a kill ----------------------------------------------------------------------


OPTIONS = {
    "filter": {"nprobe": 1, "filter": "width > 3", "format": "csv,submission"},
    "expand": {
        "nprobe": 3, "rerank": "expand:3", "exclude_self": True, "format": "jsonl,trec,html",
    },
    "wider": {"recall": 0.999, "min_score": 0.1},
    "rerank": {"nprobe": 3, "rerank": "augment:9"},
}  # fmt: skip


def rank_with_kills(stores, root, options, kill_points):
    """Kill a ranking at some written files, run it again, and compare the files.

    `kill_points` maps the number of written files to the numbers of those at which it is killed.
    """
    index = make_index(stores, root / "index")
    folder = type(open_folder(str(root)))
    put_new_file, writes = folder.put_new_file, []

    def run_rank(name, put):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "put_new_file", put)
            rank_in_process(index, stores / "queries", root / name, top_k=K, **options)

    def die_at(number):
        remaining = [number]

        def die(self, path, write):
            remaining[0] -= 1
            if remaining[0] < 0:
                raise Killed
            return put_new_file(self, path, write)

        return die

    run_rank("whole", lambda *arguments: writes.append(1) or put_new_file(*arguments))
    expected = read_files(root / "whole")
    assert len(writes) > 30
    for number in kill_points(len(writes)):
        with pytest.raises(Killed):
            run_rank(f"m{number}", die_at(number))
        run_rank(f"m{number}", put_new_file)
        assert read_files(root / f"m{number}") == expected
        check_verified(root / f"m{number}")


@pytest.mark.parametrize("name", OPTIONS)
def test_rank_killed_at_sampled_writes_resumes(stores, tmp_path, name):
    rank_with_kills(
        stores, tmp_path, OPTIONS[name], lambda count: (count // 2, count - 2, count - 1)
    )


@pytest.mark.nightly
@pytest.mark.parametrize("name", OPTIONS)
def test_rank_killed_at_any_write_resumes(stores, tmp_path, name):
    rank_with_kills(stores, tmp_path, OPTIONS[name], range)


def read_files(path):
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {f.relative_to(path): f.read_bytes() for f in files if f.name != "run.json"}


# --- export formats -----------------------------------------------------------------------------


def test_format_added_later_does_not_rank_again(stores, tmp_path, monkeypatch):
    index = make_index(stores, tmp_path / "index")
    options = {"nprobe": 3, "top_k": K}
    before = rank_in_process(index, stores / "queries", tmp_path / "m", **options, format="csv")
    assert "matches.csv" in before.files
    monkeypatch.setattr(shard_search, "open_shard", None)  # fails if it is called
    names = "parquet, csv,jsonl,trec,submission,html"
    after = rank_in_process(index, stores / "queries", tmp_path / "m", **options, format=names)
    added_files = {"matches.jsonl", "matches.trec", "submission.json", "report.html"}
    assert (
        after.files.keys()
        - before.files.keys()
        - {f"{name}.sum.json" for name in ("jsonl", "trec", "submission")}
        == added_files
    )
    lines = [json.loads(line) for line in (tmp_path / "m/matches.jsonl").open()]
    assert [(row["query_id"], m["image_id"], m["score"]) for row in lines for m in row["matches"]] \
        == read_matches(tmp_path / "m")  # fmt: skip
    assert rank_in_process(index, stores / "queries", tmp_path / "m", **options) == after
    check_verified(tmp_path / "m")


def test_report_names_the_match_constraints(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    rank_in_process(
        index, stores / "queries", tmp_path / "m", filter="label <> '<b>'", exclude_self=True,
        min_score=0.25, rerank="expand:3", format="html",
    )  # fmt: skip
    page = (tmp_path / "m/report.html").read_text()
    for expected_text in (
        "label &lt;&gt; &#39;&lt;b&gt;&#39;", "own image", "0.25",
        "with the top 3 matches",
    ):  # fmt: skip
        assert expected_text in page


def test_missing_part_is_written_again(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    rank_in_process(index, stores / "queries", tmp_path / "m", nprobe=3, format="csv")
    expected = read_files(tmp_path / "m")
    for path in ("manifest.json", "matches/part-00001.parquet"):
        (tmp_path / "m" / path).unlink()
    rank_in_process(index, stores / "queries", tmp_path / "m", nprobe=3, format="csv")
    assert read_files(tmp_path / "m") == expected


def test_unknown_format_is_refused():
    rank_settings = RankSettings(index="i", queries="q", output="o", format="csv,xml")
    with pytest.raises(UsageError, match="--format 'xml': write one or more of parquet,jsonl"):
        parse_formats(rank_settings)


@pytest.mark.parametrize("path", ["matches.csv", "submission.json", "certificate.json"])
def test_altered_file_is_detected(stores, tmp_path, path):
    index = make_index(stores, tmp_path / "index")
    rank_in_process(index, stores / "queries", tmp_path / "m", nprobe=3, format="csv,submission")
    data = bytearray((tmp_path / "m" / path).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m" / path).write_bytes(data)
    (verdict,) = verify(open_folder(str(tmp_path / "m")))
    assert verdict.state == "damaged"
    (tmp_path / "m/manifest.json").unlink()
    with pytest.raises(Damaged, match="was altered"):
        rank_in_process(
            index, stores / "queries", tmp_path / "m", nprobe=3, format="csv,submission"
        )


def test_incomplete_queries_are_counted_once(stores, tmp_path, monkeypatch):
    """A run that was killed while searching all lists continues there."""
    index = make_index(stores, tmp_path / "index")
    options = {"nprobe": 1, "top_k": K, "filter": "width > 3"}
    rank_in_process(index, stores / "queries", tmp_path / "whole", **options)
    filled = []
    search_all_lists = fill_matches.search_all_lists

    def kill_at_second_call(task, number):
        filled.append(number)
        if len(filled) == 2:
            raise Killed
        return search_all_lists(task, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill_matches, "search_all_lists", kill_at_second_call)
        with pytest.raises(Killed):
            rank_in_process(index, stores / "queries", tmp_path / "m", **options)
    rank_in_process(index, stores / "queries", tmp_path / "m", **options)
    assert pa.Table.equals(
        pq.read_table(tmp_path / "whole/matches"), pq.read_table(tmp_path / "m/matches")
    )
