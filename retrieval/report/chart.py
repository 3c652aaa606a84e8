"""The chart type that pages embed: one drawing for light and one for dark colour schemes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chart:
    """A chart as two complete SVG documents of the same size; `alt` is its text alternative."""

    name: str  # file name without extension, such as "recall"
    title: str
    alt: str
    light: bytes
    dark: bytes
