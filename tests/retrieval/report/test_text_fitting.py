"""Tests of fitting names into images: width and missing glyphs."""

import unicodedata
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from retrieval.report.charts.canvas import matplotlib_style
from retrieval.report.charts.text_fitting import _advance, _charmap, fit_text

HOSTILE = [
    "$x^2$", "$", r"\frac{a}{b}", "a_b^c", "two\nlines\ttab\r", "x" * 300, "W" * 10**6, "",
    "\0\x1b[31m", "中文图像.jpg", "🐼🐼.png", "שלום", "مرحبا", "e\u0301" * 20, "a" + "\u0336" * 500,
    "\u202egpj.exe",
    "\ud800 lone", "\ue000 private", "%s {0} <b>&amp;</b>", "--> -- <!--",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("panda", "panda"), ("$x^2$", "$x^2$"), ("two\nlines", "two lines"), ("", "–"),
        ("\n\0", "–"), ("中a🐼", "□a□"), ("e\u0301", "é"), ("\u202egpj.exe", "gpj.exe"),
        ("\ud800", "□"), ("a" + "\u0336" * 99, "a"), ("שלום", "שלום"),
    ],
)  # fmt: skip
def test_fitted_text_of_name(name, expected):
    assert fit_text(name, 500, 8) == expected


def test_long_name_is_shortened_in_middle():
    fitted = fit_text("beginning-of-a-long-name-and-its-end.jpg", 100, 8)
    assert fitted.startswith("beginn")
    assert fitted.endswith("jpg")
    assert fitted.count("…") == 1


@settings(max_examples=200, deadline=None)
@given(st.text() | st.sampled_from(HOSTILE), st.floats(30, 300))
def test_any_name_fits_and_has_drawable_characters_only(name, width):
    fitted = fit_text(name, width, 8)
    assert fitted
    assert sum(map(_advance, fitted)) * 8 <= width + 1e-9
    assert {ord(character) for character in fitted} <= _charmap() | {0x25A1}
    assert not any(unicodedata.category(character).startswith("C") for character in fitted)


def test_hostile_names_are_drawn_without_warnings():
    with warnings.catch_warnings(), matplotlib_style():
        warnings.simplefilter("error")
        figure = Figure((4, 4))
        for number, name in enumerate(HOSTILE):
            for weight in ("normal", "bold"):
                figure.text(0, number / len(HOSTILE), fit_text(name, 200, 8), weight=weight)
        FigureCanvasAgg(figure).draw()
