"""The table of the twelve species."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from retrieval.samples import land, sea
from retrieval.samples.pen import Pen, Rng

DRAWERS: Mapping[str, tuple[Callable[[Pen, Rng], None], float]] = MappingProxyType(
    {
        "beetle": (land.beetle, 1.0),
        "butterfly": (land.butterfly, 1.0),
        "crab": (sea.crab, 0.5),
        "fish": (sea.fish, 0.45),
        "jellyfish": (sea.jellyfish, 0.5),
        "octopus": (sea.octopus, 0.4),
        "owl": (land.owl, 0.25),
        "snail": (land.snail, 0.35),
        "snake": (land.snake, 1.0),
        "spider": (land.spider, 1.0),
        "starfish": (sea.starfish, 1.0),
        "turtle": (sea.turtle, 1.0),
    }
)
"""What draws each species, and how far (radians) its pose may be turned either way.

Animals seen from above lie more freely; those seen from the side keep their feet down.
"""
