"""Tests of the map of the gallery: positions, colours and thumbnails."""

import io

import numpy as np
import pytest
from PIL import Image

from retrieval.report.charts import embedding_map
from retrieval.report.charts.canvas import HEADING, LIGHT
from retrieval.report.charts.embedding_map import THUMBNAIL_SIDE, compute_layout, draw_map
from tests.retrieval.report.svg import layer, open_png, texts


def jpeg(colour, size=(60, 40)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def rgb(colour):
    return tuple(bytes.fromhex(colour[1:]))


def pixel_of(drawing, layout, number):
    """Return the position of an image in the PNG; the map begins `_EDGE` below the heading."""
    x, y = layout.points[number]
    top = HEADING + embedding_map._EDGE + embedding_map._HIGH - y
    return round((embedding_map._LEFT + x) * 200), round(top * 200)


def is_close(pixel, colour, tolerance=30):
    return max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= tolerance


def clusters(count=30):
    """Return vectors and labels: two separated classes, and one image of a third in between."""
    vectors = np.random.default_rng(0).normal(0, 0.1, (count, 5)).astype(np.float32)
    vectors[: count // 2, 0] += 5
    vectors[-1] = (2.5, 1, 0, 0, 0)
    return vectors, ["bear"] * (count // 2) + ["ant"] * (count - count // 2 - 1) + ["cat"]


def test_thumbnails_and_class_coloured_dots_are_at_their_positions():
    vectors, labels = clusters()
    layout = compute_layout(vectors)
    photos = {number: jpeg("magenta") for number in layout.thumbnails}
    drawing = draw_map(layout, labels, photos, 30)
    image = open_png(drawing.png())
    for number in layout.thumbnails:
        assert is_close(image.getpixel(pixel_of(drawing, layout, number)), (255, 0, 255))
    colours = dict(zip(["bear", "ant", "cat"], LIGHT.classes, strict=False))
    plain = open_png(draw_map(layout, labels, {}, 30).png())
    for number in (0, 20, 29):
        assert is_close(
            plain.getpixel(pixel_of(drawing, layout, number)), rgb(colours[labels[number]]), 60
        )
    assert layer(drawing.chart().light).size == layer(drawing.chart().dark).size


def test_thumbnail_frame_has_class_colour():
    vectors, labels = clusters()
    layout = compute_layout(vectors)
    number = layout.thumbnails[0]
    image = open_png(draw_map(layout, labels, {number: jpeg("white")}, 30).png())
    x, y = pixel_of(None, layout, number)
    edge = image.getpixel((x - round(THUMBNAIL_SIDE / 2 * 200), y))
    assert is_close(edge, rgb(LIGHT.classes[0]), 60)


def test_legend_names_largest_classes_and_counts_others():
    vectors = np.random.default_rng(0).normal(size=(66, 4)).astype(np.float32)
    labels = [f"class{number:02}" for number in range(11) for _ in range(number + 1)]
    labels[0], labels[1] = None, "distractor"
    drawing = draw_map(compute_layout(vectors), labels, {}, 1000)
    chart_texts = texts(drawing.chart().light)
    labelled = [text for text in chart_texts if text.startswith("class")]
    assert labelled == [f"class{number:02}" for number in range(10, 2, -1)]
    assert "2 other classes" in chart_texts
    assert drawing.title == "Map of 66 of 1,000 images"


def test_unlabelled_map_has_one_colour_and_no_legend():
    vectors, labels = clusters()
    plain, labelled = (
        draw_map(compute_layout(vectors), class_labels, {}, 30)
        for class_labels in ([None] * 30, labels)
    )
    assert len(texts(plain.chart().light)) == 2  # the axis labels
    assert plain.size[1] < labelled.size[1]
    assert plain.title == "Map of 30 images"
    layout = compute_layout(vectors)
    assert is_close(
        open_png(plain.png()).getpixel(pixel_of(plain, layout, 0)), rgb(LIGHT.accent), 60
    )  # fmt: skip


def test_axis_labels_state_share_of_variance():
    vectors = np.zeros((4, 3), np.float16)
    vectors[0, 0], vectors[1, 0], vectors[2, 1], vectors[3, 1] = 3, -3, 1, -1
    chart_texts = texts(draw_map(compute_layout(vectors), [None] * 4, {}, 4).chart().light)
    assert chart_texts == ["axis 1: 90% of the variance", "axis 2: 10% of the variance"]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("identical", [False, True])
def test_map_of_few_or_identical_vectors(count, identical):
    vectors = np.ones((count, 4), np.float16) if identical else np.eye(count, 4, dtype=np.float16)
    layout = compute_layout(vectors)
    drawing = draw_map(layout, ["$a$\n"] * count, {0: jpeg("lime", (1, 300))}, count)
    assert is_close(open_png(drawing.png()).getpixel(pixel_of(drawing, layout, 0)), (0, 255, 0))
    assert len(layout.thumbnails) == (1 if identical else count)
    assert "$a$" in texts(drawing.chart().light)
    assert "image" in drawing.title


def test_thumbnails_do_not_overlap_and_chart_is_small():
    vectors = np.random.default_rng(3).normal(size=(1200, 16)).astype(np.float32)
    layout = compute_layout(vectors)
    points = layout.points
    assert (points >= THUMBNAIL_SIDE / 2 - 1e-3).all()
    assert (
        points <= np.array([embedding_map._WIDE, embedding_map._HIGH]) - THUMBNAIL_SIDE / 2 + 1e-3
    ).all()
    selected = points[list(layout.thumbnails)]
    gaps = np.abs(selected[:, None] - selected[None]).max(2)
    assert (gaps[~np.eye(len(selected), dtype=bool)] >= THUMBNAIL_SIDE).all()
    noise = np.random.default_rng(4).integers(0, 255, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((160, 160)).save(buffer, "JPEG", quality=80)
    photos = dict.fromkeys(layout.thumbnails, buffer.getvalue())
    drawing = draw_map(layout, [None] * 1200, photos, 1200)
    assert len(drawing.chart().light) < 110_000  # noise; photographs need half of it
    assert drawing.png() == drawing.png()
