"""Test the picture of queries and matches: positions, frames and captions."""

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from retrieval.report.charts import contact_print as prints
from retrieval.report.charts.canvas import LIGHT
from retrieval.report.charts.contact_print import (
    SIDE_BY_SIDE_MATCHES,
    Photo,
    Ranking,
    Row,
    draw_contact_print,
    format_distance,
)
from tests.retrieval.report.svg import opened

COLOURS = ["red", "lime", "blue", "yellow", "magenta", "cyan", "black", "orange", "gray", "navy"]


def jpeg(colour, size=(160, 160)):
    sink = io.BytesIO()
    Image.new("RGB", size, colour).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def pixel(left, top):
    return round(left * prints._DPI), round(top * prints._DPI)


def place(row, block, number, columns):
    """The upper left corner of a match's photo, in inches."""
    left = prints._MARGIN + prints._SIDE + prints._GAP
    left += block * (columns * prints._STEP + prints._GAP) + number * prints._STEP
    return left, prints._TOP + row * prints._ROW


def middle(row, block, number, columns):
    left, top = place(row, block, number, columns)
    return pixel(left + prints._SIDE / 2, top + prints._SIDE / 2)


def close(pixel, colour, by=12):
    expected = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) <= by


def shown(number, grade=-2):
    return Photo(f"m{number}", jpeg(COLOURS[number]), "0.125", grade)


@pytest.fixture
def said(monkeypatch):
    """Every text that is written, in order."""
    written = []
    write = Axes.text

    def noting(self, x, y, s, *given, **more):
        written.append(s)
        return write(self, x, y, s, *given, **more)

    monkeypatch.setattr(Axes, "text", noting)
    return written


def test_each_photo_stands_in_its_place():
    rows = [
        Row(Photo("q", jpeg("white")), (tuple(shown((n + row) % 10) for n in range(10)),))
        for row in range(2)
    ]
    image = opened(draw_contact_print("t", [Ranking("Matches", "cosine")], rows))
    for row in range(2):
        for number in range(10):
            assert close(image.getpixel(middle(row, 0, number, 10)), COLOURS[(number + row) % 10])
    left = prints._MARGIN + prints._SIDE / 2
    assert close(image.getpixel(pixel(left, prints._TOP + prints._SIDE / 2)), "white")


def test_two_rankings_stand_side_by_side_each_with_its_name(said):
    rows = [Row(Photo("q", None), tuple(tuple(map(shown, part)) for part in ((0, 1, 2), (3, 4))))]
    heads = [
        Ranking("before $1$", "cosine", SIDE_BY_SIDE_MATCHES),
        Ranking("after", "l2", SIDE_BY_SIDE_MATCHES),
    ]
    image = opened(draw_contact_print("t", heads, rows))
    for block, numbers in enumerate(((0, 1, 2), (3, 4))):
        for at, number in enumerate(numbers):
            assert close(
                image.getpixel(middle(0, block, at, SIDE_BY_SIDE_MATCHES)), COLOURS[number]
            )
    assert close(image.getpixel(middle(0, 1, 2, SIDE_BY_SIDE_MATCHES)), "white")
    assert said.index("before $1$") < said.index("after")
    assert "left distance 1 − cosine, smaller is closer; right Euclidean" in " ".join(said)


def test_right_and_wrong_differ_by_colour_sign_and_line(said):
    rows = [Row(Photo("q", None), ((shown(0, 1), shown(1, 0), shown(2, -1), shown(3, 3)),))]
    image = opened(draw_contact_print("t", [Ranking("", "cosine")], rows))
    assert {"✓ m0", "✗ m1", "m2", "✓ m3"} <= set(said)
    frames = []
    for number in range(4):
        left, top = place(0, 0, number, 10)
        y = pixel(0, top - prints._FRAME)[1]
        x0, x1 = pixel(left, 0)[0], pixel(left + prints._SIDE, 0)[0]
        frames.append([image.getpixel((x, y)) for x in range(x0, x1)])
    assert all(close(one, LIGHT.right, 90) for one in frames[0] + frames[3])
    drawn = [close(one, LIGHT.wrong, 90) for one in frames[1]]
    assert 0.4 < np.mean(drawn) < 0.9  # dashes
    assert all(close(one, "white", 2) for one in frames[2])


def test_what_cannot_be_read_says_so_and_the_whole_of_a_photo_is_shown(said):
    rows = [
        Row(Photo("q", None), ((Photo("wide", jpeg("red", (160, 20)), "1"),),)),
        Row(shown(0), ((),)),
    ]
    image = opened(draw_contact_print("t", [Ranking("", "ip")], rows))
    assert {"not\nreadable", "no match"} <= set(said)
    left, top = place(0, 0, 0, 10)
    tile = tuple(bytes.fromhex(LIGHT.tile[1:]))
    assert image.getpixel(pixel(left + 0.02, top + 0.1)) == tile
    for x in (0.03, prints._SIDE - 0.03):
        assert close(image.getpixel(pixel(left + x, top + prints._SIDE / 2)), "red")


def test_hostile_names_neither_warn_nor_leave_their_cell(said):
    names = ["$x^2$", "中文\n🐼", "x" * 300, "\u202e\0", "", "a\u0336" * 99]
    matches = tuple(Photo(name, None, name, 0) for name in names)
    made = draw_contact_print(
        "$t$ " + "W" * 999, [Ranking("中$" * 200, "l2")], [Row(Photo("$", None), (matches,))]
    )
    assert made == draw_contact_print(
        "$t$ " + "W" * 999, [Ranking("中$" * 200, "l2")], [Row(Photo("$", None), (matches,))]
    )
    assert {"✗ $x^2$", "✗ □□ □", "✗ –"} <= set(said)
    assert all(len(text) < 20 for text in said if text.startswith("✗ "))


def test_a_print_without_queries_is_a_heading():
    assert opened(draw_contact_print("t", [Ranking("", "cosine")], [])).height == 170


@pytest.mark.parametrize(
    ("score", "metric", "written"),
    [
        (0.877, "cosine", "0.123"), (1.0000000002, "cosine", "0.000"), (-0.5, "cosine", "1.500"),
        (4.0, "l2", "2.000"), (0.0, "l2", "0.000"), (-1e-12, "l2", "0.000"), (1e10, "l2", "1e+05"),
        (-0.25, "ip", "−0.250"), (123.456, "ip", "123.456"), (-0.0001, "ip", "0.000"),
    ],
)  # fmt: skip
def test_the_distance_below_a_match(score, metric, written):
    assert format_distance(score, metric) == written
