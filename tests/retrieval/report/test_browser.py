"""Tests of the report in a real browser: as one file, and as a folder on disk and over HTTP.

They cover pages with and without JavaScript, and hostile names, none of which may be executed.
"""

import functools
import http.server
import itertools
import os
import re
import shutil
import threading
import time
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from retrieval.evaluation.results import ClassResult
from retrieval.report import page_slices
from retrieval.report.contact_sheet import PageFrame, render, render_first_page
from retrieval.report.facets import facets_script
from retrieval.report.groups import GroupImage, GroupRow, ShownGroups
from retrieval.report.names import ReportFiles, page_count
from retrieval.storage.local import open_folder
from tests.retrieval.report.sample_pages import (
    HOSTILE,
    MEASURES,
    QUERIES,
    THUMBNAILS,
    hostile_queries,
    make_page,
    make_query,
    shown_queries,
)

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
)  # fmt: skip
LONG_NAME = (
    "2026/11/" + "Aufnahmen aus dem Zoologischen Garten, Gehege 14 " * 3 + "x" * 120 + ".jpg"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Return headless Chromium with its console log enabled."""
    reason = "needs selenium, chromium and chromedriver (make browser)"
    if not (CHROMIUM and CHROMEDRIVER and find_spec("selenium")):
        unavailable = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        unavailable(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=CHROMEDRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


@pytest.fixture
def clean_browser(browser):
    """Return the browser, and check afterwards that it logged no errors."""
    size = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    yield browser
    # neither errors nor violations of the content security policy
    assert browser.get_log("browser") == []


SINGLE_FILE_QUERIES = (
    *QUERIES[:3], hostile_queries(HOSTILE[0])[0], hostile_queries(HOSTILE[1])[0],
    replace(make_query("long", True, False), query_id=LONG_NAME, path="/photos/" + LONG_NAME,
            label=LONG_NAME),
    *(make_query(f"more{number}", True, True, True, False, margin=(number * 7 % 5) / 10)
      for number in range(20)),
    QUERIES[3], hostile_queries(HOSTILE[0])[1], hostile_queries(HOSTILE[1])[1],
)  # fmt: skip


def full_page(queries, **fields):
    """Return a page with all sections, in which the title is hostile and most texts are long."""
    classes = (ClassResult(LONG_NAME, 3, MEASURES), ClassResult("dog", 1, MEASURES))
    return make_page(
        queries,
        title=HOSTILE[0],
        recall=LONG_NAME,
        facts=((LONG_NAME, LONG_NAME),),
        classes=classes,
        notes=(LONG_NAME,),
        **fields,
    )


@pytest.fixture(scope="module")
def single_file_url(tmp_path_factory):
    """Return the URL of a report in a single file."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(
        render(full_page(SINGLE_FILE_QUERIES), shown_queries(SINGLE_FILE_QUERIES), THUMBNAILS)
    )
    return path.as_uri()


def generate_queries():
    """Generate queries of all states and several classes, some with hostile names or no margin."""
    generator = np.random.default_rng(3)
    for number in range(230):
        label = ("cat", "dog", "emu & <b>", None, "a=b&c#d")[generator.integers(5)]
        margin = float("nan") if number % 9 == 0 else round(float(generator.random()), 2)
        row = make_query(
            f"q{number:03}", bool(generator.integers(2)), True, label=label, margin=margin
        )
        name = HOSTILE[number % len(HOSTILE)] if number % 40 < len(HOSTILE) else row.query_id
        cells = tuple(replace(cell, path=f"/photos/{generator.integers(8)}.jpg", image_id=name)
                      for cell in row.matches)  # fmt: skip
        yield replace(row, query_id=f"{number:03}{name}", path="/photos/0.jpg", matches=cells)
    for number in range(7):
        yield make_query(f"{HOSTILE[number]} failed{number}", failure=HOSTILE[0], label="cat")


MANY_QUERIES = tuple(generate_queries())
NAMES = ReportFiles("my report#1.html")


