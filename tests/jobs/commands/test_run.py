"""Test `run` on generated photos: once with Ray, then without Ray on the files of that run.

A run without Ray must write the same bytes as the run with two workers on Ray.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.commands import run
from jobs.config.settings import EmbedSettings, IndexSettings, RankSettings, RunSettings
from jobs.embedding import embed
from jobs.indexing import index
from jobs.ranking import rank
from retrieval.core.errors import InputError, Mismatch, TooManyFailures, UsageError
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.conftest import draw_photos
from tests.file_tree import read_tree
from tests.jobs.in_process import without_ray

SMALL_MODEL = {"backbone": "scratch", "weights": "random", "image_size": 32}


@pytest.fixture(scope="module")
def finished_run(local_ray, tmp_path_factory):
    """Return the settings of a run with Ray of 30 photos in 4 chunks and 3 shards."""
    root = tmp_path_factory.mktemp("run")
    settings = RunSettings(
        gallery=str(draw_photos(root / "gallery", 30)),
        queries=str(draw_photos(root / "queries", 6, seed=1)),
        output=str(root / "out"), chunk_rows=8, rows_per_shard=10, top_k=5, workers=2,
        **SMALL_MODEL,
    )  # fmt: skip
    run.run(settings)
    shutil.copytree(root, root.with_name("kept"))
    return settings


@pytest.fixture
def settings(finished_run):
    """Restore all files of the finished run, and return its settings."""
    root = Path(finished_run.output).parent
    shutil.rmtree(root)
    shutil.copytree(root.with_name("kept"), root)
    return finished_run


@pytest.fixture
def root(settings):
    """Return the folder that contains gallery, queries and out."""
    return Path(settings.output).parent


@pytest.fixture
def in_process():
    """Run all stages in this process."""
    with without_ray():
        yield


def read_states(path):
    return {verdict.state for verdict in verify(open_folder(str(path)))}


def test_run_ranks_all_queries_and_outputs_are_verified(settings, root):
    outcome = run.run(settings)
    assert read_states(root / "out") == {"finished"}
    matches = pq.read_table(root / "out/matches/matches/part-00000.parquet")
    assert len(matches) == 6 * 5
    assert matches["rank"].to_pylist() == [1, 2, 3, 4, 5] * 6
    assert outcome.result.values["recall"] == 1.0
    assert outcome.result.values["Success@1"] == 1.0  # classes differ by colour
    assert (root / "out/report.html").stat().st_size > 10_000
    assert len(pq.read_table(root / "out/index/files.parquet")) > 6


def test_limit_applies_to_gallery_and_queries(settings, root, in_process):
    outcome = run.run(dataclasses.replace(settings, limit=4, output=str(root / "few")))
    assert (outcome.result.values["queries"], outcome.result.values["gallery"]) == (4, 4)


def test_run_json_has_metadata_of_each_stage(settings, root):
    metadata = json.loads((root / "out/run.json").read_bytes())
    assert "per_second" not in metadata, "the throughput is reported per stage"
    stages = metadata["stages"]
    assert stages.keys() == {"gallery", "queries", "index", "matches"}
    for name, stage_metadata in stages.items():
        assert all(stage_metadata[key] > 0 for key in ("seconds", "per_second", "bytes")), name
        assert stage_metadata["worker_peak_memory_bytes"] > 10**8, name
        files = pq.read_table(root / "out" / name / "files.parquet")
        assert stage_metadata["bytes"] == sum(files["size"].to_pylist())


def test_run_json_has_a_profile_of_the_command(settings, root):
    steps = json.loads((root / "out/run.json").read_bytes())["profile"]
    names = [step["step"] for step in steps]
    assert names[0] == "imports and checks"
    stages = ("embed gallery", "index", "embed queries", "rank", "evaluate and report")
    assert [name for name in names if name in stages] == [*stages]
    assert names.count("first chunk is written") == 2
    assert [step["began"] for step in steps] == sorted(step["began"] for step in steps)
    assert all(0 <= step["began"] <= step["ended"] for step in steps)


def check_that_a_new_run_writes_the_same_files(settings):
    output = Path(settings.output)
    expected = read_tree(output)
    shutil.rmtree(output)
    run.run(settings)
    assert read_tree(output) == expected


@pytest.mark.usefixtures("in_process")
def test_output_in_one_process_equals_that_of_two_workers(settings):
    check_that_a_new_run_writes_the_same_files(settings)


@pytest.mark.nightly
def test_output_of_one_worker_equals_that_of_two(settings):
    check_that_a_new_run_writes_the_same_files(dataclasses.replace(settings, workers=1))


def test_finished_run_is_not_rewritten(settings, root):
    before = {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*")}
    assert run.run(settings).result.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*")} == before


@pytest.mark.parametrize(
    "missing",
    [
        "manifest.json",
        "report.html",
        "gallery/manifest.json",
        "gallery/segments/00000/parts/00000001.parquet",
        "index/shards/00001.json",
        "matches/matches/part-00000.parquet",
    ],
)
@pytest.mark.usefixtures("in_process")
def test_missing_file_of_an_unfinished_run_is_rewritten(settings, root, missing):
    expected = read_tree(root / "out")
    stage = (root / "out" / missing).relative_to(root / "out").parts[0]
    for name in {"manifest.json", f"{stage}/manifest.json" if "/" in missing else missing, missing}:
        (root / "out" / name).unlink(missing_ok=True)
    assert read_states(root / "out") >= {"unfinished"}
    run.run(settings)
    assert read_tree(root / "out") == expected


@pytest.mark.usefixtures("in_process")
def test_changed_settings_need_overwrite_which_keeps_unaffected_stages(settings, root):
    store_mtime = (root / "out/gallery/manifest.json").stat().st_mtime_ns
    changed_settings = dataclasses.replace(settings, top_k=3)
    with pytest.raises(Mismatch, match="top_k was 5, is 3"):
        run.run(changed_settings)
    outcome = run.run(dataclasses.replace(changed_settings, overwrite=True))
    assert outcome.matches.counts["queries"] == 6
    assert len(pq.read_table(root / "out/matches/matches/part-00000.parquet")) == 6 * 3
    assert (root / "out/gallery/manifest.json").stat().st_mtime_ns == store_mtime
    assert read_states(root / "out") == {"finished"}


@pytest.mark.usefixtures("in_process")
def test_unfinished_output_refuses_changed_settings(settings, root):
    (root / "out/manifest.json").unlink()
    with pytest.raises(Mismatch, match="pooling"):
        run.run(dataclasses.replace(settings, pooling="max"))


@pytest.mark.usefixtures("in_process")
def test_updated_gallery_gives_the_matches_of_a_new_run(settings, root):
    (root / "gallery/class0/photo0000.jpg").unlink()
    draw_photos(root / "gallery", 4, seed=5)  # other photos with the same names
    (root / "queries/class1/photo0001.jpg").rename(root / "queries/class1/renamed.jpg")
    store = root / "out/gallery"
    segment_files = read_tree(store / "segments/00000")
    updated = run.run(settings)
    assert read_tree(store / "segments/00000") == segment_files
    assert len(list((store / "segments").iterdir())) == 2
    assert read_states(root / "out") == {"finished"}
    rebuilt = run.run(dataclasses.replace(settings, output=str(root / "anew")))
    # added queries are in blocks of their own
    order = [("query_id", "ascending"), ("rank", "ascending")]
    first, second = (pq.read_table(root / name / "matches/matches") for name in ("out", "anew"))
    assert first.sort_by(order).equals(second.sort_by(order))
    for field in dataclasses.fields(updated.evaluation):  # repr, since NaN != NaN
        first, second = (
            repr(getattr(outcome.evaluation, field.name)) for outcome in (updated, rebuilt)
        )
        assert first == second
    before = read_tree(root / "out")
    run.run(settings)
    assert read_tree(root / "out") == before


@pytest.mark.nightly
@pytest.mark.usefixtures("in_process")
def test_rank_updates_matches_of_changed_queries(settings, root, tmp_path):
    rank_settings = RankSettings(
        index=str(root / "out/index"), queries=settings.queries, chunk_rows=8, top_k=5,
        output=str(tmp_path / "alone"),
    )  # fmt: skip
    cluster = embed.Cluster("local", None)
    rank.rank(rank_settings, cluster)
    (root / "queries/class1/photo0001.jpg").rename(root / "queries/class1/renamed.jpg")
    rank.rank(rank_settings, cluster)
    table = pq.read_table(tmp_path / "alone/matches")
    ids = set(table["query_id"].to_pylist())
    assert "class1/renamed.jpg" in ids
    assert "class1/photo0001.jpg" not in ids
    assert read_states(tmp_path / "alone") == {"finished"}


@pytest.mark.usefixtures("in_process")
def test_broken_images_are_recorded_and_limited_by_max_error_rate(settings, root, tmp_path):
    (root / "gallery/class0/broken.jpg").write_bytes(b"no image")
    (root / "gallery/class0/empty.png").write_bytes(b"")
    embedding = EmbedSettings(
        input=settings.gallery, output=str(tmp_path / "store"), chunk_rows=8, **SMALL_MODEL
    )
    cluster = embed.Cluster("local", None)
    with pytest.raises(TooManyFailures, match=r"2 of 32 images .* --max-error-rate"):
        embed.embed(embedding, cluster)
    assert read_states(tmp_path / "store") == {"unfinished"}
    tolerant = dataclasses.replace(embedding, max_error_rate=0.1)
    manifest = embed.embed(tolerant, cluster).manifest
    assert (manifest.counts["rows"], manifest.counts["failures"]) == (30, 2)
    ledger = [
        row
        for path in (tmp_path / "store/segments/00000/failures").iterdir()
        for row in pq.read_table(path).to_pylist()
    ]
    assert {row["image_id"] for row in ledger} == {"class0/broken.jpg", "class0/empty.png"}
    assert {row["stage"] for row in ledger} == {"decode"}


@pytest.mark.usefixtures("in_process")
def test_rank_command_agrees_with_run(settings, root, tmp_path):
    rank_settings = RankSettings(
        index=str(root / "out/index"), queries=settings.queries, chunk_rows=8, top_k=5,
        output=str(tmp_path / "alone"),
    )  # fmt: skip
    rank.rank(rank_settings, embed.Cluster("local", None))
    columns = ["query_id", "rank", "image_id", "score"]
    paths = [
        tmp_path / "alone/matches/part-00000.parquet",
        root / "out/matches/matches/part-00000.parquet",
    ]
    first, second = (pq.read_table(path).select(columns) for path in paths)
    assert first.equals(second)
    assert read_states(tmp_path / "alone") == {"finished"}


@pytest.mark.usefixtures("in_process")
def test_matches_are_independent_of_shards(settings, root, tmp_path):
    single_shard = IndexSettings(
        embeddings=str(root / "out/gallery"), output=str(tmp_path / "whole"), rows_per_shard=1000
    )
    cluster = embed.Cluster("local", None)
    assert index.build_index(single_shard, cluster).counts["shards"] == 1
    rank.rank(
        RankSettings(index=str(tmp_path / "whole"), queries=str(root / "out/queries"), top_k=5,
                     output=str(tmp_path / "matches")), cluster,
    )  # fmt: skip
    name = "matches/part-00000.parquet"
    first, second = (
        pq.read_table(path / name) for path in (tmp_path / "matches", root / "out/matches")
    )
    assert first.equals(second)


@pytest.mark.usefixtures("in_process")
def test_queries_of_another_model_are_refused(settings, root, tmp_path):
    cluster = embed.Cluster("local", None)
    query_settings = EmbedSettings(
        input=settings.queries,
        output=str(tmp_path / "q"),
        seed=5,
        **SMALL_MODEL,  # other random weights
    )
    embed.embed(query_settings, cluster)
    ranking = RankSettings(
        index=str(root / "out/index"), queries=str(tmp_path / "q"), output=str(tmp_path / "m")
    )
    with pytest.raises(Mismatch, match="another model"):
        rank.rank(ranking, cluster)


@pytest.mark.usefixtures("in_process")
def test_labels_file_with_splits(settings, root, tmp_path):
    gallery_names = [
        p.relative_to(root / "gallery").as_posix() for p in (root / "gallery").rglob("*.jpg")
    ]
    query_names = [
        p.relative_to(root / "queries").as_posix() for p in (root / "queries").rglob("*.jpg")
    ]
    lines = [f"gallery,{name},same" for name in gallery_names] + [
        f"queries,{name},same" for name in query_names
    ]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["split,image_id,label", *lines]))
    labelled_settings = dataclasses.replace(
        settings, labels=str(labels), output=str(tmp_path / "out")
    )
    outcome = run.run(labelled_settings)
    assert outcome.result.values["Success@1"] == 1.0
    # 5 of 30 relevant images are in the matches
    assert outcome.result.values["AP"] == pytest.approx(5 / 30)


@pytest.mark.usefixtures("in_process")
def test_index_of_an_unfinished_store_is_refused(settings, root, tmp_path):
    (root / "out/gallery/manifest.json").unlink()
    index_settings = IndexSettings(embeddings=str(root / "out/gallery"), output=str(tmp_path / "i"))
    with pytest.raises(InputError, match="is not finished"):
        index.build_index(index_settings, embed.Cluster("local", None))


@pytest.mark.parametrize("options", [{"rerank": "nearest"}, {"rerank": "augment", "metric": "l2"}])
def test_wrong_reranking_is_refused_before_anything_is_embedded(tmp_path, options):
    photos, output = str(draw_photos(tmp_path / "photos", 1)), tmp_path / "out"
    with pytest.raises(UsageError, match="--rerank"):
        run.run(RunSettings(gallery=photos, queries=photos, output=str(output), **options))
    assert not output.exists()
