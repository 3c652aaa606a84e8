"""Tests of the embed stage: the engine and the projection of a store are chosen once.

Two stores are made through Ray; what else runs `here` comes to the same bytes.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.commands import run
from jobs.config.settings import EmbedSettings, IndexSettings, RankSettings, RunSettings
from jobs.embedding import embed, fit_projection, prepare_model
from jobs.indexing import index
from jobs.ranking import rank
from jobs.runtime import run_metadata
from retrieval.core.errors import Mismatch, UsageError
from retrieval.models.bundle import read_bundle
from retrieval.models.engine_plan import BATCH_CPU
from retrieval.models.openvino import ConversionFailed
from retrieval.storage import finished_output
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.conftest import draw_photos
from tests.jobs.here import without_ray
from tests.trees import tree

pytestmark = pytest.mark.usefixtures("ray_here")

SMALL = {"backbone": "scratch", "weights": "random", "image_size": 32, "chunk_rows": 8}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return str(draw_photos(tmp_path_factory.mktemp("photos"), 30))


@pytest.fixture
def settings(photos, tmp_path):
    return EmbedSettings(input=photos, output=str(tmp_path / "store"), workers=1, **SMALL)


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """Two stores that were made once, without and with a projection."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_projection, "_BLOCK", 4)
        for pca in (None, 5):
            embed.start(
                EmbedSettings(input=photos, output=f"{root}/{pca}", workers=1, pca=pca, **SMALL)
            )
    return root


@pytest.fixture
def plain(made, settings):
    shutil.copytree(made / "None", settings.output)
    return settings


@pytest.fixture
def projected(made, settings):
    shutil.copytree(made / "5", settings.output)
    return dataclasses.replace(settings, pca=5)


@pytest.fixture
def here():
    """All stages in this process, one piece of work after another."""
    with without_ray():
        yield


def job(settings):
    return finished_output.read_settings(open_folder(settings.output))


def unfinish(settings, *parts):
    """Leave what a killed run would have: no manifest, some parts missing."""
    root = Path(settings.output)
    for name in ("manifest.json", "files.parquet", "run.json"):
        (root / name).unlink()
    for number in parts:
        (root / f"segments/00000/parts/{number:08d}.parquet").unlink()


# --- engines ---


def test_the_engine_stands_in_the_job(plain):
    found = {key: job(plain)[key] for key in ("engine", "precision", "device", "batch_size")}
    assert found == {
        "engine": "openvino", "precision": "fp32", "device": "cpu", "batch_size": BATCH_CPU,
    }  # fmt: skip


@pytest.mark.usefixtures("here")
def test_a_store_goes_on_with_the_engine_it_was_begun_with(settings):
    begun = dataclasses.replace(settings, engine="torch", batch_size=3)
    embed.start(begun)
    whole = tree(Path(settings.output))
    unfinish(settings, 0, 2)
    embed.start(settings)
    assert job(settings)["engine"] == "torch"
    assert tree(Path(settings.output)) == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": "torch"}, "engine was openvino, is torch"),
        ({"batch_size": 5}, f"batch_size was {BATCH_CPU}, is 5"),
    ],
)
def test_another_engine_is_refused_by_name(plain, change, said):
    with pytest.raises(Mismatch, match=said):
        embed.start(dataclasses.replace(plain, **change))


def test_the_same_engine_by_name_is_the_same(plain):
    embed.start(dataclasses.replace(plain, engine="openvino", device="cpu"))


@pytest.fixture
def unfit(monkeypatch):
    def refuse(*_):
        raise ConversionFailed("no such operation")

    monkeypatch.setattr("retrieval.models.engines.convert_bundle", refuse)


@pytest.mark.usefixtures("here")
def test_what_the_engine_does_not_take_torch_runs_and_it_is_said(settings, unfit, capfd):
    embed.start(settings)
    assert job(settings)["engine"] == "torch"
    said = capfd.readouterr().err
    assert "OpenVINO cannot convert scratch (no such operation): torch runs it instead" in said


@pytest.mark.usefixtures("here")
def test_without_openvino_torch_runs_and_it_is_said(settings, monkeypatch, capfd):
    monkeypatch.setattr("retrieval.models.engine_plan.openvino_installed", lambda: False)
    monkeypatch.setattr(run_metadata, "_PACKAGES", ("numpy", "a-package-that-nobody-has"))
    embed.start(settings)
    assert job(settings)["engine"] == "torch"
    assert "OpenVINO is not installed: torch runs the network" in capfd.readouterr().err
    said = json.loads((Path(settings.output) / "run.json").read_bytes())["packages"]
    assert said["a-package-that-nobody-has"] is None
    assert said["numpy"]


