"""How a training went, epoch by epoch, and which epoch was kept."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.report.charts.canvas import SMALL, TEXT, Drawing, Theme, inset, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Column = NDArray[np.float64]
_SIZE = (4.4, 4.2)
_SAID = {"top1": "top-1", "map": "mAP", "accuracy": "accuracy"}


def curves_drawing(history: pa.Table, best: int) -> Drawing | None:
    """Draw the columns of table HISTORY that are shares, and the loss; `best` is the epoch kept.

    Shares are `top1`, `map` and `accuracy`, of these the columns that are there and are known.
    None where no epoch was trained.
    """
    if len(history) == 0:
        return None
    known = [name for name in history.schema.names if history[name].null_count == 0]
    columns = {name: history[name].to_numpy().astype(np.float64) for name in known}
    last = int(columns["epoch"][-1])
    values = {name: column[columns["epoch"] == best] for name, column in columns.items()}
    said = ", ".join(f"{_SAID[n]} {values[n][0]:.3f}" for n in _SAID if n in values)
    alt = f"Training over {last} epoch{'s' * (last > 1)}; epoch {best} was kept: {said}."
    draw = partial(_draw, columns=columns, best=best)
    return Drawing("curves", "Training", alt, draw, _SIZE)


def _draw(figure: Figure, theme: Theme, columns: dict[str, Column], best: int) -> None:
    """Draw shares above and the loss below, over the same epochs."""
    styles = {"top1": "-", "accuracy": (0, (5, 1.5)), "map": (0, (1.5, 1.2))}
    colours = {"top1": theme.accent, "accuracy": theme.right, "map": theme.classes[3]}
    epochs = columns["epoch"]
    shares = [name for name in _SAID if name in columns]
    above = inset(figure, _SIZE, 0.5, 1.72, 1.02, 0.24)
    below = inset(figure, _SIZE, 0.5, 0.52, 1.02, 2.82)
    for axes in (above, below):
        quiet(axes, theme)
        room = 0.02 * max(1.0, float(epochs[-1] - epochs[0]))
        axes.set_xlim(epochs[0] - room, epochs[-1] + room)
        axes.axvline(best, color=theme.ink, lw=1, ls=(0, (1.5, 2)))
    marker = "o" if len(epochs) <= 12 else ""
    for name in shares:
        above.plot(
            epochs, columns[name], color=colours[name], ls=styles[name], lw=1.6, marker=marker, ms=3
        )
    above.set_ylim(-0.02, 1.02)
    ends = _apart([float(columns[name][-1]) for name in shares], 0.1)
    for name, end in zip(shares, ends, strict=True):
        _name(above, f"{_SAID[name]} {columns[name][-1]:.2f}", end, colours[name])
    below.plot(epochs, columns["loss"], color=theme.soft, lw=1.6, marker=marker, ms=3)
    below.set_ylim(0, float(columns["loss"].max()) * 1.08 or 1.0)
    _name(below, f"loss {columns['loss'][-1]:.2f}", float(columns["loss"][-1]), theme.soft)
    _axes(above, below, theme, epochs, best)


def _axes(above: Axes, below: Axes, theme: Theme, epochs: Column, best: int) -> None:
    from matplotlib.ticker import MaxNLocator

    above.spines["bottom"].set_visible(False)  # the line of the grid at 0 is there
    above.yaxis.set_major_locator(MaxNLocator(5))
    below.yaxis.set_major_locator(MaxNLocator(3))
    for axes in (above, below):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    above.tick_params(labelbottom=False)
    below.set_xlabel("epoch", color=theme.soft, size=SMALL, labelpad=5)
    late = best > (epochs[0] + epochs[-1]) / 2
    above.annotate(
        f"epoch {best} kept", (best, 1), (3 if not late else -3, 4), va="bottom",
        ha="right" if late else "left", xycoords=("data", "axes fraction"),
        textcoords="offset points", size=SMALL, color=theme.ink,
    )  # fmt: skip


def _name(axes: Axes, said: str, height: float, colour: str) -> None:
    axes.annotate(
        said, (1, height), (5, 0), xycoords=("axes fraction", "data"), va="center",
        textcoords="offset points", size=TEXT, color=colour,
        annotation_clip=False,
    )  # fmt: skip


def _apart(heights: list[float], least: float) -> list[float]:
    """Move heights within 0 and 1 apart, so that they lie `least` from one another, in order."""
    order = sorted(range(len(heights)), key=lambda one: heights[one])
    moved = list(heights)
    lowest = 0.0
    for one in order:
        moved[one] = lowest = max(lowest, heights[one])
        lowest += least
    highest = 1.0
    for one in reversed(order):
        moved[one] = highest = min(highest, moved[one])
        highest -= least
    return moved
