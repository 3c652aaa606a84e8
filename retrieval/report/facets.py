"""What do filters and sort need of every query? A script of a few bytes a query.

10^5 queries make 1.2 MB: a letter for the state, and two int32 in base64 for the class and for the
place by lead. Scripts hold names of files as text; `script_safe` keeps them text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.report.names import PER_CHUNK, PER_PAGE, Names
from retrieval.report.page import STATES
from retrieval.report.rows import Shown

LETTERS = "".join(state[0] for state in STATES)  # r, w, u, f


def facets_script(shown: Shown, names: Names | None) -> str:
    """Write the script of all queries' facets; without names for a page that holds them all.

    `states` has a letter a query, `classes` the labels by name, `of` the number of each query's
    label there (-1: none), `lead` the place of its margin among the different ones, smallest first
    (-1: none).
    """
    labels = shown.queries["label"].to_pylist()
    classes = sorted({label for label in labels if label})
    numbers = {label: number for number, label in enumerate(classes)}
    states = shown.queries["state"].to_numpy()
    values = {
        "states": "".join(LETTERS[state] for state in states),
        "classes": classes,
        "of": _packed(np.array([numbers.get(label, -1) for label in labels], np.int32)),
        "lead": _packed(places(shown.queries["margin"].to_numpy())),
        "page": PER_PAGE if names else max(1, len(shown)),
        "chunk": PER_CHUNK,
        "chunks": names.link(f"{names.folder}/chunks/") if names else None,
    }
    return f"var lookalike = {{ facets: {script_safe(values)} }};\n"


def chunk_script(number: int, fragments: Sequence[str]) -> str:
    """Write the script that hands over the drawn queries of one chunk."""
    return f"lookalike.chunk({number}, {script_safe(list(fragments))});\n"


def places(margins: NDArray[np.float64]) -> NDArray[np.int32]:
    """Give each margin its place among the different ones, smallest first; -1 where there is none.

    Equal ones have the same, so that whoever sorts by it needs no floats.
    """
    known = np.isfinite(margins)
    found = np.full(len(margins), -1, np.int32)
    found[known] = np.unique(margins[known], return_inverse=True)[1]
    return found


def script_safe(value: Any) -> str:
    """Write a literal for a script, of ASCII alone, that nothing in it can end.

    Not by `</script>` or `<!--`, were it inlined, nor by U+2028; a lone surrogate is written out,
    as on the page.
    """
    text = json.dumps(_readable(value), separators=(",", ":"))
    return text.replace("</", "<\\/").replace("<!", "\\u003c!")


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_readable(each) for each in value]
    return (
        {key: _readable(each) for key, each in value.items()} if isinstance(value, dict) else value
    )


def _packed(numbers: NDArray[np.int32]) -> str:
    return base64.b64encode(numbers.astype("<i4").tobytes()).decode()
