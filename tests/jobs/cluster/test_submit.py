"""Test commands submitted to a cluster, by `ray job submit` or by `--ray-address`."""

import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from jobs.cluster import submit
from jobs.config.settings import EmbedSettings, RunSettings, VerifySettings
from retrieval.core.errors import UsageError
from tests import ray_nodes
from tests.commands import LOOKALIKE, SMALL_MODEL_OPTIONS, run_command_in_process
from tests.file_tree import read_tree
from tests.jobs.in_process import without_ray
from tests.ray_nodes import RAY, RunningCommand
from tests.retrieval.storage.s3 import free_ports

TIMEOUT = 240
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Yield a cluster that requires a token."""
    with ray_nodes.ray_cluster(tmp_path_factory.mktemp("nodes"), TOKEN) as cluster:
        yield cluster


@pytest.mark.nightly  # two nodes, and a job that starts twice
def test_submitted_command_survives_node_failure(cluster, photos, tmp_path):
    output, expected = tmp_path / "out", tmp_path / "whole"
    arguments = [
        "embed",
        "--input",
        photos("photos"),
        *SMALL_MODEL_OPTIONS,
        "--chunk-rows",
        2,
        "--output",
        output,
    ]
    with without_ray():
        assert run_command_in_process(*arguments).exit_code == 0
    output.rename(expected)  # the output path is part of the output
    cluster.pause_all_at("write .*/parts/")
    command = RunningCommand(
        *arguments, "--json", "--ray-address", cluster.address, env=cluster.environment
    )
    # either node may finish all chunks before the other one starts
    cluster.kill(cluster.wait_for_first_paused(command, TIMEOUT))
    cluster.restore()
    result = command.wait(TIMEOUT)
    assert result.exit_code == 0, result.stderr
    assert result.values["rows"] == 12
    assert len(result.stdout.splitlines()) == 1
    assert "embed: 12/12 images" in result.stderr
    assert json.loads((output / "run.json").read_bytes())["settings"]["ray_address"] is None
    assert read_tree(output, include_temporary=False) == read_tree(expected)


def test_exit_code_and_error_of_the_job_are_returned(cluster, tmp_path):
    arguments = ["--input", tmp_path / "no", "--output", tmp_path / "out"]
    command = RunningCommand(
        "embed", *arguments, "--ray-address", cluster.address, env=cluster.environment
    )
    result = command.wait(TIMEOUT)
    assert (result.exit_code, result.stdout) == (3, "")
    assert f"{tmp_path}/no" in result.error


@pytest.mark.nightly
def test_user_package_named_jobs_is_not_imported(cluster, tmp_path):
    working_dir = tmp_path / "work"
    (working_dir / "jobs").mkdir(parents=True)
    (working_dir / "jobs" / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    np.save(tmp_path / "vectors.npy", np.eye(8, dtype=np.float32))
    arguments = ["--embeddings", tmp_path / "vectors.npy", "--output", tmp_path / "out", "--json"]
    command = [
        RAY, "job", "submit", "--address", cluster.address, "--working-dir", working_dir, "--",
        LOOKALIKE, "index", *arguments,
    ]  # fmt: skip
    result = subprocess.run(
        [str(word) for word in command], env=cluster.environment, capture_output=True, text=True,
        timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    json_line = next(line for line in result.stdout.splitlines() if line.startswith('{"'))
    assert json.loads(json_line)["rows"] == 8


def test_interrupt_keeps_the_job_running_and_prints_stop_command(cluster, tmp_path):
    arguments = ["--input", tmp_path / "no", "--output", tmp_path / "out"]
    command = RunningCommand(
        "embed", *arguments, "--ray-address", cluster.address, env=cluster.environment
    )
    ray_nodes.wait_until(lambda: "runs on" in command.read_stderr(), "the name of the job", TIMEOUT)
    command.send_signal(2)
    result = command.wait(TIMEOUT)
    assert (result.exit_code, result.stdout) == (130, "")
    stop_command = result.error.split("to stop it: ")[1].split()
    assert (stop_command[:3], stop_command[4:]) == (
        ["ray", "job", "stop"],
        ["--address", cluster.address],
    )
    ray_nodes.wait_until(
        lambda: cluster.get_json(f"/api/jobs/{stop_command[3]}")["driver_exit_code"] == 3,
        "the end of the job",
    )


def test_missing_token_is_refused(cluster, tmp_path):
    env = {**cluster.environment, "RAY_AUTH_TOKEN": "f" * 32}
    arguments = [
        "--input",
        tmp_path,
        "--output",
        tmp_path / "out",
        "--ray-address",
        cluster.address,
    ]
    result = RunningCommand("embed", *arguments, env=env).wait(TIMEOUT)
    assert result.exit_code == 3
    assert f"--ray-address {cluster.address}" in result.error


def test_unreachable_dashboard_is_reported(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    arguments = ["--input", tmp_path, "--output", tmp_path / "out", "--ray-address", address]
    result = run_command_in_process("embed", *arguments)
    assert result.exit_code == 3
    assert f"--ray-address {address}: no dashboard" in result.error


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, []),
        ({"workers": 3, "overwrite": True}, ["--workers=3", "--overwrite"]),
        ({"normalize": False, "pca": 8}, ["--no-normalize", "--pca=8"]),
        ({"weights": "random", "recall": 1.0}, ["--weights=random", "--recall=1.0"]),
        ({"filter": "label = 'a b'"}, ["--filter=label = 'a b'"]),
        ({"max_index_memory": 1 << 20}, ["--max-index-memory=1048576"]),
        ({"ray_address": "http://there:8265"}, []),
    ],
)
def test_settings_are_converted_to_arguments(options, arguments):
    settings = RunSettings(gallery="s3://b/g", queries="/q", output="/o", **options)
    required = {"--gallery=s3://b/g", "--queries=/q", "--output=/o"}
    assert sorted(submit._arguments(settings)) == sorted({*required, *arguments})


@pytest.mark.parametrize("path", ["photos", "./photos", "../photos", "~/photos"])
def test_relative_and_home_paths_are_refused(path):
    settings = EmbedSettings(input=path, output="/o", ray_address="http://there:8265")
    with pytest.raises(UsageError, match=f"--input {path}: .* write a URI, or an absolute path"):
        submit.submit("http://there:8265", "embed", settings, None)


def test_only_dashboard_addresses_are_submitted_to(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def resolve_address(address):
        return submit.dashboard_address(EmbedSettings(input="i", output="o", ray_address=address))

    assert resolve_address("https://there:8265") == "https://there:8265"
    addresses = ("there:6379", None, "auto")
    assert [resolve_address(address) for address in addresses] == [None] * 3
    with pytest.raises(UsageError, match="Ray's client is not supported"):
        resolve_address("ray://there:10001")
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere")
    assert resolve_address(None) == "http://elsewhere"
    assert submit.dashboard_address(VerifySettings(path="p")) is None


def test_log_is_separated_from_the_result_for_any_split(capsys):
    text = 'run MARK-x\none\n50 %MARK-"1 \\u00e9\\n2\\n"\nlast, without an end'
    for size in (1, 3, 50, 1000):
        log = submit._Log("MARK-")
        for position in range(0, len(text), size):
            log.add(text[position : position + size], position)
            log.add(text[: position + 1], 0)  # after a reconnect
        log.end()
        assert log.result == "1 é\n2\n"
        assert capsys.readouterr().err.splitlines() == [
            "run MARK-x", "one", "50 %", "last, without an end",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "status", "job_message", "message"),
    [
        (127, "FAILED", "", "the head node does not find the command"),
        (-9, "FAILED", "", "it ended with -9"),
        (None, "FAILED", "the node died", "the node died"),
    ],
)
def test_abnormal_job_end_is_reported(code, status, job_message, message):
    details = SimpleNamespace(driver_exit_code=code, status=status, message=job_message)
    with pytest.raises(submit.LookalikeError, match=f"job: {message}"):
        submit._finish("job", details, submit._Log("m"), None)
