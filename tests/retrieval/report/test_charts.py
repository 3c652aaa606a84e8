"""Test charts: texts, both themes, and deterministic bytes."""

import threading

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pytest

from retrieval.core.records import Certificate
from retrieval.core.schemas import HISTORY, RECALL
from retrieval.report.charts.canvas import DARK, LIGHT, matplotlib_style
from retrieval.report.charts.curves import _spread, draw_curves
from retrieval.report.charts.recall import draw_recall
from retrieval.report.charts.scores import draw_scores
from tests.retrieval.report.svg import opened, parts, size, styles, texts

RANDOM = np.random.default_rng(0)


def curve(ks=(1, 10, 100), probes=(1, 2, 4, 8, 16, 32, 64)):
    rows = [
        (k, nprobe, 1 - 0.4 / nprobe, 1 - 0.45 / nprobe, 1 - 0.35 / nprobe, 500)
        for k in ks
        for nprobe in probes
    ]
    return pa.table([list(c) for c in zip(*rows, strict=True)], schema=RECALL.schema)


def certificate(**given):
    values = {
        "nprobe": 4, "nlist": 64, "target": 0.95, "recall": 0.95, "low": 0.94, "high": 0.96,
        "sample": 100, "passes": 1, "search_recall": 0.91, "search_low": 0.89,
        "search_high": 0.93, "queries": 200,
    }  # fmt: skip
    return Certificate(**(values | given))


def history(epochs, **more):
    columns = {
        "epoch": pa.array(range(1, epochs + 1), pa.int32()),
        "loss": [3 / (one + 1) for one in range(epochs)],
        "accuracy": [0.5] * epochs,
        "top1": [one / epochs for one in range(epochs)],
    }
    return pa.table({**columns, **more})


def drawings():
    scores = {"right": RANDOM.normal(0.8, 0.05, 300), "wrong": RANDOM.normal(0.6, 0.1, 500)}
    return [
        draw_recall(curve(), certificate(), 10),
        draw_scores(scores, "cosine"),
        draw_curves(history(20), 15),
    ]


@pytest.mark.parametrize("one", drawings(), ids=lambda one: one.name)
def test_the_same_input_gives_the_same_bytes_in_each_theme_and_as_png(one):
    chart = one.chart()
    with mpl.rc_context({"font.size": 30, "svg.hashsalt": None, "axes.facecolor": "red"}):
        assert one.chart() == chart
    assert one.png() == one.png()
    assert (chart.name, chart.title, chart.alt) == (one.name, one.title, one.alt)
    assert chart.alt.endswith(".")
    assert chart.light != chart.dark
    assert size(chart.light) == size(chart.dark)
    assert size(chart.light) == pytest.approx((one.size[0] * 72, one.size[1] * 72))
    assert texts(chart.light) == texts(chart.dark)
    for document, theme, other in ((chart.light, LIGHT, DARK), (chart.dark, DARK, LIGHT)):
        assert len(document) < 60_000
        assert theme.soft in document.decode()
        assert other.soft not in document.decode()
        assert b"<dc:date>" not in document
        assert b"matplotlib.org" not in document
    image = opened(one.png())
    assert image.width == round(one.size[0] * 200)
    assert image.getpixel((1, 1)) == (255, 255, 255)


def test_settings_of_matplotlib_are_put_back_and_threads_draw_one_at_a_time():
    before = dict(mpl.rcParams)
    made, whole = [], drawings()[1].chart()
    one = drawings()[1]
    threads = [threading.Thread(target=lambda: made.append(one.chart())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0] == made[1] == made[2]
    assert len(whole.light) == pytest.approx(len(made[0].light), rel=0.2)
    with matplotlib_style():
        assert mpl.rcParams["svg.hashsalt"]
    assert dict(mpl.rcParams) == before


# --- recall --------------------------------------------------------------------------------------


def test_recall_names_what_was_chosen_asked_for_and_measured():
    one = draw_recall(curve(), certificate(), 10)
    said = texts(one.chart().light)
    assert one.title == "Recall@10 against lists read"
    assert {"4 of 64 lists read", "target 0.95", "queries 0.910 [0.890, 0.930]"} <= set(said)
    assert [t for t in said if t.isdigit()] == ["1", "2", "4", "8", "16", "32", "64"]
    for number in ("0.600", "0.994", "0.95", "0.910"):
        assert number in one.alt


@pytest.mark.parametrize(("k", "measured"), [(1, 1), (2, 10), (11, 100), (1000, 100)])
def test_recall_is_that_of_the_next_larger_k_measured(k, measured):
    assert draw_recall(curve(), certificate(), k).title.startswith(f"Recall@{measured} ")


def test_recall_without_a_sample_shows_no_measured_point():
    said = texts(draw_recall(curve(), certificate(sample=0), 10).chart().light)
    assert not [text for text in said if text.startswith("queries")]


def test_there_is_no_curve_where_all_lists_were_read_or_nothing_was_measured():
    assert draw_recall(curve(), certificate(nprobe=64), 10) is None
    assert draw_recall(RECALL.schema.empty_table(), certificate(), 10) is None


@pytest.mark.parametrize("nlist", [2, 3, 1000, 65536])
def test_recall_has_few_ticks_for_any_number_of_lists(nlist):
    probes = tuple(sorted({1, *(2**n for n in range(17) if 2**n < nlist), nlist}))
    one = draw_recall(curve(probes=probes), certificate(nprobe=1, nlist=nlist), 10)
    ticks = [text for text in texts(one.chart().light) if text.replace(",", "").isdigit()]
    assert 2 <= len(ticks) <= 8


# --- scores --------------------------------------------------------------------------------------


def groups_of(kind):
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
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["only right", "only wrong", "only unknown", "all equal", "one", "zero", "tiny", "huge"],
)
def test_any_scores_are_drawn_and_each_group_is_counted(kind):
    groups = groups_of(kind)
    said = texts(draw_scores(groups, "ip").chart().light)
    there = {f"{name} ({len(scores)})" for name, scores in groups.items() if len(scores)}
    assert there == {text for text in said if text.endswith(")") and "→" not in text}