@pytest.fixture(scope="module")
def report_folder(tmp_path_factory):
    """Write a report with a folder, as the report job does; one image cannot be read."""
    output = tmp_path_factory.mktemp("folder")
    photos = tmp_path_factory.mktemp("photos")
    for number in range(7):
        Image.new("RGB", (300, 200), (number * 30, 90, 200)).save(photos / f"{number}.jpg")
    rows = [
        replace(row, path=row.path.replace("/photos", str(photos)), matches=tuple(
            replace(cell, path=cell.path.replace("/photos", str(photos))) for cell in row.matches))
        for row in MANY_QUERIES
    ]  # fmt: skip
    folder, shown = open_folder(str(output)), shown_queries(rows)
    paths = shown.paths()
    unreadable = []
    for work in page_slices.thumbnail_slices(folder, NAMES, paths, max_pixels=10**7):
        unreadable += page_slices.write_thumbnails(work)
    assert str(photos / "7.jpg") in [paths[number] for number in unreadable]
    shown = shown.with_pictures(paths, unreadable)
    frame = PageFrame(HOSTILE[1], NAMES, page_count(len(shown)))
    page_slices.write_pages(page_slices.PageSlice(folder, frame, shown))
    page_slices.write_facets(folder, NAMES, facets_script(shown, NAMES))
    folder.put(NAMES.page, render_first_page(full_page(rows), shown, NAMES))
    return output


@pytest.fixture(scope="module")
def served_url(report_folder):
    """Return the URL of the report on a local HTTP server."""

    class SilentHandler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(SilentHandler, directory=report_folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/my%20report%231.html"
    server.shutdown()
    server.server_close()


def open_page(browser, url):
    browser.get("about:blank")
    browser.get(url)
    wait_until_idle(browser)


def wait_until_idle(browser):
    """Wait until the list of queries is updated."""
    browser.execute_async_script(
        "const done = arguments[0]; const check = () => document.getElementById('list')"
        ".hasAttribute('aria-busy') ? setTimeout(check, 5) : done(); setTimeout(check, 5)"
    )


def wait_for(browser, condition):
    """Wait up to ten seconds until a JavaScript condition holds."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 10, 0.05).until(lambda b: b.execute_script(f"return {condition}"))


def run_script(browser, script, *arguments):
    browser.execute_script(script, *arguments)
    wait_until_idle(browser)


def visible_queries(browser):
    """Return the numbers of the queries in the page."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.query')].map((row) => Number(row.id.slice(1)))"
    )


def click_filter(browser, value):
    run_script(browser, f"document.querySelector('button[value={value}]').click()")


SELECT_SORT = (
    "const menu = document.getElementById('sort'); menu.value = arguments[0];"
    "menu.dispatchEvent(new Event('change'))"
)
ENTER_CLASS = (
    "const field = document.getElementById('class'); field.value = arguments[0];"
    "field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change'))"
)


def status(browser):
    return browser.execute_script("return document.getElementById('status').textContent")


def expected_queries(queries, show="all", label=None, sort="name"):
    """Return the numbers of the filtered queries in the requested order."""
    matching = [
        number for number, row in enumerate(queries)
        if (show == "all" or row.state == show) and label in (None, row.label)
    ]  # fmt: skip
    sign = {"name": 0, "least": 1, "most": -1}[sort]
    with_margin = [
        number for number in matching if queries[number].margin == queries[number].margin
    ]
    if sign:
        with_margin.sort(key=lambda number: (sign * queries[number].margin, number))
        return with_margin + [number for number in matching if number not in set(with_margin)]
    return matching


