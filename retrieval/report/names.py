"""Names of the files of a report, and the links between them.

report.html                            the summary and the first queries
report_files/report.json               digests of the report's input; written first
report_files/facets.js facets.json     state, class and margin rank of all queries
report_files/pages/00002.html          further queries, without JavaScript
report_files/chunks/00000.js           queries loaded by the script, PER_CHUNK per file
report_files/chunks/00000.json         the checksums of a slice of pages and chunks
report_files/thumbnails/0012/345.jpg   thumbnails by number; 345.json: checksums of a slice
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from retrieval.core.output_layout import REPORT_FOLDERS, REPORT_MARK

PER_PAGE = 50
PER_CHUNK = 25
"""Queries per chunk script. A page sorted by margin loads up to 50 chunks for one query each: about
8 MB of script with 25 queries per chunk, 30 MB with 100."""
PER_SLICE = 500
"""Queries per work item of pages and chunks; a multiple of PER_PAGE and PER_CHUNK."""
PER_THUMBNAILS = 250
"""Thumbnails per work item; a divisor of 1000."""

_REPORT_FILE = re.compile(
    r"report\.json|facets\.(js|json)|pages/\d{5,}\.html|chunks/\d{5,}\.(js|json)"
    r"|thumbnails/\d{4,}/\d{3}\.(jpg|json)"
)


@dataclass(frozen=True)
class ReportFiles:
    """The file names of a report, relative to the folder of its page."""

    page: str

    @property
    def folder(self) -> str:
        """The folder of all further files, beside the page."""
        stem = self.page.removesuffix(".html").removesuffix(".htm")
        return f"{stem}{REPORT_FOLDERS[0]}"

    def is_report_file(self, path: str) -> bool:
        """Return whether a path below the report's folder is a file that reports write."""
        return bool(_REPORT_FILE.fullmatch(path.removeprefix(f"{self.folder}/")))

    def origin(self) -> str:
        """Return the name of the file with the digests of the report's input."""
        return f"{self.folder}/{REPORT_MARK}"

    def facets(self, ending: str = "js") -> str:
        """Return the name of the script with all queries' facets, or of its checksum."""
        return f"{self.folder}/facets.{ending}"

    def further_page(self, number: int) -> str:
        """Return the name of a page from the second on."""
        return f"{self.folder}/pages/{number:05d}.html"

    def chunk(self, number: int, ending: str = "js") -> str:
        """Return the name of a chunk script, or of the checksums of its slice."""
        return f"{self.folder}/chunks/{number:05d}.{ending}"

    def thumbnail(self, number: int, ending: str = "jpg") -> str:
        """Return the name of a thumbnail, or of the checksums of its slice."""
        return f"{self.folder}/thumbnails/{picture_file(number, ending)}"

    def link(self, path: str, *, from_further: bool = False) -> str:
        """Return a relative link to one of these files, from the first page or a further one."""
        if not from_further:
            return _quoted(path)
        inside = path.startswith(f"{self.folder}/")
        return "../" + _quoted(path.removeprefix(f"{self.folder}/") if inside else f"../{path}")


def picture_file(number: int, ending: str = "jpg") -> str:
    """Return the path of a thumbnail below the thumbnail folder, a thousand per subfolder."""
    return f"{number // 1000:04d}/{number % 1000:03d}.{ending}"


def _quoted(path: str) -> str:
    """Return a path percent-encoded, so that a leading `a:` is not read as a URL scheme."""
    return quote(path.encode("utf-8", "surrogateescape"))


def page_count(queries: int) -> int:
    """Return the number of pages for a number of queries, at least 1."""
    return max(1, -(-queries // PER_PAGE))
