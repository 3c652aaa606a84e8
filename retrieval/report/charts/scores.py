"""How the scores of right matches lie to those of wrong ones: where they part, a threshold can."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import Metric
from retrieval.report.charts.canvas import SMALL, Drawing, Theme, inset, key, quiet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = NDArray[np.float64]
_SIZE = (4.4, 2.9)
_SAID = {
    "cosine": "cosine (more is closer →)",
    "ip": "dot product (more is closer →)",
    "l2": "(← less is closer) squared distance",
}
_ORDER = ("unknown", "wrong", "right")  # the last one is drawn above the others
_FEWEST, _MOST = 9, 51  # bins
_WIDEST = 1e300  # beyond it, the width of a range is no float64 any more


def scores_drawing(groups: Mapping[str, Scores], metric: Metric) -> Drawing | None:
    """Draw the densities of the scores, (n,) each, of `right`, `wrong` and `unknown` matches.

    Each group that has finite scores is a histogram of area 1 over bins that all share, so that few
    right matches are compared with many wrong ones by form and place. None where there is no score.
    """
    there: dict[str, Scores] = {}
    for name in ("right", "wrong", "unknown"):
        scores = np.asarray(groups.get(name, ()), np.float64)
        if not (finite := np.isfinite(scores)).all():
            scores = scores[finite]
        if len(scores):
            far = max(abs(scores.min()), abs(scores.max())) > _WIDEST
            there[name] = np.clip(scores, -_WIDEST, _WIDEST) if far else scores  # 80 MB a copy
    if not there:
        return None
    edges = _edges(there)
    bars = {name: _density(scores, edges) for name, scores in there.items()}
    counts = {name: len(scores) for name, scores in there.items()}
    said = "; ".join(
        f"{count:,} {name}, median {np.median(there[name]):z.3g}" for name, count in counts.items()
    )
    draw = partial(_draw, edges=edges, bars=bars, counts=counts, metric=metric)
    alt = f"Distribution of the scores of matches, {_SAID[metric]}: {said}."
    return Drawing("scores", "Scores of right and wrong matches", alt, draw, _SIZE)


def _edges(groups: Mapping[str, Scores]) -> Scores:
    """Give the ends of equal bins over all scores: more of them, the more of each group there are.

    By Rice's rule, twice the cube root of the smaller of the groups that are known.
    """
    low = min(float(scores.min()) for scores in groups.values())
    high = max(float(scores.max()) for scores in groups.values())
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):  # all equal: a bin with room about it
        room = 0.05 * max(abs(low), 1e-3)
        low, high = low - room, high + room
    known = [len(scores) for name, scores in groups.items() if name != "unknown"]
    least = min(known, default=len(groups.get("unknown", ())))
    bins = int(np.clip(2 * least ** (1 / 3), _FEWEST, _MOST)) | 1  # one of them in the middle
    return np.linspace(low, high, bins + 1)


def _density(scores: Scores, edges: Scores) -> Scores:
    """Give the share of the scores in each bin, by its width: relative to the mean over the axis.

    The axis has no scale, so the width of a bin (which may be 1e-300) is left out.
    """
    counts, _ = np.histogram(scores, edges)
    return counts / len(scores) * (len(edges) - 1)


def _draw(
    figure: Figure, theme: Theme, edges: Scores, bars: Mapping[str, Scores],
    counts: Mapping[str, int], metric: Metric,
) -> None:  # fmt: skip
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    axes = inset(figure, _SIZE, 0.36, 0.52, 0.2, 0.4)
    quiet(axes, theme, grid=None)
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
    axes.set_xlabel(_SAID[metric], color=theme.soft, size=SMALL, labelpad=5)
    axes.set_ylabel("density", color=theme.soft, size=SMALL, labelpad=4)
    said = [f"{name} ({counts[name]:,})" for name in sorted(bars, key=_ORDER.index)]
    key(axes, handles[::-1], said[::-1], theme)


def _look(name: str, theme: Theme) -> dict[str, Any]:
    """Tell groups apart by line and filling, and not by colour alone."""
    looks: dict[str, dict[str, Any]] = {
        "right": {"facecolor": theme.right + "38", "edgecolor": theme.right, "ls": "-"},
        "wrong": {
            "facecolor": "none", "edgecolor": theme.wrong, "ls": (0, (4, 1.5)), "hatch": "////",
        },
        "unknown": {"facecolor": theme.soft + "30", "edgecolor": theme.soft, "ls": ":"},
    }  # fmt: skip
    return {"lw": 1.5, **looks[name]}
