"""Render all pages and fragments from templates, with escaping and a content security policy.

The policy allows the page's own style and scripts by hash (a nonce would be the same in every copy
of the page), embedded charts and pictures and, for a report with a folder, pictures and chunk
scripts from the same place. Chromium accepts 'self' for that over http and from disk; file: is for
browsers that give pages from disk no origin.
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

from retrieval.evaluation.results import MeasureResult
from retrieval.report.names import picture_file
from retrieval.report.page import QueryRow
from retrieval.storage.checksum import CHECKSUM_PLACEHOLDER, fill_checksum

_SAME_PLACE = "'self' file:"
_FOLDER = "<thumbnails>"  # cannot collide with a name, whose < is escaped


def render_page(template: str, **values: Any) -> bytes:
    """Return a whole page as HTML with its checksum."""
    html = _environment().get_template(template).render(
        seal=CHECKSUM_PLACEHOLDER, style=read_text("style.css"), **values
    )  # fmt: skip
    # a lone surrogate of an undecodable file name is shown as \udcXX instead of raising
    return fill_checksum(html.encode("utf-8", "backslashreplace"))


def render_queries(queries: list[QueryRow], *, inside: bool) -> list[str]:
    """Return each query as one HTML element, with pictures inside the page or in a folder.

    For a folder, `insert_thumbnail_link` inserts its link, which differs between pages.
    """
    pictures = None if inside else Markup(_FOLDER)  # noqa: S704 - a constant
    return [str(_macros().query(query, pictures)).strip() for query in queries]


def insert_thumbnail_link(fragment: str, thumbnails: str) -> str:
    """Return a fragment with the link to the folder of thumbnails inserted."""
    return fragment.replace(_FOLDER, thumbnails)


@cache
def read_text(name: str) -> str:
    """Return the text of a file of this package, also when it is installed in a zip file."""
    return resources.files("retrieval.report").joinpath(name).read_text(encoding="utf-8")


def template_digest() -> str:
    """Return a digest of the templates, style and script; pages are rewritten when it changes."""
    names = ("contact_sheet.html", "further.html", "queries.html", "summary.html", "style.css",
             "script.js")  # fmt: skip
    return hashlib.sha256("\0".join(map(read_text, names)).encode()).hexdigest()


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=PackageLoader("retrieval.report", "."),
    )  # fmt: skip
    environment.filters |= {
        "number": format_number, "share": format_share, "bar": _bar, "base64": _base64,
        "file": picture_file, "quoted": _quoted,
    }  # fmt: skip
    environment.globals |= {"policy": security_policy, "isfinite": math.isfinite}
    return environment


@cache
def _macros() -> Any:
    return _environment().get_template("queries.html").module


def security_policy(style: str, scripts: tuple[str, ...] = (), *, with_folder: bool) -> str:
    """Return the content security policy of a page; `with_folder` allows files beside it."""
    sources = [*map(_hash, scripts), *([_SAME_PLACE] if with_folder and scripts else [])]
    allowed = " ".join(sources) or "'none'"
    return (
        f"default-src 'none'; img-src data:{' ' + _SAME_PLACE if with_folder else ''}; "
        f"style-src {_hash(style)}; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _quoted(name: str) -> str:
    """Return a name percent-encoded, with surrogates escaped as on the page."""
    return quote(name.encode("utf-8", "backslashreplace"), safe="")


def format_number(value: float, places: int = 4) -> str:
    """Format a score or measure with fixed decimals below 1000, else with four significant digits.

    Scores have four decimals, since near duplicates differ in the third and fourth.
    """
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{places}f}" if abs(value) < 1000 else f"{value:.4g}"
    return "−" + text[1:] if text.startswith("-") and float(text) else text.removeprefix("-")


def format_share(value: float) -> str:
    """Format a share as a percentage."""
    return f"{format_number(100 * value, 1)} %" if math.isfinite(value) else "–"


def _bar(measure: MeasureResult) -> dict[str, float] | None:
    """Return the position of a share and its interval on a bar of 0 to 100; None if not a share."""
    low, high = measure.low, measure.high
    if not 0 <= low <= measure.value <= high <= 1:
        return None
    start, width, point = 100 * low, 100 * (high - low), 99.2 * measure.value  # it is 0.8 wide
    return {"start": round(start, 2), "width": round(width, 2), "point": round(point, 2)}
