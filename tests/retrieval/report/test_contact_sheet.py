"""The page: says what it is given, whatever it is given, and does nothing else."""

import base64
import functools
import hashlib
import io
import itertools
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from retrieval.report.contact_sheet import (
    MEANINGS,
    SCORES,
    MatchCell,
    Measure,
    Page,
    QueryRow,
    number,
    render,
)
from retrieval.storage.seal import SEAL, is_sealed

HOSTILE = (
    "<img src=x onerror=alert(1)>.jpg",
    "\"><script>document.title='owned'</script>",
    "' onmouseover='alert(1)' x='",
    "a\nb\r\nc & d &amp; e",
    "--><!-- ]]></style></script></title></svg>",
    "javascript:alert(1)//猫\u202egpj.exe",
    "{{ 7 * 7 }}{% raw %}",
    SEAL,
    "\x00\udc80",
)
VOID = {"meta", "path", "use", "image", "rect", "circle"}


def picture(colour):
    sink = io.BytesIO()
    Image.new("RGB", (160, 107), colour).save(sink, "JPEG")
    return sink.getvalue()


def match(rank, right, **other):
    label = None if right is None else "cat" if right else "dog"
    name = f"{label}/{rank}.jpg"
    cell = MatchCell(rank, name, f"/photos/{name}", 0.9 - rank / 10, label, right)
    return replace(cell, **other)


def query(name, *rights, failure=None, label="cat"):
    cells = tuple(match(rank, right) for rank, right in enumerate(rights, start=1))
    return QueryRow(f"{name}.jpg", f"/queries/{name}.jpg", label, cells, failure)


QUERIES = (
    query("good", True, False, True),
    query("bad", False, True, True),
    query("unlabelled", None, None, label=None),
    query("broken", failure="UnidentifiedImageError: cannot identify image file", label="dog"),
    query("lonely"),
)
PAGE = Page(
    title="Cats & dogs",
    metric="cosine",
    facts=(("gallery", "600 images in /photos"), ("backbone", "resnet50, avg pooling")),
    measures=(
        Measure("Top-1", 0.5, 0.25, 0.75, MEANINGS["top-1"]),
        Measure("mAP", 2 / 3, None, None, MEANINGS["mAP"]),
    ),
    recall="Recall at 10 is 0.981 against a target of 0.95.",
    queries=QUERIES,
    shown_of=(len(QUERIES), 1234),
)
PICTURES = {"/queries/good.jpg": picture("red"), "/photos/cat/3.jpg": picture("blue")}


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


@functools.cache
def page():
    return Reader(render(PAGE, PICTURES))


