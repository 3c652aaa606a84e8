"""What every chart is drawn on: two themes, one quiet style, the same bytes for the same input.

A chart is one function that draws onto a figure for a theme. From it come the two SVG documents of
the page (no heading: the page has its own; no ground: the card shows through) and a PNG that stands
by itself. Text is drawn as paths of the font that comes with matplotlib, so it looks the same
everywhere. Sizes are inches of 72 points; the page shows a point as 1.2 to 1.5 pixels.
"""

from __future__ import annotations

import base64
import io
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from retrieval.report.chart import Chart

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PNG_DPI = 200
"""Pixels an inch of a PNG: twice those of a page."""

_LAYER_DPI = 132  # of what is too dense for an SVG: 1.8 pixels a point
_LAYER_QUALITY, _ALPHA_QUALITY = 68, 50
SMALL, TEXT, TITLE = 8.0, 9.0, 11.0
"""Sizes of type in points; the smallest is 10 pixels high on a card of 420."""


@dataclass(frozen=True)
class Theme:
    """The colours of the page (`:root` in style.css), and those of eight classes."""

    ink: str
    soft: str
    line: str
    card: str
    tile: str
    accent: str
    right: str
    wrong: str
    classes: tuple[str, ...]


LIGHT = Theme(
    "#181b20", "#5a6370", "#dfe3e8", "#ffffff", "#eceef1", "#2457d6", "#0b7a4b", "#c22f27",
    ("#2457d6", "#c9530c", "#0b8a5f", "#b03a8c", "#7a5cd0", "#9a7b00", "#0f8fb0", "#8a4a2f"),
)  # fmt: skip
DARK = Theme(
    "#e8ebef", "#9aa4b1", "#2a3038", "#181c21", "#232930", "#8fb0ff", "#4bc48c", "#ff8578",
    ("#7ea4ff", "#ff9d5c", "#4bc48c", "#f08fd0", "#b79dff", "#e0c04a", "#5fd0ec", "#d89a7d"),
)  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A chart that is not drawn yet; `draw` puts it onto an empty figure of `size` (inches)."""

    name: str  # of its file, without an ending
    title: str
    alt: str  # a sentence for whoever does not see it
    draw: Callable[[Figure, Theme], None]
    size: tuple[float, float] = (4.4, 2.9)

    def chart(self) -> Chart:
        """Draw it for the page: two SVG documents of about 20 to 60 kB."""
        light, dark = (_svg(self, theme) for theme in (LIGHT, DARK))
        return Chart(self.name, self.title, self.alt, light, dark)

    def png(self) -> bytes:
        """Draw it by itself, light, with its title, at `PNG_DPI`."""
        with drawing():
            figure = _figure(self.size, self.title)
            self.draw(figure, LIGHT)
            return png_of(pixels_of(figure, LIGHT))


_ONE_AT_A_TIME = threading.Lock()
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": TEXT, "axes.unicode_minus": True,
    "text.parse_math": False, "text.usetex": False, "svg.fonttype": "path",
    "svg.hashsalt": "lookalike", "hatch.linewidth": 0.8, "path.simplify": True,
}  # fmt: skip


@contextmanager
def drawing() -> Iterator[None]:
    """Set matplotlib's own defaults and our style, whatever the user's matplotlibrc says.

    Both are state of the process, so charts are drawn one at a time; they are put back afterwards.
    """
    import matplotlib.style

    with _ONE_AT_A_TIME, matplotlib.style.context(["default", _STYLE]):
        yield


HEADING = 0.36
"""Inches that the title of a PNG takes."""


def _figure(size: tuple[float, float], title: str | None = None) -> Figure:
    """Make an empty figure; with a title it is as much higher as that takes."""
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure((width, height + (HEADING if title else 0)))
    if title:
        top = 1 - 0.15 / figure.get_figheight()
        figure.text(
            0.14 / width, top, title, ha="left", va="top", size=TITLE, weight="bold",
            color=LIGHT.ink,
        )  # fmt: skip
    return figure


def inset(
    figure: Figure, size: tuple[float, float], left: float, bottom: float, right: float, top: float
) -> Axes:
    """Add axes with margins in inches; what the figure is higher than `size` is its title's."""
    width, height = figure.get_figwidth(), figure.get_figheight()
    wide, high = size[0] - left - right, size[1] - bottom - top
    return figure.add_axes((left / width, bottom / height, wide / width, high / height))


def quiet(axes: Axes, theme: Theme, grid: str | None = "y") -> None:
    """Leave of the frame the line below, and of the grid what guides the eye."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=theme.line, linewidth=1)
    axes.set_facecolor("none")
    axes.tick_params(which="both", length=0, labelsize=SMALL, labelcolor=theme.soft, pad=4)
    axes.set_axisbelow(True)
    if grid == "y":
        axes.grid(visible=True, axis="y", color=theme.line, linewidth=0.8)


def key(axes: Axes, handles: Sequence[Artist], said: Sequence[str], theme: Theme) -> None:
    """Say above the axes, in one line from their left, what lines and markers mean."""
    axes.legend(
        handles, said, loc="lower left", bbox_to_anchor=(0, 1.02), ncols=len(said), frameon=False,
        fontsize=SMALL, labelcolor=theme.ink, borderpad=0, borderaxespad=0.2, handlelength=1.6,
        handletextpad=0.6, columnspacing=1.4,
    )  # fmt: skip


def ground(theme: Theme) -> dict[str, object]:
    """Give text a ground of the card's colour (`bbox`), so that it can be read over lines."""
    return {"facecolor": theme.card, "alpha": 0.85, "linewidth": 0, "pad": 1}


def pixels_of(figure: Figure, theme: Theme, dpi: int = PNG_DPI) -> NDArray[np.uint8]:
    """Give a figure as (height, width, 3) pixels, on the colour of a card."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set(facecolor=theme.card, dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """Write (height, width, 3) pixels as PNG, which says nothing of date or software.

    At level 4 of zlib: photos hardly become smaller by more, and it takes twice the time.
    """
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=4)
    return sink.getvalue()


_NOTHING = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def _svg(chart: Drawing, theme: Theme) -> bytes:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    sink = io.BytesIO()
    with drawing():
        figure = _figure(chart.size)
        figure.patch.set_visible(False)
        chart.draw(figure, theme)
        FigureCanvasSVG(figure).print_figure(
            sink, format="svg", dpi=_LAYER_DPI, metadata=_NOTHING, facecolor="none"
        )
    return re.sub(rb"data:image/png;base64,([A-Za-z0-9+/=\s]+)", _as_webp, sink.getvalue())


def _as_webp(found: re.Match[bytes]) -> bytes:
    """Write a layer of dots and photos as WebP, which takes a fifth of the bytes of PNG."""
    if not features.check("webp"):
        return found[0]
    sink = io.BytesIO()
    layer = Image.open(io.BytesIO(base64.b64decode(found[1])))
    layer.save(sink, "WEBP", quality=_LAYER_QUALITY, alpha_quality=_ALPHA_QUALITY, method=6)
    return b"data:image/webp;base64," + base64.b64encode(sink.getvalue())
