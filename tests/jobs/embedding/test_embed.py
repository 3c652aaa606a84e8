"""Test the embed stage: engine and projection of a store are chosen once.

A store with a projection is written with Ray; runs without Ray must write the same bytes.
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
from jobs.runtime import versions
from jobs.runtime.profile import Profile
from retrieval.core.errors import Mismatch, UsageError
from retrieval.models.bundle import read_bundle
from retrieval.models.engine_plan import BATCH_CPU
from retrieval.models.openvino import ConversionFailed
from retrieval.storage import finished_output
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.conftest import draw_photos
from tests.file_tree import read_tree
from tests.jobs.in_process import without_ray

pytestmark = pytest.mark.usefixtures("local_ray")

SMALL_MODEL = {"backbone": "scratch", "weights": "random", "image_size": 32, "chunk_rows": 8}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return str(draw_photos(tmp_path_factory.mktemp("photos"), 30))


@pytest.fixture
def settings(photos, tmp_path):
    return EmbedSettings(input=photos, output=str(tmp_path / "store"), workers=1, **SMALL_MODEL)


@pytest.fixture(scope="module")
def stores(photos, tmp_path_factory):
    """Return a folder with two stores, without and with a projection."""
    root = tmp_path_factory.mktemp("made")
    plain, projected = (
        EmbedSettings(input=photos, output=f"{root}/{pca}", workers=1, pca=pca, **SMALL_MODEL)
        for pca in (None, 5)
    )
    with without_ray():
        embed.start(plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_projection, "_BLOCK", 4)
        embed.start(projected)
    return root


@pytest.fixture
def store_settings(stores, settings):
    shutil.copytree(stores / "None", settings.output)
    return settings


@pytest.fixture
def projected_settings(stores, settings):
    shutil.copytree(stores / "5", settings.output)
    return dataclasses.replace(settings, pca=5)


@pytest.fixture
def in_process():
    """Run all stages in this process."""
    with without_ray():
        yield


def read_job(settings):
    return finished_output.read_settings(open_folder(settings.output))


def make_unfinished(settings, *parts):
    """Remove the manifest and some parts, as after a killed run."""
    root = Path(settings.output)
    for name in ("manifest.json", "files.parquet", "run.json"):
        (root / name).unlink()
    for number in parts:
        (root / f"segments/00000/parts/{number:08d}.parquet").unlink()


# --- engines ---


def test_engine_is_recorded_in_job_json(store_settings):
    engine_settings = {
        key: read_job(store_settings)[key]
        for key in ("engine", "precision", "device", "batch_size")
    }
    assert engine_settings == {
        "engine": "openvino", "precision": "fp32", "device": "cpu", "batch_size": BATCH_CPU,
    }  # fmt: skip


@pytest.mark.usefixtures("in_process")
def test_unfinished_store_keeps_its_engine(settings):
    torch_settings = dataclasses.replace(settings, engine="torch", batch_size=3)
    embed.start(torch_settings)
    expected = read_tree(Path(settings.output))
    make_unfinished(settings, 0, 2)
    embed.start(settings)
    assert read_job(settings)["engine"] == "torch"
    assert read_tree(Path(settings.output)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "torch"}, "engine was openvino, is torch"),
        ({"batch_size": 5}, f"batch_size was {BATCH_CPU}, is 5"),
    ],
)
def test_changed_engine_is_refused(store_settings, changes, message):
    with pytest.raises(Mismatch, match=message):
        embed.start(dataclasses.replace(store_settings, **changes))


def test_explicit_default_engine_is_accepted(store_settings):
    embed.start(dataclasses.replace(store_settings, engine="openvino", device="cpu"))


@pytest.fixture
def failing_conversion(monkeypatch):
    def refuse(*_):
        raise ConversionFailed("no such operation")

    monkeypatch.setattr("retrieval.models.engines.convert_bundle", refuse)


@pytest.mark.usefixtures("in_process")
def test_failed_conversion_falls_back_to_torch_with_a_message(settings, failing_conversion, capfd):
    embed.start(settings)
    assert read_job(settings)["engine"] == "torch"
    stderr = capfd.readouterr().err
    assert "OpenVINO cannot convert scratch (no such operation): torch runs it instead" in stderr


@pytest.mark.usefixtures("in_process")
def test_missing_openvino_falls_back_to_torch_with_a_message(settings, monkeypatch, capfd):
    monkeypatch.setattr("retrieval.models.engine_plan.openvino_installed", lambda: False)
    monkeypatch.setattr(versions, "PACKAGES", ("numpy", "a-package-that-nobody-has"))
    embed.start(settings)
    assert read_job(settings)["engine"] == "torch"
    assert "OpenVINO is not installed: torch runs the network" in capfd.readouterr().err
    packages = json.loads((Path(settings.output) / "run.json").read_bytes())["packages"]
    assert packages["a-package-that-nobody-has"] is None
    assert packages["numpy"]


@pytest.mark.usefixtures("in_process")
def test_requested_engine_has_no_fallback(settings, failing_conversion):
    with pytest.raises(UsageError, match=r"cannot convert scratch .*; use --engine torch"):
        embed.start(dataclasses.replace(settings, engine="openvino"))
    assert not Path(settings.output).exists()


def test_missing_gpu_is_refused(settings):
    with pytest.raises(UsageError, match="--device cuda: no GPU was found"):
        embed.start(dataclasses.replace(settings, device="cuda"))


def test_workers_receive_parameters_once(settings):
    class FakeCluster:
        gpus = 0
        profile = Profile()

        def connect_while(self, action, _):
            return action()

    prepared = prepare_model.prepare_model(settings, FakeCluster(), open_folder(settings.output))
    assert prepared.ir is not None
    assert prepared.for_workers().bundle.weights == b""
    assert prepared.bundle.weights
    prepared_without_ir = dataclasses.replace(prepared, ir=None)
    assert prepared_without_ir.for_workers() is prepared_without_ir


def test_run_json_has_memory_and_throughput(projected_settings):
    output = Path(projected_settings.output)
    metadata = json.loads((output / "run.json").read_bytes())
    assert metadata["worker_peak_memory_bytes"] > 10**8
    assert metadata["per_second"] == pytest.approx(
        metadata["embedded"] / metadata["seconds"], rel=0.01
    )
    assert metadata["bytes"] == sum(
        path.stat().st_size
        for path in output.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "files.parquet", "run.json")
    )


# --- projections ---


def test_projection_is_stored_in_the_bundle(projected_settings):
    assert embed.start(projected_settings).values["dimension"] == 5
    assert {v.state for v in verify(open_folder(projected_settings.output))} == {"finished"}
    bundle = read_bundle(open_folder(projected_settings.output))
    assert bundle.projection is not None
    assert bundle.projection.axes.shape == (5, 192)
    assert bundle.dimension == 5


@pytest.mark.nightly
def test_projection_is_independent_of_worker_count(stores, settings):
    embed.start(dataclasses.replace(settings, pca=5, workers=2))
    assert read_tree(Path(settings.output)) == read_tree(stores / "5")


@pytest.mark.usefixtures("in_process")
def test_resumed_run_reuses_the_projection(stores, projected_settings, monkeypatch):
    make_unfinished(projected_settings, 1, 3)
    monkeypatch.setattr(fit_projection, "_fit", lambda *_: pytest.fail("fitted again"))
    embed.start(projected_settings)
    assert read_tree(Path(projected_settings.output)) == read_tree(stores / "5")


@pytest.mark.nightly
@pytest.mark.usefixtures("in_process")
def test_projection_is_fitted_again_without_a_bundle(stores, projected_settings):
    make_unfinished(projected_settings, 0, 1, 2, 3)
    shutil.rmtree(Path(projected_settings.output, "model"))
    embed.start(projected_settings)
    assert read_tree(Path(projected_settings.output)) == read_tree(stores / "5")


def test_changed_projection_is_refused_before_fitting(projected_settings, monkeypatch):
    monkeypatch.setattr(fit_projection, "_fit", lambda *_: pytest.fail("fitted"))
    with pytest.raises(Mismatch, match=r"pca was 5, is 4"):
        embed.start(dataclasses.replace(projected_settings, pca=4))
    with pytest.raises(Mismatch, match=r"pca was 5, is None"):
        embed.start(dataclasses.replace(projected_settings, pca=None))
    with pytest.raises(Mismatch, match=r"bundle was"):
        embed.start(dataclasses.replace(projected_settings, pooling="max"))


@pytest.mark.usefixtures("in_process")
def test_more_dimensions_than_images_are_refused(settings):
    with pytest.raises(UsageError, match="--pca 30 is too large: 30 images"):
        embed.start(dataclasses.replace(settings, pca=30))
    assert not Path(settings.output).exists()


def test_second_projection_of_a_bundle_is_refused(projected_settings, tmp_path):
    second_settings = dataclasses.replace(
        projected_settings,
        bundle=projected_settings.output,
        weights=None,
        pca=3,
        output=str(tmp_path / "again"),
    )
    with pytest.raises(UsageError, match="the bundle has a projection already"):
        embed.start(second_settings)


@pytest.mark.usefixtures("in_process")
def test_queries_use_the_projection_of_the_gallery(projected_settings, photos, tmp_path):
    queries = str(draw_photos(tmp_path / "queries", 6, seed=1))
    out = tmp_path / "out"
    run.start(
        RunSettings(
            gallery=photos,
            queries=queries,
            output=str(out),
            pca=5,
            top_k=5,
            workers=1,
            **SMALL_MODEL,
        )
    )
    bundles = [read_bundle(open_folder(str(out / name))) for name in ("gallery", "queries")]
    assert bundles[0].digest == bundles[1].digest
    index_path = str(tmp_path / "index")
    index.start(IndexSettings(embeddings=projected_settings.output, output=index_path, workers=1))
    output = tmp_path / "alone"
    rank.start(
        RankSettings(
            index=index_path, queries=queries, output=str(output), top_k=5, workers=1, chunk_rows=8
        )
    )
    part = "matches/part-00000.parquet"
    assert pq.read_table(output / part) == pq.read_table(out / "matches" / part)
