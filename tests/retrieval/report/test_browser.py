"""The report in a real browser: one file, a folder from disk and over http, with and without
JavaScript; whatever names say, nothing of theirs runs."""

import functools
import http.server
import os
import re
import shutil
import threading
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from retrieval.evaluation.results import ClassResult
from retrieval.report import page_slices
from retrieval.report.contact_sheet import PageFrame, render, render_first_page
from retrieval.report.facets import facets_script
from retrieval.report.names import ReportFiles, page_count
from retrieval.storage.local import open_folder
from tests.retrieval.report.pages import (
    HOSTILE,
    MEASURES,
    PICTURES,
    QUERIES,
    hostile,
    page_of,
    query,
    shown_of,
)

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
)  # fmt: skip
LONG = "2026/11/" + "Aufnahmen aus dem Zoologischen Garten, Gehege 14 " * 3 + "x" * 120 + ".jpg"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    reason = "needs selenium, chromium and chromedriver (make browser)"
    if not (CHROMIUM and DRIVER and find_spec("selenium")):
        unavailable = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        unavailable(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


@pytest.fixture
def quiet(browser):
    """Give the browser, which must have nothing to complain of afterwards."""
    size = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    yield browser
    assert browser.get_log("browser") == []  # neither errors nor what the policy had to stop


SINGLE = (
    *QUERIES[:3], hostile(HOSTILE[0])[0], hostile(HOSTILE[1])[0],
    replace(query("long", True, False), query_id=LONG, path="/photos/" + LONG, label=LONG),
    *(query(f"more{number}", True, True, True, False, margin=(number * 7 % 5) / 10)
      for number in range(20)),
    QUERIES[3], hostile(HOSTILE[0])[1], hostile(HOSTILE[1])[1],
)  # fmt: skip


def whole(queries, **other):
    return page_of(queries, title=HOSTILE[0], recall=LONG, facts=((LONG, LONG),),
                   classes=(ClassResult(LONG, 3, MEASURES), ClassResult("dog", 1, MEASURES)),
                   notes=(LONG,), **other)  # fmt: skip


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(render(whole(SINGLE), shown_of(SINGLE), PICTURES))
    return path.as_uri()


def many():
    """Give queries for a folder: of all states and some classes, some without margin, bad names."""
    generator = np.random.default_rng(3)
    for number in range(230):
        label = ("cat", "dog", "emu & <b>", None, "a=b&c#d")[generator.integers(5)]
        margin = float("nan") if number % 9 == 0 else round(float(generator.random()), 2)
        row = query(f"q{number:03}", bool(generator.integers(2)), True, label=label, margin=margin)
        name = HOSTILE[number % len(HOSTILE)] if number % 40 < len(HOSTILE) else row.query_id
        cells = tuple(replace(cell, path=f"/photos/{generator.integers(8)}.jpg", image_id=name)
                      for cell in row.matches)  # fmt: skip
        yield replace(row, query_id=f"{number:03}{name}", path="/photos/0.jpg", matches=cells)
    for number in range(7):
        yield query(f"{HOSTILE[number]} failed{number}", failure=HOSTILE[0], label="cat")


MANY = tuple(many())
NAMES = ReportFiles("my report#1.html")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Put a report in a folder, as the job does; one picture cannot be read."""
    where = tmp_path_factory.mktemp("folder")
    photos = tmp_path_factory.mktemp("photos")
    for number in range(7):
        Image.new("RGB", (300, 200), (number * 30, 90, 200)).save(photos / f"{number}.jpg")
    rows = [
        replace(row, path=row.path.replace("/photos", str(photos)), matches=tuple(
            replace(cell, path=cell.path.replace("/photos", str(photos))) for cell in row.matches))
        for row in MANY
    ]  # fmt: skip
    folder, shown = open_folder(str(where)), shown_of(rows)
    paths = shown.paths()
    missing = []
    for work in page_slices.thumbnail_slices(folder, NAMES, paths, max_pixels=10**7):
        missing += page_slices.write_thumbnails(work)
    assert str(photos / "7.jpg") in [paths[number] for number in missing]
    shown = shown.with_pictures(paths, missing)
    frame = PageFrame(HOSTILE[1], NAMES, page_count(len(shown)))
    page_slices.write_pages(page_slices.PageSlice(folder, frame, shown))
    page_slices.write_facets(folder, NAMES, facets_script(shown, NAMES))
    folder.put(NAMES.page, render_first_page(whole(rows), shown, NAMES))
    return where


@pytest.fixture(scope="module")
def served(root):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=root)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/my%20report%231.html"
    server.shutdown()
    server.server_close()


def opened(browser, url):
    browser.get("about:blank")
    browser.get(url)
    settle(browser)


def settle(browser):
    """Wait until what was chosen is in place."""
    browser.execute_async_script(
        "const done = arguments[0]; const look = () => document.getElementById('list')"
        ".hasAttribute('aria-busy') ? setTimeout(look, 5) : done(); setTimeout(look, 5)"
    )


def wait_for(browser, condition):
    """Wait until a condition in JavaScript holds; ten seconds are enough for any machine."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 10, 0.05).until(lambda b: b.execute_script(f"return {condition}"))


def choose(browser, script, *given):
    browser.execute_script(script, *given)
    settle(browser)


def visible(browser):
    """Give the numbers of the queries that are in the page."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.query')].map((row) => Number(row.id.slice(1)))"
    )


def click(browser, value):
    choose(browser, f"document.querySelector('button[value={value}]').click()")


SORT = (
    "const menu = document.getElementById('sort'); menu.value = arguments[0];"
    "menu.dispatchEvent(new Event('change'))"
)
CLASS = (
    "const field = document.getElementById('class'); field.value = arguments[0];"
    "field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change'))"
)


def status(browser):
    return browser.execute_script("return document.getElementById('status').textContent")


def expected(queries, show="all", label=None, sort="name"):
    """Choose and sort as the page should."""
    found = [
        number for number, each in enumerate(queries)
        if (show == "all" or each.state == show) and label in (None, each.label)
    ]  # fmt: skip
    sign = {"name": 0, "least": 1, "most": -1}[sort]
    known = [number for number in found if queries[number].margin == queries[number].margin]
    if sign:
        known.sort(key=lambda number: (sign * queries[number].margin, number))
        return known + [number for number in found if number not in set(known)]
    return found


# --- one file ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 900, 1600])
@pytest.mark.parametrize(
    ("kind", "scheme"), [("single", "light"), ("folder", "dark"), ("further", "light")]
)
def test_nothing_overflows(quiet, single, root, kind, width, scheme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    quiet.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    quiet.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    page = {"single": single, "folder": (root / NAMES.page).as_uri(),
            "further": (root / NAMES.further_page(3)).as_uri()}[kind]  # fmt: skip
    quiet.get(page)
    for first in ("document.body", "document.querySelector('.matches figure')"):
        quiet.execute_script(
            f"{first}.focus();document.querySelectorAll('details').forEach((d) => d.open = true)"
        )
        across, inner = quiet.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth]"
        )  # fmt: skip
        assert inner == width
        assert across <= width
    ground = quiet.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 300) is (scheme == "dark")
    left = quiet.execute_script(
        "const right = document.querySelector('.ask').getBoundingClientRect().right;"
        "return right < document.querySelector('.matches').getBoundingClientRect().left"
    )
    assert left is (width > 520)  # the query stands beside its matches, or above them


def test_what_can_be_touched_is_large_enough(quiet, root):
    size = {"width": 360, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    quiet.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened(quiet, (root / NAMES.page).as_uri())
    heights = quiet.execute_script(
        "return [...document.querySelectorAll('.filter :is(button, input, select),"
        " .pages :is(a, input)')].map((each) => each.getBoundingClientRect().height)"
    )
    assert min(heights) >= 44


def test_a_hostile_name_does_not_run(quiet, single):
    opened(quiet, single)
    assert quiet.title == HOSTILE[0]  # an alert would make this raise, a script would change it
    assert quiet.execute_script("return document.querySelectorAll('img, script').length") == 2
    heading = quiet.execute_script("return document.querySelectorAll('.query h3')[3].textContent")
    assert heading == HOSTILE[0]


def test_pictures_are_drawn_where_they_are_used(quiet, single):
    opened(quiet, single)
    sizes = quiet.execute_script(
        "return [...document.querySelectorAll('.picture use')].slice(0, 2)"
        ".map((use) => use.getBBox().width)"
    )
    assert sizes == [160, 160]


def test_filters_and_order_of_one_file(quiet, single):
    opened(quiet, single)
    assert visible(quiet) == list(range(len(SINGLE)))
    for value in ("wrong", "failed"):
        click(quiet, value)
        assert visible(quiet) == expected(SINGLE, value)
        pressed = quiet.execute_script("return document.querySelector('[aria-pressed=true]').value")
        assert pressed == value
        assert status(quiet) == f"{len(expected(SINGLE, value))} of {len(SINGLE)} queries"
    choose(quiet, CLASS, "DOG")
    assert visible(quiet) == expected(SINGLE, "failed", "dog")
    choose(quiet, CLASS, "nobody")
    assert visible(quiet) == []
    assert quiet.execute_script("return document.getElementById('empty').checkVisibility()")
    choose(quiet, CLASS, "")
    click(quiet, "all")
    for sort in ("least", "most", "name"):
        choose(quiet, SORT, sort)
        assert visible(quiet) == expected(SINGLE, sort=sort)
    assert quiet.execute_script("return location.hash") == ""
    assert not quiet.execute_script("return document.querySelector('.pages').checkVisibility()")


def press(browser, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()
    settle(browser)
    return browser.execute_script(
        "const row = document.querySelector('[aria-current]');"
        "return row && row === document.activeElement ? Number(row.id.slice(1)) : null"
    )


def test_keys_walk_the_queries(quiet, single):
    from selenium.webdriver import ActionChains, Keys

    opened(quiet, single)
    assert [press(quiet, key) for key in ("j", "j", Keys.ARROW_RIGHT)] == [0, 1, 2]
    assert [press(quiet, key) for key in ("k", Keys.ARROW_LEFT, "k")] == [1, 0, 0]
    ActionChains(quiet).send_keys(Keys.TAB, Keys.TAB).perform()
    tip = quiet.execute_script(
        "const tip = document.activeElement.querySelector('.tip');"
        "return tip.checkVisibility({visibilityProperty: true}) && tip.textContent"
    )
    assert tip == "cat · /photos/cat/1.jpg"


# --- a folder ----------------------------------------------------------------------------------


def test_without_javascript_pages_are_linked_and_whole(quiet, root):
    quiet.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        quiet.get((root / NAMES.page).as_uri())
        seen = visible(quiet)
        assert not quiet.execute_script(
            "return document.getElementById('filter').checkVisibility()"
        )
        for _ in range(4):
            quiet.get(quiet.execute_script("return document.querySelector('[rel=next]').href"))
            while quiet.execute_script("return document.readyState") != "complete":
                pass  # the driver does not wait where scripts are off
            seen += visible(quiet)
        assert seen == list(range(len(MANY)))
        assert not quiet.execute_script("return document.querySelector('[rel=next]').href")
        loaded = quiet.execute_script(
            "const image = document.images[0]; image.loading = 'eager';"
            "return image.decode().then(() => image.naturalWidth)"
        ) if visible(quiet)[0] < 230 else 160  # fmt: skip
        assert loaded == 160
        quiet.get(quiet.execute_script("return document.querySelector('header a').href"))
        assert quiet.title == HOSTILE[0]
    finally:
        quiet.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def walked(browser):
    """Give the numbers of all queries that are chosen, page after page."""
    seen = visible(browser)
    while browser.execute_script("return Boolean(document.querySelector('[rel=next]').href)"):
        choose(browser, "document.querySelector('[rel=next]').click()")
        seen += visible(browser)
    return seen


@pytest.mark.parametrize("where", ["disk", "http"])
def test_filters_and_order_work_over_all_queries(quiet, root, served, where):
    opened(quiet, (root / NAMES.page).as_uri() if where == "disk" else served)
    assert walked(quiet) == list(range(len(MANY)))
    chosen = [("all", "least", None), ("wrong", "most", None), ("wrong", "least", "a=b&c#d"),
              ("failed", "name", "cat")]  # fmt: skip
    for show, sort, label in chosen if where == "disk" else chosen[1:3]:
        click(quiet, show)
        choose(quiet, SORT, sort)
        choose(quiet, CLASS, label or "")
        wanted = expected(MANY, show, label, sort)
        assert walked(quiet) == wanted
        count = quiet.execute_script(
            "return document.querySelector(`button[value=${arguments[0]}] span`).textContent", show
        )
        assert int(count) == len(expected(MANY, show, label))
        choose(quiet, CLASS, "")
    names = quiet.execute_script("return document.title")
    assert names == HOSTILE[0]


def test_the_state_stands_in_the_hash(quiet, root):
    url = (root / NAMES.page).as_uri()
    opened(quiet, url + "#show=wrong&sort=least&page=2")
    wanted = expected(MANY, "wrong", None, "least")
    assert visible(quiet) == wanted[50:100]
    assert status(quiet) == f"51–{min(100, len(wanted))} of {len(wanted)} queries"
    choose(quiet, CLASS, "emu & <b>")
    assert visible(quiet) == expected(MANY, "wrong", "emu & <b>", "least")[:50]
    told = quiet.execute_script("return location.href")
    opened(quiet, told)
    assert visible(quiet) == expected(MANY, "wrong", "emu & <b>", "least")[:50]
    assert quiet.execute_script("return document.getElementById('class').value") == "emu & <b>"
    choose(quiet, "history.go(0)")
    settle(quiet)
    assert visible(quiet) == expected(MANY, "wrong", "emu & <b>", "least")[:50]
    choose(quiet, "document.querySelector('.classes a[href*=dog]').click()")
    assert visible(quiet) == expected(MANY, "all", "dog")[:50]
    opened(quiet, url + "#show=nonsense&class=nobody&page=99&sort=up")
    assert visible(quiet) == []
    assert quiet.execute_script("return document.getElementById('empty').checkVisibility()")
    choose(quiet, "document.querySelector('#empty a').click()")
    assert visible(quiet) == list(range(50))
    choose(quiet, "document.querySelector('.skip').click()")
    assert visible(quiet) == list(range(50))


def test_keys_walk_across_pages(quiet, root):
    opened(quiet, (root / NAMES.page).as_uri())
    assert press(quiet, "j") == 0
    choose(quiet, "[...document.querySelectorAll('.query')].at(-1).scrollIntoView()")
    assert [press(quiet, key) for key in ("jj", "k", "k", "n", "n", "p", "p")][-4:] == [
        50, 100, 50, 0,
    ]  # fmt: skip
    quiet.execute_script("document.querySelector('.query:last-child').scrollIntoView()")
    walk = [press(quiet, "j") for _ in range(4)]
    assert walk[walk.index(49) :][:2] == [49, 50]
    assert [press(quiet, "k"), press(quiet, "k")][-1] in (48, 49, 50)
    field = "const field = document.querySelector('.pages input'); field.value = arguments[0];"
    choose(quiet, field + "field.dispatchEvent(new Event('change'))", "5")
    assert visible(quiet) == list(range(200, 237))
    focused = quiet.execute_script("return document.activeElement.id")
    assert focused == "queries"
    assert quiet.execute_script(
        "return document.querySelector('.pages [rel=next]').getAttribute('aria-disabled')"
    ) == "true"  # fmt: skip
    assert press(quiet, "n") is None
    assert visible(quiet) == list(range(200, 237))


def test_pictures_come_from_the_folder_and_nothing_jumps(quiet, root):
    opened(quiet, (root / NAMES.page).as_uri())
    before = quiet.execute_script("return document.getElementById('list').scrollHeight")
    widths = quiet.execute_async_script(
        "const done = arguments[0], all = [...document.images];"
        "all.forEach((image) => image.loading = 'eager');"
        "Promise.all(all.map((image) => image.decode())).then(() =>"
        " done([...new Set(all.map((image) => image.naturalWidth))]))"
    )
    assert widths == [160]
    assert quiet.execute_script("return document.getElementById('list').scrollHeight") == before
    assert quiet.execute_script("return document.querySelectorAll('.picture .none').length") > 0


def test_hostile_names_do_not_run_from_chunks(quiet, root):
    opened(quiet, (root / NAMES.page).as_uri() + "#page=5")
    failed = quiet.execute_script("return document.querySelectorAll('.failed h3')[0].textContent")
    assert failed == f"{HOSTILE[0]} failed0.jpg"
    assert quiet.title == HOSTILE[0]
    assert quiet.execute_script("return document.querySelectorAll('#list script').length") == 0
    outside = quiet.execute_script(
        "return [...document.images].filter((image) => !image.src.includes('/thumbnails/')).length"
    )
    assert outside == 0


def test_a_page_without_its_folder_says_so(browser, root, tmp_path):
    shutil.copy(root / NAMES.page, tmp_path / "alone.html")
    browser.get((tmp_path / "alone.html").as_uri())
    told = "document.getElementById('filter').textContent"
    wait_for(browser, f"{told}.includes('the folder beside it is missing')")
    assert len(visible(browser)) == 50
    browser.get_log("browser")


def test_a_chunk_that_is_missing_is_told(browser, root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    (tmp_path / "copy" / NAMES.chunk(2)).unlink()
    browser.get((tmp_path / "copy" / NAMES.page).as_uri() + "#page=2")
    told = "document.getElementById('status').textContent"
    wait_for(browser, f"{told}.includes('could not be loaded')")
    browser.get_log("browser")


def test_the_class_can_be_found_among_many(quiet, tmp_path):
    rows = [query(f"q{n}", True, label=f"class {n:05}") for n in range(3000)]
    shown = shown_of(rows)
    folder = open_folder(str(tmp_path))
    page_slices.write_facets(folder, NAMES, facets_script(shown, NAMES))
    shown = shown.with_pictures([], [])
    folder.put(NAMES.page, render_first_page(page_of(rows), shown, NAMES))
    opened(quiet, (tmp_path / NAMES.page).as_uri())
    offered = quiet.execute_script(
        "const field = document.getElementById('class'); field.value = 'CLASS 000';"
        "field.dispatchEvent(new Event('input'));"
        "return [...document.querySelectorAll('datalist option')].map((each) => each.value)"
    )
    assert offered == [f"class {n:05}" for n in range(40)]
    choose(quiet, CLASS, "class 00007")
    assert visible(quiet) == [7]


def test_contrast_is_enough(quiet, root):
    """WCAG AA: 4.5 for text, against what lies behind it."""
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
    for scheme in ("light", "dark"):
        wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        quiet.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
        opened(quiet, (root / NAMES.page).as_uri())
        assert quiet.execute_script(script) == []
