"""Tests of the report page: content, hostile names, files, links and security policy."""

import base64
import functools
import hashlib
import io
import itertools
import json
import re
from dataclasses import replace

import pyarrow as pa
import pytest

from retrieval.core.schemas import GROUPS
from retrieval.evaluation.results import ClassResult, MeasureResult
from retrieval.evaluation.thresholds import Threshold
from retrieval.report.chart import Chart
from retrieval.report.contact_sheet import (
    MAX_SINGLE_FILE_IMAGES,
    PageFrame,
    fits_one_file,
    links,
    render,
    render_first_page,
    render_further_pages,
)
from retrieval.report.groups import SHOWN_GROUP_IMAGES, SHOWN_GROUPS, select_groups
from retrieval.report.names import PER_CHUNK, PER_PAGE, ReportFiles
from retrieval.report.page import MARGIN_MEANING, SCORE_MEANINGS
from retrieval.report.templates import format_number, format_share
from retrieval.storage.checksum import CHECKSUM_PLACEHOLDER, has_valid_checksum
from tests.retrieval.report.sample_pages import (
    HOSTILE,
    MEASURES,
    PAGE,
    QUERIES,
    THUMBNAILS,
    ParsedPage,
    hostile_queries,
    jpeg,
    make_match,
    make_page,
    make_query,
    shown_queries,
)

SHOWN = shown_queries(QUERIES)
NAN = float("nan")


@functools.cache
def parsed_page():
    return ParsedPage(render(PAGE, SHOWN, THUMBNAILS))


def render_page(queries, **fields):
    return ParsedPage(render(make_page(queries, **fields), shown_queries(queries), THUMBNAILS))


