"""Check the import direction, the absence of import cycles, and the generated documents."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.generated import PAGES

ROOT = Path(__file__).parents[1]
PACKAGES = ("jobs", "lookalike", "retrieval")
FILES = sorted(path for package in PACKAGES for path in ROOT.glob(f"{package}/**/*.py"))

LAYERS = [
    ["retrieval", "retrieval.entry", "retrieval.core"],
    ["retrieval.storage", "retrieval.vectors"],
    ["retrieval.images"],
    ["retrieval.sources"],
    ["retrieval.listing", "retrieval.store"],
    ["retrieval.models"],
    ["retrieval.embedding", "retrieval.index"],
    ["retrieval.search"],
    ["retrieval.evaluation"],
    ["retrieval.report", "retrieval.training", "retrieval.planning", "retrieval.samples"],
    ["jobs"],
    ["lookalike"],
]
"""Packages; each may import from those in earlier lines, and from itself."""


def package_of(module: str) -> str:
    """Return the entry of LAYERS that a module belongs to."""
    packages = {package for layer in LAYERS for package in layer}
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(name for name in names if name in packages)


def module_of(path: Path) -> str:
    """Return the dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Return the modules of the project that a file imports, at any depth."""
    project_modules = {module_of(file) for file in FILES}
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = {f"{node.module}.{alias.name}" for alias in node.names} & project_modules
            imported |= modules
            if len(modules) < len(node.names):  # a name defined in the package itself
                imported.add(node.module)
    return imported & project_modules - {*PACKAGES}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_packages_import_only_from_earlier_layers(path):
    level = {package: number for number, layer in enumerate(LAYERS) for package in layer}
    importing = package_of(module_of(path))
    for module in imports_of(path):
        imported = package_of(module)
        assert imported == importing or level[imported] < level[importing], (
            f"{importing} imports {module}"
        )


def test_imports_have_no_cycles():
    graph = {module_of(path): imports_of(path) for path in FILES}
    visited: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in visited:
            for other in graph.get(module, ()):
                visit(other, (*above, module))
            visited.add(module)

    for module in graph:
        visit(module, ())


def test_library_does_not_import_ray_or_print():
    for path in FILES:
        if path.parts[len(ROOT.parts)] == "retrieval":
            text = path.read_text()
            assert not re.search(r"^\s*(import ray|from ray)\b", text, re.MULTILINE), path
            assert not re.search(r"^\s*print\(", text, re.MULTILINE), path


def test_no_module_has_a_generic_name():
    names = {"util", "utils", "helper", "helpers", "common", "misc", "manager"}
    assert not [path for path in FILES if names & {path.stem, path.parent.name}]


@pytest.mark.parametrize("path", PAGES)
def test_generated_pages_are_up_to_date(path):
    assert (ROOT / path).read_text() == PAGES[path](), "run `make docs`"


def test_links_and_paths_in_documents_exist():
    pages = ("backbones", "outputs", "python", "running", "scale")
    for page in ("README.md", "ARCHITECTURE.md", *(f"docs/{name}.md" for name in pages)):
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links {target}"
        folders = "|".join((*PACKAGES, "tests", "deploy", "benchmarks"))
        for named in re.findall(rf"`((?:{folders})/[\w/.-]+)`", text):
            assert (ROOT / named).exists(), f"{page} names {named}"


def test_no_other_folder_becomes_a_package():
    from setuptools import find_packages

    packages = find_packages(ROOT, include=[f"{name}*" for name in PACKAGES])
    assert {name.split(".")[0] for name in packages} == {*PACKAGES}


def test_no_local_paths_are_committed():
    result = subprocess.run(
        ["git", "grep", "-nE", r"index-url|/root/|/work/", "--", ":!tests"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout == ""


def test_python_version():
    assert sys.version_info >= (3, 11)
