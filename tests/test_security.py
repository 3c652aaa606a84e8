"""SECURITY.md names tests that exist; and nothing that is read becomes code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
FILES = sorted([*ROOT.glob("jobs/**/*.py"), *ROOT.glob("retrieval/**/*.py")])

# modules whose reading runs code, whatever is called in them
MODULES = {"cloudpickle", "dill", "jsonpickle", "marshal", "pickle", "joblib", "shelve", "yaml"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput",
    "ray.cloudpickle.load", "ray.cloudpickle.loads", "pandas.read_pickle", "pd.read_pickle",
    "torch.jit.load", "torch.hub.load",
}  # fmt: skip
# calls that are safe if they say so
SAID = {
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
}


def unsafe(source: str) -> list[str]:
    """Name what in a file could make code of what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found += [node.module] if node.module.split(".")[0] in MODULES else []
            found += sorted(names & (CALLS | SAID.keys()))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            said = {word.arg: ast.unparse(word.value) for word in node.keywords}
            word, value = SAID.get(name, ("", None))
            shell = said.get("shell", "False") != "False"
            if name in CALLS or shell or (word and said.get(word) != str(value)):
                found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_is_read_becomes_code(path):
    assert unsafe(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("import yaml", "yaml"),
        ("eval(text)", "eval"),
        ("import os\nos.system(text)", "os.system"),
        ("from os import system", "os.system"),
        ("np.load(path)", "np.load"),
        ("np.load(path, allow_pickle=True)", "np.load"),
        ("from numpy import load", "numpy.load"),
        ("torch.load(path)", "torch.load"),
        ("torch.load(path, weights_only=False)", "torch.load"),
        ("subprocess.run(text, shell=True)", "subprocess.run"),
        ("ray.cloudpickle.loads(data)", "ray.cloudpickle.loads"),
    ],
)
def test_what_could_become_code_is_found(source, name):
    assert unsafe(source) == [name]


@pytest.mark.parametrize(
    "source",
    ["np.load(path, allow_pickle=False)", "torch.load(f, weights_only=True)", "model.eval()"],
)
def test_what_says_that_it_is_safe_is_not(source):
    assert unsafe(source) == []


ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]


def lacking(row: str) -> list[str]:
    """Name what a threat's row promises and is not there."""
    _, threat, done, held, _ = (cell.strip() for cell in row.split("|"))
    named = re.findall(r"`([^`]+)::([^`]+)`", held)
    found = [
        cell for cell, there in (("threat", threat), ("done", done), ("test", named)) if not there
    ]
    for path, function in named:
        file = ROOT / path
        tree = ast.parse(file.read_text() if file.is_file() else "")
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        found += [] if function in functions else [f"{path}::{function}"]
    paths = re.findall(r"`((?:jobs|retrieval|deploy)/[^`]*)`", done)
    return found + [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:40])
def test_each_threat_names_a_test_and_each_test_and_file_exists(row):
    assert lacking(row) == []


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("| a threat | nothing | hope |", "test"),
        ("| a threat |  | `tests/test_loops.py::test_nothing` |", "done"),
        (
            "| a threat | it | `tests/test_loops.py::test_nothing` |",
            "tests/test_loops.py::test_nothing",
        ),
        ("| a threat | it | `tests/nowhere.py::test_it` |", "tests/nowhere.py::test_it"),
        ("| a threat | `jobs/nowhere.py` | none |", "jobs/nowhere.py"),
    ],
)
def test_what_a_row_lacks_is_found(row, what):
    assert what in lacking(row)


def test_threats_are_there():
    assert len(ROWS) >= 20
