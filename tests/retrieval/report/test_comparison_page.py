"""Tests of the page of the `compare` command: content, hostile names, and sorting."""

import re

import pytest

from retrieval.report.charts.comparison import draw_comparison
from retrieval.report.comparison_page import (
    ComparisonPage,
    best_per_network,
    format_combination,
    render,
)
from retrieval.storage.checksum import has_valid_checksum
from tests.retrieval.report.sample_pages import HOSTILE
from tests.retrieval.report.svg import texts
from tests.retrieval.report.test_browser import LONG_NAME, browser, clean_browser  # noqa: F401 - fixtures


def make_row(backbone, pooling, pca, metric, mean, **changes):
    measures = dict.fromkeys(("top1", "top3", "top10", "map"), mean)
    intervals = {
        f"{name}{suffix}": mean + offset
        for name in measures
        for suffix, offset in (("_low", -0.05), ("_high", 0.05))
    }
    fields = {"backbone": backbone, "pooling": pooling, "pca": pca, "metric": metric,
             "dimension": pca or 512, "queries": 9, "images": 9, "images_per_second": 12.5,
             "parameters": 1_500_000, "weight_bytes": 6_000_000}  # fmt: skip
    return {**fields, **measures, **intervals, **changes}


ROWS = [
    make_row("vgg16", "gem", 256, "cosine", 0.9),
    make_row("alexnet", "avg", None, "l2", 0.8, images_per_second=None),
    make_row("vgg16", "avg", None, "ip", 0.7, images_per_second=7.25),
]


def make_page(rows, **changes):
    return render(
        ComparisonPage(
            **{"summary": "9 images", "rows": rows, "notes": (), "method": ("so",)} | changes
        )
    )


def test_best_row_per_network_and_combination_labels():
    assert best_per_network(ROWS) == ROWS[:2]
    assert [format_combination(combination) for combination in ROWS] == [
        "gem, PCA\u00a0256, cosine",
        "avg, l2",
        "avg, ip",
    ]


def test_page_is_complete_without_javascript(tmp_path):
    path = tmp_path / "compare.html"
    path.write_bytes(make_page(ROWS, notes=("resnet18 is left out: no file",)))
    with open(path, "rb") as file:
        assert has_valid_checksum(file)
    html = path.read_text()
    cells = re.findall(r'data-value="([\d.]+)">([^<]*)', html)
    assert [shown.strip() for value, shown in cells if value == "0.9"] == ["0.900"] * 8
    assert html.count('<th scope="row">') == 5
    assert "resnet18 is left out: no file" in html
    assert make_page(ROWS) == make_page(ROWS)


def test_hostile_names_are_escaped():
    rows = [make_row(name, "gem", None, "cosine", 0.5) for name in (*HOSTILE, LONG_NAME)]
    html = make_page(rows, summary=HOSTILE[0], notes=HOSTILE, method=("so",)).decode()
    assert "<script>alert" not in html
    assert "<img src=x" not in html


def test_chart_lists_networks_in_order():
    drawing = draw_comparison(ROWS)
    assert "vgg16 0.900 [0.850, 0.950]; alexnet 0.800 [0.750, 0.850]." in drawing.alt
    chart = drawing.chart()
    for document in (chart.light, chart.dark):
        assert [text for text in texts(document) if text in ("vgg16", "alexnet")] == [
            "vgg16", "alexnet",
        ]  # fmt: skip
    assert drawing.png() == drawing.png()
    networks = [
        make_row(f"network{number}", "avg", None, "ip", 1 - number / 100) for number in range(80)
    ]
    assert draw_comparison(networks).size[1] > 15
    assert draw_comparison(networks).alt.endswith(", and 75 more below.")
    assert draw_comparison([make_row(HOSTILE[0], "avg", None, "ip", 0.0, map_low=0.0)]).chart()


def test_too_few_queries_have_no_intervals():
    missing_intervals = dict.fromkeys(
        f"{name}{suffix}"
        for name in ("top1", "top3", "top10", "map")
        for suffix in ("_low", "_high")
    )
    rows = [make_row("vgg16", "gem", None, "cosine", 0.9, **missing_intervals), ROWS[1]]
    html = make_page(rows).decode()
    assert html.count(" to 0.850") == 2, "mAP and top-1 of the other network only"
    assert "mAP 0.900; top-1 0.900." in html
    assert not re.search(r"\bnan\b|None", html)
    drawing = draw_comparison(rows)
    assert "vgg16 0.900; alexnet 0.800 [0.750, 0.850]." in drawing.alt
    assert drawing.chart().light != draw_comparison(ROWS[:2]).chart().light


@pytest.mark.parametrize("width", [360, 1600])
def test_click_on_heading_sorts_column(clean_browser, tmp_path, width):  # noqa: F811
    path = tmp_path / "compare.html"
    extra_rows = [make_row(name, "avg", None, "ip", 0.05) for name in (LONG_NAME, HOSTILE[0])]
    path.write_bytes(make_page([*ROWS, *extra_rows]))
    clean_browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})  # fmt: skip
    clean_browser.get(path.as_uri())
    assert clean_browser.execute_script("return document.documentElement.scrollWidth") <= width

    def click_heading(column):
        return clean_browser.execute_script(
            "const table = document.querySelectorAll('table.ranked')[1];"
            f"table.querySelectorAll('thead button')[{column}].click();"
            "return [...table.tBodies[0].rows].map(row => row.cells[7].textContent)"
        )

    assert click_heading(7) == ["12.5", "12.5", "12.5", "7.2", "–"]
    assert click_heading(7) == ["–", "7.2", "12.5", "12.5", "12.5"]
    assert click_heading(2)[:3] == ["12.5", "–", "7.2"]
