"""The whole job on photos drawn here: through Ray once, and what else may be found or asked here.

What runs `here` starts from the files that Ray's workers made, and must add to them or repeat them
to the byte.
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
from retrieval.core.errors import InputError, Mismatch, TooManyFailures
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.conftest import draw_photos
from tests.jobs.here import without_ray
from tests.trees import tree

SMALL = {"backbone": "scratch", "weights": "random", "image_size": 32}


@pytest.fixture(scope="module")
def finished(ray_here, tmp_path_factory):
    """Settings of a run that was done once, with 30 photos in 4 chunks and 3 shards."""
    root = tmp_path_factory.mktemp("run")
    settings = RunSettings(
        gallery=str(draw_photos(root / "gallery", 30)),
        queries=str(draw_photos(root / "queries", 6, seed=1)),
        output=str(root / "out"), chunk_rows=8, rows_per_shard=10, top_k=5, workers=1, **SMALL,
    )  # fmt: skip
    run.run(settings)
    shutil.copytree(root, root.with_name("kept"))
    return settings


@pytest.fixture
def settings(finished):
    """The same, every file as it was when the run had ended."""
    root = Path(finished.output).parent
    shutil.rmtree(root)
    shutil.copytree(root.with_name("kept"), root)
    return finished


@pytest.fixture
def root(settings):
    """The folder with gallery, queries and out."""
    return Path(settings.output).parent


@pytest.fixture
def here():
    """All stages in this process, one piece of work after another."""
    with without_ray():
        yield


def states(path):
    return {verdict.state for verdict in verify(open_folder(str(path)))}


def test_every_query_is_ranked_and_the_outputs_are_sound(settings, root):
    ran = run.run(settings)
    assert states(root / "out") == {"finished"}
    matches = pq.read_table(root / "out/matches/matches/part-00000.parquet")
    assert len(matches) == 6 * 5
    assert matches["rank"].to_pylist() == [1, 2, 3, 4, 5] * 6
    assert ran.result.values["recall"] == 1.0
    assert ran.result.values["Success@1"] == 1.0  # classes differ by colour
    assert (root / "out/report.html").stat().st_size > 10_000
    assert len(pq.read_table(root / "out/index/files.parquet")) > 6


def test_a_limit_takes_the_first_of_both_folders(settings, root, here):
    ran = run.run(dataclasses.replace(settings, limit=4, output=str(root / "few")))
    assert (ran.result.values["queries"], ran.result.values["gallery"]) == (4, 4)


def test_run_json_tells_what_each_stage_took(settings, root):
    said = json.loads((root / "out/run.json").read_bytes())
    assert "per_second" not in said, "nothing is told of the whole that it has not counted"
    stages = said["stages"]
    assert stages.keys() == {"gallery", "queries", "index", "matches"}
    for name, told in stages.items():
        assert all(told[key] > 0 for key in ("seconds", "per_second", "bytes")), name
        assert told["worker_peak_memory_bytes"] > 10**8, name
        files = pq.read_table(root / "out" / name / "files.parquet")
        assert told["bytes"] == sum(files["size"].to_pylist())


def test_the_same_bytes_from_one_worker_and_two(settings, root):
    one = tree(root / "out")
    shutil.rmtree(root / "out")
    run.run(dataclasses.replace(settings, workers=2))
    assert tree(root / "out") == one


def test_a_finished_run_is_left_as_it_is(settings, root):
    before = {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*")}
    assert run.run(settings).result.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*")} == before


@pytest.mark.parametrize(
    "lost",
    [
        "manifest.json",
        "report.html",
        "gallery/manifest.json",
        "gallery/segments/00000/parts/00000001.parquet",
        "index/shards/00001.json",
        "matches/matches/part-00000.parquet",
    ],
)
@pytest.mark.usefixtures("here")
def test_what_is_missing_from_an_unfinished_run_is_made_again(settings, root, lost):
    whole = tree(root / "out")
    stage = (root / "out" / lost).relative_to(root / "out").parts[0]
    for name in {"manifest.json", f"{stage}/manifest.json" if "/" in lost else lost, lost}:
        (root / "out" / name).unlink(missing_ok=True)
    assert states(root / "out") >= {"unfinished"}
    run.run(settings)
    assert tree(root / "out") == whole


@pytest.mark.usefixtures("here")
def test_other_settings_are_refused_by_name_and_overwrite_keeps_what_still_fits(settings, root):
    store = (root / "out/gallery/manifest.json").stat().st_mtime_ns
    other = dataclasses.replace(settings, top_k=3)
    with pytest.raises(Mismatch, match="top_k was 5, is 3"):
        run.run(other)
    ran = run.run(dataclasses.replace(other, overwrite=True))
    assert ran.matches.counts["queries"] == 6
    assert len(pq.read_table(root / "out/matches/matches/part-00000.parquet")) == 6 * 3
    assert (root / "out/gallery/manifest.json").stat().st_mtime_ns == store
    assert states(root / "out") == {"finished"}


@pytest.mark.usefixtures("here")
def test_an_unfinished_output_refuses_other_settings_too(settings, root):
    (root / "out/manifest.json").unlink()
    with pytest.raises(Mismatch, match="pooling"):
        run.run(dataclasses.replace(settings, pooling="max"))


@pytest.mark.usefixtures("here")
def test_matches_of_a_grown_gallery_are_those_of_one_made_from_scratch(settings, root):
    (root / "gallery/class0/photo0000.jpg").unlink()
    draw_photos(root / "gallery", 4, seed=5)  # others of the same names
    (root / "queries/class1/photo0001.jpg").rename(root / "queries/class1/renamed.jpg")
    store = root / "out/gallery"
    kept = tree(store / "segments/00000")
    grown = run.run(settings)
    assert tree(store / "segments/00000") == kept
    assert len(list((store / "segments").iterdir())) == 2
    assert states(root / "out") == {"finished"}
    anew = run.run(dataclasses.replace(settings, output=str(root / "anew")))
    order = [
        ("query_id", "ascending"),
        ("rank", "ascending"),
    ]  # grown queries have blocks of their own
    one, other = (pq.read_table(root / at / "matches/matches") for at in ("out", "anew"))
    assert one.sort_by(order).equals(other.sort_by(order))
    for field in dataclasses.fields(grown.evaluation):  # NaN does not equal itself, its text does
        one, other = (repr(getattr(ran.evaluation, field.name)) for ran in (grown, anew))
        assert one == other
    before = tree(root / "out")
    run.run(settings)
    assert tree(root / "out") == before


@pytest.mark.nightly
@pytest.mark.usefixtures("here")
def test_matches_of_changed_queries_are_renewed_by_rank_too(settings, root, tmp_path):
    asked = RankSettings(
        index=str(root / "out/index"), queries=settings.queries, chunk_rows=8, top_k=5,
        output=str(tmp_path / "alone"),
    )  # fmt: skip
    where = embed.Cluster("local", None)
    rank.rank(asked, where)
    (root / "queries/class1/photo0001.jpg").rename(root / "queries/class1/renamed.jpg")
    rank.rank(asked, where)
    table = pq.read_table(tmp_path / "alone/matches")
    ids = set(table["query_id"].to_pylist())
    assert "class1/renamed.jpg" in ids
    assert "class1/photo0001.jpg" not in ids
    assert states(tmp_path / "alone") == {"finished"}


@pytest.mark.usefixtures("here")
def test_broken_images_stand_in_the_ledger_and_their_share_is_bounded(settings, root, tmp_path):
    (root / "gallery/class0/broken.jpg").write_bytes(b"no image")
    (root / "gallery/class0/empty.png").write_bytes(b"")
    embedding = EmbedSettings(
        input=settings.gallery, output=str(tmp_path / "store"), chunk_rows=8, **SMALL
    )
    where = embed.Cluster("local", None)
    with pytest.raises(TooManyFailures, match=r"2 of 32 images .* --max-error-rate"):
        embed.embed(embedding, where)
    assert states(tmp_path / "store") == {"unfinished"}
    loose = dataclasses.replace(embedding, max_error_rate=0.1)
    manifest = embed.embed(loose, where).manifest
    assert (manifest.counts["rows"], manifest.counts["failures"]) == (30, 2)
    ledger = [
        row
        for path in (tmp_path / "store/segments/00000/failures").iterdir()
        for row in pq.read_table(path).to_pylist()
    ]
    assert {row["image_id"] for row in ledger} == {"class0/broken.jpg", "class0/empty.png"}
    assert {row["stage"] for row in ledger} == {"decode"}


@pytest.mark.usefixtures("here")
def test_rank_alone_agrees_with_run(settings, root, tmp_path):
    alone = RankSettings(
        index=str(root / "out/index"), queries=settings.queries, chunk_rows=8, top_k=5,
        output=str(tmp_path / "alone"),
    )  # fmt: skip
    rank.rank(alone, embed.Cluster("local", None))
    columns = ["query_id", "rank", "image_id", "score"]
    both = [
        tmp_path / "alone/matches/part-00000.parquet",
        root / "out/matches/matches/part-00000.parquet",
    ]
    one, other = (pq.read_table(path).select(columns) for path in both)
    assert one.equals(other)
    assert states(tmp_path / "alone") == {"finished"}


@pytest.mark.usefixtures("here")
def test_shards_do_not_change_the_matches(settings, root, tmp_path):
    whole = IndexSettings(
        embeddings=str(root / "out/gallery"), output=str(tmp_path / "whole"), rows_per_shard=1000
    )
    where = embed.Cluster("local", None)
    assert index.build_index(whole, where).counts["shards"] == 1
    rank.rank(
        RankSettings(index=str(tmp_path / "whole"), queries=str(root / "out/queries"), top_k=5,
                     output=str(tmp_path / "matches")), where,
    )  # fmt: skip
    name = "matches/part-00000.parquet"
    one, other = (pq.read_table(at / name) for at in (tmp_path / "matches", root / "out/matches"))
    assert one.equals(other)


@pytest.mark.usefixtures("here")
def test_queries_of_another_model_are_refused(settings, root, tmp_path):
    where = embed.Cluster("local", None)
    other = EmbedSettings(
        input=settings.queries,
        output=str(tmp_path / "q"),
        seed=5,
        **SMALL,  # other random weights
    )
    embed.embed(other, where)
    ranking = RankSettings(
        index=str(root / "out/index"), queries=str(tmp_path / "q"), output=str(tmp_path / "m")
    )
    with pytest.raises(Mismatch, match="another model"):
        rank.rank(ranking, where)


@pytest.mark.usefixtures("here")
def test_labels_come_from_a_file_by_split(settings, root, tmp_path):
    names = [p.relative_to(root / "gallery").as_posix() for p in (root / "gallery").rglob("*.jpg")]
    asked = [p.relative_to(root / "queries").as_posix() for p in (root / "queries").rglob("*.jpg")]
    lines = [f"gallery,{name},same" for name in names] + [f"queries,{name},same" for name in asked]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["split,image_id,label", *lines]))
    again = dataclasses.replace(settings, labels=str(labels), output=str(tmp_path / "out"))
    ran = run.run(again)
    assert ran.result.values["Success@1"] == 1.0
    assert ran.result.values["AP"] == pytest.approx(5 / 30)  # 5 of 30 right ones are shown


@pytest.mark.usefixtures("here")
def test_an_index_of_an_unfinished_store_is_refused(settings, root, tmp_path):
    (root / "out/gallery/manifest.json").unlink()
    again = IndexSettings(embeddings=str(root / "out/gallery"), output=str(tmp_path / "i"))
    with pytest.raises(InputError, match="is not finished"):
        index.build_index(again, embed.Cluster("local", None))
