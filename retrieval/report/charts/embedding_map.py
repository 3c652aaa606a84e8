"""Map of the gallery: a sample of images on the two principal axes of their vectors."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from retrieval.core.schemas import Vectors
from retrieval.evaluation.labels import DISTRACTOR
from retrieval.report.charts.canvas import SMALL, ChartDrawing, Theme, add_axes, style_axes
from retrieval.report.charts.projection import Plane, principal_plane, select_separated
from retrieval.report.charts.text_fitting import fit_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE, _HIGH = 4.0, 3.5  # inches of the map itself
_LEFT, _BELOW, _EDGE, _LINE = 0.3, 0.36, 0.1, 0.17  # inches: margins, and a legend line
THUMBNAIL_SIDE, _GAP = 0.4, 0.06
"""Side of a thumbnail in inches, and the gap between two, which keeps the dots below visible."""
MAX_THUMBNAILS = 60
MAX_COLOURED_CLASSES = 8
"""Most classes with a colour of their own."""


@dataclass(frozen=True)
class Layout:
    """The positions of n images on the map, and which of them have room for a thumbnail."""

    points: Plane  # (n, 2) inches from the lower left
    shares: tuple[float, float]  # of the variance, along the two axes
    thumbnails: tuple[int, ...]


def compute_layout(vectors: Vectors) -> Layout:
    """Return the layout of (n, d) vectors, n > 0; earlier rows get thumbnails first."""
    plane, shares = principal_plane(vectors)
    low, high = plane.min(0), plane.max(0)
    room = np.array([_WIDE, _HIGH]) - THUMBNAIL_SIDE
    span = high - low
    scale = min((room[i] / span[i] for i in (0, 1) if span[i] > 0), default=0.0)
    points = (plane - (low + high) / 2) * scale + np.array([_WIDE, _HIGH]) / 2
    points = np.round(points, 4)  # far below a pixel, far above what differs between machines
    return Layout(
        points, shares, tuple(select_separated(points, THUMBNAIL_SIDE + _GAP, MAX_THUMBNAILS))
    )


def draw_map(
    layout: Layout, labels: Sequence[str | None], thumbnails: Mapping[int, bytes], images: int
) -> ChartDrawing:
    """Return the map of the n images of a layout, a sample of `images` gallery images.

    Dots are coloured by the largest classes; `thumbnails` are JPEGs by position, for those of
    `layout.thumbnails` that are readable.
    """
    class_sizes = Counter(label for label in labels if label not in (None, "", DISTRACTOR))
    classes = sorted(class_sizes, key=lambda label: (-class_sizes[label], label))[
        :MAX_COLOURED_CLASSES
    ]
    count = len(layout.points)
    count_text = f"{count:,} images" if count != 1 else "1 image"
    title = f"Map of {count:,} of {images:,} images" if images > count else f"Map of {count_text}"
    alt = (
        f"{count_text} of the gallery on the two principal axes of their vectors, which show "
        f"{layout.shares[0]:.0%} and {layout.shares[1]:.0%} of the variance."
    )
    numbers = [classes.index(label) if label in classes else -1 for label in labels]
    others = len(class_sizes) - len(classes)
    legend_rows = -(-(len(classes) + 1) // 3) if classes else 0
    size = (_LEFT + _WIDE + _EDGE, _EDGE + _HIGH + _BELOW + legend_rows * _LINE)
    draw = partial(
        _draw, layout=layout, numbers=np.array(numbers, np.int64), classes=classes, others=others,
        thumbnails=thumbnails, size=size,
    )  # fmt: skip
    return ChartDrawing("map", title, alt, draw, size)


def _draw(
    figure: Figure, theme: Theme, layout: Layout, numbers: np.ndarray, classes: list[str],
    others: int, thumbnails: Mapping[int, bytes], size: tuple[float, float],
) -> None:  # fmt: skip
    axes = add_axes(figure, size, _LEFT, size[1] - _HIGH - _EDGE, _EDGE, _EDGE)
    style_axes(axes, theme, grid=None)
    axes.set(xlim=(0, _WIDE), ylim=(0, _HIGH), xticks=[], yticks=[])
    axes.spines["left"].set(visible=True, color=theme.line, linewidth=1)
    for axis, number, share in ((axes.xaxis, 1, 0), (axes.yaxis, 2, 1)):
        axis_label = f"axis {number}: {layout.shares[share]:.0%} of the variance"
        axis.set_label_text(axis_label, color=theme.soft, size=SMALL)
        axis.labelpad = 5
    axes.set_rasterization_zorder(0)
    shown = [number for number in layout.thumbnails if number in thumbnails]
    dots = np.setdiff1d(np.arange(len(numbers)), shown)
    plain = theme.soft if classes else theme.accent
    for number in range(-1, len(classes)):
        dot_points = layout.points[dots[numbers[dots] == number]]
        colour = plain if number < 0 else theme.classes[number]
        alpha = 0.35 if number < 0 and classes else 0.85
        axes.scatter(
            dot_points[:, 0],
            dot_points[:, 1],
            s=12,
            color=colour,
            alpha=alpha,
            linewidths=0,
            zorder=-3 + number / 9,
        )
    for number in shown:
        colour = plain if numbers[number] < 0 else theme.classes[numbers[number]]
        _draw_thumbnail(axes, layout.points[number], thumbnails[number], colour)
    _key(axes, theme, classes, others, any(numbers < 0))


def _draw_thumbnail(axes: Axes, point: Plane, thumbnail: bytes, colour: str) -> None:
    """Draw a square photo centred at a point, framed in its class colour."""
    from matplotlib.patches import Rectangle
    from PIL import Image, ImageOps

    pixels = round(THUMBNAIL_SIDE * 200)
    photo = Image.open(io.BytesIO(thumbnail)).convert("RGB")
    square = np.asarray(ImageOps.fit(photo, (pixels, pixels), Image.Resampling.LANCZOS))
    left, bottom = point - THUMBNAIL_SIDE / 2
    axes.imshow(
        square, extent=(left, left + THUMBNAIL_SIDE, bottom, bottom + THUMBNAIL_SIDE),
        aspect="auto", zorder=-1.5,
        interpolation="antialiased",
    )  # fmt: skip
    axes.add_patch(
        Rectangle(
            (left, bottom),
            THUMBNAIL_SIDE,
            THUMBNAIL_SIDE,
            fill=False,
            edgecolor=colour,
            lw=1.4,
            zorder=-1,
        )
    )


def _key(axes: Axes, theme: Theme, classes: list[str], others: int, grey: bool) -> None:
    """Draw the legend of class colours below the map, three per line."""
    from matplotlib.lines import Line2D

    if not classes:
        return
    width = (_WIDE * 72) / 3 - 16
    entries = [(name, theme.classes[number]) for number, name in enumerate(classes)]
    if grey:
        entries.append((f"{others} other classes" if others else "no class", theme.soft))
    axes.legend(
        [Line2D([], [], ls="none", marker="o", ms=5, color=colour) for _, colour in entries],
        [fit_text(name, width, SMALL) for name, _ in entries],
        loc="upper left", bbox_to_anchor=(0, -20 / (_HIGH * 72)), ncols=3, frameon=False,
        fontsize=SMALL, labelcolor=theme.ink, borderpad=0, borderaxespad=0, handlelength=0.8,
        handletextpad=0.5, columnspacing=1.0, labelspacing=0.45,
    )  # fmt: skip
