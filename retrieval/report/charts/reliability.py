"""Chart of reliability: the share of right matches by their predicted probability."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from retrieval.evaluation.reliability import Reliability
from retrieval.report.charts.canvas import (
    SMALL,
    ChartDrawing,
    Theme,
    add_axes,
    draw_legend,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZE = (4.4, 3.4)
_LARGEST = 60.0  # area of the largest marker, in points²


def draw_reliability(curves: Mapping[str, Reliability]) -> ChartDrawing | None:
    """Return the reliability curves by name, at most two; None without a bin.

    A point is a bin of matches: its mean probability and the share that is right, with the 95 %
    interval over queries. Its area grows with the number of matches. On the diagonal both agree.
    """
    shown = {name: curve for name, curve in curves.items() if curve.bins}
    if not shown:
        return None
    summary = "; ".join(
        f"{name}: expected calibration error {curve.calibration_error:.3f}, Brier score "
        f"{curve.brier:.3f}, {curve.matches:,} matches of {curve.queries:,} queries"
        for name, curve in shown.items()
    )
    alt = f"Share of right matches by predicted probability; {summary}."
    draw = partial(_draw, curves=shown)
    return ChartDrawing("reliability", "Reliability of the probabilities", alt, draw, _SIZE)


def _draw(figure: Figure, theme: Theme, curves: Mapping[str, Reliability]) -> None:
    axes = add_axes(figure, _SIZE, 0.5, 0.52, 0.2, 0.4)
    style_axes(axes, theme)
    axes.plot([0, 1], [0, 1], color=theme.soft, lw=1, ls=(0, (1.5, 2)))
    looks = ((theme.accent, "-", "o"), (theme.classes[1], (0, (4, 1.5)), "s"))
    handles = []
    for (name, curve), (colour, line, marker) in zip(curves.items(), looks, strict=False):
        predicted = [each.predicted for each in curve.bins]
        right = [each.right for each in curve.bins]
        largest = max(each.matches for each in curve.bins)
        areas = [max(6.0, _LARGEST * each.matches / largest) for each in curve.bins]
        for each in curve.bins:
            if each.low is not None and each.high is not None:
                axes.vlines(each.predicted, each.low, each.high, color=colour, lw=1, alpha=0.6)
        axes.scatter(predicted, right, areas, color=colour, marker=marker, zorder=3)
        label = f"{name} (error {curve.calibration_error:.3f})"
        handles += axes.plot(predicted, right, color=colour, ls=line, lw=1.5, label=label)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xlabel("predicted probability", color=theme.soft, size=SMALL, labelpad=5)
    axes.set_ylabel("share right", color=theme.soft, size=SMALL, labelpad=4)
    draw_legend(axes, handles, [str(handle.get_label()) for handle in handles], theme)
