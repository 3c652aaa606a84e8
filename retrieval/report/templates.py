"""The one renderer: every page and fragment of a report is drawn here, and all names are escaped.

A content security policy lets nothing run or load but the page's own style and script, by hash (a
nonce that the same page always has could be known beforehand), its charts, and what the mode needs:
a single file has pictures within, a folder loads pictures and chunk scripts from its own place.
Chromium takes 'self' for that over http and from disk; file: says the same to browsers to which a
page from disk is nobody.
"""

from __future__ import annotations

import base64
import hashlib
import math
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from retrieval.evaluation.results import Measured
from retrieval.report.names import picture_file
from retrieval.report.page import QueryRow
from retrieval.storage.checksum import SEAL, seal

_BESIDE = "'self' file:"
_FOLDER = "<thumbnails>"  # no name can look like it: each < of one is escaped


def draw(template: str, **values: Any) -> bytes:
    """Draw a whole page, sealed."""
    html = _environment().get_template(template).render(seal=SEAL, style=text_of("style.css"),
                                                        **values)  # fmt: skip
    # a name that is no Unicode (a lone surrogate) shows as \udcXX instead of stopping the page
    return seal(html.encode("utf-8", "backslashreplace"))


def fragments(queries: list[QueryRow], *, inside: bool) -> list[str]:
    """Draw queries, each as one element; their pictures lie inside the page, or in a folder.

    Where that folder is, seen from the page, is for `placed` to say: a fragment is drawn once.
    """
    pictures = None if inside else Markup(_FOLDER)  # noqa: S704 - ours
    return [str(_macros().query(query, pictures)).strip() for query in queries]


def placed(fragment: str, thumbnails: str) -> str:
    """Say where the folder of thumbnails is, as a link."""
    return fragment.replace(_FOLDER, thumbnails)


@cache
def text_of(name: str) -> str:
    """Give a file of the package, wherever it is installed, a zip included."""
    return resources.files("retrieval.report").joinpath(name).read_text(encoding="utf-8")


def digest() -> str:
    """Name what pages are drawn by: another version of the files draws them anew."""
    names = ("contact_sheet.html", "further.html", "queries.html", "summary.html", "style.css",
             "script.js")  # fmt: skip
    return hashlib.sha256("\0".join(map(text_of, names)).encode()).hexdigest()


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=PackageLoader("retrieval.report", "."),
    )  # fmt: skip
    environment.filters |= {
        "number": number, "share": share, "bar": _bar, "base64": _base64, "file": picture_file,
        "quoted": _quoted,
    }  # fmt: skip
    environment.globals |= {"policy": policy, "isfinite": math.isfinite}
    return environment


@cache
def _macros() -> Any:
    return _environment().get_template("queries.html").module


def policy(style: str, scripts: tuple[str, ...] = (), *, beside: bool) -> str:
    """Write the content security policy of a page; `beside` allows files from its own place."""
    own = [*map(_hash, scripts), *([_BESIDE] if beside and scripts else [])]
    allowed = " ".join(own) or "'none'"
    return (
        f"default-src 'none'; img-src data:{' ' + _BESIDE if beside else ''}; "
        f"style-src {_hash(style)}; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _quoted(name: str) -> str:
    """Write a name as part of a link, as the page shows it."""
    return quote(name.encode("utf-8", "backslashreplace"), safe="")


def number(value: float, places: int = 4) -> str:
    """Write a score or measure: fixed places up to 1000, so that columns align, then powers.

    Four places for scores, since near duplicates differ in the third and fourth.
    """
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{places}f}" if abs(value) < 1000 else f"{value:.4g}"
    return "−" + text[1:] if text.startswith("-") and float(text) else text.removeprefix("-")


def share(value: float) -> str:
    """Write a share as a percentage."""
    return f"{number(100 * value, 1)} %" if math.isfinite(value) else "–"


def _bar(measure: Measured) -> dict[str, float] | None:
    """Place a share and its interval on a bar from 0 to 100; None for what is no share."""
    low, high = measure.low, measure.high
    if not 0 <= low <= measure.value <= high <= 1:
        return None
    start, width, point = 100 * low, 100 * (high - low), 99.2 * measure.value  # it is 0.8 wide
    return {"start": round(start, 2), "width": round(width, 2), "point": round(point, 2)}
