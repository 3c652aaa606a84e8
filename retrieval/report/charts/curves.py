"""Chart of training curves by epoch, with the epoch that was kept."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.report.charts.canvas import SMALL, TEXT, ChartDrawing, Theme, add_axes, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Column = NDArray[np.float64]
_SIZE = (4.4, 4.2)
_MEASURE_NAMES = {"top1": "top-1", "map": "mAP", "accuracy": "accuracy"}


def draw_curves(history: pa.Table, best: int) -> ChartDrawing | None:
    """Return the chart of table HISTORY: shares and loss by epoch; `best` is the epoch kept.

    Shares are the columns `top1`, `map` and `accuracy` that have values. None without epochs.
    """
    if len(history) == 0:
        return None
    complete = [name for name in history.schema.names if history[name].null_count == 0]
    columns = {name: history[name].to_numpy().astype(np.float64) for name in complete}
    last = int(columns["epoch"][-1])
    values = {name: column[columns["epoch"] == best] for name, column in columns.items()}
    summary = ", ".join(
        f"{_MEASURE_NAMES[n]} {values[n][0]:.3f}" for n in _MEASURE_NAMES if n in values
    )
    alt = f"Training over {last} epoch{'s' * (last > 1)}; epoch {best} was kept: {summary}."
    draw = partial(_draw, columns=columns, best=best)
    return ChartDrawing("curves", "Training", alt, draw, _SIZE)


def _draw(figure: Figure, theme: Theme, columns: dict[str, Column], best: int) -> None:
    """Draw shares above and the loss below, over the same epochs."""
    styles = {"top1": "-", "accuracy": (0, (5, 1.5)), "map": (0, (1.5, 1.2))}
    colours = {"top1": theme.accent, "accuracy": theme.right, "map": theme.classes[3]}
    epochs = columns["epoch"]
    shares = [name for name in _MEASURE_NAMES if name in columns]
    above = add_axes(figure, _SIZE, 0.5, 1.72, 1.02, 0.24)
    below = add_axes(figure, _SIZE, 0.5, 0.52, 1.02, 2.82)
    for axes in (above, below):
        style_axes(axes, theme)
        room = 0.02 * max(1.0, float(epochs[-1] - epochs[0]))
        axes.set_xlim(epochs[0] - room, epochs[-1] + room)
        axes.axvline(best, color=theme.ink, lw=1, ls=(0, (1.5, 2)))
    marker = "o" if len(epochs) <= 12 else ""
    for name in shares:
        above.plot(
            epochs, columns[name], color=colours[name], ls=styles[name], lw=1.6, marker=marker, ms=3
        )
    above.set_ylim(-0.02, 1.02)
    ends = _spread([float(columns[name][-1]) for name in shares], 0.1)
    for name, end in zip(shares, ends, strict=True):
        _label_end(above, f"{_MEASURE_NAMES[name]} {columns[name][-1]:.2f}", end, colours[name])
    below.plot(epochs, columns["loss"], color=theme.soft, lw=1.6, marker=marker, ms=3)
    below.set_ylim(0, float(columns["loss"].max()) * 1.08 or 1.0)
    _label_end(below, f"loss {columns['loss'][-1]:.2f}", float(columns["loss"][-1]), theme.soft)
    _axes(above, below, theme, epochs, best)


def _axes(above: Axes, below: Axes, theme: Theme, epochs: Column, best: int) -> None:
    from matplotlib.ticker import MaxNLocator

    above.spines["bottom"].set_visible(False)  # the grid line at 0 takes its place
    above.yaxis.set_major_locator(MaxNLocator(5))
    below.yaxis.set_major_locator(MaxNLocator(3))
    for axes in (above, below):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    above.tick_params(labelbottom=False)
    below.set_xlabel("epoch", color=theme.soft, size=SMALL, labelpad=5)
    is_late = best > (epochs[0] + epochs[-1]) / 2
    above.annotate(
        f"epoch {best} kept", (best, 1), (3 if not is_late else -3, 4), va="bottom",
        ha="right" if is_late else "left", xycoords=("data", "axes fraction"),
        textcoords="offset points", size=SMALL, color=theme.ink,
    )  # fmt: skip


def _label_end(axes: Axes, text: str, height: float, colour: str) -> None:
    axes.annotate(
        text, (1, height), (5, 0), xycoords=("axes fraction", "data"), va="center",
        textcoords="offset points", size=TEXT, color=colour,
        annotation_clip=False,
    )  # fmt: skip


def _spread(heights: list[float], distance: float) -> list[float]:
    """Move heights in [0, 1] at least `distance` apart, keeping their order."""
    order = sorted(range(len(heights)), key=lambda position: heights[position])
    moved = list(heights)
    lowest = 0.0
    for position in order:
        moved[position] = lowest = max(lowest, heights[position])
        lowest += distance
    highest = 1.0
    for position in reversed(order):
        moved[position] = highest = min(highest, moved[position])
        highest -= distance
    return moved
