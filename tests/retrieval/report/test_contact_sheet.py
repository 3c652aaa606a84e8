"""Test the report page: content, hostile names, files, links and security policy."""

import base64
import functools
import hashlib
import io
import itertools
import json
import re
from dataclasses import replace

import pytest

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
from retrieval.report.names import PER_CHUNK, PER_PAGE, ReportFiles
from retrieval.report.page import MARGIN_MEANING, SCORE_MEANINGS
from retrieval.report.templates import format_number, format_share
from retrieval.storage.checksum import CHECKSUM_PLACEHOLDER, has_valid_checksum
from tests.retrieval.report.pages import (
    HOSTILE,
    MEASURES,
    PAGE,
    PICTURES,
    QUERIES,
    Reader,
    hostile,
    match,
    page_of,
    picture,
    query,
    shown_of,
)

SHOWN = shown_of(QUERIES)
NAN = float("nan")


@functools.cache
def page():
    return Reader(render(PAGE, SHOWN, PICTURES))


def drawn(queries, **other):
    return Reader(render(page_of(queries, **other), shown_of(queries), PICTURES))


def test_the_page_is_sealed_and_ends_with_the_mark():
    data = render(PAGE, SHOWN, PICTURES)
    assert has_valid_checksum(io.BytesIO(data))
    assert re.search(rb"<!-- lookalike-sha256:[0-9a-f]{64} -->\s*\Z", data)
    assert CHECKSUM_PLACEHOLDER.encode() not in data
    for at in (10, len(data) // 2, data.index(b"Cats")):
        altered = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert not has_valid_checksum(io.BytesIO(altered))


def test_the_same_page_gives_the_same_bytes():
    turned = dict(reversed(PICTURES.items()))
    assert render(PAGE, SHOWN, PICTURES) == render(replace(PAGE), shown_of(QUERIES), turned)
    other = render(replace(PAGE, title="Other"), SHOWN, PICTURES)
    assert render(PAGE, SHOWN, PICTURES) != other


def test_the_summary_says_what_came_out():
    assert page().texts("h1") == ["Cats & dogs"]
    assert page().texts("title") == ["Cats & dogs"]
    introduction = page().texts("p")[0]
    assert introduction.startswith("5 of 1,234 queries, each with its most similar gallery images")
    cards = page().texts("div", **{"class": "card"})
    assert cards[0] == f"Top-1 0.500 95 % interval 0.250 to 0.750 {MEASURES[0].meaning}"
    assert cards[1] == f"mAP 0.667 {MEASURES[1].meaning}"
    assert cards[2] == "Failed queries 1 of the 5 shown have no matches. See why"
    assert cards[3] == "Source data gallery 600 images in /photos backbone resnet50, avg pooling"
    notes = page().texts("div", **{"class": "card notes"})[0]
    assert notes.startswith(f"Recall {PAGE.recall}")
    assert notes.endswith(f"Score {SCORE_MEANINGS['cosine']} Margin {MARGIN_MEANING}")
    rows = [row for row in page().texts("tr") if row.startswith("MRR")]
    assert rows == [f"MRR RR0.750 0.500 to 1.000{MEASURES[2].meaning}"]


def test_the_interval_is_drawn():
    (band,) = page().all("rect", **{"class": "range"})
    assert (band[0]["x"], band[0]["width"]) == ("25.0", "50.0")


@pytest.mark.parametrize(
    "measure",
    [
        MeasureResult("top1", "loss", 2.5, 2.0, 3.0, "no share"),
        MeasureResult("top1", "top-1", 0.5, NAN, NAN, "no interval"),
        MeasureResult("top1", "top-1", NAN, NAN, NAN, "nothing measured"),
        MeasureResult("top1", "odd", 0.9, 0.1, 0.2, "outside its interval"),
    ],
)
def test_what_is_no_share_with_an_interval_is_not_drawn(measure):
    found = Reader(render(replace(PAGE, measures=(measure,)), SHOWN, {}))
    assert not found.all("rect")
    if measure.value != measure.value:
        assert found.texts("dd", **{"class": "value"})[0] == "–"


@pytest.mark.parametrize("metric", SCORE_MEANINGS)
def test_the_score_is_explained_by_metric(metric):
    assert SCORE_MEANINGS[metric] in Reader(render(replace(PAGE, metric=metric), SHOWN, {})).texts(
        "p"
    )


def test_classes_stand_in_a_table_whose_names_filter_and_the_rest_is_folded():
    def of(place):
        return ClassResult(f"a & {place}", place + 1, MEASURES[:2])

    found = drawn(QUERIES, classes=tuple(map(of, range(23))))
    assert found.texts("details", **{"class": "rest"})[0].startswith("3 more ClassQueries Top-1")
    rows = [row for row in found.texts("tr") if row.startswith("a & ")]
    assert rows[1] == "a & 12 0.500 0.250 to 0.750 0.667"
    assert len(rows) == 23
    links = [a["href"] for a, text in found.all("a") if text == "a & 2"]
    assert links == ["#class=a%20%26%202"]
    folded = found.texts("table", **{"class": "classes"})[1]
    assert "a & 20" in folded
    assert "a & 19" not in folded


def test_least_scores_notes_and_charts_are_shown():
    found = drawn(
        QUERIES,
        thresholds=(
            Threshold(0.9, 0.61, 0.905, 0.88, 0.93, 0.5, 120, 0.75),
            Threshold(0.95, 0.72, 1.0, NAN, NAN, 0.1, 9, 0.25),
            Threshold(0.999, NAN, NAN, NAN, NAN, 0, 0, 0),
        ),
        notes=("3 queries <have> no label.",),
        charts=(Chart("curve", "A curve", 'It "rises".', b"<svg>light</svg>", b"<svg>dark</svg>"),),
    )
    rows = found.texts("tr")
    assert "90.0 % 0.610090.5 % 88.0 % to 93.0 % 12075.0 %" in rows
    assert "95.0 % 0.7200100.0 % 925.0 %" in rows, "of few queries there is no interval"
    assert "99.9 % No score reaches this precision." in rows
    assert found.texts("ul", **{"class": "said"}) == ["3 queries <have> no label."]
    ((image, _),) = found.all("img")
    ((dark, _),) = found.all("source")
    assert image["alt"] == 'It "rises".'
    head = "data:image/svg+xml;base64,"
    assert base64.b64decode(image["src"].removeprefix(head)) == b"<svg>light</svg>"
    assert base64.b64decode(dark["srcset"].removeprefix(head)) == b"<svg>dark</svg>"
    assert dark["media"] == "(prefers-color-scheme: dark)"


def test_without_labels_the_page_says_so():
    found = drawn((query("a", None, label=None),), measures=())
    assert "There are no labels" in found.texts("div", **{"class": "card"})[0]
    assert found.texts("p")[0].startswith("1 query, each")
    assert not found.all("input", id="class")
    assert not found.all("select")
    assert not found.all("span", **{"class": "verdict"})
    assert ["disabled" in button for button, _ in found.all("button")] == [False, True, True]


def test_without_any_query_the_page_says_so():
    found = drawn((), measures=())
    assert found.texts("p", id="empty") == ["There are no queries."]
    assert not found.all("article")


def test_marks_say_right_wrong_skipped_or_nothing_by_class_sign_and_text():
    states = [attributes.get("class") for attributes, _ in page().all("figure")]
    assert states == ["ask", "right", "wrong", "right", "ask", "wrong", "right", "right",
                      "ask", "unknown", "unknown", "ask"]  # fmt: skip
    names = page().texts("div", **{"class": "name"})
    assert names == ["right cat", "wrong dog", "right cat", "wrong dog", "right cat", "right cat",
                     "1.jpg", "2.jpg"]  # fmt: skip
    signs = [attributes["href"] for attributes, _ in page().all("use")]
    assert signs.count("#right") == 4 + 1  # four matches, one verdict
    assert signs.count("#wrong") == 2 + 1
    verdicts = page().texts("span", **{"class": "verdict"})
    assert verdicts == ["Top-1 right", "Top-1 wrong", "No matches"]
    junk = replace(QUERIES[0], matches=(match(1, True, grade=-1), match(2, True)))
    found = drawn((junk,))
    assert found.texts("div", **{"class": "name"}) == ["skipped cat", "right cat"]


def test_matches_stand_in_order_with_rank_score_and_path():
    lines = page().texts("div", **{"class": "line"})
    assert lines[:3] == ["rank 1 score 0.8000", "rank 2 score 0.7000", "rank 3 score 0.6000"]
    tips = page().texts("div", **{"class": "tip"})
    assert tips[:2] == ["/queries/good.jpg", "cat · /photos/cat/1.jpg"]
    assert all(attributes["tabindex"] == "0" for attributes, _ in page().all("figure"))
    assert page().texts("span", **{"class": "small margin"}) == ["margin 0.1000", "margin 0.0200"]


def test_an_identity_that_the_path_does_not_show_is_shown_beside_it():
    found = drawn((replace(QUERIES[0], matches=(match(1, True, image_id="s3-key/1.jpg"),)),))
    assert found.texts("div", **{"class": "tip"})[1] == "cat · s3-key/1.jpg · /photos/cat/1.jpg"


def test_failures_are_listed_with_their_reason():
    (failed,) = page().texts("article", **{"class": "query failed"})
    assert failed == (
        "not readable broken.jpg No matches UnidentifiedImageError: cannot identify image file "
        "dog · /queries/broken.jpg"
    )
    assert page().all("a", **{"class": "why"})[0][0]["href"] == "#q4"  # failed ones come last
    assert "No matches." in page().texts("p")
    whole = drawn(QUERIES[:1])
    assert not whole.all("a", **{"class": "why"})
    cards = whole.texts("div", **{"class": "card"})
    assert "Failed queries 0 No query failed." in cards


def test_a_path_without_a_thumbnail_gets_a_placeholder():
    tiles = page().texts("div", **{"class": "picture"})
    assert len(tiles) == len(QUERIES) + 8
    assert tiles.count("not readable") == len(tiles) - 3  # one query, one match in two rows
    (alt, _), *_ = page().all("span", **{"class": "none"})
    assert alt["aria-label"].endswith(", not readable")


def test_each_picture_lies_in_the_file_once():
    images = page().all("image")
    assert len(images) == 2
    data = [base64.b64decode(image["href"].partition(",")[2]) for image, _ in images]
    assert data == list(PICTURES.values())
    uses = [use["href"] for use, _ in page().all("use") if use["href"].startswith("#p")]
    assert uses == ["#p0", "#p1", "#p1"]
    same = Reader(render(PAGE, SHOWN, dict.fromkeys(PICTURES, picture("red"))))
    assert len(same.all("image")) == 1


def test_every_reference_within_the_page_has_its_target():
    names = [attributes["id"] for _, attributes, _ in page().elements if "id" in attributes]
    assert len(names) == len(set(names))
    for tag, attributes, _ in page().elements:
        for key in ("href", "aria-labelledby", "aria-describedby", "list"):
            target = attributes.get(key, "data:")
            known = target.startswith("data:") or target.removeprefix("#") in names
            assert known or target == "#show=all", (tag, target)


def test_for_screen_readers_there_are_landmarks_headings_and_names():
    tags = [tag for tag, _, _ in page().elements]
    assert [tags.count(tag) for tag in ("h1", "header", "main", "footer")] == [1, 1, 1, 1]
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert all(svg.get("aria-hidden") or svg.get("aria-label") for svg, _ in page().all("svg"))
    assert page().all("html")[0][0]["lang"] == "en"
    assert all(article["aria-labelledby"] for article, _ in page().all("article"))


def test_without_javascript_all_is_there_but_the_filter():
    hidden = [
        (tag, keys.get("id") or keys.get("class")) for tag, keys, _ in page().elements
        if "hidden" in keys and tag != "input"
    ]  # fmt: skip
    assert hidden == [("div", "filter"), ("nav", "pages"), ("p", "empty"), ("nav", "pages")]


def policy_of(found):
    (policy,) = [
        meta["content"] for meta, _ in found.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    return dict(rule.strip().split(" ", 1) for rule in policy.split(";"))


def hashes(found, tag):
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for attributes, text in found.all(tag) if "src" not in attributes
    )  # fmt: skip


def test_the_policy_allows_this_style_these_scripts_and_pictures_from_within():
    assert policy_of(page()) == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": hashes(page(), "style"),
        "script-src": hashes(page(), "script"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_stays_text(text):
    def all_of(text):
        return replace(
            page_of(hostile(text)), title=text, facts=((text, text),), recall=text, notes=(text,),
            measures=(MeasureResult("top1", text, 0.5, 0.4, 0.6, text),),
            classes=(ClassResult(text, 1, ()),),
            charts=(Chart("x", text, text, b"", b""),),
        )  # fmt: skip

    data = render(all_of(text), shown_of(hostile(text)), {})
    assert has_valid_checksum(io.BytesIO(data))
    found = Reader(data)
    tame = Reader(render(all_of("tame"), shown_of(hostile("tame")), {}))
    assert [tag for tag, _, _ in found.elements] == [tag for tag, _, _ in tame.elements]
    assert [set(keys) for _, keys, _ in found.elements] == [
        set(keys) for _, keys, _ in tame.elements
    ]
    assert len(found.comments) == 1
    for tag, attributes, _ in found.elements:
        assert not any(key.startswith("on") or key == "style" for key in attributes), tag
        assert attributes.get("href", "#").startswith("#") or attributes["href"] == "data:,"
        assert attributes.get("src", "data:").startswith("data:")
    assert found.texts("script")[1] == tame.texts("script")[1]
    shown = text.encode("utf-8", "backslashreplace").decode()
    assert literal(found.texts("script")[0])["facets"]["classes"] == [shown]
    if "\r" not in text:
        assert [heading for _, heading in found.all("h3")][-1] == shown
        assert found.all("h1")[0][1] == shown


def literal(script):
    """Read a script of facets, or of a chunk, as the JSON that it is."""
    assert script.isascii()
    assert "</" not in script
    assert "<!" not in script
    inside = script[script.index("{") if "facets" in script[:24] else script.index("[") :]
    return json.loads(inside.replace("{ facets:", '{ "facets":').rstrip(");\n"
                      if inside.startswith("[") else ";\n"))  # fmt: skip


# --- a folder ----------------------------------------------------------------------------------

NAMES = ReportFiles("my report.html")
MANY = [query(f"q{place:03}", place % 3 != 0, True, margin=0.01) for place in range(120)]
FOLDER = shown_of(MANY).with_pictures(["/photos/cat/1.jpg", "/photos/cat/2.jpg"], [1])


def test_a_report_is_one_file_up_to_a_number_of_cells():
    row = query("x", True, True)
    assert fits_one_file(shown_of([row] * (MAX_SINGLE_FILE_IMAGES // 3)))
    assert not fits_one_file(shown_of([row] * (MAX_SINGLE_FILE_IMAGES // 3) + [query("y")]))


def test_the_first_page_of_a_folder_has_the_summary_and_its_queries():
    found = Reader(render_first_page(page_of(MANY), FOLDER, NAMES))
    assert len(found.all("article")) == PER_PAGE
    first = "my%20report_files/thumbnails/0000/000.jpg"
    assert {image["src"] for image, _ in found.all("img")} == {first}
    assert {(image["width"], image["height"], image["loading"]) for image, _ in found.all("img")} \
        == {("160", "160", "lazy")}  # fmt: skip
    assert found.texts("figure", **{"class": "right"})[0].startswith("not readable rank 2")
    nexts = [a["href"] for a, _ in found.all("a", rel="next")]
    assert nexts == ["my%20report_files/pages/00002.html"] * 2
    scripts = [keys.get("src") for keys, _ in found.all("script")]
    assert scripts == ["my%20report_files/facets.js", None]
    policy = policy_of(found)
    assert policy["script-src"] == f"{hashes(found, 'script')} 'self' file:"
    assert policy["img-src"] == "data: 'self' file:"
    assert "Page 1 of 3" in found.texts("span", **{"class": "at"})


def test_further_pages_and_chunks_are_drawn_alike():
    frame = PageFrame("Cats & dogs", NAMES, 3)
    files = render_further_pages(frame, FOLDER)
    pages = {name: data for name, data in files.items() if name.endswith(".html")}
    assert list(pages) == ["my report_files/pages/00002.html", "my report_files/pages/00003.html"]
    found = Reader(pages["my report_files/pages/00002.html"])
    assert has_valid_checksum(io.BytesIO(pages["my report_files/pages/00002.html"]))
    assert [a["href"] for a, text in found.all("a") if text == "Back to the summary"] == [
        "../../my%20report.html"
    ]
    assert {a["href"] for a, _ in found.all("a", rel="prev")} == {"../../my%20report.html"}
    assert {a["href"] for a, _ in found.all("a", rel="next")} == {"../pages/00003.html"}
    assert not found.all("script")
    assert policy_of(found)["script-src"] == "'none'"
    assert {i["src"] for i, _ in found.all("img")} == {"../thumbnails/0000/000.jpg"}
    fragments = [
        fragment
        for number in range(120 // PER_CHUNK + 1)
        for fragment in literal(files[f"my report_files/chunks/{number:05d}.js"].decode())
    ]
    assert len(fragments) == 120
    home = "my%20report_files/thumbnails/"
    text = pages["my report_files/pages/00002.html"].decode()
    for place in range(50, 100):
        assert fragments[place].replace(home, "../thumbnails/") in text
    last = Reader(pages["my report_files/pages/00003.html"])
    assert not any("href" in a for a, _ in last.all("a", rel="next"))
    # cut elsewhere, the same bytes
    again = render_further_pages(frame, FOLDER.cut(0, 50)) | render_further_pages(
        frame, FOLDER.cut(50, 120)
    )
    assert again == files


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_stays_text_in_chunks_and_further_pages(text):

    def further(text):
        shown = replace(shown_of(hostile(text)), first=PER_PAGE).with_pictures([], [])
        return render_further_pages(PageFrame(text, ReportFiles("r.html"), 2), shown)

    files, tame = further(text), further("tame")
    assert list(files) == list(tame) == ["r_files/chunks/00002.js", "r_files/pages/00002.html"]
    for name, data in files.items():
        if name.endswith(".js"):
            both = [literal(each.decode()) for each in (data, tame[name])]
            both = [Reader("\n".join(each).encode()) for each in both]
        else:
            both = [Reader(data), Reader(tame[name])]
        ours, others = ([(tag, set(keys)) for tag, keys, _ in each.elements] for each in both)
        assert ours == others


def test_failures_beyond_the_first_page_are_linked():
    many = [*MANY, query("broken", failure="x: y")]
    found = Reader(render_first_page(page_of(many), shown_of(many).with_pictures([], []), NAMES))
    assert found.all("a", **{"class": "why"})[0][0]["href"] == (
        "my%20report_files/pages/00003.html#q120"
    )


def test_links_lead_to_the_neighbours():
    assert links(None, 1, 1) == {"prev": None, "next": None}
    assert links(ReportFiles("r.html"), 1, 2)["next"] == "r_files/pages/00002.html"
    assert links(ReportFiles("r.html"), 3, 3) == {"prev": "../pages/00002.html", "next": None}


def test_numbers_align_and_never_lie_about_their_sign():
    assert [format_number(value) for value in (0.5, 1, -0.25, 0.00004, -0.00004, 0)] == [
        "0.5000", "1.0000", "−0.2500", "0.0000", "0.0000", "0.0000",
    ]  # fmt: skip
    assert [format_number(value) for value in (999.5, 1234567.0, float("nan"), float("inf"))] == [
        "999.5000", "1.235e+06", "–", "–",
    ]  # fmt: skip
    assert format_number(2 / 3, 3) == "0.667"
    assert [format_share(0.905), format_share(float("nan"))] == ["90.5 %", "–"]