def test_page_ends_with_valid_checksum():
    data = render(PAGE, SHOWN, THUMBNAILS)
    assert has_valid_checksum(io.BytesIO(data))
    assert re.search(rb"<!-- lookalike-sha256:[0-9a-f]{64} -->\s*\Z", data)
    assert CHECKSUM_PLACEHOLDER.encode() not in data
    for position in (10, len(data) // 2, data.index(b"Cats")):
        altered = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        assert not has_valid_checksum(io.BytesIO(altered))


def test_page_bytes_are_reproducible():
    reordered = dict(reversed(THUMBNAILS.items()))
    assert render(PAGE, SHOWN, THUMBNAILS) == render(
        replace(PAGE), shown_queries(QUERIES), reordered
    )
    other = render(replace(PAGE, title="Other"), SHOWN, THUMBNAILS)
    assert render(PAGE, SHOWN, THUMBNAILS) != other


def test_summary_contents():
    assert parsed_page().texts("h1") == ["Cats & dogs"]
    assert parsed_page().texts("title") == ["Cats & dogs"]
    assert parsed_page().texts("p", **{"class": "overview"}) == [
        "5 of 1,234 queries, most similar images first; the figures cover all Top-1 0.500 "
        "mAP 0.667 1 without matches, see why"
    ]
    cards = parsed_page().texts("div", **{"class": "card"})
    assert cards[0] == f"Top-1 0.500 95 % interval 0.250 to 0.750 {MEASURES[0].meaning}"
    assert cards[1] == f"mAP 0.667 {MEASURES[1].meaning}"
    assert cards[2] == "Failed queries 1 of the 5 shown have no matches."
    assert cards[3] == "Source data gallery 600 images in /photos backbone resnet50, avg pooling"
    notes = parsed_page().texts("div", **{"class": "card notes"})[0]
    assert notes.startswith(f"Recall {PAGE.recall}")
    assert notes.endswith(f"Score {SCORE_MEANINGS['cosine']} Margin {MARGIN_MEANING}")
    rows = [row for row in parsed_page().texts("tr") if row.startswith("MRR")]
    assert rows == [f"MRR RR0.750 0.500 to 1.000{MEASURES[2].meaning}"]


def test_matches_come_before_figures_and_method():
    ids = [keys["id"] for tag, keys, _ in parsed_page().elements if tag == "section"]
    assert ids == ["matches", "figures", "method"]
    tags = [tag for tag, *_ in parsed_page().elements]
    first_article = tags.index("article")
    assert not {"table", "dl", "figure"} & set(tags[:first_article])
    tabs = [(keys["href"], text) for keys, text in parsed_page().find_all("a")[1:5]]
    assert tabs == [("#q4", "see\N{NO-BREAK SPACE}why"), ("#matches", "Matches"),
                    ("#figures", "Figures"), ("#method", "Method")]  # fmt: skip


def test_confidence_interval_is_drawn():
    (interval,) = parsed_page().find_all("rect", **{"class": "range"})
    assert (interval[0]["x"], interval[0]["width"]) == ("25.0", "50.0")


@pytest.mark.parametrize(
    "measure",
    [
        MeasureResult("top1", "loss", 2.5, 2.0, 3.0, "not a share"),
        MeasureResult("top1", "top-1", 0.5, NAN, NAN, "no interval"),
        MeasureResult("top1", "top-1", NAN, NAN, NAN, "nothing measured"),
        MeasureResult("top1", "odd", 0.9, 0.1, 0.2, "outside its interval"),
    ],
)
def test_measures_without_share_or_interval_are_not_drawn(measure):
    rendered = ParsedPage(render(replace(PAGE, measures=(measure,)), SHOWN, {}))
    assert not rendered.find_all("rect")
    if measure.value != measure.value:
        assert rendered.texts("dd", **{"class": "value"})[0] == "–"


@pytest.mark.parametrize("metric", SCORE_MEANINGS)
def test_score_is_explained_per_metric(metric):
    assert SCORE_MEANINGS[metric] in ParsedPage(
        render(replace(PAGE, metric=metric), SHOWN, {})
    ).texts("p")


def test_class_table_links_filters_and_folds_after_twenty():
    def class_result(number):
        return ClassResult(f"a & {number}", number + 1, MEASURES[:2])

    rendered = render_page(QUERIES, classes=tuple(map(class_result, range(23))))
    assert rendered.texts("details", **{"class": "rest"})[0].startswith("3 more ClassQueries Top-1")
    rows = [row for row in rendered.texts("tr") if row.startswith("a & ")]
    assert rows[1] == "a & 12 0.500 0.250 to 0.750 0.667"
    assert len(rows) == 23
    hrefs = [attributes["href"] for attributes, text in rendered.find_all("a") if text == "a & 2"]
    assert hrefs == ["#class=a%20%26%202"]
    folded = rendered.texts("table", **{"class": "classes"})[1]
    assert "a & 20" in folded
    assert "a & 19" not in folded


def test_thresholds_notes_and_charts_are_shown():
    rendered = render_page(
        QUERIES,
        thresholds=(
            Threshold(0.9, 0.61, 0.905, 0.88, 0.93, 0.5, 120, 0.75),
            Threshold(0.95, 0.72, 1.0, NAN, NAN, 0.1, 9, 0.25),
            Threshold(0.999, NAN, NAN, NAN, NAN, 0, 0, 0),
        ),
        notes=("3 queries <have> no label.",),
        charts=(Chart("curve", "A curve", 'It "rises".', b"<svg>light</svg>", b"<svg>dark</svg>"),),
    )
    rows = rendered.texts("tr")
    assert "90.0 % 0.610090.5 % 88.0 % to 93.0 % 12075.0 %" in rows
    assert "95.0 % 0.7200100.0 % 925.0 %" in rows, "too few queries for an interval"
    assert "99.9 % No score reaches this precision." in rows
    assert rendered.texts("ul", **{"class": "said"}) == ["3 queries <have> no label."]
    ((image, _),) = rendered.find_all("img")
    ((dark, _),) = rendered.find_all("source")
    assert image["alt"] == 'It "rises".'
    prefix = "data:image/svg+xml;base64,"
    assert base64.b64decode(image["src"].removeprefix(prefix)) == b"<svg>light</svg>"
    assert base64.b64decode(dark["srcset"].removeprefix(prefix)) == b"<svg>dark</svg>"
    assert dark["media"] == "(prefers-color-scheme: dark)"


def test_page_without_labels_shows_message():
    rendered = render_page((make_query("a", None, label=None),), measures=())
    assert "There are no labels" in rendered.texts("div", **{"class": "card"})[0]
    assert rendered.texts("p")[0].startswith("1 query, most similar")
    assert not rendered.find_all("input", id="class")
    assert not rendered.find_all("select")
    assert not rendered.find_all("span", **{"class": "verdict"})
    disabled = ["disabled" in button for button, _ in rendered.find_all("button")]
    assert disabled == [False, True, True]


def test_page_without_queries_shows_message():
    rendered = render_page((), measures=())
    assert rendered.texts("p", id="empty") == ["There are no queries."]
    assert not rendered.find_all("article")


def test_matches_are_marked_by_class_sign_and_text():
    states = [attributes.get("class") for attributes, _ in parsed_page().find_all("figure")]
    assert states == ["ask", "right", "wrong", "right", "ask", "wrong", "right", "right",
                      "ask", "unknown", "unknown", "ask"]  # fmt: skip
    names = parsed_page().texts("div", **{"class": "name"})
    assert names == ["right cat", "wrong dog", "right cat", "wrong dog", "right cat", "right cat",
                     "1.jpg", "2.jpg"]  # fmt: skip
    signs = [attributes["href"] for attributes, _ in parsed_page().find_all("use")]
    assert signs.count("#right") == 4 + 1  # four matches and one verdict
    assert signs.count("#wrong") == 2 + 1
    verdicts = parsed_page().texts("span", **{"class": "verdict"})
    assert verdicts == ["Top-1 right", "Top-1 wrong", "No matches"]
    junk = replace(QUERIES[0], matches=(make_match(1, True, grade=-1), make_match(2, True)))
    rendered = render_page((junk,))
    assert rendered.texts("div", **{"class": "name"}) == ["skipped cat", "right cat"]


def test_matches_are_listed_with_rank_score_and_path():
    lines = parsed_page().texts("div", **{"class": "line"})
    assert lines[:3] == ["rank 1 score 0.8000", "rank 2 score 0.7000", "rank 3 score 0.6000"]
    tips = parsed_page().texts("div", **{"class": "tip"})
    assert tips[:2] == ["/queries/good.jpg", "cat · /photos/cat/1.jpg"]
    assert all(attributes["tabindex"] == "0" for attributes, _ in parsed_page().find_all("figure"))
    assert parsed_page().texts("span", **{"class": "small margin"}) == [
        "margin 0.1000",
        "margin 0.0200",
    ]


def test_image_id_is_shown_if_not_in_path():
    rendered = render_page(
        (replace(QUERIES[0], matches=(make_match(1, True, image_id="s3-key/1.jpg"),)),)
    )
    assert rendered.texts("div", **{"class": "tip"})[1] == "cat · s3-key/1.jpg · /photos/cat/1.jpg"


def test_failed_queries_are_listed_with_reason():
    (failed,) = parsed_page().texts("article", **{"class": "query failed"})
    assert failed == (
        "not readable broken.jpg No matches UnidentifiedImageError: cannot identify image file "
        "dog · /queries/broken.jpg"
    )
    # failed queries come last
    assert parsed_page().find_all("a", **{"class": "why"})[0][0]["href"] == "#q4"
    assert "No matches." in parsed_page().texts("p")
    without_failures = render_page(QUERIES[:1])
    assert not without_failures.find_all("a", **{"class": "why"})
    cards = without_failures.texts("div", **{"class": "card"})
    assert "Failed queries 0 No query failed." in cards


def test_missing_thumbnail_has_placeholder():
    tiles = parsed_page().texts("div", **{"class": "picture"})
    assert len(tiles) == len(QUERIES) + 8
    # there are thumbnails of one query and of one match in two rows
    assert tiles.count("not readable") == len(tiles) - 3
    (placeholder, _), *_ = parsed_page().find_all("span", **{"class": "none"})
    assert placeholder["aria-label"].endswith(", not readable")


def test_each_thumbnail_is_embedded_once():
    images = parsed_page().find_all("image")
    assert len(images) == 2
    data = [base64.b64decode(image["href"].partition(",")[2]) for image, _ in images]
    assert data == list(THUMBNAILS.values())
    uses = [use["href"] for use, _ in parsed_page().find_all("use") if use["href"].startswith("#p")]
    assert uses == ["#p0", "#p1", "#p1"]
    identical = ParsedPage(render(PAGE, SHOWN, dict.fromkeys(THUMBNAILS, jpeg("red"))))
    assert len(identical.find_all("image")) == 1


def test_internal_references_have_targets():
    ids = [attributes["id"] for _, attributes, _ in parsed_page().elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes, _ in parsed_page().elements:
        for key in ("href", "aria-labelledby", "aria-describedby", "list"):
            target = attributes.get(key, "data:")
            resolved = target.startswith("data:") or target.removeprefix("#") in ids
            assert resolved or target == "#show=all", (tag, target)


def test_page_has_landmarks_headings_and_labels_for_screen_readers():
    tags = [tag for tag, _, _ in parsed_page().elements]
    assert [tags.count(tag) for tag in ("h1", "header", "main", "footer")] == [1, 1, 1, 1]
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert all(
        svg.get("aria-hidden") or svg.get("aria-label") for svg, _ in parsed_page().find_all("svg")
    )
    assert parsed_page().find_all("html")[0][0]["lang"] == "en"
    assert all(article["aria-labelledby"] for article, _ in parsed_page().find_all("article"))


def test_only_filter_and_navigation_are_hidden_without_javascript():
    hidden = [
        (tag, keys.get("id") or keys.get("class")) for tag, keys, _ in parsed_page().elements
        if "hidden" in keys and tag != "input"
    ]  # fmt: skip
    assert hidden == [("div", "filter"), ("nav", "pages"), ("p", "empty"), ("nav", "pages")]


def security_policy(rendered):
    (policy,) = [
        meta["content"] for meta, _ in rendered.find_all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    return dict(rule.strip().split(" ", 1) for rule in policy.split(";"))


def source_hashes(rendered, tag):
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for attributes, text in rendered.find_all(tag) if "src" not in attributes
    )  # fmt: skip


def test_policy_allows_own_style_scripts_and_embedded_images_only():
    assert security_policy(parsed_page()) == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": source_hashes(parsed_page(), "style"),
        "script-src": source_hashes(parsed_page(), "script"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_name_is_escaped(text):
    def page_with(text):
        return replace(
            make_page(hostile_queries(text)), title=text, facts=((text, text),), recall=text,
            notes=(text,),
            measures=(MeasureResult("top1", text, 0.5, 0.4, 0.6, text),),
            classes=(ClassResult(text, 1, ()),),
            charts=(Chart("x", text, text, b"", b""),),
        )  # fmt: skip

    data = render(page_with(text), shown_queries(hostile_queries(text)), {})
    assert has_valid_checksum(io.BytesIO(data))
    rendered = ParsedPage(data)
    harmless = ParsedPage(
        render(page_with("harmless"), shown_queries(hostile_queries("harmless")), {})
    )
    assert [tag for tag, _, _ in rendered.elements] == [tag for tag, _, _ in harmless.elements]
    assert [set(keys) for _, keys, _ in rendered.elements] == [
        set(keys) for _, keys, _ in harmless.elements
    ]
    assert len(rendered.comments) == 1
    for tag, attributes, _ in rendered.elements:
        assert not any(key.startswith("on") or key == "style" for key in attributes), tag
        assert attributes.get("href", "#").startswith("#") or attributes["href"] == "data:,"
        assert attributes.get("src", "data:").startswith("data:")
    assert rendered.texts("script")[1] == harmless.texts("script")[1]
    escaped = text.encode("utf-8", "backslashreplace").decode()
    assert parse_script(rendered.texts("script")[0])["facets"]["classes"] == [escaped]
    if "\r" not in text:
        assert escaped in [heading for _, heading in rendered.find_all("h3")][:2]
        assert rendered.find_all("h1")[0][1] == escaped


def parse_script(script):
    """Parse the JSON within a script of facets or of a chunk."""
    assert script.isascii()
    assert "</" not in script
    assert "<!" not in script
    content = script[script.index("{") if "facets" in script[:24] else script.index("[") :]
    return json.loads(content.replace("{ facets:", '{ "facets":').rstrip(");\n"
                      if content.startswith("[") else ";\n"))  # fmt: skip


# --- groups of duplicates -------------------------------------------------------------------------


def make_group_batch(*groups):
    """Return a record batch of GROUPS from lists of image ids, the kept one first."""
    rows = [
        {"group": number, "image_id": image_id, "path": f"/photos/{image_id}",
         "keep": position == 0, "reason": "later image_id" if position else "most pixels",
         "score": None if position == 0 else 0.95}
        for number, ids in enumerate(groups, 1) for position, image_id in enumerate(ids)
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=GROUPS.schema)


def test_groups_come_first_with_the_kept_image_first():
    batch = make_group_batch(["cat/3.jpg", "b.jpg"], ["c.jpg", "d.jpg"])
    groups = select_groups([batch.slice(0, 3), batch.slice(3)], 7)
    rendered = ParsedPage(render(PAGE, SHOWN, THUMBNAILS, groups))
    ids = [keys["id"] for tag, keys, _ in rendered.elements if tag == "section"]
    assert ids == ["groups", "matches", "figures", "method"]
    articles = rendered.texts("article", **{"class": "group"})
    assert articles == [
        "Group 1 2 images keep most pixels 3.jpg/photos/cat/3.jpg "
        "not readable remove score 0.9500 later image_id b.jpg/photos/b.jpg",
        "Group 2 2 images not readable keep most pixels c.jpg/photos/c.jpg "
        "not readable remove score 0.9500 later image_id d.jpg/photos/d.jpg",
    ]
    (overview,) = rendered.texts("p", **{"class": "overview"})
    assert overview.startswith("7 groups of duplicates 5 of 1,234 queries, ")
    assert "Top-1" not in overview
    (note,) = rendered.texts("p", **{"class": "small note"})
    assert note.startswith("7 groups of duplicates, the largest first; the first 2 are shown, ")
    assert len(rendered.find_all("image")) == 2  # the thumbnail of a match is not embedded again


def test_many_and_large_groups_are_cut():
    names = [f"{number:03}.jpg" for number in range(SHOWN_GROUP_IMAGES + 5)]
    batch = make_group_batch(names, *[names[:2]] * (SHOWN_GROUPS + 3))
    parts = [batch.slice(first, 7) for first in range(0, len(batch), 7)]
    groups = select_groups(parts, SHOWN_GROUPS + 4)
    assert groups == select_groups([batch], SHOWN_GROUPS + 4)
    assert len(groups.rows) == SHOWN_GROUPS
    assert [len(row.images) for row in groups.rows] == [
        SHOWN_GROUP_IMAGES, *[2] * (SHOWN_GROUPS - 1)
    ]  # fmt: skip
    rendered = ParsedPage(render(PAGE, SHOWN, {}, groups))
    assert f"25 images, of which {SHOWN_GROUP_IMAGES} are shown" in rendered.texts(
        "span", **{"class": "small"}
    )
    assert not fits_one_file(
        shown_queries([make_query("x", *[True] * 9)] * (MAX_SINGLE_FILE_IMAGES // 10)), groups
    )


@pytest.mark.parametrize("text", HOSTILE[:-1], ids=range(len(HOSTILE) - 1))
def test_hostile_name_is_escaped_in_groups(text):
    def elements(name):
        groups = select_groups([make_group_batch([name, "b.jpg"])], 1)
        rendered = ParsedPage(render(PAGE, SHOWN, {}, groups))
        return [(tag, set(keys)) for tag, keys, _ in rendered.elements], rendered

    (actual, rendered), (expected, _) = elements(text), elements("harmless")
    assert actual == expected
    assert rendered.find_all("div", **{"class": "tip"})[0][1].endswith(f"/photos/{text}")


def test_first_page_of_folder_links_thumbnails_of_groups():
    groups = select_groups([make_group_batch(["a.jpg", "b.jpg"])], 1)
    groups = groups.with_pictures({"/photos/a.jpg": 12})
    data = render_first_page(make_page(MANY_QUERIES), SHOWN_IN_FOLDER, NAMES, groups)
    (article,) = re.findall(r'<article class="group".*?</article>', data.decode(), re.DOTALL)
    assert article.count("<img ") == 1
    assert 'src="my%20report_files/thumbnails/0000/012.jpg"' in article


# --- a folder -------------------------------------------------------------------------------------

NAMES = ReportFiles("my report.html")
MANY_QUERIES = [
    make_query(f"q{number:03}", number % 3 != 0, True, margin=0.01) for number in range(120)
]
SHOWN_IN_FOLDER = shown_queries(MANY_QUERIES).with_pictures(
    ["/photos/cat/1.jpg", "/photos/cat/2.jpg"], [1]
)


def test_single_file_is_limited_by_number_of_images():
    row = make_query("x", True, True)
    assert fits_one_file(shown_queries([row] * (MAX_SINGLE_FILE_IMAGES // 3)))
    assert not fits_one_file(
        shown_queries([row] * (MAX_SINGLE_FILE_IMAGES // 3) + [make_query("y")])
    )


def test_first_page_of_folder_has_summary_and_queries():
    rendered = ParsedPage(render_first_page(make_page(MANY_QUERIES), SHOWN_IN_FOLDER, NAMES))
    assert len(rendered.find_all("article")) == PER_PAGE
    first = "my%20report_files/thumbnails/0000/000.jpg"
    assert {image["src"] for image, _ in rendered.find_all("img")} == {first}
    attributes = ("width", "height", "loading")
    assert {tuple(image[name] for name in attributes) for image, _ in rendered.find_all("img")} == {
        ("160", "160", "lazy")
    }
    assert rendered.texts("figure", **{"class": "right"})[0].startswith("not readable rank 2")
    next_links = [attributes["href"] for attributes, _ in rendered.find_all("a", rel="next")]
    assert next_links == ["my%20report_files/pages/00002.html"] * 2
    scripts = [keys.get("src") for keys, _ in rendered.find_all("script")]
    assert scripts == ["my%20report_files/facets.js", None]
    policy = security_policy(rendered)
    assert policy["script-src"] == f"{source_hashes(rendered, 'script')} 'self' file:"
    assert policy["img-src"] == "data: 'self' file:"
    assert "Page 1 of 3" in rendered.texts("span", **{"class": "at"})


def test_further_pages_equal_chunks():
    frame = PageFrame("Cats & dogs", NAMES, 3)
    files = render_further_pages(frame, SHOWN_IN_FOLDER)
    pages = {name: data for name, data in files.items() if name.endswith(".html")}
    assert list(pages) == ["my report_files/pages/00002.html", "my report_files/pages/00003.html"]
    rendered = ParsedPage(pages["my report_files/pages/00002.html"])
    assert has_valid_checksum(io.BytesIO(pages["my report_files/pages/00002.html"]))
    assert [
        attributes["href"]
        for attributes, text in rendered.find_all("a")
        if text == "Back to the first page"
    ] == ["../../my%20report.html"]
    assert {attributes["href"] for attributes, _ in rendered.find_all("a", rel="prev")} == {
        "../../my%20report.html"
    }
    assert {attributes["href"] for attributes, _ in rendered.find_all("a", rel="next")} == {
        "../pages/00003.html"
    }
    assert not rendered.find_all("script")
    assert security_policy(rendered)["script-src"] == "'none'"
    assert {attributes["src"] for attributes, _ in rendered.find_all("img")} == {
        "../thumbnails/0000/000.jpg"
    }
    fragments = [
        fragment
        for number in range(120 // PER_CHUNK + 1)
        for fragment in parse_script(files[f"my report_files/chunks/{number:05d}.js"].decode())
    ]
    assert len(fragments) == 120
    thumbnail_url = "my%20report_files/thumbnails/"
    text = pages["my report_files/pages/00002.html"].decode()
    for number in range(50, 100):
        assert fragments[number].replace(thumbnail_url, "../thumbnails/") in text
    last = ParsedPage(pages["my report_files/pages/00003.html"])
    assert not any("href" in attributes for attributes, _ in last.find_all("a", rel="next"))
    # other slices give the same bytes
    recombined = render_further_pages(frame, SHOWN_IN_FOLDER.cut(0, 50)) | render_further_pages(
        frame, SHOWN_IN_FOLDER.cut(50, 120)
    )
    assert recombined == files


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_name_is_escaped_in_chunks_and_further_pages(text):

    def render_further(text):
        shown = replace(shown_queries(hostile_queries(text)), first=PER_PAGE).with_pictures([], [])
        return render_further_pages(PageFrame(text, ReportFiles("r.html"), 2), shown)

    files, harmless = render_further(text), render_further("harmless")
    assert list(files) == list(harmless) == ["r_files/chunks/00002.js", "r_files/pages/00002.html"]
    for name, data in files.items():
        if name.endswith(".js"):
            fragments = [parse_script(script.decode()) for script in (data, harmless[name])]
            pages = [ParsedPage("\n".join(part).encode()) for part in fragments]
        else:
            pages = [ParsedPage(data), ParsedPage(harmless[name])]
        actual, expected = ([(tag, set(keys)) for tag, keys, _ in page.elements] for page in pages)
        assert actual == expected


def test_failures_on_further_pages_are_linked():
    queries = [*MANY_QUERIES, make_query("broken", failure="x: y")]
    rendered = ParsedPage(
        render_first_page(make_page(queries), shown_queries(queries).with_pictures([], []), NAMES)
    )
    assert rendered.find_all("a", **{"class": "why"})[0][0]["href"] == (
        "my%20report_files/pages/00003.html#q120"
    )


def test_links_to_previous_and_next_page():
    assert links(None, 1, 1) == {"prev": None, "next": None}
    assert links(ReportFiles("r.html"), 1, 2)["next"] == "r_files/pages/00002.html"
    assert links(ReportFiles("r.html"), 3, 3) == {"prev": "../pages/00002.html", "next": None}


def test_formatted_numbers_have_fixed_digits_and_no_negative_zero():
    assert [format_number(value) for value in (0.5, 1, -0.25, 0.00004, -0.00004, 0)] == [
        "0.5000", "1.0000", "−0.2500", "0.0000", "0.0000", "0.0000",
    ]  # fmt: skip
    assert [format_number(value) for value in (999.5, 1234567.0, float("nan"), float("inf"))] == [
        "999.5000", "1.235e+06", "–", "–",
    ]  # fmt: skip
    assert format_number(2 / 3, 3) == "0.667"
    assert [format_share(0.905), format_share(float("nan"))] == ["90.5 %", "–"]
