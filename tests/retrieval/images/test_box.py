"""Tests of boxes: their text, what is refused, and the pixels they contain."""

import pytest

from retrieval.images.box import Box, make_box, split_box

PIXELS = [
    ((10, 20, 300, 200), "#xywh=10,20,300,200"),
    ((10.4, 20.5, 5.2, 4.9), "#xywh=10,21,6,4"),  # edges 10.4 to 15.6 and 20.5 to 25.4
    ((-10, -5.5, 30, 20), "#xywh=0,0,20,15"),
    ((0, 0, 1, 1), "#xywh=0,0,1,1"),
    ((1e8, 1e8, 1e9, 1), "#xywh=100000000,100000000,1000000000,1"),
]
RELATIVE = [
    ((0.1234, 0.2, 0.3, 0.4567), "#xywh=percent:12.34,20,30,45.67"),
    ((0.07, 0.1, 0.2, 0.3), "#xywh=percent:7,10,20,30"),
    ((0, 0, 1, 1), "#xywh=percent:0,0,100,100"),
    ((-0.05, 0.9, 0.3, 0.2), "#xywh=percent:0,90,25,10"),
    ((0.1234567, 0, 1 / 3, 2e-6), "#xywh=percent:12.3457,0,33.3333,0.0002"),
]


@pytest.mark.parametrize(
    ("units", "values", "text"),
    [("pixels", *case) for case in PIXELS] + [("relative", *case) for case in RELATIVE],
)
def test_box_is_written_and_read_again(units, values, text):
    box = make_box(values, units)
    assert str(box) == text
    path = f"/photos/a #1.jpg{text}"
    assert split_box(path) == ("/photos/a #1.jpg", box)
    assert split_box(f"parquet://image/3::/data.parquet{text}")[1] == box


def test_float32_values_make_the_same_box():
    import numpy as np

    values = (0.1234, 0.2, 0.3, 0.4567)
    assert make_box(np.float32(values).tolist(), "relative") == make_box(values, "relative")


@pytest.mark.parametrize(
    ("units", "values", "reason"),
    [
        ("pixels", (float("nan"), 0, 1, 1), "is not finite"),
        ("relative", (0, 0, float("inf"), 1), "is not finite"),
        ("pixels", (5, 5, -2, 4), "has a negative width or height"),
        ("pixels", (5, 5, 0, 4), "has no area"),
        ("relative", (0.5, 0.5, 0.1, 0), "has no area"),
        ("pixels", (-30, 0, 30, 10), "lies outside the image"),
        ("relative", (1, 0, 0.2, 0.2), "lies outside the image"),
        ("relative", (0.2, -0.4, 0.2, 0.3), "lies outside the image"),
        ("pixels", (2e9, 0, 10, 10), "lies outside the image"),
        ("pixels", (0.1, 0.2, 0.3, 0.4), "specify --box-units relative"),
        ("relative", (100, 50, 30, 20), "specify --box-units pixels"),
    ],
)
def test_values_that_are_no_box_are_refused(units, values, reason):
    with pytest.raises(ValueError, match=rf"^the box .*{reason}"):
        make_box(values, units)


@pytest.mark.parametrize(
    ("box", "size", "edges"),
    [
        (Box(10, 20, 30, 40, False), (100, 100), (10, 20, 40, 60)),
        (Box(10, 20, 300, 400, False), (100, 50), (10, 20, 100, 50)),
        (Box(250_000, 500_000, 500_000, 500_000, True), (200, 10), (50, 5, 150, 10)),
        (Box(333_333, 0, 333_334, 1_000_000, True), (3, 1), (1, 0, 2, 1)),
        (Box(0, 0, 1_000_000, 1_000_000, True), (4001, 2999), (0, 0, 4001, 2999)),
    ],
)
def test_edges_in_pixels_are_clipped_to_the_image(box, size, edges):
    assert box.edges(*size) == edges


@pytest.mark.parametrize("box", [Box(100, 0, 10, 10, False), Box(0, 0, 1000, 500_000, True)])
def test_box_without_a_pixel_is_refused(box):
    with pytest.raises(ValueError, match="contains no pixel of the image of 100 x 50"):
        box.edges(100, 50)


@pytest.mark.parametrize(
    "path",
    [
        "a.jpg", "a.jpg#", "#xywh=", "a#xywh=1,2,3", "a#xywh=1,2,3,4,5", "a#xywh=-1,2,3,4",
        "a#xywh=1,2,3,4.jpg", "a#xywh=percent:nan,2,3,4", "a#xywh=1e3,2,3,4", "a#xywh=٣,2,3,4",
        "a#xywh=1,2,3,4\n", "a#xywh=12345678901,2,3,4", "",
    ],
)  # fmt: skip
def test_other_paths_are_whole_images(path):
    assert split_box(path) == (path, None)
