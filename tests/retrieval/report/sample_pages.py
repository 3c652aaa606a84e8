"""Sample report pages, some with hostile names, and an HTML parser for tests of the report."""

import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
from PIL import Image

from retrieval.evaluation.results import MeasureResult
from retrieval.report.page import STATES, MatchCell, Page, QueryRow
from retrieval.report.rows import ShownQueries
from retrieval.storage.checksum import CHECKSUM_PLACEHOLDER

HOSTILE = (
    "<img src=x onerror=alert(1)>.jpg",
    "\"><script>document.title='owned'</script>",
    "' onmouseover='alert(1)' x='",
    "a\nb\r\nc & d &amp; e",
    "--><!-- ]]></style></script></title></svg>",
    "javascript:alert(1)//猫\u202egpj.exe",
    "{{ 7 * 7 }}{% raw %}",
    "\u2028</script><thumbnails>\\u003c",
    CHECKSUM_PLACEHOLDER,
    "\x00\udc80",
)
VOID_ELEMENTS = {"meta", "path", "use", "image", "rect", "circle", "img", "input", "link", "source"}


def jpeg(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (160, 107), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def make_match(rank, relevant, **changes):
    label = None if relevant is None else "cat" if relevant else "dog"
    name = f"{label}/{rank}.jpg"
    grade = -2 if relevant is None else int(relevant)
    cell = MatchCell(rank, name, f"/photos/{name}", 0.9 - rank / 10, label, grade, None)
    return replace(cell, **changes)


def make_query(name, *relevance, failure=None, label="cat", margin=float("nan")):
    """Return a query with a match per element of `relevance`: True, False or None (unknown)."""
    cells = tuple(make_match(rank, relevant) for rank, relevant in enumerate(relevance, start=1))
    state = (
        "unknown" if not relevance or relevance[0] is None else "right" if relevance[0] else "wrong"
    )
    state = "failed" if failure else state
    return QueryRow(
        0, f"{name}.jpg", f"/queries/{name}.jpg", label, state, margin, cells, failure, None
    )


def shown_queries(queries):
    """Return queries as the tables of a report, in the given order."""
    query_rows = [
        (row.query_id, row.path, row.label, row.failure, STATES.index(row.state), row.margin)
        for row in queries
    ]
    match_rows = [
        (cell.rank, cell.image_id, cell.path, cell.score, cell.label, cell.probability, cell.grade)
        for row in queries
        for cell in row.matches
    ]
    types = {"state": pa.int8(), "margin": pa.float64(), "rank": pa.int32(),
             "score": pa.float64(), "probability": pa.float64(), "grade": pa.int16()}  # fmt: skip

    def table(names, rows):
        columns = zip(*rows, strict=True) if rows else [[] for _ in names]
        return pa.table({
            name: text_array(column) if name not in types else pa.array(column, types[name])
            for name, column in zip(names, columns, strict=True)
        })  # fmt: skip

    return ShownQueries(
        table(("query_id", "path", "label", "failure", "state", "margin"), query_rows),
        table(("rank", "image_id", "path", "score", "label", "probability", "grade"), match_rows),
        np.concatenate([[0], np.cumsum([len(row.matches) for row in queries], dtype=np.int64)]),
    )


def text_array(values):
    """Return strings as an Arrow array, with lone surrogates escaped as in matches."""
    escaped = [
        value if value is None else value.encode("utf-8", "backslashreplace").decode()
        for value in values
    ]
    return pa.array(escaped, pa.string())


def make_page(queries, **changes):
    shown = shown_queries(queries)
    fields = {"counts": shown.counts(), "shown_of": (len(queries), len(queries)), **changes}
    return replace(PAGE, **fields)


QUERIES = (
    make_query("good", True, False, True, margin=0.1),
    make_query("bad", False, True, True, margin=0.02),
    make_query("unlabelled", None, None, label=None),
    make_query("broken", failure="UnidentifiedImageError: cannot identify image file", label="dog"),
    make_query("lonely"),
)
MEASURES = (
    MeasureResult("top1", "Top-1", 0.5, 0.25, 0.75, "Share of queries whose best match is right."),
    MeasureResult(
        "map", "mAP", 2 / 3, float("nan"), float("nan"), "How early the right ones come."
    ),
    MeasureResult("mrr", "MRR", 0.75, 0.5, 1.0, "One over the first right rank."),
)
PAGE = Page(
    title="Cats & dogs",
    metric="cosine",
    facts=(("gallery", "600 images in /photos"), ("backbone", "resnet50, avg pooling")),
    recall="Recall at 10 is 0.981 against a target of 0.95.",
    counts=shown_queries(QUERIES).counts(),
    shown_of=(len(QUERIES), 1234),
    measures=MEASURES,
)
THUMBNAILS = {"/queries/good.jpg": jpeg("red"), "/photos/cat/3.jpg": jpeg("blue")}


def hostile_queries(text):
    """Return two queries with one text in every field."""
    cell = MatchCell(1, text, text, 0.5, text, 0, None)
    row = QueryRow(0, text, text, text, "wrong", 0.1, (cell,), None, None)
    return (row, replace(row, matches=(), failure=text, state="failed"))


class ParsedPage(HTMLParser):
    """The elements of an HTML page, each with its attributes and text; checks the nesting."""

    def __init__(self, data):
        super().__init__()
        self.stack, self.elements, self.comments, self.declarations = [], [], [], []
        self.feed(data.decode())
        self.close()
        assert not self.stack, "unclosed element"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), "duplicate attribute"
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID_ELEMENTS:
            self.stack.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self.stack:
            text.append(data)

    def handle_comment(self, data):
        self.comments.append(data)

    def find_all(self, tag, **required):
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.elements
            if name == tag and required.items() <= attributes.items()
        ]

    def texts(self, tag, **required):
        return [" ".join(text.split()) for _, text in self.find_all(tag, **required)]
