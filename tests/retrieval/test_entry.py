"""Tests of the program start: the module search path, and closed standard descriptors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.entry import import_own_packages, without_current_folder
from retrieval.storage.local import LocalFolder
from tests.commands import LOOKALIKE
from tests.retrieval.storage.outputs import make_finished_output

ROOT = Path(__file__).parents[2]


@pytest.fixture
def current_folder(tmp_path, monkeypatch):
    """Return the path of an empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    return str(tmp_path)


def test_current_folder_is_removed_from_search_path(current_folder, monkeypatch):
    library = os.path.dirname(os.__file__)
    path = ["", current_folder, "/other", ".", library, current_folder]
    assert without_current_folder(path) == ["/other", library, current_folder]
    assert without_current_folder(["", "/a"]) == ["/a"]
    monkeypatch.chdir(ROOT)  # the folder of the project packages is kept
    assert without_current_folder(["", str(ROOT)]) == ["", str(ROOT)]
    monkeypatch.chdir(os.path.dirname(os.__file__))
    assert without_current_folder(["", library]) == [library]


def test_deleted_current_folder_is_tolerated(tmp_path, monkeypatch):
    (tmp_path / "deleted").mkdir()
    monkeypatch.chdir(tmp_path / "deleted")
    (tmp_path / "deleted").rmdir()
    assert without_current_folder(["", "/a"]) == ["/a"]


def test_modules_in_current_folder_are_not_imported(current_folder, monkeypatch):
    for name in ("torch", "jobs"):
        Path(current_folder, f"{name}.py").write_text("raise RuntimeError('the wrong module')")
    monkeypatch.setattr(sys, "path", ["", current_folder, *sys.path])
    import_own_packages()
    assert current_folder not in sys.path
    code = (
        "import sys; from retrieval.entry import import_own_packages; import_own_packages();"
        "import importlib.util; print(importlib.util.find_spec('torch').origin)"
    )
    process = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ":"},
    )  # fmt: skip
    assert not process.stdout.startswith(current_folder)


def shell(command):
    """Run a bash command, `{lookalike}` being the program; return the completed process."""
    line = command.format(lookalike=LOOKALIKE)
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


@pytest.fixture
def output(current_folder):
    """Write a finished output `out` to the current folder."""
    make_finished_output(LocalFolder(os.path.join(current_folder, "out")), "predictions")


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&- <&-"])
def test_closed_descriptors_do_not_change_exit_code(output, closed):
    process = shell(f"{{lookalike}} verify out {closed}")
    assert process.returncode == 0
    assert "Traceback" not in process.stderr
    assert process.stderr == ""
    assert ("out is finished" in process.stdout) == (closed == "2>&-")


def test_json_output_is_unmixed_with_closed_stderr(output):
    process = shell("{lookalike} verify out --json 2>&- > answer")
    assert process.returncode == 0
    assert json.loads(Path("answer").read_text())["state"] == "finished"


def test_unread_help_succeeds_and_full_stdout_fails(output):
    process = shell("{lookalike} --help >&-; echo $?; {lookalike} --help | true; echo $PIPESTATUS")
    assert (process.stdout, process.stderr) == ("0\n0\n", "")
    process = shell("{lookalike} verify out > /dev/full")
    assert process.returncode == 1
    assert "error: the result could not be written to stdout (No space left" in process.stderr
