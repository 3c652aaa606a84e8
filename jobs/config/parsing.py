"""How what is typed as text becomes a number, here at the edge: sizes and recalls."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Read `16G`, `512M` or a number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if not size:
        raise ValueError(f"{text!r} is not a size; write 512M or 16G")
    return size


def parse_recall(text: str) -> float:
    """Read a share between 0 and 1, or `exact`, which is 1."""
    if text == "exact":
        return 1.0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise ValueError(f"{text!r} is not a recall; write 0.95 or exact")
    return value


def parse_cluster(text: str) -> list[tuple[int, int, int]]:
    """Read `20x(16cpu,1gpu)+4x(32cpu)`: nodes of a kind, and the CPUs and GPUs of each."""
    found = []
    for group in text.lower().replace(" ", "").split("+"):
        said = re.fullmatch(r"(\d+)x\((\d+)cpus?(?:,(\d+)gpus?)?\)", group)
        count, cpus, gpus = (int(number or 0) for number in said.groups()) if said else (0, 0, 0)
        if not count or not cpus:
            raise ValueError(f"{text!r} is not a cluster; write 20x(16cpu,1gpu), more kinds with +")
        found.append((count, cpus, gpus))
    return found


PARSERS: dict[Any, Callable[[str], Any]] = {"size": parse_size, "recall": parse_recall}
"""How the two kinds that are typed as text become numbers."""
