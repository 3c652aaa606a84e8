"""Test `plan`: its values, that it writes no files, and refused inputs."""

import dataclasses

import pytest

from jobs.cluster.resources import Cluster
from jobs.config.options import parse_cluster
from jobs.config.settings import PlanSettings, RunSettings
from jobs.planning import plan as planning
from jobs.planning.format_plan import format_plan
from retrieval.core.errors import InputError, TooManyFailures, UsageError
from retrieval.planning.costs import WorkerPool
from tests.commands import SMALL_MODEL_OPTIONS, run_command_in_process
from tests.jobs.in_process import without_ray

SMALL_MODEL = {"backbone": "scratch", "weights": "random", "image_size": 32, "engine": "torch"}
_STAGES = (
    "start",
    "list",
    "embed_gallery",
    "embed_queries",
    "index",
    "rank",
    "evaluate_and_report",
)


def plan(photos, **changes):
    """Return the plan for a gallery of 40 photos, computed in this process."""
    settings = PlanSettings(gallery=str(photos("gallery", 40)), sample=24, **SMALL_MODEL, **changes)
    with without_ray():
        return planning.plan(settings, 1.0)


def test_plan_accepts_the_options_of_run():
    plan_fields, run_fields = (
        {field.name for field in dataclasses.fields(settings)}
        for settings in (PlanSettings, RunSettings)
    )
    assert plan_fields - run_fields == {"cluster", "sample"}
    assert run_fields - plan_fields == {"overwrite"}


def test_plan_of_all_stages_writes_no_output(photos, tmp_path):
    queries = photos("queries", 6, seed=1)
    output = tmp_path / "out"
    values = format_plan(plan(photos, queries=str(queries), output=str(output))).values
    assert not output.exists()
    assert (values["gallery_images"], values["queries_images"]) == (40, 6)
    assert values["gallery_bytes"] == sum(p.stat().st_size for p in _files(tmp_path / "gallery"))
    assert values["failures"] == 0 < values["failures_high"]
    for suffix in ("", "_low", "_high"):
        stage_seconds = [values[f"{stage}_seconds{suffix}"] for stage in _STAGES]
        assert values[f"total_seconds{suffix}"] == pytest.approx(sum(stage_seconds))
    assert values["start_seconds"] >= 1.0  # time of the process before the plan
    assert values["index"] == "IVF1,SQfp16"
    assert values["disk_bytes"] == pytest.approx(
        sum(v for k, v in values.items() if k.startswith("disk_bytes_")), abs=6
    )
    assert values["disk_bytes_store"] > 40 * 2 * 256


def test_existing_output_is_not_changed(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    plan(photos, output=str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["letter.txt"]


def test_plan_without_queries_omits_query_stages(photos):
    result = format_plan(plan(photos))
    assert not {"rank_seconds", "embed_queries_seconds", "disk_bytes_matches"} & set(result.values)
    assert result.values["queries_images"] is None


def test_failures_are_estimated_from_the_sample(photos, tmp_path):
    root = photos("gallery", 40)
    for path in _files(root)[::4]:
        path.write_bytes(b"no image")
    result = format_plan(plan(existing_photos(root)))
    assert 0 < result.values["failures_low"] < result.values["failures"] <= 20
    assert any("would end with exit code 4" in line for line in result.lines)


def test_error_without_readable_images_names_no_temporary_file(photos):
    root = photos("gallery", 3)
    for path in _files(root):
        path.write_bytes(b"no image")
    with pytest.raises(TooManyFailures, match=r"none of 3 images of .*gallery could") as error:
        plan(existing_photos(root))
    assert ".tmp-" not in str(error.value)


def test_cluster_option_sets_workers_but_not_gpu_throughput(photos):
    gpu_plan = plan(photos, cluster="20x(16cpu,1gpu)+4x(32cpu)")
    assert gpu_plan.fleet == WorkerPool(448, 448)
    assert "cannot be estimated on a CPU" in format_plan(gpu_plan).values["missing"]
    cpu_plan = plan(photos, cluster="3x(16cpu)", device="cpu")
    assert (cpu_plan.fleet, cpu_plan.missing) == (WorkerPool(48, 48), "")


def test_measured_gpus_are_scaled_with_their_cores(monkeypatch):
    prepared = type("Prepared", (), {"device": "cuda"})()
    cluster = Cluster("nowhere", None, gpus_per_worker=0.5)
    settings = PlanSettings(gallery="g", cluster="4x(16cpu,2gpu)+1x(8cpu)")
    fleet, _ = planning._plan_workers(settings, cluster, prepared, parse_cluster(settings.cluster))
    assert fleet == WorkerPool(16, 72, 4)
    with pytest.raises(UsageError, match="has no GPU"):
        planning._plan_workers(settings, cluster, prepared, [(2, 8, 0)])


@pytest.mark.parametrize(
    "text", ["", "20", "20x", "0x(16cpu)", "2x(0cpu)", "2x(1gpu)", "2x(1cpu)+"]
)
def test_invalid_cluster_option_is_refused(text, tmp_path):
    with pytest.raises(UsageError, match="--cluster"):
        planning.plan(PlanSettings(gallery=str(tmp_path / "nowhere"), cluster=text), 0.0)


def test_missing_queries_and_small_index_memory_are_refused(photos, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        plan(photos, queries=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="--max-index-memory"):
        plan(photos, max_index_memory=1000, output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_plan_command(photos):
    with without_ray():
        run_plan_command(photos)


@pytest.mark.nightly
@pytest.mark.usefixtures("local_ray")
def test_plan_command_with_ray(photos):
    assert run_plan_command(photos)["memory_bytes_worker"] > 1e8


def run_plan_command(photos):
    """Run the command, check its estimates, and return the values that it prints."""
    arguments = ["--gallery", photos("gallery", 20), "--queries", photos("queries", 3, seed=1)]
    result = run_command_in_process(
        "plan", *arguments, *SMALL_MODEL_OPTIONS, "--sample", "16", "--json"
    )
    assert result.exit_code == 0, result.stderr
    values = result.values
    assert values["total_seconds_low"] < values["total_seconds"] < values["total_seconds_high"]
    assert values["bound"] in {name.replace("_", " ") for name in _STAGES}
    return values


def _files(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def existing_photos(root):
    """Return a replacement of the fixture `photos` for an existing folder."""
    return lambda *_: root
