"""Tests of the contact print, an image of queries and matches: positions, frames, captions."""

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from retrieval.report.charts import contact_print
from retrieval.report.charts.canvas import LIGHT
from retrieval.report.charts.contact_print import (
    SIDE_BY_SIDE_MATCHES,
    Photo,
    Ranking,
    Row,
    draw_contact_print,
    format_distance,
)
from tests.retrieval.report.svg import open_png

COLOURS = ["red", "lime", "blue", "yellow", "magenta", "cyan", "black", "orange", "gray", "navy"]


def jpeg(colour, size=(160, 160)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def pixel(left, top):
    return round(left * contact_print._DPI), round(top * contact_print._DPI)


def match_corner(row, block, number, columns):
    """Return the upper left corner of a match's photo in inches."""
    left = contact_print._MARGIN + contact_print._SIDE + contact_print._GAP
    left += (
        block * (columns * contact_print._STEP + contact_print._GAP) + number * contact_print._STEP
    )
    return left, contact_print._TOP + row * contact_print._ROW


def match_center(row, block, number, columns):
    left, top = match_corner(row, block, number, columns)
    return pixel(left + contact_print._SIDE / 2, top + contact_print._SIDE / 2)


def is_close(pixel, colour, tolerance=12):
    expected = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) <= tolerance


def make_photo(number, grade=-2):
    return Photo(f"m{number}", jpeg(COLOURS[number]), "0.125", grade)


@pytest.fixture
def drawn_texts(monkeypatch):
    """Return a list that receives every text drawn, in order."""
    written_texts = []
    original = Axes.text

    def record_text(self, x, y, s, *arguments, **keywords):
        written_texts.append(s)
        return original(self, x, y, s, *arguments, **keywords)

    monkeypatch.setattr(Axes, "text", record_text)
    return written_texts


def test_photos_are_drawn_at_their_positions():
    rows = [
        Row(Photo("q", jpeg("white")), (tuple(make_photo((n + row) % 10) for n in range(10)),))
        for row in range(2)
    ]
    image = open_png(draw_contact_print("t", [Ranking("Matches", "cosine")], rows))
    for row in range(2):
        for number in range(10):
            assert is_close(
                image.getpixel(match_center(row, 0, number, 10)), COLOURS[(number + row) % 10]
            )
    left = contact_print._MARGIN + contact_print._SIDE / 2
    assert is_close(
        image.getpixel(pixel(left, contact_print._TOP + contact_print._SIDE / 2)), "white"
    )


def test_two_rankings_are_drawn_side_by_side_with_names(drawn_texts):
    rows = [
        Row(
            Photo("q", None),
            tuple(tuple(map(make_photo, numbers)) for numbers in ((0, 1, 2), (3, 4))),
        )
    ]
    rankings = [
        Ranking("before $1$", "cosine", SIDE_BY_SIDE_MATCHES),
        Ranking("after", "l2", SIDE_BY_SIDE_MATCHES),
    ]
    image = open_png(draw_contact_print("t", rankings, rows))
    for block, numbers in enumerate(((0, 1, 2), (3, 4))):
        for column, number in enumerate(numbers):
            assert is_close(
                image.getpixel(match_center(0, block, column, SIDE_BY_SIDE_MATCHES)),
                COLOURS[number],
            )
    assert is_close(image.getpixel(match_center(0, 1, 2, SIDE_BY_SIDE_MATCHES)), "white")
    assert drawn_texts.index("before $1$") < drawn_texts.index("after")
    assert "left distance 1 − cosine, smaller is closer; right Euclidean" in " ".join(drawn_texts)


def test_relevant_and_wrong_matches_differ_by_colour_sign_and_frame(drawn_texts):
    rows = [
        Row(
            Photo("q", None),
            ((make_photo(0, 1), make_photo(1, 0), make_photo(2, -1), make_photo(3, 3)),),
        )
    ]
    image = open_png(draw_contact_print("t", [Ranking("", "cosine")], rows))
    assert {"✓ m0", "✗ m1", "m2", "✓ m3"} <= set(drawn_texts)
    frames = []
    for number in range(4):
        left, top = match_corner(0, 0, number, 10)
        y = pixel(0, top - contact_print._FRAME)[1]
        x0, x1 = pixel(left, 0)[0], pixel(left + contact_print._SIDE, 0)[0]
        frames.append([image.getpixel((x, y)) for x in range(x0, x1)])
    assert all(is_close(color, LIGHT.right, 90) for color in frames[0] + frames[3])
    is_frame = [is_close(color, LIGHT.wrong, 90) for color in frames[1]]
    assert 0.4 < np.mean(is_frame) < 0.9  # a dashed frame
    assert all(is_close(color, "white", 2) for color in frames[2])


def test_unreadable_photos_are_marked_and_photos_are_not_cropped(drawn_texts):
    rows = [
        Row(Photo("q", None), ((Photo("wide", jpeg("red", (160, 20)), "1"),),)),
        Row(make_photo(0), ((),)),
    ]
    image = open_png(draw_contact_print("t", [Ranking("", "ip")], rows))
    assert {"not\nreadable", "no match"} <= set(drawn_texts)
    left, top = match_corner(0, 0, 0, 10)
    tile = tuple(bytes.fromhex(LIGHT.tile[1:]))
    assert image.getpixel(pixel(left + 0.02, top + 0.1)) == tile
    for x in (0.03, contact_print._SIDE - 0.03):
        assert is_close(image.getpixel(pixel(left + x, top + contact_print._SIDE / 2)), "red")


def test_hostile_names_are_cut_without_warnings(drawn_texts):
    names = ["$x^2$", "中文\n🐼", "x" * 300, "\u202e\0", "", "a\u0336" * 99]
    matches = tuple(Photo(name, None, name, 0) for name in names)
    first = draw_contact_print(
        "$t$ " + "W" * 999, [Ranking("中$" * 200, "l2")], [Row(Photo("$", None), (matches,))]
    )
    assert first == draw_contact_print(
        "$t$ " + "W" * 999, [Ranking("中$" * 200, "l2")], [Row(Photo("$", None), (matches,))]
    )
    assert {"✗ $x^2$", "✗ □□ □", "✗ –"} <= set(drawn_texts)
    assert all(len(text) < 20 for text in drawn_texts if text.startswith("✗ "))


def test_print_without_queries_is_heading_only():
    assert open_png(draw_contact_print("t", [Ranking("", "cosine")], [])).height == 170


@pytest.mark.parametrize(
    ("score", "metric", "expected"),
    [
        (0.877, "cosine", "0.123"), (1.0000000002, "cosine", "0.000"), (-0.5, "cosine", "1.500"),
        (4.0, "l2", "2.000"), (0.0, "l2", "0.000"), (-1e-12, "l2", "0.000"), (1e10, "l2", "1e+05"),
        (-0.25, "ip", "−0.250"), (123.456, "ip", "123.456"), (-0.0001, "ip", "0.000"),
    ],
)  # fmt: skip
def test_formatted_distance_of_score(score, metric, expected):
    assert format_distance(score, metric) == expected
