"""Write the script with the state, class and margin rank of every query, for filters and sorting.

10^5 queries take 1.2 MB: one letter for the state, and two int32 in base64 for the class and the
margin rank. Scripts contain file names, which `script_safe` escapes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.report.names import PER_CHUNK, PER_PAGE, ReportFiles
from retrieval.report.page import STATES
from retrieval.report.rows import ShownQueries

LETTERS = "".join(state[0] for state in STATES)  # r, w, u, f


def facets_script(shown: ShownQueries, names: ReportFiles | None) -> str:
    """Return the script with all queries' facets; `names` is None for a single-file report.

    `states` has one letter per query, `classes` the sorted labels, `of` the position of each
    query's label in `classes` (-1: none), `margin` the rank of its margin, smallest first (-1:
    none).
    """
    labels = shown.queries["label"].to_pylist()
    classes = sorted({label for label in labels if label})
    numbers = {label: number for number, label in enumerate(classes)}
    states = shown.queries["state"].to_numpy()
    values = {
        "states": "".join(LETTERS[state] for state in states),
        "classes": classes,
        "of": _packed(np.array([numbers.get(label, -1) for label in labels], np.int32)),
        "margin": _packed(rank_margins(shown.queries["margin"].to_numpy())),
        "page": PER_PAGE if names else max(1, len(shown)),
        "chunk": PER_CHUNK,
        "chunks": names.link(f"{names.folder}/chunks/") if names else None,
    }
    return f"var lookalike = {{ facets: {script_safe(values)} }};\n"


def chunk_script(number: int, fragments: Sequence[str]) -> str:
    """Return the script that passes the rendered queries of one chunk to the page."""
    return f"lookalike.chunk({number}, {script_safe(list(fragments))});\n"


def rank_margins(margins: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return the dense rank of each margin, (q,) int32, smallest first; -1 where it is not finite.

    Equal margins have equal ranks, so that the page can sort without floats.
    """
    finite = np.isfinite(margins)
    ranks = np.full(len(margins), -1, np.int32)
    ranks[finite] = np.unique(margins[finite], return_inverse=True)[1]
    return ranks


def script_safe(value: Any) -> str:
    """Return a value as an ASCII JavaScript literal that cannot end the surrounding script.

    `</script>`, `<!--` and U+2028 are escaped; a lone surrogate is written as text.
    """
    text = json.dumps(_readable(value), separators=(",", ":"))
    return text.replace("</", "<\\/").replace("<!", "\\u003c!")


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return (
        {key: _readable(item) for key, item in value.items()} if isinstance(value, dict) else value
    )


def _packed(numbers: NDArray[np.int32]) -> str:
    return base64.b64encode(numbers.astype("<i4").tobytes()).decode()
