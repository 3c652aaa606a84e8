"""Test the page of the `compare` command: content, hostile names, and sorting."""

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
from tests.retrieval.report.pages import HOSTILE
from tests.retrieval.report.svg import texts
from tests.retrieval.report.test_browser import LONG, browser, quiet  # noqa: F401 - fixtures


def row(backbone, pooling, pca, metric, mean, **more):
    figures = dict.fromkeys(("top1", "top3", "top10", "map"), mean)
    ends = {f"{name}{end}": mean + by for name in figures
            for end, by in (("_low", -0.05), ("_high", 0.05))}  # fmt: skip
    known = {"backbone": backbone, "pooling": pooling, "pca": pca, "metric": metric,
             "dimension": pca or 512, "queries": 9, "images": 9, "images_per_second": 12.5,
             "parameters": 1_500_000, "weight_bytes": 6_000_000}  # fmt: skip
    return {**known, **figures, **ends, **more}


ROWS = [
    row("vgg16", "gem", 256, "cosine", 0.9),
    row("alexnet", "avg", None, "l2", 0.8, images_per_second=None),
    row("vgg16", "avg", None, "ip", 0.7, images_per_second=7.25),
]


def page_of(rows, **more):
    return render(
        ComparisonPage(
            **{"summary": "9 images", "rows": rows, "notes": (), "method": ("so",)} | more
        )
    )


def test_the_best_of_each_and_how_a_combination_is_called():
    assert best_per_network(ROWS) == ROWS[:2]
    assert [format_combination(one) for one in ROWS] == [
        "gem, PCA\u00a0256, cosine",
        "avg, l2",
        "avg, ip",
    ]


def test_all_stands_on_the_page_without_javascript(tmp_path):
    path = tmp_path / "compare.html"
    path.write_bytes(page_of(ROWS, notes=("resnet18 is left out: no file",)))
    with open(path, "rb") as file:
        assert has_valid_checksum(file)
    html = path.read_text()
    cells = re.findall(r'data-value="([\d.]+)">([^<]*)', html)
    assert [shown.strip() for value, shown in cells if value == "0.9"] == ["0.900"] * 8
    assert html.count('<th scope="row">') == 5
    assert "resnet18 is left out: no file" in html
    assert page_of(ROWS) == page_of(ROWS)


def test_names_are_written_as_they_are():
    rows = [row(name, "gem", None, "cosine", 0.5) for name in (*HOSTILE, LONG)]
    html = page_of(rows, summary=HOSTILE[0], notes=HOSTILE, method=("so",)).decode()
    assert "<script>alert" not in html
    assert "<img src=x" not in html


def test_the_chart_names_networks_in_their_order():
    drawing = draw_comparison(ROWS)
    assert "vgg16 0.900 [0.850, 0.950]; alexnet 0.800 [0.750, 0.850]." in drawing.alt
    chart = drawing.chart()
    for document in (chart.light, chart.dark):
        assert [text for text in texts(document) if text in ("vgg16", "alexnet")] == [
            "vgg16", "alexnet",
        ]  # fmt: skip
    assert drawing.png() == drawing.png()
    many = [row(f"network{place}", "avg", None, "ip", 1 - place / 100) for place in range(80)]
    assert draw_comparison(many).size[1] > 15
    assert draw_comparison(many).alt.endswith(", and 75 more below.")
    assert draw_comparison([row(HOSTILE[0], "avg", None, "ip", 0.0, map_low=0.0)]).chart()


def test_where_queries_are_too_few_there_is_no_interval():
    none = dict.fromkeys(f"{name}{end}" for name in ("top1", "top3", "top10", "map")
                          for end in ("_low", "_high"))  # fmt: skip
    rows = [row("vgg16", "gem", None, "cosine", 0.9, **none), ROWS[1]]
    html = page_of(rows).decode()
    assert html.count(" to 0.850") == 2, "of the other network: mAP and top-1"
    assert "mAP 0.900; top-1 0.900." in html
    assert not re.search(r"\bnan\b|None", html)
    drawing = draw_comparison(rows)
    assert "vgg16 0.900; alexnet 0.800 [0.750, 0.850]." in drawing.alt
    assert drawing.chart().light != draw_comparison(ROWS[:2]).chart().light


@pytest.mark.parametrize("width", [360, 1600])
def test_a_column_is_sorted_where_its_heading_is_pressed(quiet, tmp_path, width):  # noqa: F811
    path = tmp_path / "compare.html"
    odd = [row(name, "avg", None, "ip", 0.05) for name in (LONG, HOSTILE[0])]
    path.write_bytes(page_of([*ROWS, *odd]))
    quiet.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})  # fmt: skip
    quiet.get(path.as_uri())
    assert quiet.execute_script("return document.documentElement.scrollWidth") <= width

    def pressed(column):
        return quiet.execute_script(
            "const table = document.querySelectorAll('table.ranked')[1];"
            f"table.querySelectorAll('thead button')[{column}].click();"
            "return [...table.tBodies[0].rows].map(row => row.cells[7].textContent)"
        )

    assert pressed(7) == ["12.5", "12.5", "12.5", "7.2", "–"]
    assert pressed(7) == ["–", "7.2", "12.5", "12.5", "12.5"]
    assert pressed(2)[:3] == ["12.5", "–", "7.2"]
