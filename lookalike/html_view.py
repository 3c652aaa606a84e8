"""HTML for notebooks: text, small tables, and matches with pictures; all text is escaped.

Pictures are thumbnails inlined as data URIs, so that a notebook shows them wherever it is opened.
Their number is limited, and with it the size of the HTML.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

THUMBNAIL_SIDE = 112
"""Longer side of a picture in pixels; it takes about 4 kB."""

MAX_PICTURES = 500
"""Pictures in one view: about 2 MB."""

_CELL = "padding: 4px; vertical-align: top; text-align: center; font-size: 85%"
_TEXT = f"max-width: {THUMBNAIL_SIDE}px; overflow-wrap: anywhere"


class HtmlView:
    """HTML that a notebook shows as the value of a cell."""

    def __init__(self, text: str) -> None:
        self.html = text

    def _repr_html_(self) -> str:
        return self.html


def preformatted(text: str) -> str:
    """Return text as HTML that keeps its lines."""
    return f"<pre>{html.escape(text)}</pre>"


def properties(title: str, values: Mapping[str, Any]) -> str:
    """Return a title and a table of names and values."""
    rows = "".join(
        f"<tr><th style='text-align: left'>{html.escape(name)}</th>"
        f"<td style='text-align: left'>{html.escape(str(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<b>{html.escape(title)}</b><table>{rows}</table>"


def ranked_images(
    rankings: Sequence[Sequence[Mapping[str, Any]]], pictures: Mapping[str, bytes], note: str = ""
) -> str:
    """Return a table with a row for each query: its picture, and those of its matches with scores.

    Args:
        rankings: The rows of the table MATCHES of each query, best first; at least one for each.
        pictures: JPEG thumbnails by path; images without one are shown by name alone.
        note: Line of text below the table.
    """
    rows = []
    for ranking in rankings:
        first = ranking[0]
        cells = [_cell(pictures.get(first["query_path"]), first["query_id"], first["query_label"])]
        cells += [
            _cell(pictures.get(row["path"]), row["image_id"], row["label"], _score(row))
            for row in ranking
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    below = f"<div>{html.escape(note)}</div>" if note else ""
    return f"<table>{''.join(rows)}</table>{below}"


def read_pictures(paths: Sequence[str]) -> dict[str, bytes]:
    """Return JPEG thumbnails of the readable images by path, as the report shows them.

    Pillow's settings, which decoding changes, are restored.
    """
    from jobs.config.options import MAX_PIXELS
    from retrieval.report.thumbnails import read_thumbnails

    with restored_pillow_settings():
        return read_thumbnails(paths, max_pixels=MAX_PIXELS, side=THUMBNAIL_SIDE)


@contextmanager
def restored_pillow_settings() -> Iterator[None]:
    """Restore the process-wide settings of Pillow that decoding an image changes."""
    from PIL import Image, ImageFile

    settings = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = settings


def _score(row: Mapping[str, Any]) -> str:
    return f"{row['rank']}: {row['score']:.4f}"


def _cell(picture: bytes | None, *lines: str | None) -> str:
    image = ""
    if picture is not None:
        data = base64.b64encode(picture).decode()
        image = f'<img src="data:image/jpeg;base64,{data}" style="margin: 0 auto"/>'
    text = "<br/>".join(html.escape(line) for line in lines if line)
    return f"<td style='{_CELL}'>{image}<div style='{_TEXT}'>{text}</div></td>"
