"""The start of the command line: its search path, and descriptors that are closed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.entry import claim_packages, without_current_folder
from retrieval.storage.local import LocalFolder
from tests.commands import LOOKALIKE
from tests.retrieval.storage.outputs import made

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(tmp_path)


def test_the_current_folder_is_off_the_path_however_it_is_named(here, monkeypatch):
    library = os.path.dirname(os.__file__)
    path = ["", here, "/other", ".", library, here]
    assert without_current_folder(path) == ["/other", library, here]
    assert without_current_folder(["", "/a"]) == ["/a"]
    monkeypatch.chdir(ROOT)  # it holds our packages
    assert without_current_folder(["", str(ROOT)]) == ["", str(ROOT)]
    monkeypatch.chdir(os.path.dirname(os.__file__))
    assert without_current_folder(["", library]) == [library]


def test_a_current_folder_that_was_removed_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert without_current_folder(["", "/a"]) == ["/a"]


def test_what_lies_in_the_current_folder_is_not_imported(here, monkeypatch):
    for name in ("torch", "jobs"):
        Path(here, f"{name}.py").write_text("raise RuntimeError('the wrong module')")
    monkeypatch.setattr(sys, "path", ["", here, *sys.path])
    claim_packages()
    assert here not in sys.path
    code = (
        "import sys; from retrieval.entry import claim_packages; claim_packages();"
        "import importlib.util; print(importlib.util.find_spec('torch').origin)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ":"},
    )  # fmt: skip
    assert not ran.stdout.startswith(here)


def shell(words):
    """Run a line of a shell; its exit code, stdout and stderr."""
    line = words.format(lookalike=LOOKALIKE)
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


@pytest.fixture
def output(here):
    made(LocalFolder(os.path.join(here, "out")), "predictions")


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&- <&-"])
def test_closed_descriptors_change_no_exit_code(output, closed):
    ended = shell(f"{{lookalike}} verify out {closed}")
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr
    assert ended.stderr == ""
    assert ("out is finished" in ended.stdout) == (closed == "2>&-")


def test_an_answer_holds_nothing_else_where_stderr_is_closed(output):
    ended = shell("{lookalike} verify out --json 2>&- > answer")
    assert ended.returncode == 0
    assert json.loads(Path("answer").read_text())["state"] == "finished"


def test_help_and_answers_that_nobody_reads_are_no_error(output):
    ended = shell("{lookalike} --help >&-; echo $?; {lookalike} --help | true; echo $PIPESTATUS")
    assert (ended.stdout, ended.stderr) == ("0\n0\n", "")
    ended = shell("{lookalike} verify out > /dev/full")
    assert ended.returncode == 1
    assert "error: the result could not be written to stdout (No space left" in ended.stderr
