"""Test thumbnails: size, orientation, background, and unreadable images."""

import io
import os
import tarfile
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from retrieval.core.errors import StorageFailure
from retrieval.report.thumbnails import make_thumbnail, read_thumbnails
from retrieval.storage import folder, retry

BOUND = 10**7


def encoded(image, kind="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def opened(data):
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    return image.convert("RGB")


def halves(width, height):
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def close(pixel, colour):
    return max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 40


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (160, 120)),
        ((480, 640), (120, 160)),
        ((160, 160), (160, 160)),
        ((40, 20), (160, 80)),  # enlarged: all stand equally large
        ((3000, 2), (160, 1)),
        ((1, 1), (160, 160)),
    ],
)
def test_the_longer_side_is_as_asked_and_nothing_is_cropped(size, expected):
    small = opened(make_thumbnail(encoded(halves(*size)), max_pixels=BOUND))
    assert small.size == expected
    if size[0] > 3:
        assert close(small.getpixel((2, small.height // 2)), (255, 0, 0))
        assert close(small.getpixel((small.width - 3, small.height // 2)), (0, 0, 255))


def test_another_side():
    assert opened(make_thumbnail(encoded(halves(64, 32)), side=48, max_pixels=BOUND)).size == (
        48,
        24,
    )


@pytest.mark.parametrize(
    ("orientation", "red"),
    [(1, "left"), (2, "right"), (3, "right"), (4, "left"),
     (5, "top"), (6, "top"), (7, "bottom"), (8, "bottom")],
)  # fmt: skip
def test_exif_orientation_is_obeyed(orientation, red):
    exif = Image.Exif()
    exif[0x0112] = orientation
    small = opened(
        make_thumbnail(encoded(halves(400, 200), "JPEG", exif=exif, quality=95), max_pixels=BOUND)
    )
    assert small.size == ((160, 80) if red in ("left", "right") else (80, 160))
    across, down = small.size
    at = {
        "left": (8, down // 2),
        "right": (across - 8, down // 2),
        "top": (across // 2, 8),
        "bottom": (across // 2, down - 8),
    }
    assert close(small.getpixel(at[red]), (255, 0, 0))
    # turned already, it must not ask to be turned again
    assert 0x0112 not in small.getexif()


def test_what_is_transparent_stands_on_white():
    image = Image.new("RGBA", (100, 100), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (50, 0, 100, 100))
    small = opened(make_thumbnail(encoded(image), max_pixels=BOUND))
    assert close(small.getpixel((20, 80)), (255, 255, 255))
    assert close(small.getpixel((140, 80)), (0, 0, 255))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16"])
def test_every_mode_becomes_a_colour_jpeg(mode):
    image = Image.new(mode, (80, 60))
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert opened(make_thumbnail(encoded(image, kind), max_pixels=BOUND)).size == (160, 120)


def test_the_decoder_s_own_errors_come_through():
    for bound in (100, 9999):
        with pytest.raises(Image.DecompressionBombError, match=r"10000 pixels|100 x 100 pixels"):
            make_thumbnail(encoded(halves(100, 100)), max_pixels=bound)
    with pytest.raises(OSError, match="cannot identify"):
        make_thumbnail(b"not an image", max_pixels=BOUND)


def test_a_photo_stays_small():
    generator = np.random.default_rng(0)
    grain = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    photo = Image.fromarray(grain).resize((1600, 1200), Image.Resampling.BICUBIC)
    assert 1000 < len(make_thumbnail(encoded(photo, "JPEG"), max_pixels=BOUND)) < 9000


def test_unreadable_ones_are_left_out(tmp_path):
    (tmp_path / "good.png").write_bytes(encoded(halves(50, 40)))
    (tmp_path / "ünï ' & code.png").write_bytes(encoded(halves(40, 50)))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not much of a photo")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "huge.png").write_bytes(encoded(Image.new("1", (4000, 4000))))
    (tmp_path / "folder.png").mkdir()
    names = [*(str(path) for path in tmp_path.iterdir()), str(tmp_path / "gone.jpg")]
    found = read_thumbnails(names, max_pixels=BOUND)
    assert [os.path.basename(path) for path in found] == ["good.png", "ünï ' & code.png"]
    assert opened(found[str(tmp_path / "good.png")]).size == (160, 128)


def test_each_is_read_once_and_the_answer_depends_on_nothing_else(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{number:02}.png") for number in range(12)]
    for number, path in enumerate(paths):
        halves(20 + number, 30).save(path)
    read = []

    def note(when, what, path):
        if when == "before":
            read.append(path)

    monkeypatch.setattr(folder, "fault_hook", note)
    one = read_thumbnails([*paths, *reversed(paths)], max_pixels=BOUND, threads=1)
    assert sorted(read) == paths
    four = read_thumbnails(iter(reversed(paths)), max_pixels=BOUND, threads=4)
    assert list(one.items()) == list(four.items())
    assert list(one) == paths
    assert read_thumbnails([], max_pixels=BOUND) == {}


def test_images_in_containers_are_shown_too(tmp_path):
    photos = [encoded(halves(40 + number, 40)) for number in range(12)]
    pq.write_table(pa.table({"image": photos}), tmp_path / "x.parquet")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, photo in enumerate(photos):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(photo)
            tar.addfile(member, io.BytesIO(photo))
    paths = [f"parquet://image/{number}::{tmp_path}/x.parquet" for number in range(12)]
    paths += [f"tar://{number}.png::{tmp_path}/x.tar" for number in range(12)]
    found = read_thumbnails([*paths, f"tar://gone.png::{tmp_path}/x.tar"], max_pixels=BOUND)
    assert list(found) == sorted(paths)
    for number in range(12):
        assert found[paths[number]] == found[paths[12 + number]]
        assert found[paths[number]] == make_thumbnail(photos[number], max_pixels=BOUND)


def test_a_store_that_fails_for_now_is_not_an_unreadable_image(tmp_path, monkeypatch):
    def fail(when, what, path):
        raise OSError("the network is gone")

    monkeypatch.setattr(folder, "fault_hook", fail)
    monkeypatch.setattr(retry, "wait", lambda seconds: None)
    with pytest.raises(StorageFailure):
        read_thumbnails([str(tmp_path / "any.png")], max_pixels=BOUND)


def test_threads_leave_the_filters_of_warnings_as_they_were(tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(40)]
    for path in paths:
        halves(30, 30).save(path)
    before = list(warnings.filters)
    read_thumbnails(paths, max_pixels=BOUND, threads=8)
    assert warnings.filters == before