def test_the_page_is_sealed_and_ends_with_the_mark():
    data = render(PAGE, PICTURES)
    assert is_sealed(io.BytesIO(data))
    assert re.search(rb"<!-- lookalike-sha256:[0-9a-f]{64} -->\s*\Z", data)
    assert SEAL.encode() not in data
    for at in (10, len(data) // 2, data.index(b"Cats")):
        altered = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert not is_sealed(io.BytesIO(altered))


def test_the_same_page_gives_the_same_bytes():
    turned = dict(reversed(PICTURES.items()))
    assert render(PAGE, PICTURES) == render(replace(PAGE), turned)
    assert render(PAGE, PICTURES) != render(replace(PAGE, title="Other"), PICTURES)


def test_the_summary_says_what_came_out():
    assert page().texts("h1") == ["Cats & dogs"]
    assert page().texts("title") == ["Cats & dogs"]
    lead = page().texts("p")[0]
    assert lead.startswith("5 of 1,234 queries, each with its most similar gallery images")
    cards = page().texts("div", **{"class": "card"})
    assert cards[0] == f"Top-1 0.500 95 % interval 0.250 to 0.750 {MEANINGS['top-1']}"
    assert cards[1] == f"mAP 0.667 {MEANINGS['mAP']}"
    assert cards[2] == "Failed queries 1 of the 5 on this page have no matches. See why"
    assert cards[3] == "Made from gallery 600 images in /photos backbone resnet50, avg pooling"
    notes = page().texts("div", **{"class": "card notes"})[0]
    assert notes == f"Recall {PAGE.recall} {MEANINGS['recall']} Score {SCORES['cosine']}"


def test_the_interval_is_drawn():
    (band,) = page().all("rect", **{"class": "range"})
    assert (band[0]["x"], band[0]["width"]) == ("25.0", "50.0")


@pytest.mark.parametrize(
    "measure",
    [
        Measure("loss", 2.5, 2.0, 3.0, "no share"),
        Measure("top-1", 0.5, None, None, "no interval"),
        Measure("top-1", float("nan"), float("nan"), float("nan"), "nothing measured"),
        Measure("odd", 0.9, 0.1, 0.2, "outside its interval"),
    ],
)
def test_what_is_no_share_with_an_interval_is_not_drawn(measure):
    found = Reader(render(replace(PAGE, measures=(measure,)), {}))
    assert not found.all("rect")
    if measure.value != measure.value:
        assert found.texts("dd", **{"class": "value"})[0] == "–"


@pytest.mark.parametrize("metric", SCORES)
def test_the_score_is_explained_by_metric(metric):
    assert SCORES[metric] in Reader(render(replace(PAGE, metric=metric), {})).texts("p")


def test_without_labels_the_page_says_so():
    bare = replace(PAGE, measures=(), queries=(query("a", None, label=None),), shown_of=(1, 1))
    found = Reader(render(bare, {}))
    assert "No labels are known" in found.texts("div", **{"class": "card"})[0]
    assert found.texts("p")[0].startswith("1 query, each")
    assert not found.all("select")
    assert not found.all("span", **{"class": "verdict"})
    assert ["disabled" in button for button, _ in found.all("button")] == [False, True, True]


def test_marks_say_right_wrong_or_nothing_by_class_sign_and_text():
    states = [attributes.get("class") for attributes, _ in page().all("figure")]
    assert states == ["ask", "right", "wrong", "right", "ask", "wrong", "right", "right",
                      "ask", "unknown", "unknown", "ask"]  # fmt: skip
    names = page().texts("div", **{"class": "name"})
    assert names == ["right cat", "wrong dog", "right cat", "wrong dog", "right cat", "right cat",
                     "1.jpg", "2.jpg"]  # fmt: skip
    signs = [attributes["href"] for attributes, _ in page().all("use")]
    assert signs.count("#right") == 4 + 1  # four matches, one verdict
    assert signs.count("#wrong") == 2 + 1
    assert page().texts("span", **{"class": "verdict"}) == ["Top-1 right", "Top-1 wrong"]


def test_matches_stand_in_order_with_rank_score_and_path():
    lines = page().texts("div", **{"class": "line"})
    assert lines[:3] == ["rank 1 score 0.8000", "rank 2 score 0.7000", "rank 3 score 0.6000"]
    tips = page().texts("div", **{"class": "tip"})
    assert tips[:2] == ["/queries/good.jpg", "cat · /photos/cat/1.jpg"]
    assert all(attributes["tabindex"] == "0" for attributes, _ in page().all("figure"))


def test_an_identity_that_the_path_does_not_show_is_shown_beside_it():
    row = replace(QUERIES[0], matches=(match(1, True, image_id="s3-key/1.jpg"),))
    found = Reader(render(replace(PAGE, queries=(row,)), {}))
    assert found.texts("div", **{"class": "tip"})[1] == "cat · s3-key/1.jpg · /photos/cat/1.jpg"


def test_failures_are_listed_with_their_reason():
    (failed,) = page().texts("article", **{"data-state": "failed"})
    assert failed == (
        "not readable broken.jpg UnidentifiedImageError: cannot identify image file "
        "/queries/broken.jpg"
    )
    assert "Failed queries" in page().texts("h2")
    assert "No matches." in page().texts("p")
    whole = Reader(render(replace(PAGE, queries=QUERIES[:1], shown_of=(1, 1)), {}))
    assert "Failed queries" not in whole.texts("h2")
    assert not any(attributes["href"] == "#failures" for attributes, _ in whole.all("a"))
    assert "Failed queries 0 Every query on this page was read and searched." in whole.texts(
        "div", **{"class": "card"}
    )


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
    same = Reader(render(PAGE, dict.fromkeys(PICTURES, picture("red"))))
    assert len(same.all("image")) == 1


def test_every_reference_within_the_page_has_its_target():
    names = [attributes["id"] for _, attributes, _ in page().elements if "id" in attributes]
    assert len(names) == len(set(names))
    for tag, attributes, _ in page().elements:
        for key in ("href", "aria-labelledby"):
            target = attributes.get(key, "data:")
            assert target.startswith("data:") or target.removeprefix("#") in names, (tag, target)


def test_for_screen_readers_there_are_landmarks_headings_and_names():
    tags = [tag for tag, _, _ in page().elements]
    assert [tags.count(tag) for tag in ("h1", "header", "main", "footer")] == [1, 1, 1, 1]
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert all(svg.get("aria-hidden") or svg.get("aria-label") for svg, _ in page().all("svg"))
    assert page().all("html")[0][0]["lang"] == "en"
    assert all(article["aria-labelledby"] for article, _ in page().all("article"))


def test_without_javascript_all_is_there_but_the_filter():
    hidden = [(tag, keys.get("id")) for tag, keys, _ in page().elements if "hidden" in keys]
    assert hidden == [("div", "filter"), ("p", "empty")]


def test_the_policy_allows_this_style_this_script_and_pictures_from_within():
    (policy,) = [
        meta["content"] for meta, _ in page().all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))

    def hashed(tag):
        ((attributes, text),) = page().all(tag)
        assert not attributes
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": hashed("style"),
        "script-src": hashed("script"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def hostile(text):
    """Put one text into every field there is."""
    cell = MatchCell(1, text, text, 0.5, text, False)
    row = QueryRow(text, text, text, (cell,), None)
    return Page(
        title=text,
        metric="cosine",
        facts=((text, text),),
        measures=(Measure(text, 0.5, 0.4, 0.6, text),),
        recall=text,
        queries=(row, replace(row, matches=(), failure=text)),
        shown_of=(2, 2),
    )


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_stays_text(text):
    data = render(hostile(text), {})
    assert is_sealed(io.BytesIO(data))
    found, tame = Reader(data), Reader(render(hostile("tame"), {}))
    assert [tag for tag, _, _ in found.elements] == [tag for tag, _, _ in tame.elements]
    assert [set(keys) for _, keys, _ in found.elements] == [
        set(keys) for _, keys, _ in tame.elements
    ]
    assert len(found.comments) == 1
    for tag, attributes, _ in found.elements:
        assert not any(key.startswith("on") or key == "style" for key in attributes), tag
        link = attributes.get("href", "#")
        assert link.startswith("#")
        assert "src" not in attributes
    assert found.texts("script") == tame.texts("script")
    shown = text.encode("utf-8", "backslashreplace").decode()
    if "\r" not in text:
        assert [heading for _, heading in found.all("h3")][-1] == shown
        assert found.all("h1")[0][1] == shown


def test_numbers_align_and_never_lie_about_their_sign():
    assert [number(value) for value in (0.5, 1, -0.25, 0.00004, -0.00004, 0)] == [
        "0.5000", "1.0000", "−0.2500", "0.0000", "0.0000", "0.0000",
    ]  # fmt: skip
    assert [number(value) for value in (999.5, 1234567.0, float("nan"), float("inf"))] == [
        "999.5000", "1.235e+06", "–", "–",
    ]  # fmt: skip
    assert number(2 / 3, 3) == "0.667"


# --- in a real browser -------------------------------------------------------------------------

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
)  # fmt: skip
LONG = "2026/11/" + "Aufnahmen aus dem Zoologischen Garten, Gehege 14 " * 3 + "x" * 120 + ".jpg"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    reason = "needs selenium, chromium and chromedriver (make browser)"
    webdriver = pytest.importorskip("selenium.webdriver", reason=reason)
    if not (CHROMIUM and DRIVER):
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    rows = [*QUERIES, *hostile(HOSTILE[0]).queries, *hostile(HOSTILE[1]).queries]
    rows += [replace(query("long", True, False), query_id=LONG, path="/photos/" + LONG, label=LONG)]
    rows += [query(f"more{number}", True, True, True, False) for number in range(20)]
    whole = replace(
        PAGE, title=HOSTILE[0], queries=tuple(rows), facts=((LONG, LONG), *PAGE.facts), recall=LONG
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(render(whole, PICTURES))
    browser.get(path.as_uri())
    yield browser
    assert browser.get_log("browser") == []  # neither errors nor what the policy had to stop


def visible(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('.query')]"
        ".filter((row) => row.checkVisibility()).map((row) => row.dataset.state)"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_overflows(opened, width, scheme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    for first in ("document.body", "document.querySelector('.matches figure')"):
        opened.execute_script(f"{first}.focus()")
        across, inner = opened.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth]"
        )
        assert inner == width
        assert across <= width
    ground = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 300) is (scheme == "dark")
    # the query stands to the left of its matches
    assert opened.execute_script(
        "const right = document.querySelector('.ask').getBoundingClientRect().right;"
        "return right < document.querySelector('.matches').getBoundingClientRect().left"
    )


