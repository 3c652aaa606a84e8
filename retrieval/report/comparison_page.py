"""Render the page of the `compare` command: networks, poolings, projections and metrics ranked.

The page is one self-contained file; JavaScript is only needed to sort its table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retrieval.report.charts.comparison import draw_comparison
from retrieval.report.templates import read_text, render_page

Row = dict[str, Any]
"""A row of the table COMPARISON."""


@dataclass(frozen=True)
class ComparisonPage:
    """The content of the page; `rows` are ordered best first."""

    summary: str
    rows: Sequence[Row]
    notes: Sequence[str]
    method: Sequence[str]


def best_per_network(rows: Sequence[Row]) -> list[Row]:
    """Return the first row of each network, in the order of the rows."""
    best: dict[str, Row] = {}
    for row in rows:
        best.setdefault(row["backbone"], row)
    return list(best.values())


def format_combination(row: Row) -> str:
    """Format a combination without its network, such as "gem, PCA 256, cosine"."""
    pca = f"PCA\u00a0{row['pca']}" if row["pca"] else None
    return ", ".join(part for part in (row["pooling"], pca, row["metric"]) if part)


def render(page: ComparisonPage) -> bytes:
    """Return the page as HTML with its checksum; the same input gives the same bytes."""
    best = best_per_network(page.rows)
    return render_page(
        "comparison.html", title="Networks compared", page=page, best=best,
        format_combination=format_combination,
        more=len(page.rows) > len(best), charts=[draw_comparison(page.rows).chart()],
        script=read_text("comparison.js"),
    )  # fmt: skip
