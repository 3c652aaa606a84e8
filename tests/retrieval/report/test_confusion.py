"""Tests of the image of confused classes: one row per pair, mistakes in the colour of errors."""

import io

import numpy as np
from PIL import Image

from retrieval.report.charts.canvas import LIGHT
from retrieval.report.charts.confusion import draw_confusion_print


def jpeg(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def count_pixels(pixels, colour):
    return (np.abs(pixels.astype(int) - colour).sum(-1) < 60).sum()


def test_each_pair_is_row_of_photos_of_both_classes():
    pairs = [
        {"label": "emu", "predicted": "llama", "images": 2, "of": 9},
        {"label": "<b>$x$</b>\n猫", "predicted": "crab", "images": 1, "of": 3},
    ]
    red, green, blue = (jpeg(colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250)))
    data = draw_confusion_print(pairs, [[red], []], [[green, green], [green]], [[blue] * 9, [blue]])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    red_pixels = count_pixels(pixels, (250, 0, 0))
    assert red_pixels > 5000
    assert 2.5 * red_pixels < count_pixels(pixels, (0, 250, 0)) < 3.5 * red_pixels, (
        "three mistaken images"
    )
    assert 5.5 * red_pixels < count_pixels(pixels, (0, 0, 250)) < 6.5 * red_pixels, (
        "five of the first class, one of the second"
    )
    wrong = tuple(int(LIGHT.wrong[start : start + 2], 16) for start in (1, 3, 5))
    assert count_pixels(pixels, wrong) > 100
    assert data == draw_confusion_print(
        pairs, [[red], []], [[green, green], [green]], [[blue] * 9, [blue]]
    )
