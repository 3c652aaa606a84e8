"""The interface by which index training runs functions in parallel, and its serial implementation.

The Ray implementation is in `jobs/indexing/training_workers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol


class Workers(Protocol):
    """Runs plain functions; results come in the order of the items."""

    def broadcast(self, value: Any) -> Any:
        """Share a value with all workers; return a reference that the map methods resolve."""

    def map(self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Iterate over the results of the function called with each item's values."""

    def map_stored(
        self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]
    ) -> list[tuple[Any, Any]]:
        """Call the function, which returns (large, small); return (reference to large, small)."""


class InProcessWorkers:
    """Runs everything in this process, one item after another."""

    def broadcast(self, value: Any) -> Any:
        """Return the value itself."""
        return value

    def map(self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Iterate over the results, calling the function item by item."""
        return (function(*item) for item in items)

    def map_stored(
        self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]
    ) -> list[tuple[Any, Any]]:
        """Return all results."""
        return list(self.map(function, items))
