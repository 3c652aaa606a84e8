"""A plan: what it says, that it leaves nothing behind, what it refuses. Without Ray, but once."""

import dataclasses

import pytest

from jobs.cluster.resources import Cluster
from jobs.config.options import parse_cluster
from jobs.config.settings import PlanSettings, RunSettings
from jobs.planning import plan as planning
from jobs.planning.format_plan import format_plan
from retrieval.core.errors import InputError, TooManyFailures, UsageError
from retrieval.planning.costs import WorkerPool
from tests.commands import SMALL, lookalike_here
from tests.jobs.here import without_ray

TINY = {"backbone": "scratch", "weights": "random", "image_size": 32, "engine": "torch"}
_SUMS = ("start", "list", "embed_gallery", "embed_queries", "index", "rank", "evaluate_and_report")


def plan(photos, **changes):
    """Plan in this process."""
    settings = PlanSettings(gallery=str(photos("gallery", 40)), sample=24, **TINY, **changes)
    with without_ray():
        return planning.plan(settings, 1.0)


def test_it_takes_what_run_takes():
    ours, theirs = (
        {field.name for field in dataclasses.fields(settings)}
        for settings in (PlanSettings, RunSettings)
    )
    assert ours - theirs == {"cluster", "sample"}
    assert theirs - ours == {"overwrite"}


def test_a_plan_of_all_stages_leaves_nothing_behind(photos, tmp_path):
    queries = photos("queries", 6, seed=1)
    output = tmp_path / "out"
    values = format_plan(plan(photos, queries=str(queries), output=str(output))).values
    assert not output.exists()
    assert (values["gallery_images"], values["queries_images"]) == (40, 6)
    assert values["gallery_bytes"] == sum(p.stat().st_size for p in _files(tmp_path / "gallery"))
    assert values["failures"] == 0 < values["failures_high"]
    for end in ("", "_low", "_high"):
        parts = [values[f"{stage}_seconds{end}"] for stage in _SUMS]
        assert values[f"total_seconds{end}"] == pytest.approx(sum(parts))
    assert values["start_seconds"] >= 1.0  # what the process took before it
    assert values["index"] == "IVF1,SQfp16"
    assert values["disk_bytes"] == pytest.approx(
        sum(v for k, v in values.items() if k.startswith("disk_bytes_")), abs=6
    )
    assert values["disk_bytes_store"] > 40 * 2 * 256


def test_an_output_that_stands_already_is_untouched(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    plan(photos, output=str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["letter.txt"]


def test_without_queries_there_is_nothing_of_them(photos):
    result = format_plan(plan(photos))
    assert not {"rank_seconds", "embed_queries_seconds", "disk_bytes_matches"} & set(result.values)
    assert result.values["queries_images"] is None


def test_images_that_fail_are_expected(photos, tmp_path):
    root = photos("gallery", 40)
    for path in _files(root)[::4]:
        path.write_bytes(b"no image")
    result = format_plan(plan(photos_of(root)))
    assert 0 < result.values["failures_low"] < result.values["failures"] <= 20
    assert any("would end with 4" in line for line in result.lines)


def test_where_no_image_can_be_read_no_ledger_is_named_that_is_gone(photos):
    root = photos("gallery", 3)
    for path in _files(root):
        path.write_bytes(b"no image")
    with pytest.raises(TooManyFailures, match=r"none of 3 images of .*gallery could") as refused:
        plan(photos_of(root))
    assert ".tmp-" not in str(refused.value)


def test_another_cluster_has_other_workers_and_gpus_are_not_made_up(photos):
    planned = plan(photos, cluster="20x(16cpu,1gpu)+4x(32cpu)")
    assert planned.fleet == WorkerPool(448, 448)
    assert "cannot be told from a CPU" in format_plan(planned).values["missing"]
    cores = plan(photos, cluster="3x(16cpu)", device="cpu")
    assert (cores.fleet, cores.missing) == (WorkerPool(48, 48), "")


def test_gpus_that_were_measured_are_scaled_with_the_cores_beside_them(monkeypatch):
    prepared = type("Prepared", (), {"device": "cuda"})()
    where = Cluster("nowhere", None, gpus_per_worker=0.5)
    settings = PlanSettings(gallery="g", cluster="4x(16cpu,2gpu)+1x(8cpu)")
    fleet, _ = planning._fleet(settings, where, prepared, parse_cluster(settings.cluster))
    assert fleet == WorkerPool(16, 72, 4)
    with pytest.raises(UsageError, match="has no GPU"):
        planning._fleet(settings, where, prepared, [(2, 8, 0)])


@pytest.mark.parametrize(
    "text", ["", "20", "20x", "0x(16cpu)", "2x(0cpu)", "2x(1gpu)", "2x(1cpu)+"]
)
def test_a_cluster_that_cannot_be_read_is_refused_before_anything(text, tmp_path):
    with pytest.raises(UsageError, match="--cluster"):
        planning.plan(PlanSettings(gallery=str(tmp_path / "nowhere"), cluster=text), 0.0)


def test_what_is_missing_or_does_not_fit_is_refused(photos, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        plan(photos, queries=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="--max-index-memory"):
        plan(photos, max_index_memory=1000, output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_here")
def test_the_command(photos):
    words = ["--gallery", photos("gallery", 20), "--queries", photos("queries", 3, seed=1)]
    ended = lookalike_here("plan", *words, *SMALL, "--sample", "16", "--json")
    assert ended.code == 0, ended.err
    values = ended.values
    assert values["total_seconds_low"] < values["total_seconds"] < values["total_seconds_high"]
    assert values["memory_bytes_worker"] > 1e8
    assert values["bound"] in {name.replace("_", " ") for name in _SUMS}


def _files(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def photos_of(root):
    """Stand for the fixture where the photos are drawn already."""
    return lambda *_: root
