"""Check the import direction, the absence of import cycles, and the generated documents."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.generated import PAGES

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("jobs/**/*.py"), *ROOT.glob("retrieval/**/*.py")])

FLOORS = [
    {
        "retrieval",
        "retrieval.entry",
        "retrieval.tables",
        "retrieval.kinds",
        "retrieval.errors",
        "retrieval.intervals",
    },
    {"retrieval.records", "retrieval.conversions"},
    {"retrieval.scoring", "retrieval.candidates", "retrieval.storage"},
    {"retrieval.products"},
    {"retrieval.closest", "retrieval.int8"},
    {"retrieval.images", "retrieval.embeddings"},
    {"retrieval.model", "retrieval.index", "retrieval.ranking", "retrieval.evaluation"},
    {
        "retrieval.report",
        "retrieval.training",
        "retrieval.costs",
        "retrieval.samples",
        "retrieval.combinations",
    },
    {"jobs"},
]


def room_of(module: str) -> str:
    """Give the room a module belongs to."""
    rooms = {room for floor in FLOORS for room in floor}
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(name for name in names if name in rooms)


def module_of(path: Path) -> str:
    """Give the dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Give the modules of ours that a file imports, wherever in it."""
    known = {module_of(file) for file in FILES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= modules
            if len(modules) < len(node.names):  # something of the package itself
                found.add(node.module)
    return found & known - {"jobs", "retrieval"}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_each_file_imports_only_from_floors_below_or_its_own_room(path):
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    own = room_of(module_of(path))
    for module in imports_of(path):
        room = room_of(module)
        assert room == own or floor[room] < floor[own], f"{own} imports {module}"


def test_there_are_no_circles():
    graph = {module_of(path): imports_of(path) for path in FILES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_library_knows_no_ray_and_prints_nothing():
    for path in FILES:
        if path.parts[len(ROOT.parts)] == "retrieval":
            text = path.read_text()
            assert not re.search(r"^\s*(import ray|from ray)\b", text, re.MULTILINE), path
            assert not re.search(r"^\s*print\(", text, re.MULTILINE), path


def test_names_say_what_is_inside():
    names = {"util", "utils", "helper", "helpers", "common", "misc", "manager"}
    assert not [path for path in FILES if names & {path.stem, path.parent.name}]


@pytest.mark.parametrize("path", PAGES)
def test_generated_pages_are_as_the_code_says(path):
    assert (ROOT / path).read_text() == PAGES[path](), "run `make docs`"


def test_links_and_paths_in_the_pages_exist():
    for page in ("README.md", "ARCHITECTURE.md"):
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (ROOT / target).exists(), f"{page} links {target}"
        for named in re.findall(r"`((?:jobs|retrieval|tests|deploy|benchmarks)/[\w/.-]+)`", text):
            assert (ROOT / named).exists(), f"{page} names {named}"


def test_the_packages_are_exactly_two():
    from setuptools import find_packages

    assert {
        name.split(".")[0] for name in find_packages(ROOT, include=["jobs*", "retrieval*"])
    } == {
        "jobs",
        "retrieval",
    }


def test_nothing_of_this_machine_is_in_the_tree():
    listed = subprocess.run(
        ["git", "grep", "-nE", r"index-url|/root/|/work/", "--", ":!tests"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert listed.stdout == ""


def test_python_is_new_enough():
    assert sys.version_info >= (3, 11)
