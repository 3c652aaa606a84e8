"""The page of a comparison: which network, pooling, projection and metric retrieves best.

One file that needs no network. The table is whole without JavaScript, which only sorts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retrieval.report.charts.comparison import comparison_drawing
from retrieval.report.templates import draw, text_of

Row = dict[str, Any]
"""A row of the table COMPARISON."""


@dataclass(frozen=True)
class Comparison:
    """What the page says; `rows` stand best first."""

    lead: str
    rows: Sequence[Row]
    notes: Sequence[str]
    method: Sequence[str]


def best_of_each(rows: Sequence[Row]) -> list[Row]:
    """Give the first row of each network, in their order."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row["backbone"], row)
    return list(found.values())


def way(row: Row) -> str:
    """Name a combination without its network: "gem, PCA 256, cosine"."""
    pca = f"PCA\u00a0{row['pca']}" if row["pca"] else None
    return ", ".join(part for part in (row["pooling"], pca, row["metric"]) if part)


def render(page: Comparison) -> bytes:
    """Draw the page, sealed; the same input gives the same bytes."""
    best = best_of_each(page.rows)
    return draw(
        "comparison.html", title="Networks compared", page=page, best=best, way=way,
        more=len(page.rows) > len(best), charts=[comparison_drawing(page.rows).chart()],
        script=text_of("comparison.js"),
    )  # fmt: skip
