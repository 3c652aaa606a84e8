"""A chart as a page needs it: drawn twice, for a light and for a dark ground."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chart:
    """One chart: two whole SVG documents of the same size, and what they show.

    `alt` is a sentence for whoever does not see them.
    """

    name: str  # of its file, without an ending: "recall"
    title: str
    alt: str
    light: bytes
    dark: bytes
