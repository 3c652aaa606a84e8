"""The first step of the console script: let `jobs` and `retrieval` mean ours.

Ray puts the folder a job was submitted from before everything else on the path, in the command and
in every worker, and a package `jobs` of the user's own there would be taken for ours. So the two
packages are imported while such folders are out of the way; their modules are then found through
them. It stands here and not in `jobs`, which it has to find first.
"""

from __future__ import annotations


def claim_packages() -> None:
    """Import both packages past any folder that holds others of the same name.

    Imports nothing of ours at the top, since it travels to the workers by value.
    """
    import importlib
    import os
    import sys

    def shadows(entry: str) -> bool:
        named = any(
            os.path.isfile(os.path.join(entry, name, "__init__.py"))
            for name in ("jobs", "retrieval")
        )
        return named and not os.path.isfile(os.path.join(entry, "retrieval", "entry.py"))

    before = list(sys.path)
    sys.path[:] = [entry for entry in before if not shadows(entry)]
    importlib.invalidate_caches()
    for name in ("jobs", "retrieval"):
        importlib.import_module(name)
    sys.path[:] = before


def main() -> None:
    """Start the command line."""
    import importlib

    claim_packages()
    importlib.import_module("jobs.cli").main()
