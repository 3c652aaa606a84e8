"""Shared drawing of charts: themes, style, and deterministic SVG and PNG output.

A chart is a function that draws onto a matplotlib figure for a theme. It is rendered to two SVG
documents for the page (without title and background) and to a PNG with title. Text is drawn as
paths of matplotlib's own font, so it looks the same everywhere. Sizes are in inches of 72 points.
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
"""Resolution of a PNG, twice that of a page."""

_LAYER_DPI = 132  # of rasterised layers, too dense for vectors
_LAYER_QUALITY, _ALPHA_QUALITY = 68, 50
SMALL, TEXT, TITLE = 8.0, 9.0, 11.0
"""Font sizes in points; the smallest is 10 pixels high on a card of 420 pixels."""


@dataclass(frozen=True)
class Theme:
    """The colours of the page (`:root` in style.css) and of eight classes."""

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
class ChartDrawing:
    """A chart before rendering; `draw` draws it onto an empty figure of `size` (inches)."""

    name: str  # file name without extension
    title: str
    alt: str  # text alternative
    draw: Callable[[Figure, Theme], None]
    size: tuple[float, float] = (4.4, 2.9)

    def chart(self) -> Chart:
        """Render the chart for a page: two SVG documents of about 20 to 60 kB."""
        light, dark = (_svg(self, theme) for theme in (LIGHT, DARK))
        return Chart(self.name, self.title, self.alt, light, dark)

    def png(self) -> bytes:
        """Render the chart as a PNG file: light theme, with title, at `PNG_DPI`."""
        with matplotlib_style():
            figure = _figure(self.size, self.title)
            self.draw(figure, LIGHT)
            return encode_png(render_pixels(figure, LIGHT))


_STYLE_LOCK = threading.Lock()
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": TEXT, "axes.unicode_minus": True,
    "text.parse_math": False, "text.usetex": False, "svg.fonttype": "path",
    "svg.hashsalt": "lookalike", "hatch.linewidth": 0.8, "path.simplify": True,
}  # fmt: skip


@contextmanager
def matplotlib_style() -> Iterator[None]:
    """Apply matplotlib's defaults and this module's style, ignoring the user's matplotlibrc.

    The style is process-wide state, so a lock allows one chart at a time; it is restored after.
    """
    import matplotlib.style

    with _STYLE_LOCK, matplotlib.style.context(["default", _STYLE]):
        yield


HEADING = 0.36
"""Height of the title of a PNG, in inches."""


def _figure(size: tuple[float, float], title: str | None = None) -> Figure:
    """Return an empty figure; with a title it is higher by `HEADING`."""
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


def add_axes(
    figure: Figure, size: tuple[float, float], left: float, bottom: float, right: float, top: float
) -> Axes:
    """Add axes with margins in inches within the lower `size` inches of the figure."""
    width, height = figure.get_figwidth(), figure.get_figheight()
    wide, high = size[0] - left - right, size[1] - bottom - top
    return figure.add_axes((left / width, bottom / height, wide / width, high / height))


def style_axes(axes: Axes, theme: Theme, grid: str | None = "y") -> None:
    """Style axes: only the bottom spine, no tick marks, and a grid if `grid` is "y"."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=theme.line, linewidth=1)
    axes.set_facecolor("none")
    axes.tick_params(which="both", length=0, labelsize=SMALL, labelcolor=theme.soft, pad=4)
    axes.set_axisbelow(True)
    if grid == "y":
        axes.grid(visible=True, axis="y", color=theme.line, linewidth=0.8)


def draw_legend(axes: Axes, handles: Sequence[Artist], labels: Sequence[str], theme: Theme) -> None:
    """Draw the legend in one line above the axes, left-aligned."""
    axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0, 1.02), ncols=len(labels),
        frameon=False,
        fontsize=SMALL, labelcolor=theme.ink, borderpad=0, borderaxespad=0.2, handlelength=1.6,
        handletextpad=0.6, columnspacing=1.4,
    )  # fmt: skip


def text_background(theme: Theme) -> dict[str, object]:
    """Return a `bbox` in the card's colour that keeps text readable over lines."""
    return {"facecolor": theme.card, "alpha": 0.85, "linewidth": 0, "pad": 1}


def render_pixels(figure: Figure, theme: Theme, dpi: int = PNG_DPI) -> NDArray[np.uint8]:
    """Return a figure as (height, width, 3) uint8 pixels on the card's colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set(facecolor=theme.card, dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return (height, width, 3) uint8 pixels as PNG, without metadata on date or software.

    zlib level 4 is used: higher levels hardly shrink photos and take twice the time.
    """
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=4)
    return sink.getvalue()


_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def _svg(chart: ChartDrawing, theme: Theme) -> bytes:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    sink = io.BytesIO()
    with matplotlib_style():
        figure = _figure(chart.size)
        figure.patch.set_visible(False)
        chart.draw(figure, theme)
        FigureCanvasSVG(figure).print_figure(
            sink, format="svg", dpi=_LAYER_DPI, metadata=_NO_METADATA, facecolor="none"
        )
    return re.sub(rb"data:image/png;base64,([A-Za-z0-9+/=\s]+)", _as_webp, sink.getvalue())


def _as_webp(match: re.Match[bytes]) -> bytes:
    """Re-encode a rasterised layer as WebP, a fifth of the size of PNG."""
    if not features.check("webp"):
        return match[0]
    sink = io.BytesIO()
    layer = Image.open(io.BytesIO(base64.b64decode(match[1])))
    layer.save(sink, "WEBP", quality=_LAYER_QUALITY, alpha_quality=_ALPHA_QUALITY, method=6)
    return b"data:image/webp;base64," + base64.b64encode(sink.getvalue())
