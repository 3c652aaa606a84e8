"""Search path of the command line and of the workers.

Python or Ray may put the current folder first on the search path; a package `jobs` or a file
`torch.py` of the user there must not shadow ours. It is removed from the path, and where PYTHONPATH
names it as well, both packages are imported past it. This module imports nothing of this project,
since `import_own_packages` is sent to the workers by value.
"""

from __future__ import annotations


def holds_packages(folder: str) -> bool:
    """Return whether a folder of the search path contains this project's packages."""
    import os

    return os.path.isfile(os.path.join(folder, "retrieval", "entry.py"))


def without_current_folder(entries: list[str]) -> list[str]:
    """Return a search path without the current folder, unless that holds our packages.

    Only entries before the standard library are removed, since they shadow other modules;
    site-packages stays even where it is the current folder.
    """
    import os

    library = os.path.dirname(os.__file__)
    first = entries.index(library) if library in entries else len(entries)
    try:
        current = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # it has been removed
        current = ""
    remaining = [
        entry
        for entry in entries[:first]
        if (os.path.realpath(entry) if entry else current) != current or holds_packages(entry)
    ]
    return remaining + entries[first:]


def import_own_packages() -> None:
    """Remove the current folder from `sys.path` and import both packages past others so named."""
    import importlib
    import os
    import sys

    def shadows(entry: str) -> bool:
        named = any(
            os.path.isfile(os.path.join(entry, name, "__init__.py"))
            for name in ("jobs", "retrieval")
        )
        return named and not holds_packages(entry)

    cleaned = without_current_folder(sys.path)
    sys.path[:] = [entry for entry in cleaned if not shadows(entry)]
    importlib.invalidate_caches()
    for name in ("jobs", "retrieval"):
        importlib.import_module(name)
    sys.path[:] = cleaned
