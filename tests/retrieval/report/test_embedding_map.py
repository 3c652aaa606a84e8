"""Test the map of the gallery: positions, colours and thumbnails."""

import io

import numpy as np
import pytest
from PIL import Image

from retrieval.report.charts import embedding_map as maps
from retrieval.report.charts.canvas import HEADING, LIGHT
from retrieval.report.charts.embedding_map import THUMBNAIL_SIDE, compute_layout, draw_map
from tests.retrieval.report.svg import layer, opened, texts


def jpeg(colour, size=(60, 40)):
    sink = io.BytesIO()
    Image.new("RGB", size, colour).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def rgb(colour):
    return tuple(bytes.fromhex(colour[1:]))


def pixel_of(drawing, layout, number):
    """Where an image stands in the PNG: the map lies `_EDGE` below the heading."""
    x, y = layout.points[number]
    top = HEADING + maps._EDGE + maps._HIGH - y
    return round((maps._LEFT + x) * 200), round(top * 200)


def close(pixel, colour, by=30):
    return max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= by


def clusters(count=30):
    """Two classes, far apart along the first axis, and one image of a third class between."""
    vectors = np.random.default_rng(0).normal(0, 0.1, (count, 5)).astype(np.float32)
    vectors[: count // 2, 0] += 5
    vectors[-1] = (2.5, 1, 0, 0, 0)
    return vectors, ["bear"] * (count // 2) + ["ant"] * (count - count // 2 - 1) + ["cat"]


def test_photos_stand_where_they_belong_and_dots_have_the_colours_of_their_classes():
    vectors, labels = clusters()
    layout = compute_layout(vectors)
    photos = {number: jpeg("magenta") for number in layout.thumbnails}
    one = draw_map(layout, labels, photos, 30)
    image = opened(one.png())
    for number in layout.thumbnails:
        assert close(image.getpixel(pixel_of(one, layout, number)), (255, 0, 255))
    colours = dict(zip(["bear", "ant", "cat"], LIGHT.classes, strict=False))
    plain = opened(draw_map(layout, labels, {}, 30).png())
    for number in (0, 20, 29):
        assert close(
            plain.getpixel(pixel_of(one, layout, number)), rgb(colours[labels[number]]), 60
        )
    assert layer(one.chart().light).size == layer(one.chart().dark).size


def test_a_frame_has_the_colour_of_the_class():
    vectors, labels = clusters()
    layout = compute_layout(vectors)
    number = layout.thumbnails[0]
    image = opened(draw_map(layout, labels, {number: jpeg("white")}, 30).png())
    x, y = pixel_of(None, layout, number)
    edge = image.getpixel((x - round(THUMBNAIL_SIDE / 2 * 200), y))
    assert close(edge, rgb(LIGHT.classes[0]), 60)


def test_the_key_names_the_largest_classes_and_counts_the_others():
    vectors = np.random.default_rng(0).normal(size=(66, 4)).astype(np.float32)
    labels = [f"class{a:02}" for a in range(11) for _ in range(a + 1)]
    labels[0], labels[1] = None, "distractor"
    one = draw_map(compute_layout(vectors), labels, {}, 1000)
    said = texts(one.chart().light)
    named = [text for text in said if text.startswith("class")]
    assert named == [f"class{a:02}" for a in range(10, 2, -1)]
    assert "2 other classes" in said
    assert one.title == "Map of 66 of 1,000 images"


def test_without_labels_all_have_one_colour_and_there_is_no_key():
    vectors, labels = clusters()
    plain, named = (draw_map(compute_layout(vectors), ls, {}, 30) for ls in ([None] * 30, labels))
    assert len(texts(plain.chart().light)) == 2  # the axes
    assert plain.size[1] < named.size[1]
    assert plain.title == "Map of 30 images"
    layout = compute_layout(vectors)
    assert close(
        opened(plain.png()).getpixel(pixel_of(plain, layout, 0)), rgb(LIGHT.accent), 60
    )  # fmt: skip


def test_the_axes_say_what_they_show():
    vectors = np.zeros((4, 3), np.float16)
    vectors[0, 0], vectors[1, 0], vectors[2, 1], vectors[3, 1] = 3, -3, 1, -1
    said = texts(draw_map(compute_layout(vectors), [None] * 4, {}, 4).chart().light)
    assert said == ["axis 1: 90% of the variance", "axis 2: 10% of the variance"]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("equal", [False, True])
def test_a_few_or_equal_vectors_are_a_map_too(count, equal):
    vectors = np.ones((count, 4), np.float16) if equal else np.eye(count, 4, dtype=np.float16)
    layout = compute_layout(vectors)
    one = draw_map(layout, ["$a$\n"] * count, {0: jpeg("lime", (1, 300))}, count)
    assert close(opened(one.png()).getpixel(pixel_of(one, layout, 0)), (0, 255, 0))
    assert len(layout.thumbnails) == (1 if equal else count)
    assert "$a$" in texts(one.chart().light)
    assert "image" in one.title


def test_photos_lie_within_the_map_without_overlap_and_the_chart_stays_small():
    vectors = np.random.default_rng(3).normal(size=(1200, 16)).astype(np.float32)
    layout = compute_layout(vectors)
    points = layout.points
    assert (points >= THUMBNAIL_SIDE / 2 - 1e-3).all()
    assert (points <= np.array([maps._WIDE, maps._HIGH]) - THUMBNAIL_SIDE / 2 + 1e-3).all()
    chosen = points[list(layout.thumbnails)]
    gaps = np.abs(chosen[:, None] - chosen[None]).max(2)
    assert (gaps[~np.eye(len(chosen), dtype=bool)] >= THUMBNAIL_SIDE).all()
    noise = np.random.default_rng(4).integers(0, 255, (40, 40, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).resize((160, 160)).save(sink, "JPEG", quality=80)
    photos = dict.fromkeys(layout.thumbnails, sink.getvalue())
    one = draw_map(layout, [None] * 1200, photos, 1200)
    assert len(one.chart().light) < 110_000  # of noise; photos take half
    assert one.png() == one.png()
