"""Tests of charts: texts, light and dark themes, and reproducible bytes."""

import threading

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pytest

from retrieval.core.records import Certificate
from retrieval.core.schemas import HISTORY, RECALL
from retrieval.evaluation.reliability import measure_reliability
from retrieval.report.charts.canvas import DARK, LIGHT, matplotlib_style
from retrieval.report.charts.curves import _spread, draw_curves
from retrieval.report.charts.recall import draw_recall
from retrieval.report.charts.reliability import draw_reliability
from retrieval.report.charts.scores import draw_scores
from tests.retrieval.report.svg import open_png, parts, size, styles, texts

RANDOM = np.random.default_rng(0)


def curve(ks=(1, 10, 100), probes=(1, 2, 4, 8, 16, 32, 64)):
    """Return a recall curve by gap (a gap of n / 100 reads n lists) and by nprobe."""
    ends = [(n, 1 - 0.4 / n, 1 - 0.45 / n, 1 - 0.35 / n, 500) for n in probes]
    rows = [
        row
        for k in ks
        for row in [(k, end[0] / 100, 8 * end[0], *end) for end in ends]
        + [(k, np.inf, end[0], *end) for end in ends]
    ]
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=RECALL.schema)


def certificate(**changes):
    values = {
        "nprobe": 4, "nlist": 64, "target": 0.95, "recall": 0.95, "low": 0.94, "high": 0.96,
        "sample": 100, "passes": 1, "search_recall": 0.91, "search_low": 0.89,
        "search_high": 0.93, "queries": 200,
    }  # fmt: skip
    return Certificate(**(values | changes))


def history(epochs, **changes):
    columns = {
        "epoch": pa.array(range(1, epochs + 1), pa.int32()),
        "loss": [3 / (epoch + 1) for epoch in range(epochs)],
        "accuracy": [0.5] * epochs,
        "top1": [epoch / epochs for epoch in range(epochs)],
    }
    return pa.table({**columns, **changes})


def reliability(queries=40):
    probabilities = RANDOM.random((queries, 5)).ravel()
    right = RANDOM.random(5 * queries) < probabilities
    ranks = np.tile(np.arange(1, 6), queries)
    return measure_reliability(probabilities, right, np.repeat(np.arange(queries), 5), ranks)


def make_drawings():
    scores = {"right": RANDOM.normal(0.8, 0.05, 300), "wrong": RANDOM.normal(0.6, 0.1, 500)}
    return [
        draw_recall(curve(), certificate(), 10),
        draw_scores(scores, "cosine"),
        draw_curves(history(20), 15),
        draw_reliability({"held-out folds": reliability(), "these matches": reliability()}),
    ]


@pytest.mark.parametrize("drawing", make_drawings(), ids=lambda drawing: drawing.name)
def test_charts_are_reproducible_in_both_themes_and_as_png(drawing):
    chart = drawing.chart()
    with mpl.rc_context({"font.size": 30, "svg.hashsalt": None, "axes.facecolor": "red"}):
        assert drawing.chart() == chart
    assert drawing.png() == drawing.png()
    assert (chart.name, chart.title, chart.alt) == (drawing.name, drawing.title, drawing.alt)
    assert chart.alt.endswith(".")
    assert chart.light != chart.dark
    assert size(chart.light) == size(chart.dark)
    assert size(chart.light) == pytest.approx((drawing.size[0] * 72, drawing.size[1] * 72))
    assert texts(chart.light) == texts(chart.dark)
    for document, theme, other in ((chart.light, LIGHT, DARK), (chart.dark, DARK, LIGHT)):
        assert len(document) < 60_000
        assert theme.soft in document.decode()
        assert other.soft not in document.decode()
        assert b"<dc:date>" not in document
        assert b"matplotlib.org" not in document
    image = open_png(drawing.png())
    assert image.width == round(drawing.size[0] * 200)
    assert image.getpixel((1, 1)) == (255, 255, 255)


