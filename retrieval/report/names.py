"""The names of a report's files, and how they link to each other.

report.html                            the summary and the first queries
report_files/report.json               what the rest was made from; put first
report_files/facets.js facets.json     what filters and sort need of all queries
report_files/pages/00002.html          further queries, without JavaScript
report_files/chunks/00000.js           queries for the filters, PER_CHUNK a file
report_files/chunks/00000.json         the checksums of a slice of pages and chunks
report_files/thumbnails/0012/345.jpg   pictures by number, 345.json those of a slice of them
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from retrieval.core.output_layout import REPORT_FOLDERS, REPORT_MARK

PER_PAGE = 50
PER_CHUNK = 25
"""Queries a chunk script. A page that is sorted by lead takes one query each of up to 50 chunks:
at 25 that is some 8 MB of script, at 100 it would be 30."""
PER_SLICE = 500
"""Queries whose pages and chunks are one piece of work; a multiple of the two above."""
PER_THUMBNAILS = 250
"""Thumbnails that are one piece of work; a divisor of 1000."""

_OURS = re.compile(
    r"report\.json|facets\.(js|json)|pages/\d{5,}\.html|chunks/\d{5,}\.(js|json)"
    r"|thumbnails/\d{4,}/\d{3}\.(jpg|json)"
)


@dataclass(frozen=True)
class Names:
    """The names of a report's files, below the folder in which its page lies."""

    page: str

    @property
    def folder(self) -> str:
        """The folder of all further files, beside the page."""
        stem = self.page.removesuffix(".html").removesuffix(".htm")
        return f"{stem}{REPORT_FOLDERS[0]}"

    def is_ours(self, path: str) -> bool:
        """Tell a further file of a report from what somebody else has put there."""
        return bool(_OURS.fullmatch(path.removeprefix(f"{self.folder}/")))

    def claim(self) -> str:
        """Say what the further files are made from."""
        return f"{self.folder}/{REPORT_MARK}"

    def facets(self, ending: str = "js") -> str:
        """Name the script of all queries' facets, or its checksum."""
        return f"{self.folder}/facets.{ending}"

    def further(self, number: int) -> str:
        """Name a page from the second on."""
        return f"{self.folder}/pages/{number:05d}.html"

    def chunk(self, number: int, ending: str = "js") -> str:
        """Name a chunk script, or the checksums of the slice that begins with it."""
        return f"{self.folder}/chunks/{number:05d}.{ending}"

    def thumbnail(self, number: int, ending: str = "jpg") -> str:
        """Name a thumbnail, or the checksums of the slice that begins with it."""
        return f"{self.folder}/thumbnails/{picture_file(number, ending)}"

    def link(self, path: str, *, from_further: bool = False) -> str:
        """Write a relative link to one of these files, from the page or from a further one."""
        if not from_further:
            return _quoted(path)
        inside = path.startswith(f"{self.folder}/")
        return "../" + _quoted(path.removeprefix(f"{self.folder}/") if inside else f"../{path}")


def picture_file(number: int, ending: str = "jpg") -> str:
    """Name a picture below the folder of thumbnails: a thousand a folder."""
    return f"{number // 1000:04d}/{number % 1000:03d}.{ending}"


def _quoted(path: str) -> str:
    """Write a path as a link; what is no Unicode by its bytes. A first `a:` is no scheme then."""
    return quote(path.encode("utf-8", "surrogateescape"))


def pages_of(queries: int) -> int:
    """Count the pages that so many queries take; at least one."""
    return max(1, -(-queries // PER_PAGE))
