"""Chart of the score distributions of right, wrong and ungraded matches."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import ScoreKind
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

Scores = NDArray[np.float64]
_SIZE = (4.4, 2.9)
_AXIS_LABELS = {
    "cosine": "cosine (larger is closer →)",
    "ip": "dot product (larger is closer →)",
    "l2": "(← smaller is closer) squared distance",
    "unitless": "score of the order of matches (larger is closer →)",
}
_ORDER = ("unknown", "wrong", "right")  # drawing order
_MIN_BINS, _MAX_BINS = 9, 51  # bins
_WIDEST = 1e300  # beyond it, the width of a range overflows float64


def draw_scores(groups: Mapping[str, Scores], metric: ScoreKind) -> ChartDrawing | None:
    """Return the chart of the score densities of `right`, `wrong` and `unknown` matches.

    Each group of (n,) scores is a histogram of area 1 over common bins, which compares shapes
    whatever the group sizes. None where there is no finite score.
    """
    finite_groups: dict[str, Scores] = {}
    for name in ("right", "wrong", "unknown"):
        scores = np.asarray(groups.get(name, ()), np.float64)
        if not (finite := np.isfinite(scores)).all():
            scores = scores[finite]
        if len(scores):
            too_wide = max(abs(scores.min()), abs(scores.max())) > _WIDEST
            finite_groups[name] = np.clip(scores, -_WIDEST, _WIDEST) if too_wide else scores
    if not finite_groups:
        return None
    edges = _edges(finite_groups)
    bars = {name: _density(scores, edges) for name, scores in finite_groups.items()}
    counts = {name: len(scores) for name, scores in finite_groups.items()}
    summary = "; ".join(
        f"{count:,} {name}, median {np.median(finite_groups[name]):z.3g}"
        for name, count in counts.items()
    )
    draw = partial(_draw, edges=edges, bars=bars, counts=counts, metric=metric)
    alt = f"Distribution of the scores of matches, {_AXIS_LABELS[metric]}: {summary}."
    return ChartDrawing("scores", "Scores of right and wrong matches", alt, draw, _SIZE)


def _edges(groups: Mapping[str, Scores]) -> Scores:
    """Return the edges of equal-width bins over all scores, (bins + 1,).

    Their number follows Rice's rule, 2 n^(1/3), for the smaller of the graded groups.
    """
    low = min(float(scores.min()) for scores in groups.values())
    high = max(float(scores.max()) for scores in groups.values())
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):  # all scores are equal
        room = 0.05 * max(abs(low), 1e-3)
        low, high = low - room, high + room
    graded_sizes = [len(scores) for name, scores in groups.items() if name != "unknown"]
    size = min(graded_sizes, default=len(groups.get("unknown", ())))
    bins = (
        int(np.clip(2 * size ** (1 / 3), _MIN_BINS, _MAX_BINS)) | 1
    )  # odd, so that one is central
    return np.linspace(low, high, bins + 1)


def _density(scores: Scores, edges: Scores) -> Scores:
    """Return the density of the scores in each bin, relative to the mean over the axis.

    The axis has no scale, so the bin width (which may be 1e-300) is left out.
    """
    counts, _ = np.histogram(scores, edges)
    return counts / len(scores) * (len(edges) - 1)


def _draw(
    figure: Figure, theme: Theme, edges: Scores, bars: Mapping[str, Scores],
    counts: Mapping[str, int], metric: ScoreKind,
) -> None:  # fmt: skip
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    axes = add_axes(figure, _SIZE, 0.36, 0.52, 0.2, 0.4)
    style_axes(axes, theme, grid=None)
    handles = []
    for name in sorted(bars, key=_ORDER.index):
        look = _look(name, theme)
        if name == "wrong":  # the lines of a hatch are as strong as its edge
            axes.stairs(
                bars[name], edges, fill=True, facecolor="none", edgecolor=theme.wrong + "70",
                hatch=look.pop("hatch"), lw=0,
            )  # fmt: skip
        axes.stairs(bars[name], edges, fill=True, **look)
        handles.append(Patch(**_look(name, theme)))
    top = max(float(bar.max()) for bar in bars.values())
    room = 0.01 * (edges[-1] - edges[0])
    axes.set(xlim=(edges[0] - room, edges[-1] + room), ylim=(0, top * 1.06))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_yticks([])
    axes.set_xlabel(_AXIS_LABELS[metric], color=theme.soft, size=SMALL, labelpad=5)
    axes.set_ylabel("density", color=theme.soft, size=SMALL, labelpad=4)
    labels = [f"{name} ({counts[name]:,})" for name in sorted(bars, key=_ORDER.index)]
    draw_legend(axes, handles[::-1], labels[::-1], theme)


def _look(name: str, theme: Theme) -> dict[str, Any]:
    """Return the line and fill style of a group, distinct without colour."""
    looks: dict[str, dict[str, Any]] = {
        "right": {"facecolor": theme.right + "38", "edgecolor": theme.right, "ls": "-"},
        "wrong": {
            "facecolor": "none", "edgecolor": theme.wrong, "ls": (0, (4, 1.5)), "hatch": "////",
        },
        "unknown": {"facecolor": theme.soft + "30", "edgecolor": theme.soft, "ls": ":"},
    }  # fmt: skip
    return {"lw": 1.5, **looks[name]}
