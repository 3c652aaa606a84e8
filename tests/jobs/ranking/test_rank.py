"""A ranking is that of brute force, however it is cut and multiplied; what may match is kept to.

Without Ray: the steps are plain functions.
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.config.settings import RankSettings
from jobs.ranking.output_formats import formats_of
from jobs.ranking.rank import summary
from retrieval.core.errors import Damaged, UsageError
from retrieval.index import plan, recall_interval
from retrieval.search import fill_matches, shard_search
from retrieval.search.query_expansion import expand
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.vectors.int8_matmul import Int8, multiplies
from retrieval.vectors.matmul import SINGLE, Half
from tests.jobs.here import index_here, rank_here
from tests.retrieval.sample_vectors import METRICS, exact_keys, metrics, seeds
from tests.retrieval.storage.faults import Killed
from tests.stores import write_store

ROWS, QUERIES, K = 400, 60, 7
every_metric = pytest.mark.parametrize("metric", METRICS)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Read few lists of many, though the gallery is small; each chunk of queries is a block."""
    monkeypatch.setattr(plan, "PROBE_ALL_ROWS", 0)
    monkeypatch.setattr(shard_search, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(recall_interval, "LOOKS", (8, 16, 32))


def drawn(dtype="float16"):
    """A gallery in clusters, with copies and near-copies, and queries of another distribution."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(25, 12))
    gallery = centres[generator.integers(0, 25, ROWS)] + 0.3 * generator.normal(size=(ROWS, 12))
    gallery[300:340] = gallery[:40]  # copies, in other shards than what they are of
    gallery[340:360] = gallery[:20] * (1 + 1e-3 * generator.normal(size=(20, 12)))
    queries = generator.normal(size=(QUERIES, 12))
    queries[:20] = gallery[:20]
    return gallery.astype(dtype), queries.astype(dtype)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    gallery, queries = drawn()
    sums = [f"{row % 300:064x}" for row in range(ROWS)]  # the copies have the same bytes
    write_store(root / "gallery", gallery, sha256=sums, chunk_rows=64)
    asked = [f"{row:064x}" if row < 20 else None for row in range(QUERIES)]
    write_store(root / "queries", queries, sha256=asked, chunk_rows=25)
    return root


def make_index(stores, path, metric="cosine", **options):
    asked = {"index_factory": "IVF12,SQfp16", "rows_per_shard": 130, "metric": metric, **options}
    index_here(stores / "gallery", path, **asked)
    return path


def matches(path) -> list[tuple[str, str, float]]:
    table = pq.read_table(path / "matches")
    columns = (table[name].to_pylist() for name in ("query_id", "image_id", "score"))
    return list(zip(*columns, strict=True))


def oracle(metric, k=K, allowed=None, barred=None, queries=None, least=-np.inf):
    """Brute force in float64, all lists: as `matches` gives them."""
    gallery, asked = drawn()
    asked = asked if queries is None else queries
    keys = exact_keys(asked, gallery, metric)
    if allowed is not None:
        keys[:, ~allowed] = -np.inf
    if barred is not None:
        keys[barred] = -np.inf
    keys[keys < least] = -np.inf
    found = []
    for query, row in enumerate(keys):
        order = np.lexsort((np.arange(ROWS), -row))[:k]
        scores = -row if metric == "l2" else row
        names = [(f"a{query:05d}.jpg", f"a{x:05d}.jpg") for x in order]
        found += [
            (*name, float(scores[x]))
            for name, x in zip(names, order, strict=True)
            if row[x] > -np.inf
        ]
    return found


def soundly(path):
    (verdict,) = verify(open_folder(str(path)))
    assert (verdict.state, verdict.problems) == ("finished", ())


PRODUCTS = [SINGLE, Half("cpu"), *([Int8()] if multiplies() else [])]

# --- the same ranking ---------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    metric=metrics, shard=st.sampled_from([25, 70, 130, 400]), most=st.sampled_from([1, 10**6]),
    product=st.sampled_from(PRODUCTS), nprobe=st.sampled_from([1, 3, 12]), seed=seeds,
)  # fmt: skip
def test_any_shards_blocks_and_products_give_the_same_matches(
    stores, tmp_path_factory, metric, shard, most, product, nprobe, seed
):
    """Shards answer in any order, so that some know what others have and others do not."""
    root = tmp_path_factory.mktemp("rank")
    plain = make_index(stores, root / "plain", metric, rows_per_shard=400)
    rank_here(plain, stores / "queries", root / "a", nprobe=nprobe, top_k=K)
    other = make_index(stores, root / "other", metric, rows_per_shard=shard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_search, "_BLOCK_BYTES", most)
        patch.setattr(shard_search, "search_product", lambda *_: product)
        shuffled = np.random.default_rng(seed)
        patch.setattr(
            "tests.jobs.here._tasks",
            lambda where, do, items, **_: map(do, shuffled.permutation(items).tolist()),
        )
        rank_here(other, stores / "queries", root / "b", nprobe=nprobe, top_k=K)
    assert matches(root / "a") == matches(root / "b")
    if nprobe == 12:
        assert matches(root / "a") == oracle(metric)


@every_metric
def test_exact_is_brute_force(stores, tmp_path, metric):
    index = make_index(stores, tmp_path / "index", metric)
    manifest = rank_here(index, stores / "queries", tmp_path / "m", recall=1.0, top_k=K)
    assert matches(tmp_path / "m") == oracle(metric)
    assert manifest.counts["certificate"]["recall"] == 1


def test_each_shard_is_read_once(stores, tmp_path, monkeypatch):
    index = make_index(stores, tmp_path / "index")
    opened = []
    open_shard = shard_search.open_shard
    monkeypatch.setattr(
        shard_search, "open_shard", lambda *words: opened.append(words[2]) or open_shard(*words)
    )
    rank_here(index, stores / "queries", tmp_path / "m", nprobe=3, top_k=K)
    assert sorted(opened) == [0, 1, 2, 3]  # for three blocks of queries and their certificate


# --- what may be a match ------------------------------------------------------------------------


@every_metric
def test_a_filter_leaves_what_passes_and_gives_k_where_there_are_k(stores, tmp_path, metric):
    """One class in seven, of one width in five: a list holds hardly any such row."""
    index = make_index(stores, tmp_path / "index", metric)
    wanted = "label in ('class1', 'class2') and width > 2"
    rank_here(index, stores / "queries", tmp_path / "m", nprobe=1, top_k=K, filter=wanted)
    rows = np.arange(ROWS)
    allowed = np.isin(rows % 7, [1, 2]) & (rows % 5 > 2)
    found = matches(tmp_path / "m")
    assert len(found) == QUERIES * K
    assert {int(name[1:6]) for _, name, _ in found} <= set(rows[allowed])
    rank_here(index, stores / "queries", tmp_path / "all", recall=1.0, top_k=K, filter=wanted)
    assert matches(tmp_path / "all") == oracle(metric, allowed=allowed)


def test_a_filter_that_leaves_fewer_than_k_gives_all_of_them(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    rank_here(index, stores / "queries", tmp_path / "m", nprobe=1, top_k=K, filter="row < 3")
    assert matches(tmp_path / "m") == oracle("cosine", allowed=np.arange(ROWS) < 3)
    asked = {"nprobe": 1, "top_k": K, "filter": "row < 0"}
    manifest = rank_here(index, stores / "queries", tmp_path / "none", **asked)
    assert matches(tmp_path / "none") == []
    said = f"{QUERIES} queries found no image that may be a match"
    assert said in summary(str(tmp_path / "none"), manifest).lines
    soundly(tmp_path / "none")


@pytest.mark.parametrize("condition", ["colour = 'red'", "label", "read_text('/etc/passwd')"])
def test_a_filter_that_is_none_is_refused_before_any_work(stores, tmp_path, condition):
    index = make_index(stores, tmp_path / "index")
    with pytest.raises(UsageError, match="--filter"):
        rank_here(index, stores / "queries", tmp_path / "m", filter=condition)
    assert not (tmp_path / "m").exists()


@every_metric
@pytest.mark.parametrize("kind", ["IVF12,SQfp16", "IVF12,SQ8"])
def test_a_gallery_against_itself_leaves_each_row_out(stores, tmp_path, metric, kind):
    """A copy of an image is a match, the image itself is none."""
    index = make_index(stores, tmp_path / "index", metric, index_factory=kind)
    manifest = rank_here(
        index, stores / "gallery", tmp_path / "m", recall=1.0, top_k=K, exclude_self=True,
        unique_pairs=True, format="csv",
    )  # fmt: skip
    gallery, _ = drawn()
    expected = oracle(metric, barred=np.diag_indices(ROWS), queries=gallery)
    assert matches(tmp_path / "m") == expected
    pairs = pq.read_table(tmp_path / "m/pairs.parquet").to_pylist()
    once = {(*sorted([query, image]), score) for query, image, score in expected}
    assert len(pairs) == len(once)
    assert {(p["image_id"], p["other_id"], p["score"]) for p in pairs} == once
    scores = [p["score"] for p in pairs]
    assert scores == sorted(scores, reverse=metric != "l2")
    said = summary(str(tmp_path / "m"), manifest).lines
    assert f"{len(pairs)} pairs, closest first: pairs.parquet" in said
    assert "further files: matches.csv" in said
    soundly(tmp_path / "m")


@pytest.mark.parametrize("kind", ["IVF12,SQfp16", "IVF12,SQ8"])
def test_other_queries_leave_out_what_has_their_bytes(stores, tmp_path, kind):
    index = make_index(stores, tmp_path / "index", index_factory=kind)
    rank_here(index, stores / "queries", tmp_path / "m", recall=1.0, top_k=K, exclude_self=True)
    barred = np.zeros((QUERIES, ROWS), np.bool_)
    for query in range(20):  # the others have no checksum, which is equal to nothing
        barred[query, [query, 300 + query]] = True
    assert matches(tmp_path / "m") == oracle("cosine", barred=barred)
    noted = pq.read_table(tmp_path / "m/barred").sort_by("query_id")
    pairs = zip(*(noted[name].to_pylist() for name in ("query_id", "image_id")), strict=True)
    assert sorted(pairs) == [
        (f"a{q:05d}.jpg", f"a{x:05d}.jpg") for q, x in zip(*np.nonzero(barred), strict=True)
    ]


def test_without_rows_or_checksums_nothing_can_be_left_out(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    write_store(tmp_path / "bare", drawn()[1], sha256=[None] * QUERIES)
    with pytest.raises(UsageError, match="--exclude-self: the queries have no checksums"):
        rank_here(index, tmp_path / "bare", tmp_path / "m", exclude_self=True)


@every_metric
@pytest.mark.parametrize("kind", ["IVF12,SQfp16", "IVF12,SQ8"])
def test_no_match_is_further_than_the_least_score(stores, tmp_path, metric, kind):
    index = make_index(stores, tmp_path / "index", metric, index_factory=kind)
    least = {"cosine": 0.5, "ip": 4.0, "l2": 12.0}[metric]
    manifest = rank_here(
        index, stores / "queries", tmp_path / "m", recall=1.0, top_k=K, min_score=least
    )
    found = matches(tmp_path / "m")
    assert found == oracle(metric, least=-least if metric == "l2" else least)
    assert QUERIES < len(found) < QUERIES * K
    assert manifest.counts["unmatched"] == QUERIES - len({query for query, *_ in found})


@pytest.mark.parametrize(("metric", "least"), [("cosine", 1.0), ("l2", 0.0)])
def test_the_least_score_of_equal_vectors_finds_all_that_are_equal(stores, tmp_path, metric, least):
    """A gallery against itself: each image is its own match, and each copy's."""
    index = make_index(stores, tmp_path / "index", metric)
    options = {"min_score": least, "top_k": K, "recall": 1.0}
    rank_here(index, stores / "gallery", tmp_path / "m", **options)
    gallery, _ = drawn()
    equal = (gallery[:, None] == gallery).all(-1)
    found = {(query, match) for query, match, _ in matches(tmp_path / "m")}
    assert {score for *_, score in matches(tmp_path / "m")} == {least}
    named = [(f"a{q:05d}.jpg", f"a{x:05d}.jpg") for q, x in zip(*np.nonzero(equal), strict=True)]
    assert found == set(named)
    assert len(named) == ROWS + 2 * 40


def test_the_first_of_a_store_are_not_asked_for(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    with pytest.raises(UsageError, match="--limit takes the first of some images"):
        rank_here(index, stores / "queries", tmp_path / "m", limit=3)


def test_pairs_are_of_a_gallery_against_itself(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    with pytest.raises(UsageError, match="--unique-pairs is for a gallery against itself"):
        rank_here(index, stores / "queries", tmp_path / "m", unique_pairs=True)
    with pytest.raises(UsageError, match="--unique-pairs with --expand-queries"):
        rank_here(index, stores / "gallery", tmp_path / "m", unique_pairs=True, expand_queries="3")


# --- expansion ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "alpha"), [("cosine", 3.0), ("ip", 1.0), ("l2", 0.0)])
@pytest.mark.parametrize("kind", ["IVF12,SQfp16", "IVF12,SQ8"])
def test_expanded_queries_are_asked_again(stores, tmp_path, metric, alpha, kind):
    index = make_index(stores, tmp_path / "index", metric, index_factory=kind)
    rank_here(
        index, stores / "queries", tmp_path / "m", recall=1.0, top_k=K,
        expand_queries=f"4,{alpha:g}",
    )  # fmt: skip
    gallery, queries = drawn()
    first = oracle(metric, k=4)
    rows = np.array([int(name[1:6]) for _, name, _ in first]).reshape(QUERIES, 4)
    scores = np.array([score for *_, score in first]).reshape(QUERIES, 4)
    expanded = expand(queries, gallery[rows], scores, np.ones(rows.shape, bool), alpha, metric)
    assert matches(tmp_path / "m") == oracle(metric, queries=expanded)


def test_an_expansion_that_is_none_is_refused(stores, tmp_path):
    index = make_index(stores, tmp_path / "index", "l2")
    for text, why in (("many", "is not an expansion"), ("3,2", "l2 has no measure")):
        with pytest.raises(UsageError, match=why):
            rank_here(index, stores / "queries", tmp_path / "m", expand_queries=text)


# --- killed and run again -----------------------------------------------------------------------


OPTIONS = {
    "filter": {"nprobe": 1, "filter": "width > 3", "format": "csv,submission"},
    "expand": {
        "nprobe": 3, "expand_queries": "3", "exclude_self": True, "format": "jsonl,trec,html",
    },
    "wider": {"recall": 0.999, "min_score": 0.1},
}  # fmt: skip


def killed(stores, root, options, step):
    """Kill a ranking at every `step`-th file that it puts, and run it again."""
    index = make_index(stores, root / "index")
    folder = type(open_folder(str(root)))
    put, puts = folder.put_new_file, []

    def go(name, seam):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "put_new_file", seam)
            rank_here(index, stores / "queries", root / name, top_k=K, **options)

    def dies_at(moment):
        left = [moment]

        def dies(self, path, write):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return put(self, path, write)

        return dies

    go("whole", lambda *words: puts.append(1) or put(*words))
    expected = contents(root / "whole")
    assert len(puts) > 30
    for moment in {*range(0, len(puts), step), len(puts) - 2, len(puts) - 1}:
        with pytest.raises(Killed):
            go(f"m{moment}", dies_at(moment))
        go(f"m{moment}", put)
        assert contents(root / f"m{moment}") == expected
        soundly(root / f"m{moment}")


@pytest.mark.parametrize("name", OPTIONS)
def test_killed_at_a_sample_of_moments_it_ends_the_same(stores, tmp_path, name):
    killed(stores, tmp_path, OPTIONS[name], 29)


@pytest.mark.nightly
@pytest.mark.parametrize("name", OPTIONS)
def test_killed_at_any_moment_it_ends_the_same(stores, tmp_path, name):
    killed(stores, tmp_path, OPTIONS[name], 1)


def contents(path):
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {f.relative_to(path): f.read_bytes() for f in files if f.name != "run.json"}


# --- further formats ----------------------------------------------------------------------------


def test_a_format_asked_for_later_is_added_and_nothing_is_ranked_again(
    stores, tmp_path, monkeypatch
):
    index = make_index(stores, tmp_path / "index")
    asked = {"nprobe": 3, "top_k": K}
    before = rank_here(index, stores / "queries", tmp_path / "m", **asked, format="csv")
    assert "matches.csv" in before.files
    monkeypatch.setattr(shard_search, "open_shard", None)  # it would be called
    names = "parquet, csv,jsonl,trec,submission,html"
    after = rank_here(index, stores / "queries", tmp_path / "m", **asked, format=names)
    added = {"matches.jsonl", "matches.trec", "submission.json", "report.html"}
    assert (
        after.files.keys()
        - before.files.keys()
        - {f"{name}.sum.json" for name in ("jsonl", "trec", "submission")}
        == added
    )
    lines = [json.loads(line) for line in (tmp_path / "m/matches.jsonl").open()]
    assert [(one["query_id"], m["image_id"], m["score"]) for one in lines for m in one["matches"]] \
        == matches(tmp_path / "m")  # fmt: skip
    assert rank_here(index, stores / "queries", tmp_path / "m", **asked) == after
    soundly(tmp_path / "m")


def test_the_page_says_what_a_match_had_to_be(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    rank_here(
        index, stores / "queries", tmp_path / "m", filter="label <> '<b>'", exclude_self=True,
        min_score=0.25, expand_queries="3", format="html",
    )  # fmt: skip
    page = (tmp_path / "m/report.html").read_text()
    for said in (
        "label &lt;&gt; &#39;&lt;b&gt;&#39;", "own image", "0.25",
        "by the 3 images that each found first",
    ):  # fmt: skip
        assert said in page


def test_a_part_that_is_missing_is_made_again(stores, tmp_path):
    index = make_index(stores, tmp_path / "index")
    rank_here(index, stores / "queries", tmp_path / "m", nprobe=3, format="csv")
    whole = contents(tmp_path / "m")
    for path in ("manifest.json", "matches/part-00001.parquet"):
        (tmp_path / "m" / path).unlink()
    rank_here(index, stores / "queries", tmp_path / "m", nprobe=3, format="csv")
    assert contents(tmp_path / "m") == whole


def test_a_format_that_is_none_is_refused():
    settings = RankSettings(index="i", queries="q", output="o", format="csv,xml")
    with pytest.raises(UsageError, match="--format 'xml': write one or more of parquet,jsonl"):
        formats_of(settings)


@pytest.mark.parametrize("path", ["matches.csv", "submission.json", "certificate.json"])
def test_an_altered_file_is_found(stores, tmp_path, path):
    index = make_index(stores, tmp_path / "index")
    rank_here(index, stores / "queries", tmp_path / "m", nprobe=3, format="csv,submission")
    data = bytearray((tmp_path / "m" / path).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m" / path).write_bytes(data)
    (verdict,) = verify(open_folder(str(tmp_path / "m")))
    assert verdict.state == "damaged"
    (tmp_path / "m/manifest.json").unlink()
    with pytest.raises(Damaged, match="was altered"):
        rank_here(index, stores / "queries", tmp_path / "m", nprobe=3, format="csv,submission")


def test_short_queries_are_counted_once(stores, tmp_path, monkeypatch):
    """A run that was killed while all lists were read goes on where it was."""
    index = make_index(stores, tmp_path / "index")
    asked = {"nprobe": 1, "top_k": K, "filter": "width > 3"}
    rank_here(index, stores / "queries", tmp_path / "whole", **asked)
    filled = []
    fill_shard = fill_matches.fill_shard

    def second_dies(task, number):
        filled.append(number)
        if len(filled) == 2:
            raise Killed
        return fill_shard(task, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill_matches, "fill_shard", second_dies)
        with pytest.raises(Killed):
            rank_here(index, stores / "queries", tmp_path / "m", **asked)
    rank_here(index, stores / "queries", tmp_path / "m", **asked)
    assert pa.Table.equals(
        pq.read_table(tmp_path / "whole/matches"), pq.read_table(tmp_path / "m/matches")
    )