# --- one file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 900, 1600])
@pytest.mark.parametrize(
    ("kind", "scheme"), [("single", "light"), ("folder", "dark"), ("further page", "light")]
)
def test_page_fits_window_width(clean_browser, single_file_url, report_folder, kind, width, scheme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    clean_browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    clean_browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page = {"single": single_file_url, "folder": (report_folder / NAMES.page).as_uri(),
            "further page": (report_folder / NAMES.further_page(3)).as_uri()}[kind]  # fmt: skip
    clean_browser.get(page)
    for focused in ("document.body", "document.querySelector('.matches figure')"):
        clean_browser.execute_script(
            f"{focused}.focus();document.querySelectorAll('details').forEach((d) => d.open = true)"
        )
        scroll_width, window_width = clean_browser.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth]"
        )  # fmt: skip
        assert window_width == width
        assert scroll_width <= width
    if kind != "further page":
        for tab in ("figures", "method", "matches"):
            clean_browser.execute_script("document.getElementById(arguments[0]).click()",
                                         f"tab-{tab}")  # fmt: skip
            wait_for(clean_browser, f"document.getElementById('{tab}').checkVisibility()")
            assert clean_browser.execute_script(
                "return document.documentElement.scrollWidth") <= width  # fmt: skip
    background = clean_browser.execute_script(
        "return getComputedStyle(document.body).backgroundColor"
    )
    assert (sum(map(int, re.findall(r"\d+", background))) < 300) is (scheme == "dark")
    beside = clean_browser.execute_script(
        "const right = document.querySelector('.ask').getBoundingClientRect().right;"
        "return right < document.querySelector('.matches').getBoundingClientRect().left"
    )
    assert beside is (width > 520)  # the query is beside its matches, or above them


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_first_match_is_visible_without_scrolling(
    clean_browser, single_file_url, report_folder, width, height
):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    clean_browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for url in (single_file_url, (report_folder / NAMES.page).as_uri()):
        open_page(clean_browser, url)
        bottom = clean_browser.execute_script(
            "return document.querySelector('.matches .picture').getBoundingClientRect().bottom"
        )
        assert bottom < height


