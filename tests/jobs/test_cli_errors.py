"""Test the exit code and the error line of failing commands.

Commands run in a process of their own where the end of the process is tested: before and after the
start of Ray, and by signals. Stopped commands are resumed in this process without Ray.
"""

import os
import signal
import subprocess
import tempfile
import time
import urllib.request

import psutil
import pytest

from tests.commands import LOOKALIKE, SMALL_MODEL_OPTIONS, run_command, run_command_in_process
from tests.jobs.in_process import without_ray

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def folders(photos, tmp_path):
    """Return the options that name a gallery, queries and an output."""
    return {
        "--gallery": photos("gallery"),
        "--queries": photos("queries", 3, seed=1),
        "--output": tmp_path / "out",
    }


def run_pipeline(folders, *extra, command=run_command_in_process):
    arguments = [word for pair in folders.items() for word in pair]
    return command("run", *arguments, *extra)


def test_missing_input_folder(folders, tmp_path):
    result = run_pipeline(
        {**folders, "--gallery": tmp_path / "nowhere"}, *SMALL_MODEL_OPTIONS, command=run_command
    )
    assert result.exit_code == 3
    assert "nowhere does not exist" in result.error
    assert not (tmp_path / "out").exists()


def test_empty_input_folder(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run_pipeline({**folders, "--queries": tmp_path / "empty"}, *SMALL_MODEL_OPTIONS)
    assert result.exit_code == 3
    assert "empty contains no images" in result.error
    assert not (tmp_path / "out").exists()


def test_unwritable_output(folders, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run_pipeline({**folders, "--output": tmp_path / "file" / "out"}, *SMALL_MODEL_OPTIONS)
    assert result.exit_code == 2
    assert "--output" in result.error
    assert "cannot be written" in result.error


def test_foreign_output_folder_is_not_overwritten(folders, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    result = run_pipeline(
        {**folders, "--output": tmp_path / "home"}, *SMALL_MODEL_OPTIONS, "--overwrite"
    )
    assert result.exit_code == 2
    assert "letter.txt" in result.error
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_unknown_backbone_suggests_similar_names(folders):
    result = run_pipeline(folders, "--backbone", "resnet5", "--weights", "random")
    assert result.exit_code == 2
    assert "resnet50" in result.error


def test_failed_weight_download_suggests_options(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "_opener", None)  # caches the proxy of the first request
    result = run_pipeline(folders, "--backbone", "squeezenet1_1")
    assert result.exit_code == 3
    assert "--weights" in result.error
    assert "--bundle" in result.error


@pytest.mark.parametrize("content", [b"\x80\x04N.", b"", b"no"])
def test_invalid_weights_file(folders, tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    result = run_pipeline(folders, "--backbone", "scratch", "--weights", tmp_path / "w.pth")
    assert result.exit_code == 3
    assert "w.pth" in result.error


@pytest.mark.nightly
def test_error_after_the_start_of_ray_ends_the_process(folders, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"no")
    result = run_pipeline(
        folders, "--backbone", "scratch", "--weights", tmp_path / "w.pth", command=run_command
    )
    assert result.exit_code == 3
    assert "w.pth" in result.error


def test_missing_matches_folder(tmp_path):
    for verb, option in (("evaluate", "--matches"), ("report", "--matches")):
        extra = ("--output", tmp_path / "r.html") if verb == "report" else ()
        result = run_command_in_process(verb, option, tmp_path / "nothing", *extra)
        assert result.exit_code == 3
        assert "nothing" in result.error


def test_verify_exit_codes(tmp_path):
    assert run_command_in_process("verify", tmp_path / "nowhere").exit_code == 3
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "other.txt").write_text("x")
    assert run_command_in_process("verify", tmp_path / "files").exit_code == 7


@pytest.mark.nightly
def test_top_k_larger_than_gallery_returns_all_rows_and_warns_once(folders):
    result = run_pipeline(folders, *SMALL_MODEL_OPTIONS, "--top-k", "50", "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("--top-k 50 is more than the gallery has") == 1
    assert result.values["queries"] == 3
    assert result.values["Success@1"] == 1.0
    second_result = run_pipeline(folders, *SMALL_MODEL_OPTIONS, "--top-k", "49")
    assert second_result.exit_code == 6
    assert "top_k was 50, is 49" in second_result.error
    assert run_command_in_process("verify", folders["--output"]).exit_code == 0


def test_interrupted_run_resumes(folders):
    arguments = [str(word) for pair in folders.items() for word in pair]
    command = [
        LOOKALIKE,
        "run",
        *arguments,
        *SMALL_MODEL_OPTIONS,
        "--chunk-rows",
        "1",
        "--workers",
        "1",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    parts = folders["--output"] / "gallery/segments/00000/parts"
    deadline = time.monotonic() + 120
    while not (parts.is_dir() and list(parts.glob("0*"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # the process group, as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "error: interrupted" in err
    assert run_command_in_process("verify", folders["--output"]).exit_code == 3
    with without_ray():
        result = run_pipeline(folders, *SMALL_MODEL_OPTIONS, "--chunk-rows", "1", "--workers", "1")
    assert result.exit_code == 0, result.stderr
    assert run_command_in_process("verify", folders["--output"]).exit_code == 0


def test_terminated_run_leaves_no_process_and_no_temporary_folder(folders, tmp_path):
    """The home cannot be written, and the working directory has modules named as libraries."""
    working_dir = tmp_path / "mine"
    working_dir.mkdir()
    for name in ("torch", "numpy", "pyarrow", "json"):
        (working_dir / f"{name}.py").write_text("raise RuntimeError('the wrong module')")
    arguments = [
        "embed",
        "--input",
        folders["--gallery"],
        "--output",
        folders["--output"],
        *SMALL_MODEL_OPTIONS,
    ]
    arguments += ["--chunk-rows", "1", "--workers", "1"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")
    }
    with tempfile.TemporaryDirectory(prefix="la", dir="/tmp") as temp_dir:
        process = subprocess.Popen(
            [LOOKALIKE, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=working_dir,
            env={**environment, "HOME": "/proc/nonexistent", "TMPDIR": temp_dir, "PYTHONPATH": ":"},
        )  # fmt: skip
        parts = folders["--output"] / "segments/00000/parts"
        deadline = time.monotonic() + 120
        while not (parts.is_dir() and list(parts.glob("0*"))) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (143, ""), err
        *progress, error = err.splitlines()
        assert error.startswith("error: terminated; finished work is kept")
        assert all(line.startswith("embed: ") for line in progress)  # if the start was slow
        assert len(children) > 2
        assert psutil.wait_procs(children, timeout=10)[1] == []
        assert os.listdir(temp_dir) == []
    assert list(parts.glob("0*"))
    with without_ray():
        result = run_command_in_process(*arguments)
    assert result.exit_code == 0, result.stderr
