"""Chart of mAP by network: the best combination with its interval, the others as faint dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from retrieval.report.charts.canvas import (
    SMALL,
    ChartDrawing,
    Theme,
    add_axes,
    draw_legend,
    style_axes,
)
from retrieval.report.charts.text_fitting import fit_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
_WIDTH, _LINE = 4.4, 0.24  # inches: chart width, height per network
_NAME, _RIGHT, _TOP, _BOTTOM = 1.6, 0.2, 0.4, 0.52
_ALT_NETWORKS = 5  # networks named in the text alternative


def draw_comparison(rows: Rows) -> ChartDrawing:
    """Return the chart of rows of table COMPARISON, best first; networks by their best row."""
    networks: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        networks.setdefault(row["backbone"], []).append(row)
    best = [network_rows[0] for network_rows in networks.values()]
    summary = "; ".join(
        f"{row['backbone']} {row['map']:.3f}"
        + ("" if row["map_low"] is None else f" [{row['map_low']:.3f}, {row['map_high']:.3f}]")
        for row in best[:_ALT_NETWORKS]
    )
    more = f", and {len(best) - _ALT_NETWORKS} more below" if len(best) > _ALT_NETWORKS else ""
    size = (_WIDTH, _TOP + _BOTTOM + _LINE * max(len(best), 2))
    draw = partial(_draw, networks=networks, size=size)
    alt = f"mAP of the best combination of each network, with 95 % intervals: {summary}{more}."
    return ChartDrawing("comparison", "mAP by network", alt, draw, size)


def _draw(
    figure: Figure, theme: Theme, networks: Mapping[str, Rows], size: tuple[float, float]
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    axes = add_axes(figure, size, _NAME, _BOTTOM, _RIGHT, _TOP)
    style_axes(axes, theme, grid=None)
    axes.grid(visible=True, axis="x", color=theme.line, linewidth=0.8)
    for position, rows in enumerate(networks.values()):
        first = rows[0]
        sides = None
        if first["map_low"] is not None:
            distances = (first["map"] - first["map_low"], first["map_high"] - first["map"])
            sides = [[max(0.0, length)] for length in distances]
        axes.plot(
            [row["map"] for row in rows[1:]], [position] * (len(rows) - 1), ls="none", marker="o",
            ms=4, color=theme.soft, alpha=0.35, markeredgewidth=0,
        )  # fmt: skip
        axes.errorbar(
            [first["map"]], [position], xerr=sides, fmt="o", ms=6, color=theme.accent, lw=1.8,
            capsize=3, zorder=3,
        )  # fmt: skip
    axes.set_ylim(max(len(networks), 2) - 0.4, -0.6)
    width = (_NAME - 0.1) * 72
    axes.set_yticks(range(len(networks)), [fit_text(name, width, SMALL) for name in networks])
    axes.tick_params(axis="y", labelcolor=theme.ink)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel("mAP, each image against all others", color=theme.soft, size=SMALL, labelpad=5)
    handles = [
        Line2D([], [], color=theme.accent, lw=1.8, marker="o", ms=6),
        Line2D([], [], color=theme.soft, ls="none", marker="o", ms=4, alpha=0.5),
    ]
    draw_legend(axes, handles, ["best, 95 % interval", "other combinations"], theme)
