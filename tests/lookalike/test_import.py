"""Test the import of lookalike: what it loads, and that other folders do not shadow it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lookalike

ROOT = Path(__file__).parents[2]


def run_python(*arguments, cwd):
    """Run Python with this checkout at the end of the search path, and return its stdout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", str(ROOT)])}
    completed = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


def test_import_loads_no_large_library(tmp_path):
    large = ("torch", "ray", "faiss", "pyarrow", "numpy", "numba", "PIL", "click", "rich")
    code = f"import sys, lookalike; print([name for name in {large} if name in sys.modules])"
    assert run_python("-c", code, cwd=tmp_path) == "[]"


def test_all_names_exist():
    assert set(lookalike.__all__) <= set(dir(lookalike))
    assert all(getattr(lookalike, name).__doc__ for name in lookalike.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = lookalike.nothing


@pytest.mark.parametrize("name", ["jobs", "retrieval"])
def test_own_folders_of_the_user_do_not_shadow(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    code = f"import lookalike, {name}; print({name}.__file__)"
    assert run_python("-c", code, cwd=tmp_path) == str(ROOT / name / "__init__.py")
    code = "import sys, lookalike; print('' in sys.path or sys.path[0])"
    assert run_python("-c", code, cwd=tmp_path) == "True"  # the search path is unchanged


def test_package_that_was_imported_before_is_named(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("")
    code = "import jobs\ntry:\n    import lookalike\nexcept ImportError as error:\n    print(error)"
    message = run_python("-c", code, cwd=tmp_path)
    assert message.startswith(f"a module named jobs was imported before, from {tmp_path / 'jobs'}")


def test_module_runs_the_command_line(tmp_path):
    (tmp_path / "torch.py").write_text("raise RuntimeError('the wrong module')")
    version = run_python("-m", "lookalike", "--version", cwd=tmp_path)
    assert version.startswith("lookalike 0")
