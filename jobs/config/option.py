"""What is known of an option of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Shapes = Literal["content", "run"]
Place = Literal["read", "written"]
REQUIRED = object()


@dataclass(frozen=True)
class Option:
    """One option of the command line."""

    name: str
    type: type | str  # int, float, str, bool, "path", "size" or "recall"
    default: Any
    shapes: Shapes
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    place: Place | None = None  # a path or URI that workers read from, or write into

    @property
    def flag(self) -> str:
        """Give the option as it is typed: `--top-k`."""
        return "--" + self.name.replace("_", "-")
