"""Claim of the package names `jobs` and `retrieval`, which a user's own folders may have as well.

A notebook has the current folder first on its search path, and `import lookalike` may not change
that path. So both packages are loaded from the folder that holds this one, whatever comes first.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys

PACKAGES = ("jobs", "retrieval")
"""Top-level packages that `lookalike` consists of besides itself."""


def package_root() -> str:
    """Return the folder that holds the packages of this project."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def claim_packages() -> None:
    """Load `jobs` and `retrieval` from the folder that holds this package.

    Raises ImportError if another module with one of these names has been imported before.
    """
    root = package_root()
    for name in PACKAGES:
        loaded = sys.modules.get(name)
        if loaded is None:
            _load(name, root)
        elif _folder(loaded.__spec__) != os.path.realpath(os.path.join(root, name)):
            raise ImportError(
                f"a module named {name} was imported before, from "
                f"{_folder(loaded.__spec__) or 'an unknown place'}, and lookalike contains a "
                "package of this name: import lookalike first, or rename yours"
            )


def _load(name: str, root: str) -> None:
    spec = importlib.machinery.PathFinder.find_spec(name, [root])
    if spec is None or spec.loader is None:
        raise ImportError(f"the package {name} of lookalike is missing in {root}; install it again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _folder(spec: importlib.machinery.ModuleSpec | None) -> str | None:
    """Return the folder of a package or module, links resolved; None where it is unknown."""
    if spec is None or not isinstance(spec.origin, str):
        return None
    return os.path.realpath(os.path.dirname(spec.origin))
