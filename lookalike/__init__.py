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

from lookalike.commands import (  # noqa: E402
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
from lookalike.result import Result  # noqa: E402
from retrieval.core.errors import (  # noqa: E402
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

if TYPE_CHECKING:
    from lookalike.index_reader import Index, open_index
    from lookalike.match_reader import Matches, open_matches
    from lookalike.store_reader import Store, open_store
    from retrieval.samples import write_samples

__all__ = [
    "BelowBound",
    "Damaged",
    "Index",
    "InputError",
    "LookalikeError",
    "Matches",
    "Mismatch",
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

_LAZY = {
    "Index": "lookalike.index_reader",
    "open_index": "lookalike.index_reader",
    "Matches": "lookalike.match_reader",
    "open_matches": "lookalike.match_reader",
    "Store": "lookalike.store_reader",
    "open_store": "lookalike.store_reader",
    "write_samples": "retrieval.samples",
}
"""Names whose modules load numpy, pyarrow, faiss or torch, which takes seconds."""


def __getattr__(name: str) -> Any:
    """Load a name of `_LAZY` when it is first used."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