def test_scores_that_are_no_numbers_are_not_counted():
    said = texts(draw_scores(groups_of("not finite"), "ip").chart().light)
    assert "right (1)" in said
    assert not [text for text in said if text.startswith("wrong")]
    assert draw_scores({"right": np.array([np.nan])}, "ip") is None
    assert draw_scores({}, "ip") is None


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("cosine", "cosine (larger is closer →)"),
        ("ip", "dot product (larger is closer →)"),
        ("l2", "(← smaller is closer) squared distance"),
    ],
)
def test_the_axis_says_what_is_closer(metric, said):
    assert said in texts(draw_scores(groups_of("one"), metric).chart().dark)


def test_right_and_wrong_differ_by_more_than_colour():
    style = styles(draw_scores(groups_of("all equal"), "cosine").chart().light)
    assert "stroke-dasharray: 6,2.25" in style  # wrong
    assert "fill: url(#h" in style  # wrong, hatched
    assert f"fill: {LIGHT.right}" in style


def test_groups_share_their_bins_and_have_one_area():
    many, few = RANDOM.normal(0, 1, 20_000), RANDOM.normal(0, 1, 200)
    draw = draw_scores({"right": few, "wrong": many}, "ip").draw.keywords
    assert draw["edges"][0] == min(many.min(), few.min())
    assert draw["edges"][-1] == max(many.max(), few.max())
    for name, scores in (("right", few), ("wrong", many)):
        expected, _ = np.histogram(scores, draw["edges"], density=True)
        ratio = draw["bars"][name][expected > 0] / expected[expected > 0]
        assert np.allclose(ratio, ratio[0])
        assert draw["bars"][name].mean() == pytest.approx(1)


def test_ten_million_scores_are_no_more_than_a_histogram():
    scores = np.linspace(-1, 1, 10**7)
    chart = draw_scores({"right": scores, "wrong": scores[:3]}, "cosine").chart()
    assert "right (10,000,000)" in texts(chart.light)


# --- training ------------------------------------------------------------------------------------


def test_training_names_each_curve_at_its_end_and_the_epoch_kept():
    one = draw_curves(history(20), 15)
    said = texts(one.chart().light)
    assert {"accuracy 0.50", "top-1 0.95", "loss 0.15", "epoch 15 kept"} <= set(said)
    assert "mAP" not in " ".join(said)
    assert len(parts(one.chart().light, "axes")) == 2
    assert "top-1 0.700" in one.alt


def test_a_column_map_is_drawn_where_there_is_one():
    one = draw_curves(history(3, map=[0.1, 0.2, 0.3]), 3)
    assert "mAP 0.30" in texts(one.chart().light)


def test_an_accuracy_that_nobody_knows_is_not_drawn():
    one = draw_curves(history(3, accuracy=pa.nulls(3, pa.float64())), 3)
    assert "accuracy" not in one.alt + " ".join(texts(one.chart().light))


def test_one_epoch_is_a_point_and_none_is_no_chart():
    assert "epoch 1 kept" in texts(draw_curves(history(1), 1).chart().light)
    assert draw_curves(HISTORY.schema.empty_table(), 1) is None


def test_names_of_curves_that_end_together_are_moved_apart():
    for heights in ([0.0, 0.0, 0.0], [1.0, 1.0, 0.99], [0.5, 0.2, 0.51], [0.3], []):
        moved = _spread(heights, 0.1)
        assert all(0 <= one <= 1 for one in moved)
        gaps = np.diff(sorted(moved))
        assert (gaps >= 0.1 - 1e-9).all()
        assert list(np.argsort(moved, kind="stable")) == list(np.argsort(heights, kind="stable"))
