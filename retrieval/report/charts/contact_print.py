"""Picture of queries with their matches: photos, captions, distances and right or wrong marks."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from retrieval.core.schemas import ScoreKind
from retrieval.report.charts.canvas import LIGHT, TITLE, encode_png, matplotlib_style, render_pixels
from retrieval.report.charts.text_fitting import fit_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_QUERIES, MAX_MATCHES, SIDE_BY_SIDE_MATCHES = 12, 10, 5
"""Most queries per picture, most matches per query, and most matches of each of two rankings."""

DISTANCES = {
    "cosine": "distance 1 − cosine, smaller is closer",
    "ip": "dot product, larger is closer",
    "l2": "Euclidean distance, smaller is closer",
    "unitless": "score of the order of matches, larger is closer",
}
"""The meaning of the number below a match, by kind of score."""

_DPI = 160  # a photo is 128 pixels wide, a dozen queries with ten matches some 3 MB
_SIDE, _STEP, _GAP, _MARGIN = 0.8, 0.88, 0.26, 0.22  # inches: photo, step, between blocks, edge
_TOP, _ROW = 1.0, 1.3  # inches: above the first row, and of a row
_FRAME = 0.016  # inches from a photo to the middle of its frame's line
_TYPE = 7.6
_SIGNS = {1: ("✓ ", LIGHT.right, "-"), 0: ("✗ ", LIGHT.wrong, (0, (3, 1.6)))}


@dataclass(frozen=True)
class Photo:
    """One photo: its JPEG (None: not readable), the two lines below it, and its grade.

    Grades are those of `GroundTruth.grades`: above 0 right, 0 wrong, negative neither.
    """

    name: str
    picture: bytes | None
    below: str = ""
    grade: int = -2


@dataclass(frozen=True)
class Ranking:
    """A block of columns: heading, metric of the scores, and most matches shown."""

    title: str
    metric: ScoreKind
    columns: int = MAX_MATCHES


@dataclass(frozen=True)
class Row:
    """A query and, for each ranking, its matches, best first."""

    query: Photo
    matches: tuple[tuple[Photo, ...], ...]


def draw_contact_print(
    title: str, rankings: Sequence[Ranking], rows: Sequence[Row], *, caption: str | None = None,
    first_heading: str = "Query",
) -> bytes:  # fmt: skip
    """Draw rows as a PNG in the light theme: one ranking, or two side by side.

    `caption` is the line below the title, by default the meaning of marks and numbers.
    `first_heading` is the heading of the left column.
    """
    from matplotlib.figure import Figure

    lefts = [_MARGIN + _SIDE + _GAP]
    for ranking in rankings:
        lefts.append(lefts[-1] + ranking.columns * _STEP + _GAP)
    size = (lefts[-1] - _GAP - (_STEP - _SIDE) + _MARGIN, _TOP + len(rows) * _ROW + 0.06)
    pixels = [round(length * _DPI) for length in size]
    tiles: list[tuple[float, float, bytes]] = []
    with matplotlib_style():
        figure = Figure((pixels[0] / _DPI, pixels[1] / _DPI), dpi=_DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, pixels[0] / _DPI), ylim=(pixels[1] / _DPI, 0))
        axes.set_axis_off()
        _heading(
            axes, (title, caption or _legend(rankings), first_heading), rankings, lefts, size[0]
        )
        for number, row in enumerate(rows):
            top = _TOP + number * _ROW
            axes.plot((_MARGIN, size[0] - _MARGIN), (top - 0.12,) * 2, color=LIGHT.line, lw=0.8)
            _photo(axes, tiles, row.query, _MARGIN, top)
            for ranking, matches, left in zip(rankings, row.matches, lefts, strict=False):
                for column, match in enumerate(matches[: ranking.columns]):
                    _photo(axes, tiles, match, left + column * _STEP, top)
                if not matches:
                    _write_text(axes, left, top + _SIDE / 2, "no match", LIGHT.soft)
        ground = render_pixels(figure, LIGHT, _DPI)
    for left, top, picture in tiles:
        _paste(ground, left, top, picture)
    return encode_png(ground)


def _legend(rankings: Sequence[Ranking]) -> str:
    meanings = list(dict.fromkeys(DISTANCES[ranking.metric] for ranking in rankings))
    numbers = meanings[0] if len(meanings) == 1 else f"left {meanings[0]}; right {meanings[1]}"
    return f"Below each match: ✓ right, ✗ wrong; {numbers}"


def _heading(
    axes: Axes, words: tuple[str, str, str], rankings: Sequence[Ranking], lefts: Sequence[float],
    width: float,
) -> None:  # fmt: skip
    title, caption, first_heading = words
    room = (width - 2 * _MARGIN) * 72
    axes.text(
        _MARGIN, 0.22, fit_text(title, 0.9 * room, TITLE + 1), size=TITLE + 1, weight="bold",
        color=LIGHT.ink, va="top",
    )  # fmt: skip
    _write_text(axes, _MARGIN, 0.46, caption, LIGHT.soft)
    _write_text(axes, _MARGIN, 0.72, first_heading, LIGHT.ink, bold=True)
    for ranking, left in zip(rankings, lefts, strict=False):
        name = fit_text(ranking.title, 0.88 * ranking.columns * _STEP * 72, _TYPE)
        _write_text(axes, left, 0.72, name, LIGHT.ink, bold=True)


def _write_text(
    axes: Axes, left: float, top: float, text: str, colour: str, *, bold: bool = False
) -> None:
    weight = "bold" if bold else "normal"
    axes.text(left, top, text, size=_TYPE, color=colour, va="top", weight=weight)


def _photo(
    axes: Axes, tiles: list[tuple[float, float, bytes]], shown: Photo, left: float, top: float
) -> None:
    """Draw tile, frame and captions of a photo; the photo itself is pasted after rendering."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((left, top), _SIDE, _SIDE, facecolor=LIGHT.tile, lw=0))
    if shown.picture is not None:
        tiles.append((left, top, shown.picture))
    else:
        axes.text(
            left + _SIDE / 2, top + _SIDE / 2, "not\nreadable", size=_TYPE, color=LIGHT.soft,
            ha="center", va="center",
        )  # fmt: skip
    sign, colour, line = _SIGNS.get(min(shown.grade, 1), ("", LIGHT.soft, ""))
    if sign:
        corner, side = (left - _FRAME, top - _FRAME), _SIDE + 2 * _FRAME
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, ls=line, lw=1.6))
    width = (_STEP - 0.06) * 72
    name = fit_text(shown.name, width - (9 if sign else 0), _TYPE)
    _write_text(axes, left, top + _SIDE + 0.06, sign + name, colour if sign else LIGHT.ink)
    if shown.below:
        _write_text(axes, left, top + _SIDE + 0.2, fit_text(shown.below, width, _TYPE), LIGHT.soft)


def _paste(ground: NDArray[np.uint8], left: float, top: float, picture: bytes) -> None:
    """Paste the whole photo into the middle of its tile, as large as fits."""
    side = round(_SIDE * _DPI)
    photo = Image.open(io.BytesIO(picture)).convert("RGB")
    small = np.asarray(ImageOps.contain(photo, (side, side), Image.Resampling.LANCZOS))
    high, wide = small.shape[:2]
    y = round(top * _DPI) + (side - high) // 2
    x = round(left * _DPI) + (side - wide) // 2
    ground[y : y + high, x : x + wide] = small


def format_distance(score: float, metric: ScoreKind) -> str:
    """Format the distance of a match: 1 − cosine, Euclidean distance, or else the score."""
    value = {
        "cosine": max(0.0, 1 - score), "l2": math.sqrt(max(0.0, score)), "ip": score,
        "unitless": score,
    }[metric]  # fmt: skip
    text = f"{value:.3f}" if abs(value) < 10_000 else f"{value:.3g}"
    return text.replace("-", "−") if float(text) else "0.000"