def test_a_hostile_name_does_not_run(opened):
    assert opened.title == HOSTILE[0]  # an alert would make this raise, a script would change it
    assert opened.execute_script("return document.querySelectorAll('img, script').length") == 1
    heading = opened.execute_script("return document.querySelectorAll('h3')[7].textContent")
    assert heading == HOSTILE[0]


def test_pictures_are_drawn_where_they_are_used(opened):
    sizes = opened.execute_script(
        "return [...document.querySelectorAll('.picture use')].slice(0, 2)"
        ".map((use) => use.getBBox().width)"
    )
    assert sizes == [160, 160]


def test_filters_show_what_they_say(opened):
    everything = visible(opened)
    assert len(everything) == 30
    for value in ("wrong", "failed"):
        opened.execute_script(f"document.querySelector('[value={value}]').click()")
        assert visible(opened) == [state for state in everything if state == value]
        pressed = opened.execute_script(
            "return document.querySelector('[aria-pressed=true]').value"
        )
        assert pressed == value
        status = opened.execute_script("return document.getElementById('status').textContent")
        assert status == f"{everything.count(value)} of 30 shown"
    choose = (
        "const menu = document.querySelector('select'); menu.value = [...menu.options]"
        ".find((option) => option.text === arguments[0]).value;"
        "menu.dispatchEvent(new Event('change'))"
    )
    opened.execute_script(choose, "dog")
    assert visible(opened) == ["failed"]
    opened.execute_script("document.querySelector('[value=wrong]').click()")
    assert visible(opened) == []
    assert opened.execute_script("return document.getElementById('empty').checkVisibility()")
    opened.execute_script(choose, "All classes")
    opened.execute_script("document.querySelector('[value=all]').click()")
    assert visible(opened) == everything


def test_keys_walk_the_queries(opened):
    from selenium.webdriver import ActionChains, Keys

    opened.execute_script("document.activeElement.blur(); scrollTo(0, 0)")

    def press(*keys):
        ActionChains(opened).send_keys(*keys).perform()
        return opened.execute_script(
            "const row = document.querySelector('[aria-current]');"
            "return row === document.activeElement"
            " ? [...document.querySelectorAll('.query')].indexOf(row) : null"
        )

    assert [press(key) for key in ("j", "j", Keys.ARROW_RIGHT)] == [0, 1, 2]
    assert [press(key) for key in ("k", Keys.ARROW_LEFT, "k")] == [1, 0, 0]
    ActionChains(opened).send_keys(Keys.TAB, Keys.TAB).perform()
    tip = opened.execute_script(
        "const tip = document.activeElement.querySelector('.tip');"
        "return tip.checkVisibility({visibilityProperty: true}) && tip.textContent"
    )
    assert tip == "cat · /photos/cat/1.jpg"
