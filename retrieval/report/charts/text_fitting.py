"""Fit arbitrary file names and labels into a given width of a picture.

Characters that the font lacks become □, since there is no fallback font; control characters and
combining marks are removed, and the middle of a text that is too long becomes "…".
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

_MISSING_GLYPH = "□"
_MAX_CHARACTERS = 400  # half from each end of a name


def fit_text(name: str, width: float, size: float) -> str:
    """Return a name shortened to `width` points at font size `size`; "–" if nothing is left."""
    text = _plain(name)
    room = width / size
    if sum(map(_advance, text)) <= room:
        return text
    room -= _advance("…")
    head = _within(text, room * 0.62)
    tail = _within(text[::-1], room - sum(map(_advance, head)))[::-1]
    return f"{head.rstrip()}…{tail.lstrip()}"


def _within(text: str, room: float) -> str:
    """Return the longest prefix that is no wider than `room` em."""
    for end, character in enumerate(text):
        room -= _advance(character)
        if room < 0:
            return text[:end]
    return text


def _plain(name: str) -> str:
    if len(name) > _MAX_CHARACTERS:
        name = f"{name[: _MAX_CHARACTERS // 2]}…{name[-_MAX_CHARACTERS // 2 :]}"
    written = "".join(map(_character, unicodedata.normalize("NFC", name)))
    return " ".join(written.split()) or "–"


def _character(character: str) -> str:
    """Return the replacement of a character: itself, a space, "" or `_MISSING_GLYPH`."""
    kind = unicodedata.category(character)
    if kind in ("Cc", "Zs", "Zl", "Zp"):
        return " "
    if kind in ("Cf", "Mn", "Me"):  # changes direction, or combines
        return ""
    return character if ord(character) in _charmap() else _MISSING_GLYPH


@cache
def _charmap() -> frozenset[int]:
    """Return the code points that the font has in both weights."""
    return frozenset(_font().get_charmap()) & frozenset(_font("-Bold").get_charmap())


@cache
def _font(weight: str = "") -> FT2Font:
    import matplotlib as mpl
    from matplotlib.ft2font import FT2Font

    font = FT2Font(f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans{weight}.ttf")
    font.set_size(64, 72)
    return font


@cache
def _advance(character: str) -> float:
    """Return the approximate width of a character in em, without kerning."""
    return float(_font().load_char(ord(character)).linearHoriAdvance) / 65536 / 64
