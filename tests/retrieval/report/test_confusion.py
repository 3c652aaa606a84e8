"""Test the picture of confused classes: one row per pair, mistakes framed as wrong."""

import io

import numpy as np
from PIL import Image

from retrieval.report.charts.canvas import LIGHT
from retrieval.report.charts.confusion import draw_confusion_print


def photo(colour):
    sink = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def near(pixels, colour):
    return (np.abs(pixels.astype(int) - colour).sum(-1) < 60).sum()


def test_each_pair_is_a_row_of_photos_of_both_classes():
    pairs = [
        {"label": "emu", "predicted": "llama", "images": 2, "of": 9},
        {"label": "<b>$x$</b>\n猫", "predicted": "crab", "images": 1, "of": 3},
    ]
    red, green, blue = (photo(c) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250)))
    data = draw_confusion_print(pairs, [[red], []], [[green, green], [green]], [[blue] * 9, [blue]])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    one = near(pixels, (250, 0, 0))
    assert one > 5000
    assert 2.5 * one < near(pixels, (0, 250, 0)) < 3.5 * one, "three that were mistaken"
    assert 5.5 * one < near(pixels, (0, 0, 250)) < 6.5 * one, "five of the first, one of the second"
    wrong = tuple(int(LIGHT.wrong[n : n + 2], 16) for n in (1, 3, 5))
    assert near(pixels, wrong) > 100
    assert data == draw_confusion_print(
        pairs, [[red], []], [[green, green], [green]], [[blue] * 9, [blue]]
    )
