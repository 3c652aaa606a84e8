"""Times of the steps of a command, which `run.json` records under `profile`.

All times are seconds since the process began, so that the first one contains Python's start and the
imports. Steps may overlap: Ray starts while the network is converted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

IMPORTS, START_RAY, CONVERT = "imports and checks", "start Ray", "load and convert the network"
FIRST_WORKER, FIRST_RESULT = "first worker is ready", "first chunk is written"


@dataclass
class Profile:
    """The steps of one command so far; the first one ends when this is created."""

    steps: list[tuple[str, float, float]] = field(default_factory=list)  # name, began, ended

    def __post_init__(self) -> None:
        self._process_start = psutil.Process().create_time()
        self.steps.append((IMPORTS, 0.0, self.now()))

    def now(self) -> float:
        """Return the seconds since the process began."""
        return time.time() - self._process_start

    def add(self, name: str, began: float, ended: float | None = None) -> None:
        """Record a step that began at `began` and ended at `ended`, by default now."""
        self.steps.append((name, began, self.now() if ended is None else ended))

    def add_at(self, name: str, wall_time: float) -> None:
        """Record a moment, for instance of a worker, by its Unix time."""
        seconds = wall_time - self._process_start
        self.add(name, seconds, seconds)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record the duration of a block, also if it fails."""
        began = self.now()
        try:
            yield
        finally:
            self.add(name, began)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the steps in the order in which they began."""
        return [
            {"step": name, "began": round(began, 3), "ended": round(ended, 3)}
            for name, began, ended in sorted(self.steps, key=lambda step: step[1:])
        ]
