"""Test that recipes are resolved once: the projection of a store, and stores of other recipes."""

import dataclasses
from types import SimpleNamespace

import pytest

from jobs.cluster.resources import Cluster
from jobs.commands import run
from jobs.config.settings import EmbedSettings, EvaluateSettings, RunSettings
from jobs.embedding import embed
from jobs.embedding.recipe import ProjectionChoice, choose_projection
from jobs.evaluation import evaluate
from retrieval.core.errors import Mismatch, UsageError
from retrieval.models.bundle import read_bundle
from retrieval.models.recipes import RECIPES, Recipe
from retrieval.storage import finished_output
from retrieval.storage.local import open_folder
from tests.conftest import draw_photos
from tests.jobs.in_process import without_ray

UNPROJECTED = SimpleNamespace(projection=None, dimension=1280)
NONE = ProjectionChoice(0)


def choose(images=10_000, begun=None, model=UNPROJECTED, **options):
    return choose_projection(EmbedSettings(input="i", output="o", **options), model, images, begun)


@pytest.mark.parametrize(
    ("options", "dimensions"),
    [
        ({}, 256),
        ({"recipe": "original"}, 500),
        ({"recipe": "plain"}, 0),
        ({"pca": 0}, 0),
        ({"pca": 9, "images": 5}, 9),
        ({"bundle": "b"}, 0),
        ({"images": 308}, 256),
        ({"begun": {}}, 0),
        ({"begun": {"pca": 256}, "images": 5}, 256),
        ({"begun": {"pca": 500}}, 256),  # which is then refused
    ],
)
def test_dimensions_are_those_of_option_then_store_then_recipe(options, dimensions):
    assert choose(**options) == ProjectionChoice(dimensions)


def test_reason_is_recorded_where_a_projection_is_left_out():
    assert choose(images=307).left_out == "fewer than 308 images to fit 256 dimensions on"
    assert choose(model=SimpleNamespace(projection=None, dimension=256)) == NONE
    recorded = ProjectionChoice(0, "reason").job_fields(seed=3)
    assert choose(begun=recorded) == ProjectionChoice(0, "reason")
    assert choose(model=SimpleNamespace(projection=1, dimension=1280)) == NONE


# --- stores ---


@pytest.fixture
def small_recipe(monkeypatch):
    """Replace the default recipe by one whose projection fits small stores."""
    monkeypatch.setitem(RECIPES, "default", Recipe("gem", "squash", 5))


@pytest.fixture
def make(tmp_path):
    def make_store(images=8, **options):
        photos = draw_photos(tmp_path / f"photos{images}", images)
        settings = EmbedSettings(
            input=str(photos), output=str(tmp_path / "store"), backbone="scratch",
            weights="random", image_size=32, workers=1, chunk_rows=8,
        )  # fmt: skip
        return dataclasses.replace(settings, **options)

    return make_store


def embed_in_process(settings):
    with without_ray():
        embed.embed(settings, Cluster("nowhere", 1))
    folder = open_folder(settings.output)
    return finished_output.read_settings(folder), read_bundle(folder)


@pytest.mark.usefixtures("small_recipe")
@pytest.mark.parametrize(("images", "dimension"), [(4, 192), (8, 5)])
def test_changed_number_of_images_decides_nothing_again(make, tmp_path, images, dimension):
    settings, photos = make(images), tmp_path / f"photos{images}"
    made = embed_in_process(settings)
    assert made[1].dimension == dimension
    draw_photos(photos, 20, seed=1)
    assert embed_in_process(settings) == made
    for path in sorted(photos.rglob("*.jpg"))[:-2]:
        path.unlink()
    assert embed_in_process(settings) == made


@pytest.mark.usefixtures("small_recipe")
def test_summary_states_that_a_projection_is_left_out(make):
    with without_ray():
        result = embed.start(make(4))
    reason = "fewer than 6 images to fit 5 dimensions on"
    assert result.values["pca_left_out"] == reason
    assert f"no projection (--pca): {reason}" in result.lines


@pytest.mark.usefixtures("small_recipe")
def test_run_takes_a_calibration_of_its_own_projection(tmp_path):
    photos = str(draw_photos(tmp_path / "photos", 12))
    settings = RunSettings(
        gallery=photos, queries=photos, output=str(tmp_path / "out"), exclude_self=True, top_k=5,
        backbone="scratch", weights="random", image_size=32, workers=1,
    )  # fmt: skip
    calibration = str(tmp_path / "c.json")
    with without_ray():
        run.run(settings)
        evaluate.start(
            EvaluateSettings(matches=f"{settings.output}/matches", calibrate=calibration)
        )
        output = str(tmp_path / "calibrated")
        result = run.run(dataclasses.replace(settings, output=output, calibration=calibration))
    assert read_bundle(open_folder(f"{output}/index")).dimension == 5
    assert result.matches.counts["queries"] == 12


def test_store_of_another_recipe_is_refused_and_its_recipe_named(make):
    settings = make(recipe="plain")
    made = embed_in_process(settings)
    with pytest.raises(Mismatch) as refused:
        embed_in_process(make())
    for text in ("pooling was avg, is gem", "resize was crop, is squash", "--recipe plain"):
        assert text in str(refused.value)
    assert embed_in_process(settings) == made


def test_flip_of_a_projected_bundle_is_refused(make, tmp_path):
    projected = make(pca=3)
    embed_in_process(projected)
    settings = dataclasses.replace(
        make(), bundle=projected.output, output=str(tmp_path / "other"), weights=None,
        augment_inference="flip",
    )  # fmt: skip
    with pytest.raises(UsageError, match="--augment-inference flip contradicts --bundle"):
        embed_in_process(settings)