@pytest.mark.usefixtures("here")
def test_an_engine_that_was_asked_for_is_not_replaced(settings, unfit):
    with pytest.raises(UsageError, match=r"does not take scratch .*; use --engine torch"):
        embed.start(dataclasses.replace(settings, engine="openvino"))
    assert not Path(settings.output).exists()


def test_a_gpu_is_not_promised_where_there_is_none(settings):
    with pytest.raises(UsageError, match="--device cuda: no GPU was found"):
        embed.start(dataclasses.replace(settings, device="cuda"))


def test_workers_get_no_parameters_twice(settings):
    class Where:
        gpus = 0

        def connect_while(self, action):
            return action()

    made = prepare_model.prepare_model(settings, Where(), open_folder(settings.output))
    assert made.ir is not None
    assert made.for_workers().bundle.weights == b""
    assert made.bundle.weights
    eager = dataclasses.replace(made, ir=None)
    assert eager.for_workers() is eager


def test_run_json_says_what_a_worker_needed(plain):
    said = json.loads((Path(plain.output) / "run.json").read_bytes())
    assert said["worker_peak_memory_bytes"] > 10**8
    assert said["per_second"] == pytest.approx(said["embedded"] / said["seconds"], rel=0.01)
    assert said["bytes"] == sum(
        path.stat().st_size
        for path in Path(plain.output).rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "files.parquet", "run.json")
    )


# --- projections ---


def test_a_projection_stands_in_the_bundle_and_shortens_the_vectors(projected):
    assert embed.start(projected).values["dimension"] == 5
    assert {v.state for v in verify(open_folder(projected.output))} == {"finished"}
    bundle = read_bundle(open_folder(projected.output))
    assert bundle.projection is not None
    assert bundle.projection.axes.shape == (5, 192)
    assert bundle.dimension == 5


@pytest.mark.nightly
def test_the_same_projection_from_two_workers(made, settings):
    embed.start(dataclasses.replace(settings, pca=5, workers=2))
    assert tree(Path(settings.output)) == tree(made / "5")


@pytest.mark.usefixtures("here")
def test_after_a_kill_the_projection_that_is_there_is_taken(made, projected, monkeypatch):
    unfinish(projected, 1, 3)
    monkeypatch.setattr(fit_projection, "_fit", lambda *_: pytest.fail("fitted again"))
    embed.start(projected)
    assert tree(Path(projected.output)) == tree(made / "5")


@pytest.mark.nightly
@pytest.mark.usefixtures("here")
def test_killed_before_its_bundle_it_is_fitted_again_to_the_same_bytes(made, projected):
    unfinish(projected, 0, 1, 2, 3)
    shutil.rmtree(Path(projected.output, "model"))
    embed.start(projected)
    assert tree(Path(projected.output)) == tree(made / "5")


def test_another_projection_is_refused_by_name_and_not_fitted(projected, monkeypatch):
    monkeypatch.setattr(fit_projection, "_fit", lambda *_: pytest.fail("fitted"))
    with pytest.raises(Mismatch, match=r"pca was 5, is 4"):
        embed.start(dataclasses.replace(projected, pca=4))
    with pytest.raises(Mismatch, match=r"pca was 5, is None"):
        embed.start(dataclasses.replace(projected, pca=None))
    with pytest.raises(Mismatch, match=r"bundle was"):
        embed.start(dataclasses.replace(projected, pooling="max"))


@pytest.mark.usefixtures("here")
def test_more_dimensions_than_the_sample_gives_are_refused(settings):
    with pytest.raises(UsageError, match="--pca 30: 30 images"):
        embed.start(dataclasses.replace(settings, pca=30))
    assert not Path(settings.output).exists()


def test_a_bundle_with_a_projection_takes_no_second_one(projected, tmp_path):
    again = dataclasses.replace(
        projected, bundle=projected.output, weights=None, pca=3, output=str(tmp_path / "again")
    )
    with pytest.raises(UsageError, match="the bundle has a projection already"):
        embed.start(again)


@pytest.mark.usefixtures("here")
def test_queries_pass_through_the_gallery_s_projection(projected, photos, tmp_path):
    queries = str(draw_photos(tmp_path / "queries", 6, seed=1))
    out = tmp_path / "out"
    run.start(
        RunSettings(
            gallery=photos, queries=queries, output=str(out), pca=5, top_k=5, workers=1, **SMALL
        )
    )
    bundles = [read_bundle(open_folder(str(out / name))) for name in ("gallery", "queries")]
    assert bundles[0].digest == bundles[1].digest
    made = str(tmp_path / "index")
    index.start(IndexSettings(embeddings=projected.output, output=made, workers=1))
    alone = tmp_path / "alone"
    rank.start(
        RankSettings(
            index=made, queries=queries, output=str(alone), top_k=5, workers=1, chunk_rows=8
        )
    )
    part = "matches/part-00000.parquet"
    assert pq.read_table(alone / part) == pq.read_table(out / "matches" / part)
