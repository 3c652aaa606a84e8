"""Chart of recall against lists read: measured curve, target, and the nprobe that was used."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.records import Certificate
from retrieval.report.charts.canvas import (
    SMALL,
    ChartDrawing,
    Theme,
    add_axes,
    draw_legend,
    style_axes,
    text_background,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = dict[str, NDArray[np.float64]]
_SIZE = (4.4, 2.9)


def draw_recall(table: pa.Table, certificate: Certificate, k: int) -> ChartDrawing | None:
    """Return the chart of the recall curve of an index (table RECALL) for k matches.

    The curve is that of the smallest measured k that is not below `k`, or else of the largest. None
    where all lists were read, or nothing was measured.
    """
    if certificate.nprobe >= certificate.nlist or len(table) == 0:
        return None
    measured = sorted(set(table["k"].to_pylist()))
    measured_k = next((value for value in measured if value >= k), measured[-1])
    rows = table.filter(pc.equal(table["k"], measured_k)).sort_by("nprobe")
    curve = {name: rows[name].to_numpy().astype(np.float64) for name in rows.schema.names}
    alt = (
        f"Recall of the {measured_k} closest images rises from {curve['recall'][0]:.3f} where "
        f"{curve['nprobe'][0]:.0f} list is read, to {curve['recall'][-1]:.3f} where "
        f"{curve['nprobe'][-1]:.0f} are; {certificate.nprobe} were read, "
        f"the target is {certificate.target:g}."
    )
    if certificate.sample:
        alt = f"{alt[:-1]}, and {certificate.search_recall:.3f} was measured."
    draw = partial(_draw, curve=curve, certificate=certificate)
    return ChartDrawing("recall", f"Recall@{measured_k} against lists read", alt, draw, _SIZE)


def _draw(figure: Figure, theme: Theme, curve: Curve, certificate: Certificate) -> None:
    axes = add_axes(figure, _SIZE, 0.5, 0.52, 0.16, 0.4)
    style_axes(axes, theme)
    nprobe, ends = curve["nprobe"], certificate
    axes.set_xscale("log", base=2)
    axes.fill_between(nprobe, curve["low"], curve["high"], color=theme.accent, alpha=0.2, lw=0)
    axes.plot(nprobe, curve["recall"], color=theme.accent, lw=1.8, marker="o", ms=3)
    values = [*curve["low"], ends.target, *([ends.search_low] if ends.sample else [])]
    lowest = min(values)
    room = max(1 - lowest, 0.02)
    axes.set_ylim(lowest - 0.12 * room, 1 + 0.06 * room)
    axes.set_xlim(nprobe[0] / 1.25, max(nprobe[-1], ends.nprobe) * 1.25)
    axes.axhline(ends.target, color=theme.soft, lw=1, ls=(0, (5, 3)))
    axes.axvline(ends.nprobe, color=theme.ink, lw=1, ls=(0, (1.5, 2)))
    _ticks(axes, nprobe)
    axes.set_xlabel("lists read per query (nprobe)", color=theme.soft, size=SMALL, labelpad=5)
    if ends.sample:
        middle, low, high = ends.search_recall, ends.search_low, ends.search_high
        error = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
        axes.errorbar(
            [ends.nprobe], [middle], yerr=error, fmt="D", ms=5, color=theme.ink, lw=1.3,
            capsize=3, markeredgecolor=theme.card, markeredgewidth=0.8, zorder=5,
        )  # fmt: skip
    _labels(axes, theme, curve, certificate)


def _ticks(axes: Axes, nprobe: NDArray[np.float64]) -> None:
    """Set ticks at no more than seven powers of two, labelled as numbers."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    last = int(np.log2(max(nprobe[-1], 2)))
    marked = [2**power for power in range(0, last + 1, 1 + last // 7)]
    axes.xaxis.set_major_locator(FixedLocator(marked))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{value:,}" for value in marked])
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _labels(axes: Axes, theme: Theme, curve: Curve, ends: Certificate) -> None:
    """Label the lines where the curve leaves room: below the target left, above it right."""
    from matplotlib.lines import Line2D

    position = np.log2(ends.nprobe) / np.log2(curve["nprobe"][-1])  # 0 to 1, along the axis
    label_left = position > 0.6
    target_left = position > 0.4 and curve["recall"][0] < ends.target - 0.3 * (
        1 - curve["recall"][0]
    )
    axes.annotate(
        f"target {ends.target:g}", (0 if target_left else 1, ends.target),
        (2 if target_left else -2, -3), va="top", ha="left" if target_left else "right",
        xycoords=("axes fraction", "data"),
        textcoords="offset points", size=SMALL, color=theme.soft, bbox=text_background(theme),
        zorder=1.5,
    )  # fmt: skip
    axes.annotate(
        f"{ends.nprobe:,} of {ends.nlist:,} lists read", (ends.nprobe, 0),
        (-4 if label_left else 4, 3), va="bottom", ha="right" if label_left else "left",
        xycoords=("data", "axes fraction"),
        textcoords="offset points", size=SMALL, color=theme.ink, bbox=text_background(theme),
    )  # fmt: skip
    handles = [Line2D([], [], color=theme.accent, lw=1.8, marker="o", ms=3)]
    labels = ["gallery sample, 95 % band"]
    if ends.sample:
        handles.append(Line2D([], [], color=theme.ink, ls="none", marker="D", ms=5))
        labels.append(
            f"queries {ends.search_recall:.3f} [{ends.search_low:.3f}, {ends.search_high:.3f}]"
        )
    draw_legend(axes, handles, labels, theme)
