"""Hand-written reports with hostile names, and an HTML reader, for the tests of the report."""

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
VOID = {"meta", "path", "use", "image", "rect", "circle", "img", "input", "link", "source"}


def picture(colour):
    sink = io.BytesIO()
    Image.new("RGB", (160, 107), colour).save(sink, "JPEG")
    return sink.getvalue()


def match(rank, right, **other):
    label = None if right is None else "cat" if right else "dog"
    name = f"{label}/{rank}.jpg"
    grade = -2 if right is None else int(right)
    cell = MatchCell(rank, name, f"/photos/{name}", 0.9 - rank / 10, label, grade, None)
    return replace(cell, **other)


def query(name, *rights, failure=None, label="cat", margin=float("nan")):
    cells = tuple(match(rank, right) for rank, right in enumerate(rights, start=1))
    state = "unknown" if not rights or rights[0] is None else "right" if rights[0] else "wrong"
    state = "failed" if failure else state
    return QueryRow(
        0, f"{name}.jpg", f"/queries/{name}.jpg", label, state, margin, cells, failure, None
    )


def shown_of(queries):
    """Give the columns of queries in the order they are written in."""
    heads = [(q.query_id, q.path, q.label, q.failure, STATES.index(q.state), q.margin)
             for q in queries]  # fmt: skip
    cells = [(m.rank, m.image_id, m.path, m.score, m.label, m.grade)
             for q in queries for m in q.matches]  # fmt: skip
    types = {"state": pa.int8(), "margin": pa.float64(), "rank": pa.int32(),
             "score": pa.float64(), "grade": pa.int16()}  # fmt: skip

    def table(names, rows):
        columns = zip(*rows, strict=True) if rows else [[] for _ in names]
        return pa.table({
            name: Text(column) if name not in types else pa.array(column, types[name])
            for name, column in zip(names, columns, strict=True)
        })  # fmt: skip

    return ShownQueries(
        table(("query_id", "path", "label", "failure", "state", "margin"), heads),
        table(("rank", "image_id", "path", "score", "label", "grade"), cells),
        np.concatenate([[0], np.cumsum([len(q.matches) for q in queries], dtype=np.int64)]),
    )


def Text(values):  # noqa: N802 - Arrow holds no lone surrogates: neither do matches
    escaped = [v if v is None else v.encode("utf-8", "backslashreplace").decode() for v in values]
    return pa.array(escaped, pa.string())


def page_of(queries, **other):
    shown = shown_of(queries)
    given = {"counts": shown.counts(), "shown_of": (len(queries), len(queries)), **other}
    return replace(PAGE, **given)


QUERIES = (
    query("good", True, False, True, margin=0.1),
    query("bad", False, True, True, margin=0.02),
    query("unlabelled", None, None, label=None),
    query("broken", failure="UnidentifiedImageError: cannot identify image file", label="dog"),
    query("lonely"),
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
    counts=shown_of(QUERIES).counts(),
    shown_of=(len(QUERIES), 1234),
    measures=MEASURES,
)
PICTURES = {"/queries/good.jpg": picture("red"), "/photos/cat/3.jpg": picture("blue")}


def hostile(text):
    """Put one text into every field of two queries."""
    cell = MatchCell(1, text, text, 0.5, text, 0, None)
    row = QueryRow(0, text, text, text, "wrong", 0.1, (cell,), None, None)
    return (row, replace(row, matches=(), failure=text, state="failed"))


class Reader(HTMLParser):
    """Every element with its attributes and its text."""

    def __init__(self, data):
        super().__init__()
        self.stack, self.elements, self.comments, self.declarations = [], [], [], []
        self.feed(data.decode())
        self.close()
        assert not self.stack, "every element is closed"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), "no attribute stands twice"
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
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

    def all(self, tag, **wanted):
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.elements
            if name == tag and wanted.items() <= attributes.items()
        ]

    def texts(self, tag, **wanted):
        return [" ".join(text.split()) for _, text in self.all(tag, **wanted)]
