"""Build the source distribution and the wheel, and test their contents."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("jobs", "lookalike", "retrieval")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Build both from a copy of the tracked files; return the paths of sdist and wheel."""
    root = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *PACKAGES, "pyproject.toml", "README.md", "LICENSE",
         "CHANGELOG.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "."]
    completed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    (sdist,), (wheel,) = root.glob("dist/*.tar.gz"), root.glob("dist/*.whl")
    return sdist, wheel


def test_twine_accepts_the_metadata(distributions):
    completed = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stdout
    assert completed.stdout.count("PASSED") == 2


def test_wheel_has_all_files_of_the_packages_and_no_others(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = set(wheel.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        fields = message_from_bytes(wheel.read(metadata))
        scripts = wheel.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    files = {str(path.relative_to(ROOT)) for package in PACKAGES
             for path in (ROOT / package).rglob("*")
             if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    assert {name for name in names if ".dist-info/" not in name} == files
    assert {"lookalike/py.typed", "retrieval/report/style.css"} <= files
    assert "lookalike = lookalike.__main__:main" in scripts
    assert fields["Name"] == "lookalike"
    assert fields["License-Expression"] == "Apache-2.0"


def test_source_distribution_builds_the_same_wheel(distributions, tmp_path):
    sdist, wheel = distributions
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "."]
    subprocess.run(command, cwd=root, capture_output=True, check=True)
    (rebuilt,) = root.glob("dist/*.whl")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(rebuilt) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())