def test_matplotlib_settings_are_restored_and_threads_draw_alike():
    before = dict(mpl.rcParams)
    charts, expected = [], make_drawings()[1].chart()
    drawing = make_drawings()[1]
    threads = [threading.Thread(target=lambda: charts.append(drawing.chart())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert charts[0] == charts[1] == charts[2]
    assert len(expected.light) == pytest.approx(len(charts[0].light), rel=0.2)
    with matplotlib_style():
        assert mpl.rcParams["svg.hashsalt"]
    assert dict(mpl.rcParams) == before


# --- recall ---------------------------------------------------------------------------------------


def test_recall_chart_labels_choice_target_and_measurement():
    drawing = draw_recall(curve(), certificate(), 10)
    chart_texts = texts(drawing.chart().light)
    assert drawing.title == "Recall@10 against lists read"
    assert {"4 of 64 lists read", "target 0.95", "queries 0.910 [0.890, 0.930]"} <= set(chart_texts)
    ticks = [text for text in chart_texts if text.isdigit()]
    assert ticks == ["1", "2", "4", "8", "16", "32", "64"]
    for number in ("0.600", "0.994", "0.95", "0.910"):
        assert number in drawing.alt


def test_recall_chart_by_gap_shows_the_mean_number_of_lists():
    drawing = draw_recall(curve(), certificate(gap=0.1, nprobe=64, lists=6.54), 10)
    assert "6.5 of 64 lists read" in texts(drawing.chart().light)
    assert "6.5 were read" in drawing.alt


@pytest.mark.parametrize(("k", "measured"), [(1, 1), (2, 10), (11, 100), (1000, 100)])
def test_recall_chart_uses_next_larger_measured_k(k, measured):
    assert draw_recall(curve(), certificate(), k).title.startswith(f"Recall@{measured} ")


def test_recall_chart_without_sample_has_no_measured_point():
    chart_texts = texts(draw_recall(curve(), certificate(sample=0), 10).chart().light)
    assert not [text for text in chart_texts if text.startswith("queries")]


def test_no_recall_chart_if_all_lists_were_read_or_none_measured():
    assert draw_recall(curve(), certificate(nprobe=64), 10) is None
    assert draw_recall(RECALL.schema.empty_table(), certificate(), 10) is None


@pytest.mark.parametrize("nlist", [2, 3, 1000, 65536])
def test_recall_chart_has_at_most_eight_ticks(nlist):
    probes = tuple(sorted({1, *(2**n for n in range(17) if 2**n < nlist), nlist}))
    drawing = draw_recall(curve(probes=probes), certificate(nprobe=1, nlist=nlist), 10)
    ticks = [text for text in texts(drawing.chart().light) if text.replace(",", "").isdigit()]
    assert 2 <= len(ticks) <= 8


# --- scores ---------------------------------------------------------------------------------------


def score_groups(case):
    return {
        "only right": {"right": RANDOM.normal(size=50)},
        "only wrong": {"wrong": RANDOM.normal(size=50), "right": np.empty(0)},
        "only unknown": {"unknown": RANDOM.normal(size=50)},
        "all equal": {"right": np.full(9, 0.25), "wrong": np.full(3, 0.25)},
        "one": {"wrong": np.array([-3.5])},
        "zero": {"right": np.zeros(4)},
        "tiny": {"right": np.array([1e-300, 2e-300])},
        "huge": {"right": np.array([-1.7e308, 1.7e308]), "wrong": np.array([0.0])},
        "not finite": {"right": np.array([np.nan, np.inf, 1.0]), "wrong": np.array([np.nan])},
    }[case]


@pytest.mark.parametrize(
    "case",
    ["only right", "only wrong", "only unknown", "all equal", "one", "zero", "tiny", "huge"],
)
def test_score_chart_counts_each_group(case):
    groups = score_groups(case)
    chart_texts = texts(draw_scores(groups, "ip").chart().light)
    expected = {f"{name} ({len(scores)})" for name, scores in groups.items() if len(scores)}
    assert expected == {text for text in chart_texts if text.endswith(")") and "→" not in text}


def test_score_chart_ignores_non_finite_scores():
    chart_texts = texts(draw_scores(score_groups("not finite"), "ip").chart().light)
    assert "right (1)" in chart_texts
    assert not [text for text in chart_texts if text.startswith("wrong")]
    assert draw_scores({"right": np.array([np.nan])}, "ip") is None
    assert draw_scores({}, "ip") is None


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("cosine", "cosine (larger is closer →)"),
        ("ip", "dot product (larger is closer →)"),
        ("l2", "(← smaller is closer) squared distance"),
    ],
)
def test_score_axis_label_names_closer_direction(metric, label):
    assert label in texts(draw_scores(score_groups("one"), metric).chart().dark)


