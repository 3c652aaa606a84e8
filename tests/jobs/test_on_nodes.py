"""The same command on a cluster of three nodes, submitted as Ray does it or by itself."""

import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from jobs.cluster import submit
from jobs.config.settings import EmbedSettings, RunSettings, VerifySettings
from retrieval.core.errors import UsageError
from tests import nodes
from tests.commands import LOOKALIKE, SMALL, lookalike_here
from tests.jobs.here import without_ray
from tests.nodes import RAY, Running
from tests.trees import tree

WAIT = 240
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A cluster that asks for a token."""
    with nodes.cluster(tmp_path_factory.mktemp("nodes"), TOKEN) as cluster:
        yield cluster


def test_a_command_submits_itself_and_outlives_a_node(there, photos, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = ["embed", "--input", photos("photos"), *SMALL, "--chunk-rows", 2, "--output", out]
    with without_ray():
        assert lookalike_here(*words).code == 0
    out.rename(whole)  # where an output lies is part of what stands in it
    there.hold_all("write .*/parts/")
    running = Running(*words, "--json", "--ray-address", there.address, env=there.environment)
    there.kill(there.first_held(running, WAIT))  # either may have done all before the other begins
    there.mend()
    ended = running.ended(WAIT)
    assert ended.code == 0, ended.err
    assert ended.values["rows"] == 12
    assert len(ended.out.splitlines()) == 1
    assert "embed: 12/12 images" in ended.err
    assert json.loads((out / "run.json").read_bytes())["settings"]["ray_address"] is None
    assert tree(out, half=False) == tree(whole)


def test_the_exit_code_and_the_sentence_are_the_jobs_own(there, tmp_path):
    words = ["--input", tmp_path / "no", "--output", tmp_path / "out"]
    running = Running("embed", *words, "--ray-address", there.address, env=there.environment)
    ended = running.ended(WAIT)
    assert (ended.code, ended.out) == (3, "")
    assert f"{tmp_path}/no" in ended.error


def test_a_folder_of_the_users_named_jobs_does_no_harm(there, tmp_path):
    mine = tmp_path / "work"
    (mine / "jobs").mkdir(parents=True)
    (mine / "jobs" / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    np.save(tmp_path / "vectors.npy", np.eye(8, dtype=np.float32))
    words = ["--embeddings", tmp_path / "vectors.npy", "--output", tmp_path / "out", "--json"]
    command = [
        RAY, "job", "submit", "--address", there.address, "--working-dir", mine, "--",
        LOOKALIKE, "index", *words,
    ]  # fmt: skip
    ended = subprocess.run(
        [str(word) for word in command], env=there.environment, capture_output=True, text=True,
        timeout=WAIT, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    answer = next(line for line in ended.stdout.splitlines() if line.startswith('{"'))
    assert json.loads(answer)["rows"] == 8


def test_an_interrupt_leaves_the_job_and_says_how_to_stop_it(there, tmp_path):
    words = ["--input", tmp_path / "no", "--output", tmp_path / "out"]
    running = Running("embed", *words, "--ray-address", there.address, env=there.environment)
    nodes.until(lambda: "runs on" in running.said(), "the job's name", WAIT)
    running.send_signal(2)
    ended = running.ended(WAIT)
    assert (ended.code, ended.out) == (130, "")
    stop = ended.error.split("to stop it: ")[1].split()
    assert (stop[:3], stop[4:]) == (["ray", "job", "stop"], ["--address", there.address])
    nodes.until(lambda: there.ask(f"/api/jobs/{stop[3]}")["driver_exit_code"] == 3, "its own end")


def test_who_lacks_the_token_is_refused(there, tmp_path):
    env = {**there.environment, "RAY_AUTH_TOKEN": "f" * 32}
    words = ["--input", tmp_path, "--output", tmp_path / "out", "--ray-address", there.address]
    ended = Running("embed", *words, env=env).ended(WAIT)
    assert ended.code == 3
    assert f"--ray-address {there.address}" in ended.error


def test_a_dashboard_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (port,) = nodes.free_ports(1)
    address = f"http://127.0.0.1:{port}"
    words = ["--input", tmp_path, "--output", tmp_path / "out", "--ray-address", address]
    ended = lookalike_here("embed", *words)
    assert ended.code == 3
    assert f"--ray-address {address}: no dashboard" in ended.error


@pytest.mark.parametrize(
    ("given", "words"),
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
def test_settings_are_written_as_they_are_typed(given, words):
    settings = RunSettings(gallery="s3://b/g", queries="/q", output="/o", **given)
    always = {"--gallery=s3://b/g", "--queries=/q", "--output=/o"}
    assert sorted(submit._arguments(settings)) == sorted({*always, *words})


@pytest.mark.parametrize("place", ["photos", "./photos", "../photos", "~/photos"])
def test_places_of_this_machine_alone_are_refused(place):
    settings = EmbedSettings(input=place, output="/o", ray_address="http://there:8265")
    with pytest.raises(UsageError, match=f"--input {place}: .* write a URI, or an absolute path"):
        submit.submit("http://there:8265", "embed", settings, None)


def test_only_a_dashboard_is_submitted_to(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def asked(address):
        return submit.dashboard_address(EmbedSettings(input="i", output="o", ray_address=address))

    assert asked("https://there:8265") == "https://there:8265"
    assert asked("there:6379") is asked(None) is asked("auto") is None
    with pytest.raises(UsageError, match="Ray's client is not supported"):
        asked("ray://there:10001")
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere")
    assert asked(None) == "http://elsewhere"
    assert submit.dashboard_address(VerifySettings(path="p")) is None


def test_a_log_is_told_from_the_answer_however_it_is_cut(capsys):
    text = 'run MARK-x\none\n50 %MARK-"1 \\u00e9\\n2\\n"\nlast, without an end'
    for size in (1, 3, 50, 1000):
        log = submit._Log("MARK-")
        for at in range(0, len(text), size):
            log.take(text[at : at + size], at)
            log.take(text[: at + 1], 0)  # the connection was lost and made anew
        log.end()
        assert log.answer == "1 é\n2\n"
        assert capsys.readouterr().err.splitlines() == [
            "run MARK-x", "one", "50 %", "last, without an end",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "status", "message", "said"),
    [
        (127, "FAILED", "", "the head node does not find the command"),
        (-9, "FAILED", "", "it ended with -9"),
        (None, "FAILED", "the node died", "the node died"),
    ],
)
def test_other_ends_of_a_job_are_said(code, status, message, said):
    details = SimpleNamespace(driver_exit_code=code, status=status, message=message)
    with pytest.raises(submit.LookalikeError, match=f"job: {said}"):
        submit._ended("job", details, submit._Log("m"), None)
