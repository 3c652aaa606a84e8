"""Where a step of training is done: here, one after another, or wherever `jobs` sends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol


class Workers(Protocol):
    """Does plain functions. Answers come in the order of the items, whoever made them."""

    def keep(self, value: Any) -> Any:
        """Put a value where all workers can read it; what is given back stands for it in `map`."""

    def map(self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Call the function with each item's values, kept ones among them."""

    def hold(
        self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]
    ) -> list[tuple[Any, Any]]:
        """Call the function, which gives (large, small); give each as (kept large, small)."""


class Here:
    """This process."""

    def keep(self, value: Any) -> Any:
        """Give the value itself."""
        return value

    def map(self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Call one after another."""
        return (function(*item) for item in items)

    def hold(
        self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]
    ) -> list[tuple[Any, Any]]:
        """Call one after another."""
        return list(self.map(function, items))