def test_relevant_and_wrong_scores_differ_by_line_and_hatching():
    style = styles(draw_scores(score_groups("all equal"), "cosine").chart().light)
    assert "stroke-dasharray: 6,2.25" in style  # wrong
    assert "fill: url(#h" in style  # wrong: hatched
    assert f"fill: {LIGHT.right}" in style


def test_score_groups_share_bins_and_have_equal_area():
    wrong, right = RANDOM.normal(0, 1, 20_000), RANDOM.normal(0, 1, 200)
    arguments = draw_scores({"right": right, "wrong": wrong}, "ip").draw.keywords
    assert arguments["edges"][0] == min(wrong.min(), right.min())
    assert arguments["edges"][-1] == max(wrong.max(), right.max())
    for name, scores in (("right", right), ("wrong", wrong)):
        expected, _ = np.histogram(scores, arguments["edges"], density=True)
        ratio = arguments["bars"][name][expected > 0] / expected[expected > 0]
        assert np.allclose(ratio, ratio[0])
        assert arguments["bars"][name].mean() == pytest.approx(1)


def test_ten_million_scores_are_drawn_as_histogram():
    scores = np.linspace(-1, 1, 10**7)
    chart = draw_scores({"right": scores, "wrong": scores[:3]}, "cosine").chart()
    assert "right (10,000,000)" in texts(chart.light)


# --- training -------------------------------------------------------------------------------------


def test_training_chart_labels_curves_and_kept_epoch():
    drawing = draw_curves(history(20), 15)
    chart_texts = texts(drawing.chart().light)
    assert {"accuracy 0.50", "top-1 0.95", "loss 0.15", "epoch 15 kept"} <= set(chart_texts)
    assert "mAP" not in " ".join(chart_texts)
    assert len(parts(drawing.chart().light, "axes")) == 2
    assert "top-1 0.700" in drawing.alt


def test_training_chart_draws_map_column():
    drawing = draw_curves(history(3, map=[0.1, 0.2, 0.3]), 3)
    assert "mAP 0.30" in texts(drawing.chart().light)


def test_training_chart_omits_null_accuracy():
    drawing = draw_curves(history(3, accuracy=pa.nulls(3, pa.float64())), 3)
    assert "accuracy" not in drawing.alt + " ".join(texts(drawing.chart().light))


def test_training_chart_of_one_and_no_epoch():
    assert "epoch 1 kept" in texts(draw_curves(history(1), 1).chart().light)
    assert draw_curves(HISTORY.schema.empty_table(), 1) is None


def test_overlapping_curve_labels_are_spread():
    for heights in ([0.0, 0.0, 0.0], [1.0, 1.0, 0.99], [0.5, 0.2, 0.51], [0.3], []):
        positions = _spread(heights, 0.1)
        assert all(0 <= position <= 1 for position in positions)
        gaps = np.diff(sorted(positions))
        assert (gaps >= 0.1 - 1e-9).all()
        assert list(np.argsort(positions, kind="stable")) == list(
            np.argsort(heights, kind="stable")
        )


def test_reliability_states_its_figures_and_needs_matches():
    curve = reliability()
    drawing = draw_reliability({"held-out folds": curve})
    assert f"calibration error {curve.calibration_error:.3f}" in drawing.alt
    assert "200 matches of 40 queries" in drawing.alt
    assert draw_reliability({}) is None
