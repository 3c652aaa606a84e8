"""How a name from somebody's file system is written in a picture: anything may stand in it.

What the font lacks (Chinese, emoji) becomes □, one a character, since a picture has no other font
to fall back to; what would break, turn or overflow the line is left out, and the middle of what is
too long becomes "…".
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

_LACKING = "□"
_MOST = 400  # characters of a name that are looked at, half from each end


def fitted(name: str, width: float, size: float) -> str:
    """Write a name within `width` points, in type of `size` points; "–" where nothing is left."""
    text = _plain(name)
    room = width / size
    if sum(map(_advance, text)) <= room:
        return text
    room -= _advance("…")
    head = _within(text, room * 0.62)
    tail = _within(text[::-1], room - sum(map(_advance, head)))[::-1]
    return f"{head.rstrip()}…{tail.lstrip()}"


def _within(text: str, room: float) -> str:
    """Give the longest beginning that takes no more than `room` em."""
    for end, character in enumerate(text):
        room -= _advance(character)
        if room < 0:
            return text[:end]
    return text


def _plain(name: str) -> str:
    if len(name) > _MOST:
        name = f"{name[: _MOST // 2]}…{name[-_MOST // 2 :]}"
    written = "".join(map(_character, unicodedata.normalize("NFC", name)))
    return " ".join(written.split()) or "–"


def _character(character: str) -> str:
    """Give what stands for a character: itself, a space, nothing or `_LACKING`."""
    kind = unicodedata.category(character)
    if kind in ("Cc", "Zs", "Zl", "Zp"):
        return " "
    if kind in ("Cf", "Mn", "Me"):  # turns the line, or stacks above it
        return ""
    return character if ord(character) in _charmap() else _LACKING


@cache
def _charmap() -> frozenset[int]:
    """Give what the font has, in both weights."""
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
    """Give the width of a character in em, about: kerning is left out."""
    return float(_font().load_char(ord(character)).linearHoriAdvance) / 65536 / 64
