"""Chart of recall against lists read: measured curve, target, and the lists that were read."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.records import Certificate, format_mean
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

    The curve is that of the smallest measured k that is not below `k`, or else of the largest; by
    gap where lists were chosen by gap, else by nprobe. None where all lists were read, or nothing
    was measured.
    """
    if certificate.reads_all_lists or len(table) == 0:
        return None
    measured = sorted(set(table["k"].to_pylist()))
    measured_k = next((value for value in measured if value >= k), measured[-1])
    by_gap = pc.is_finite(table["gap"])
    chosen = pc.invert(by_gap) if certificate.gap is None else by_gap
    chosen = pc.and_(chosen, pc.equal(table["k"], measured_k))
    rows = table.filter(chosen).sort_by([("gap", "ascending"), ("nprobe", "ascending")])
    if len(rows) == 0:
        return None
    curve = {name: rows[name].to_numpy().astype(np.float64) for name in rows.schema.names}
    read = format_mean(_mean_lists(certificate))
    alt = (
        f"Recall of the {measured_k} closest images rises from {curve['recall'][0]:.3f} where "
        f"{format_mean(curve['lists'][0])} list is read, to {curve['recall'][-1]:.3f} where "
        f"{format_mean(curve['lists'][-1])} are; {read} were read, "
        f"the target is {certificate.target:g}."
    )
    if certificate.sample:
        alt = f"{alt[:-1]}, and {certificate.search_recall:.3f} was measured."
    draw = partial(_draw, curve=curve, certificate=certificate)
    return ChartDrawing("recall", f"Recall@{measured_k} against lists read", alt, draw, _SIZE)


def _draw(figure: Figure, theme: Theme, curve: Curve, certificate: Certificate) -> None:
    axes = add_axes(figure, _SIZE, 0.5, 0.52, 0.16, 0.4)
    style_axes(axes, theme)
    lists, read, ends = curve["lists"], _mean_lists(certificate), certificate
    axes.set_xscale("log", base=2)
    axes.fill_between(lists, curve["low"], curve["high"], color=theme.accent, alpha=0.2, lw=0)
    axes.plot(lists, curve["recall"], color=theme.accent, lw=1.8, marker="o", ms=3)
    values = [*curve["low"], ends.target, *([ends.search_low] if ends.sample else [])]
    lowest = min(values)
    room = max(1 - lowest, 0.02)
    axes.set_ylim(lowest - 0.12 * room, 1 + 0.06 * room)
    axes.set_xlim(lists[0] / 1.25, max(lists[-1], read) * 1.25)
    axes.axhline(ends.target, color=theme.soft, lw=1, ls=(0, (5, 3)))
    axes.axvline(read, color=theme.ink, lw=1, ls=(0, (1.5, 2)))
    _ticks(axes, lists)
    axes.set_xlabel("lists read per query", color=theme.soft, size=SMALL, labelpad=5)
    if ends.sample:
        middle, low, high = ends.search_recall, ends.search_low, ends.search_high
        error = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
        axes.errorbar(
            [read], [middle], yerr=error, fmt="D", ms=5, color=theme.ink, lw=1.3,
            capsize=3, markeredgecolor=theme.card, markeredgewidth=0.8, zorder=5,
        )  # fmt: skip
    _labels(axes, theme, curve, certificate)


def _mean_lists(certificate: Certificate) -> float:
    """Return the mean number of lists that a query read."""
    return certificate.nprobe if certificate.gap is None else certificate.lists


def _ticks(axes: Axes, lists: NDArray[np.float64]) -> None:
    """Set ticks at no more than seven powers of two, labelled as numbers."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    last = int(np.log2(max(lists[-1], 2)))
    marked = [2**power for power in range(0, last + 1, 1 + last // 7)]
    axes.xaxis.set_major_locator(FixedLocator(marked))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{value:,}" for value in marked])
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _labels(axes: Axes, theme: Theme, curve: Curve, ends: Certificate) -> None:
    """Label the lines where the curve leaves room: below the target left, above it right."""
    from matplotlib.lines import Line2D

    read = _mean_lists(ends)
    position = np.log2(read) / np.log2(max(curve["lists"][-1], 2))  # 0 to 1, along the axis
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
        f"{format_mean(read)} of {ends.nlist:,} lists read", (read, 0),
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
