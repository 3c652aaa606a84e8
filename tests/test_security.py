"""Test that SECURITY.md names existing tests, and that no input is executed as code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
FILES = sorted([*ROOT.glob("jobs/**/*.py"), *ROOT.glob("retrieval/**/*.py")])

# modules that execute code while they deserialize
MODULES = {"cloudpickle", "dill", "jsonpickle", "marshal", "pickle", "joblib", "shelve", "yaml"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput",
    "ray.cloudpickle.load", "ray.cloudpickle.loads", "pandas.read_pickle", "pd.read_pickle",
    "torch.jit.load", "torch.hub.load",
}  # fmt: skip
# calls that are safe only with this argument
SAFE_ARGUMENTS = {
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
}


def find_unsafe(source: str) -> list[str]:
    """Return the names of imports and calls in `source` that can execute data as code."""
    unsafe_names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            unsafe_names += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            unsafe_names += [node.module] if node.module.split(".")[0] in MODULES else []
            unsafe_names += sorted(names & (CALLS | SAFE_ARGUMENTS.keys()))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            keyword, value = SAFE_ARGUMENTS.get(name, ("", None))
            shell = keywords.get("shell", "False") != "False"
            if name in CALLS or shell or (keyword and keywords.get(keyword) != str(value)):
                unsafe_names.append(name)
    return unsafe_names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_input_is_executed_as_code(path):
    assert find_unsafe(path.read_text()) == []


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
def test_find_unsafe_detects_code_execution(source, name):
    assert find_unsafe(source) == [name]


@pytest.mark.parametrize(
    "source",
    ["np.load(path, allow_pickle=False)", "torch.load(f, weights_only=True)", "model.eval()"],
)
def test_find_unsafe_accepts_safe_arguments(source):
    assert find_unsafe(source) == []


ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]


def find_missing(row: str) -> list[str]:
    """Return the empty cells of a row of SECURITY.md, and its missing tests and files."""
    _, threat, mitigation, tests, _ = (cell.strip() for cell in row.split("|"))
    named_tests = re.findall(r"`([^`]+)::([^`]+)`", tests)
    missing = [
        cell
        for cell, content in (("threat", threat), ("done", mitigation), ("test", named_tests))
        if not content
    ]
    for path, function in named_tests:
        file = ROOT / path
        tree = ast.parse(file.read_text() if file.is_file() else "")
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        missing += [] if function in functions else [f"{path}::{function}"]
    paths = re.findall(r"`((?:jobs|retrieval|deploy)/[^`]*)`", mitigation)
    return missing + [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:40])
def test_each_threat_names_existing_tests_and_files(row):
    assert find_missing(row) == []


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("| a threat | nothing | hope |", "test"),
        ("| a threat |  | `tests/test_store_faults.py::test_nothing` |", "done"),
        (
            "| a threat | it | `tests/test_store_faults.py::test_nothing` |",
            "tests/test_store_faults.py::test_nothing",
        ),
        ("| a threat | it | `tests/nowhere.py::test_it` |", "tests/nowhere.py::test_it"),
        ("| a threat | `jobs/nowhere.py` | none |", "jobs/nowhere.py"),
    ],
)
def test_find_missing_detects_incomplete_rows(row, expected):
    assert expected in find_missing(row)


def test_number_of_threats():
    assert len(ROWS) >= 20