def test_touch_targets_are_at_least_44_pixels_high(clean_browser, report_folder):
    size = {"width": 360, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    clean_browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    open_page(clean_browser, (report_folder / NAMES.page).as_uri())
    heights = clean_browser.execute_script(
        "return [...document.querySelectorAll('.filter :is(button, input, select),"
        " .pages :is(a, input), .tabs a')].map((element) => element.getBoundingClientRect().height)"
    )
    assert min(heights) >= 44


def test_hostile_name_is_not_executed(clean_browser, single_file_url):
    open_page(clean_browser, single_file_url)
    # an alert would make this raise, a script would change the title
    assert clean_browser.title == HOSTILE[0]
    assert (
        clean_browser.execute_script("return document.querySelectorAll('img, script').length") == 2
    )
    heading = clean_browser.execute_script(
        "return document.querySelectorAll('.query h3')[3].textContent"
    )
    assert heading == HOSTILE[0]


def test_thumbnails_are_drawn_where_referenced(clean_browser, single_file_url):
    open_page(clean_browser, single_file_url)
    sizes = clean_browser.execute_script(
        "return [...document.querySelectorAll('.picture use')].slice(0, 2)"
        ".map((use) => use.getBBox().width)"
    )
    assert sizes == [160, 160]


def test_filter_and_sort_in_single_file(clean_browser, single_file_url):
    open_page(clean_browser, single_file_url)
    assert visible_queries(clean_browser) == list(range(len(SINGLE_FILE_QUERIES)))
    for value in ("wrong", "failed"):
        click_filter(clean_browser, value)
        assert visible_queries(clean_browser) == expected_queries(SINGLE_FILE_QUERIES, value)
        pressed = clean_browser.execute_script(
            "return document.querySelector('[aria-pressed=true]').value"
        )
        assert pressed == value
        shown = len(expected_queries(SINGLE_FILE_QUERIES, value))
        assert status(clean_browser) == f"{shown} of {len(SINGLE_FILE_QUERIES)} queries"
    run_script(clean_browser, ENTER_CLASS, "DOG")
    assert visible_queries(clean_browser) == expected_queries(SINGLE_FILE_QUERIES, "failed", "dog")
    run_script(clean_browser, ENTER_CLASS, "no-such-class")
    assert visible_queries(clean_browser) == []
    assert clean_browser.execute_script("return document.getElementById('empty').checkVisibility()")
    run_script(clean_browser, ENTER_CLASS, "")
    click_filter(clean_browser, "all")
    for sort in ("least", "most", "name"):
        run_script(clean_browser, SELECT_SORT, sort)
        assert visible_queries(clean_browser) == expected_queries(SINGLE_FILE_QUERIES, sort=sort)
    assert clean_browser.execute_script("return location.hash") == ""
    assert not clean_browser.execute_script(
        "return document.querySelector('.pages').checkVisibility()"
    )


def press(browser, *keys):
    """Press keys and return the number of the focused query, or None."""
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()
    wait_until_idle(browser)
    return browser.execute_script(
        "const row = document.querySelector('[aria-current]');"
        "return row && row === document.activeElement ? Number(row.id.slice(1)) : null"
    )


def test_keys_move_between_queries(clean_browser, single_file_url):
    from selenium.webdriver import ActionChains, Keys

    open_page(clean_browser, single_file_url)
    assert [press(clean_browser, key) for key in ("j", "j", Keys.ARROW_RIGHT)] == [0, 1, 2]
    assert [press(clean_browser, key) for key in ("k", Keys.ARROW_LEFT, "k")] == [1, 0, 0]
    ActionChains(clean_browser).send_keys(Keys.TAB, Keys.TAB).perform()
    tip = clean_browser.execute_script(
        "const tip = document.activeElement.querySelector('.tip');"
        "return tip.checkVisibility({visibilityProperty: true}) && tip.textContent"
    )
    assert tip == "cat · /photos/cat/1.jpg"


def selected_tab(browser):
    """Return the selected tab and the visible panels."""
    return browser.execute_script(
        "return [document.querySelector('[aria-selected=true]').textContent,"
        "[...document.querySelectorAll('[role=tabpanel]')].filter((panel) =>"
        " panel.checkVisibility()).map((panel) => panel.id).join()]"
    )


def test_tabs_are_selected_by_click_key_and_url(clean_browser, single_file_url):
    from selenium.webdriver import Keys

    open_page(clean_browser, single_file_url)
    assert selected_tab(clean_browser) == ["Matches", "matches"]
    run_script(clean_browser, "document.getElementById('tab-figures').click()")
    assert selected_tab(clean_browser) == ["Figures", "figures"]
    assert clean_browser.execute_script("return location.hash") == "#tab=figures"
    press(clean_browser, "j")  # the keys of the queries have no effect on other tabs
    assert selected_tab(clean_browser) == ["Figures", "figures"]
    run_script(clean_browser, "document.querySelector('.classes a[href*=dog]').click()")
    assert selected_tab(clean_browser) == ["Matches", "matches"]
    run_script(clean_browser, "history.back()")
    wait_for(clean_browser, "location.hash === '#tab=figures'")
    wait_for(clean_browser, "document.getElementById('figures').checkVisibility()")
    clean_browser.execute_script("document.getElementById('tab-figures').focus()")
    expected = {Keys.ARROW_RIGHT: "method", Keys.HOME: "matches", Keys.END: "method",
                Keys.ARROW_LEFT: "figures"}  # fmt: skip
    for key, panel in expected.items():
        press(clean_browser, key)
        wait_for(clean_browser, f"document.getElementById('{panel}').checkVisibility()")
        focused = clean_browser.execute_script("return document.activeElement.id")
        assert focused == f"tab-{panel}"
    tab_stops = clean_browser.execute_script(
        "return [...document.querySelectorAll('[role=tablist] [role=tab]')]"
        ".map((tab) => [tab.tabIndex, tab.getAttribute('aria-controls')])"
    )
    assert tab_stops == [[-1, "matches"], [0, "figures"], [-1, "method"]]
    run_script(clean_browser, "document.querySelector('.skip').click()")
    wait_for(clean_browser, "document.activeElement.id === 'queries'")
    assert selected_tab(clean_browser) == ["Matches", "matches"]
    open_page(clean_browser, single_file_url + "#tab=nonsense")
    assert selected_tab(clean_browser) == ["Matches", "matches"]


@pytest.mark.parametrize("width", [360, 1280])
def test_captions_with_probabilities_fit_their_pictures(clean_browser, tmp_path, width):
    row = make_query("cat", *[True] * 10)
    row = replace(row, matches=tuple(replace(cell, probability=1.0) for cell in row.matches))
    path = tmp_path / "report.html"
    path.write_bytes(render(full_page([row]), shown_queries([row]), THUMBNAILS))
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    clean_browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    clean_browser.get(path.as_uri())
    overflows, texts = clean_browser.execute_script(
        "const all = [...document.querySelectorAll('.matches figcaption > :not(.tip)')];"
        "return [all.map((part) => part.scrollWidth - part.clientWidth),"
        " all.map((part) => part.innerText)]"
    )
    assert sum("100 % likely" in text for text in texts) == 10
    assert max(overflows) == 0


def test_groups_of_duplicates_are_the_first_tab(clean_browser, tmp_path):
    names = [HOSTILE[0], LONG_NAME, "cat/3.jpg", *(f"{number}.jpg" for number in range(9))]
    images = tuple(
        GroupImage(name, f"/photos/{name}", name == names[0], "later image_id", 0.5)
        for name in names
    )
    groups = ShownGroups((GroupRow(1, images, len(images)),), 1)
    path = tmp_path / "report.html"
    path.write_bytes(
        render(
            full_page(SINGLE_FILE_QUERIES), shown_queries(SINGLE_FILE_QUERIES), THUMBNAILS, groups
        )
    )
    for width in (390, 1280):
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        clean_browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        open_page(clean_browser, path.as_uri())
        assert selected_tab(clean_browser) == ["Duplicates", "groups"]
        scroll_width, bottom = clean_browser.execute_script(
            "return [document.documentElement.scrollWidth,"
            " document.querySelector('.group .picture').getBoundingClientRect().bottom]"
        )
        assert scroll_width <= width
        assert bottom < 844
    for link, tab, panel in (("#tab-matches", "Matches", "matches"),
                             ("#tab-groups", "Duplicates", "groups"),
                             (".why", "Matches", "matches")):  # fmt: skip
        run_script(clean_browser, f"document.querySelector('{link}').click()")
        wait_for(clean_browser, f"document.getElementById('{panel}').checkVisibility()")
        assert selected_tab(clean_browser) == [tab, panel]
    click_filter(clean_browser, "wrong")  # filters stay on the tab of the matches
    assert selected_tab(clean_browser) == ["Matches", "matches"]
    assert visible_queries(clean_browser) == expected_queries(SINGLE_FILE_QUERIES, "wrong")
    open_page(clean_browser, clean_browser.execute_script("return location.href"))
    assert selected_tab(clean_browser) == ["Matches", "matches"]
    click_filter(clean_browser, "all")
    assert selected_tab(clean_browser) == ["Matches", "matches"]


# --- a folder -------------------------------------------------------------------------------------


def open_without_scripts(browser, url):
    """Open a page and wait until it is complete, which the driver does not do without scripts."""
    browser.get(url)
    while browser.execute_script("return [document.readyState, location.href]") != [
        "complete", url,
    ]:  # fmt: skip
        time.sleep(0.02)


def test_pages_without_javascript_are_complete_and_linked(clean_browser, report_folder):
    clean_browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_without_scripts(clean_browser, (report_folder / NAMES.page).as_uri())
        numbers = visible_queries(clean_browser)
        assert not clean_browser.execute_script(
            "return document.getElementById('filter').checkVisibility()"
        )
        assert clean_browser.execute_script(
            "return [...document.querySelectorAll('main > section')].every((section) =>"
            " section.checkVisibility())"
        )
        for _ in range(4):
            open_without_scripts(
                clean_browser,
                clean_browser.execute_script("return document.querySelector('[rel=next]').href"),
            )
            numbers += visible_queries(clean_browser)
        assert numbers == list(range(len(MANY_QUERIES)))
        assert not clean_browser.execute_script("return document.querySelector('[rel=next]').href")
        loaded = clean_browser.execute_script(
            "const image = document.images[0]; image.loading = 'eager';"
            "return image.decode().then(() => image.naturalWidth)"
        ) if visible_queries(clean_browser)[0] < 230 else 160  # fmt: skip
        assert loaded == 160
        clean_browser.get(
            clean_browser.execute_script("return document.querySelector('header a').href")
        )
        assert clean_browser.title == HOSTILE[0]
    finally:
        clean_browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def all_pages(browser):
    """Return the numbers of all filtered queries, page by page."""
    numbers = visible_queries(browser)
    while browser.execute_script("return Boolean(document.querySelector('[rel=next]').href)"):
        run_script(browser, "document.querySelector('[rel=next]').click()")
        numbers += visible_queries(browser)
    return numbers


@pytest.mark.parametrize("protocol", ["file", "http"])
def test_filter_and_sort_across_pages(clean_browser, report_folder, served_url, protocol):
    open_page(
        clean_browser, (report_folder / NAMES.page).as_uri() if protocol == "file" else served_url
    )
    assert all_pages(clean_browser) == list(range(len(MANY_QUERIES)))
    selections = [("all", "least", None), ("wrong", "most", None), ("wrong", "least", "a=b&c#d"),
              ("failed", "name", "cat")]  # fmt: skip
    for show, sort, label in selections if protocol == "file" else selections[1:3]:
        click_filter(clean_browser, show)
        run_script(clean_browser, SELECT_SORT, sort)
        run_script(clean_browser, ENTER_CLASS, label or "")
        expected = expected_queries(MANY_QUERIES, show, label, sort)
        assert all_pages(clean_browser) == expected
        count = clean_browser.execute_script(
            "return document.querySelector(`button[value=${arguments[0]}] span`).textContent", show
        )
        assert int(count) == len(expected_queries(MANY_QUERIES, show, label))
        run_script(clean_browser, ENTER_CLASS, "")
    title = clean_browser.execute_script("return document.title")
    assert title == HOSTILE[0]


def test_page_state_is_kept_in_url_hash(clean_browser, report_folder):
    url = (report_folder / NAMES.page).as_uri()
    open_page(clean_browser, url + "#show=wrong&sort=least&page=2")
    expected = expected_queries(MANY_QUERIES, "wrong", None, "least")
    assert visible_queries(clean_browser) == expected[50:100]
    assert status(clean_browser) == f"51–{min(100, len(expected))} of {len(expected)} queries"
    run_script(clean_browser, ENTER_CLASS, "emu & <b>")
    assert (
        visible_queries(clean_browser)
        == expected_queries(MANY_QUERIES, "wrong", "emu & <b>", "least")[:50]
    )
    url_with_state = clean_browser.execute_script("return location.href")
    open_page(clean_browser, url_with_state)
    assert (
        visible_queries(clean_browser)
        == expected_queries(MANY_QUERIES, "wrong", "emu & <b>", "least")[:50]
    )
    assert (
        clean_browser.execute_script("return document.getElementById('class').value") == "emu & <b>"
    )
    run_script(clean_browser, "history.go(0)")
    wait_until_idle(clean_browser)
    assert (
        visible_queries(clean_browser)
        == expected_queries(MANY_QUERIES, "wrong", "emu & <b>", "least")[:50]
    )
    run_script(clean_browser, "document.querySelector('.classes a[href*=dog]').click()")
    assert visible_queries(clean_browser) == expected_queries(MANY_QUERIES, "all", "dog")[:50]
    open_page(clean_browser, url + "#show=nonsense&class=no-such-class&page=99&sort=up")
    assert visible_queries(clean_browser) == []
    assert clean_browser.execute_script("return document.getElementById('empty').checkVisibility()")
    run_script(clean_browser, "document.querySelector('#empty a').click()")
    assert visible_queries(clean_browser) == list(range(50))
    run_script(clean_browser, "document.querySelector('.skip').click()")
    assert visible_queries(clean_browser) == list(range(50))


def test_keys_move_across_pages(clean_browser, report_folder):
    open_page(clean_browser, (report_folder / NAMES.page).as_uri())
    assert press(clean_browser, "j") == 0
    run_script(clean_browser, "[...document.querySelectorAll('.query')].at(-1).scrollIntoView()")
    assert [press(clean_browser, key) for key in ("jj", "k", "k", "n", "n", "p", "p")][-4:] == [
        50, 100, 50, 0,
    ]  # fmt: skip
    clean_browser.execute_script("document.querySelector('.query:last-child').scrollIntoView()")
    positions = [press(clean_browser, "j") for _ in range(4)]
    assert positions[positions.index(49) :][:2] == [49, 50]
    assert [press(clean_browser, "k"), press(clean_browser, "k")][-1] in (48, 49, 50)
    field = "const field = document.querySelector('.pages input'); field.value = arguments[0];"
    run_script(clean_browser, field + "field.dispatchEvent(new Event('change'))", "5")
    assert visible_queries(clean_browser) == list(range(200, 237))
    focused = clean_browser.execute_script("return document.activeElement.id")
    assert focused == "queries"
    assert clean_browser.execute_script(
        "return document.querySelector('.pages [rel=next]').getAttribute('aria-disabled')"
    ) == "true"  # fmt: skip
    assert press(clean_browser, "n") is None
    assert visible_queries(clean_browser) == list(range(200, 237))


def test_thumbnails_are_loaded_from_folder_without_layout_shift(clean_browser, report_folder):
    open_page(clean_browser, (report_folder / NAMES.page).as_uri())
    before = clean_browser.execute_script("return document.getElementById('list').scrollHeight")
    widths = clean_browser.execute_async_script(
        "const done = arguments[0], all = [...document.images];"
        "all.forEach((image) => image.loading = 'eager');"
        "Promise.all(all.map((image) => image.decode())).then(() =>"
        " done([...new Set(all.map((image) => image.naturalWidth))]))"
    )
    assert widths == [160]
    assert (
        clean_browser.execute_script("return document.getElementById('list').scrollHeight")
        == before
    )
    assert (
        clean_browser.execute_script("return document.querySelectorAll('.picture .none').length")
        > 0
    )


def test_hostile_names_in_chunks_are_not_executed(clean_browser, report_folder):
    open_page(clean_browser, (report_folder / NAMES.page).as_uri() + "#page=5")
    failed = clean_browser.execute_script(
        "return document.querySelectorAll('.failed h3')[0].textContent"
    )
    assert failed == f"{HOSTILE[0]} failed0.jpg"
    assert clean_browser.title == HOSTILE[0]
    assert (
        clean_browser.execute_script("return document.querySelectorAll('#list script').length") == 0
    )
    outside = clean_browser.execute_script(
        "return [...document.images].filter((image) => !image.src.includes('/thumbnails/')).length"
    )
    assert outside == 0


def test_page_without_its_folder_shows_message(browser, report_folder, tmp_path):
    shutil.copy(report_folder / NAMES.page, tmp_path / "page-only.html")
    browser.get((tmp_path / "page-only.html").as_uri())
    status_text = "document.getElementById('filter').textContent"
    wait_for(browser, f"{status_text}.includes('the folder beside it is missing')")
    assert len(visible_queries(browser)) == 50
    browser.get_log("browser")


def test_missing_chunk_shows_message(browser, report_folder, tmp_path):
    shutil.copytree(report_folder, tmp_path / "copy")
    (tmp_path / "copy" / NAMES.chunk(2)).unlink()
    browser.get((tmp_path / "copy" / NAMES.page).as_uri() + "#page=2")
    status_text = "document.getElementById('status').textContent"
    wait_for(browser, f"{status_text}.includes('could not be loaded')")
    browser.get_log("browser")


def test_class_field_suggests_matching_classes(clean_browser, tmp_path):
    rows = [make_query(f"q{n}", True, label=f"class {n:05}") for n in range(3000)]
    shown = shown_queries(rows)
    folder = open_folder(str(tmp_path))
    page_slices.write_facets(folder, NAMES, facets_script(shown, NAMES))
    shown = shown.with_pictures([], [])
    folder.put(NAMES.page, render_first_page(make_page(rows), shown, NAMES))
    open_page(clean_browser, (tmp_path / NAMES.page).as_uri())
    suggestions = clean_browser.execute_script(
        "const field = document.getElementById('class'); field.value = 'CLASS 000';"
        "field.dispatchEvent(new Event('input'));"
        "return [...document.querySelectorAll('datalist option')].map((option) => option.value)"
    )
    assert suggestions == [f"class {n:05}" for n in range(40)]
    run_script(clean_browser, ENTER_CLASS, "class 00007")
    assert visible_queries(clean_browser) == [7]


def test_text_contrast_meets_wcag_aa(clean_browser, report_folder):
    """WCAG AA requires a contrast of 4.5 between text and its background."""
    script = """
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= .04045 ? v / 12.92
      : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const behind = (each) => { for (; each; each = each.parentElement) {
      const colour = parse(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour; } };
    const found = [];
    for (const each of document.querySelectorAll('main *, header *')) {
      if (![...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
      const exempt = each.closest('[disabled], [aria-disabled], .tip, .unseen');
      if (exempt || !each.checkVisibility()) continue;
      const back = behind(each), style = getComputedStyle(each), alpha = Number(style.opacity);
      const ink = parse(style.color).slice(0, 3).map((v, i) => v * alpha + back[i] * (1 - alpha));
      const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
      if ((a + .05) / (b + .05) < 4.5) found.push(each.outerHTML.slice(0, 80));
    }
    return [...new Set(found)];"""
    url = (report_folder / NAMES.page).as_uri()
    for scheme, tab in itertools.product(("light", "dark"), ("matches", "figures", "method")):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        clean_browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        open_page(clean_browser, f"{url}#tab={tab}")
        assert clean_browser.execute_script(script) == []
