"""What `--expand-queries N[,ALPHA]` says, as typed and as taken."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_ALPHA = 3.0  # as the paper has it; retrieval/search/query_expansion.py names it


@dataclass(frozen=True)
class Expansion:
    """Add the `count` closest images to each query, weighed by their score to the `alpha`."""

    count: int  # at least 1
    alpha: float = _ALPHA  # at least 0, which weighs all the same


def parse_expansion(text: str) -> Expansion:
    """Read `10`, or `10,2.5` with an alpha."""
    found = re.fullmatch(r"([0-9]+)(?:,([0-9]+(?:\.[0-9]+)?))?", text.strip())
    alpha = _ALPHA if not found or found[2] is None else float(found[2])
    if not found or not int(found[1]) or not math.isfinite(alpha):
        raise ValueError(f"{text!r} is not an expansion; write 10 or 10,3 (neighbours, alpha)")
    return Expansion(int(found[1]), alpha)
