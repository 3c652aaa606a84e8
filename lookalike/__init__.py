"""Batch image similarity: the most similar gallery images of each query image.

Each function is a command of the command line, with the same options, defaults and errors:

    import lookalike

    result = lookalike.run(gallery="photos", queries="new", output="result")
    result.matches().show(["cat.jpg"])
    lookalike.open_index("result/index").search(["other.jpg"], k=5).to_pandas()

Inputs are paths and URIs, or lists of paths, Pillow images, arrays, Arrow tables and data frames.
A command runs in a child process and may use all CPUs, or a Ray cluster; `open_matches`,
`open_store` and `open_index` read its outputs in this process, verified by their checksums.
docs/python.md describes all of this.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lookalike.package_names import claim_packages

claim_packages()  # before anything of these packages is imported

if TYPE_CHECKING:
    from lookalike.commands import (
        compare,
        demo,
        embed,
        evaluate,
        index,
        plan,
        predict,
        rank,
        report,
        run,
        train,
        verify,
    )
    from lookalike.index_reader import Index, open_index
    from lookalike.match_reader import Matches, open_matches
    from lookalike.result import Result
    from lookalike.store_reader import Store, open_store
    from retrieval.core.errors import (
        BelowBound,
        Damaged,
        InputError,
        LookalikeError,
        Mismatch,
        Stalled,
        StorageFailure,
        TooManyFailures,
        UsageError,
    )
    from retrieval.models.own_model import Model
    from retrieval.samples import write_samples

__all__ = [
    "BelowBound",
    "Damaged",
    "Index",
    "InputError",
    "LookalikeError",
    "Matches",
    "Mismatch",
    "Model",
    "Result",
    "Stalled",
    "StorageFailure",
    "Store",
    "TooManyFailures",
    "UsageError",
    "compare",
    "demo",
    "embed",
    "evaluate",
    "index",
    "open_index",
    "open_matches",
    "open_store",
    "plan",
    "predict",
    "rank",
    "report",
    "run",
    "train",
    "verify",
    "write_samples",
]

_MODULES = {
    "lookalike.commands": (
        "compare", "demo", "embed", "evaluate", "index", "plan", "predict", "rank", "report", "run",
        "train", "verify",
    ),
    "lookalike.index_reader": ("Index", "open_index"),
    "lookalike.match_reader": ("Matches", "open_matches"),
    "lookalike.result": ("Result",),
    "lookalike.store_reader": ("Store", "open_store"),
    "retrieval.core.errors": (
        "BelowBound", "Damaged", "InputError", "LookalikeError", "Mismatch", "Stalled",
        "StorageFailure", "TooManyFailures", "UsageError",
    ),
    "retrieval.models.own_model": ("Model",),
    "retrieval.samples": ("write_samples",),
}  # fmt: skip
"""Names by the module that is imported when they are first used.

Some load numpy, pyarrow, faiss or torch, which takes seconds; and `python -m lookalike` imports
this module before it cleans the search path, where a user's module may shadow one of ours.
"""


def __getattr__(name: str) -> Any:
    """Import a name of `_MODULES` when it is first used."""
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
