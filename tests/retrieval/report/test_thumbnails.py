"""Tests of thumbnails: size, orientation, background, and unreadable images."""

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
from retrieval.images.decode import decode_full
from retrieval.report.thumbnails import make_thumbnail, read_thumbnails
from retrieval.storage import folder, retry

MAX_PIXELS = 10**7


def encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def open_jpeg(data):
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    return image.convert("RGB")


def two_coloured(width, height):
    """Return an image whose left half is red and whose right half is blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def thumbnail_of(data, max_pixels=MAX_PIXELS, **options):
    return make_thumbnail(decode_full(data, max_pixels=max_pixels), **options)


def is_close(pixel, colour):
    return max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 40


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (160, 120)),
        ((480, 640), (120, 160)),
        ((160, 160), (160, 160)),
        ((40, 20), (160, 80)),  # enlarged: all thumbnails are equally large
        ((3000, 2), (160, 1)),
        ((1, 1), (160, 160)),
    ],
)
def test_longer_side_is_fixed_and_nothing_is_cropped(size, expected):
    thumbnail = open_jpeg(thumbnail_of(encode(two_coloured(*size))))
    assert thumbnail.size == expected
    if size[0] > 3:
        assert is_close(thumbnail.getpixel((2, thumbnail.height // 2)), (255, 0, 0))
        assert is_close(
            thumbnail.getpixel((thumbnail.width - 3, thumbnail.height // 2)), (0, 0, 255)
        )


def test_custom_side_length():
    assert open_jpeg(thumbnail_of(encode(two_coloured(64, 32)), side=48)).size == (
        48,
        24,
    )


@pytest.mark.parametrize(
    ("orientation", "red_side"),
    [(1, "left"), (2, "right"), (3, "right"), (4, "left"),
     (5, "top"), (6, "top"), (7, "bottom"), (8, "bottom")],
)  # fmt: skip
def test_exif_orientation_is_applied(orientation, red_side):
    exif = Image.Exif()
    exif[0x0112] = orientation
    thumbnail = open_jpeg(
        thumbnail_of(encode(two_coloured(400, 200), "JPEG", exif=exif, quality=95))
    )
    assert thumbnail.size == ((160, 80) if red_side in ("left", "right") else (80, 160))
    width, height = thumbnail.size
    red_positions = {
        "left": (8, height // 2),
        "right": (width - 8, height // 2),
        "top": (width // 2, 8),
        "bottom": (width // 2, height - 8),
    }
    assert is_close(thumbnail.getpixel(red_positions[red_side]), (255, 0, 0))
    # rotated already: the orientation tag must be removed
    assert 0x0112 not in thumbnail.getexif()


def test_transparent_pixels_become_white():
    image = Image.new("RGBA", (100, 100), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (50, 0, 100, 100))
    thumbnail = open_jpeg(thumbnail_of(encode(image)))
    assert is_close(thumbnail.getpixel((20, 80)), (255, 255, 255))
    assert is_close(thumbnail.getpixel((140, 80)), (0, 0, 255))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16"])
def test_every_mode_becomes_colour_jpeg(mode):
    image = Image.new(mode, (80, 60))
    file_format = "TIFF" if mode == "CMYK" else "PNG"
    assert open_jpeg(thumbnail_of(encode(image, file_format))).size == (
        160,
        120,
    )


def test_decoder_errors_are_raised():
    for bound in (100, 9999):
        with pytest.raises(Image.DecompressionBombError, match=r"10000 pixels|100 x 100 pixels"):
            thumbnail_of(encode(two_coloured(100, 100)), max_pixels=bound)
    with pytest.raises(OSError, match="cannot identify"):
        thumbnail_of(b"not an image")


def test_photo_thumbnail_is_below_9_kilobytes():
    generator = np.random.default_rng(0)
    grain = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    photo = Image.fromarray(grain).resize((1600, 1200), Image.Resampling.BICUBIC)
    assert 1000 < len(thumbnail_of(encode(photo, "JPEG"))) < 9000


def test_unreadable_images_are_omitted(tmp_path):
    (tmp_path / "good.png").write_bytes(encode(two_coloured(50, 40)))
    (tmp_path / "ünï ' & code.png").write_bytes(encode(two_coloured(40, 50)))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not an image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "huge.png").write_bytes(encode(Image.new("1", (4000, 4000))))
    (tmp_path / "folder.png").mkdir()
    names = [*(str(path) for path in tmp_path.iterdir()), str(tmp_path / "missing.jpg")]
    thumbnails = read_thumbnails(names, max_pixels=MAX_PIXELS)
    assert [os.path.basename(path) for path in thumbnails] == ["good.png", "ünï ' & code.png"]
    assert open_jpeg(thumbnails[str(tmp_path / "good.png")]).size == (160, 128)


def test_each_image_is_read_once_independent_of_order_and_threads(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{number:02}.png") for number in range(12)]
    for number, path in enumerate(paths):
        two_coloured(20 + number, 30).save(path)
    read_paths = []

    def record(when, operation, path):
        if when == "before":
            read_paths.append(path)

    monkeypatch.setattr(folder, "fault_hook", record)
    single_threaded = read_thumbnails([*paths, *reversed(paths)], max_pixels=MAX_PIXELS, threads=1)
    assert sorted(read_paths) == paths
    multi_threaded = read_thumbnails(iter(reversed(paths)), max_pixels=MAX_PIXELS, threads=4)
    assert list(single_threaded.items()) == list(multi_threaded.items())
    assert list(single_threaded) == paths
    assert read_thumbnails([], max_pixels=MAX_PIXELS) == {}


def test_images_in_containers_have_thumbnails(tmp_path):
    photos = [encode(two_coloured(40 + number, 40)) for number in range(12)]
    pq.write_table(pa.table({"image": photos}), tmp_path / "x.parquet")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, photo in enumerate(photos):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(photo)
            tar.addfile(member, io.BytesIO(photo))
    paths = [f"parquet://image/{number}::{tmp_path}/x.parquet" for number in range(12)]
    paths += [f"tar://{number}.png::{tmp_path}/x.tar" for number in range(12)]
    thumbnails = read_thumbnails(
        [*paths, f"tar://missing.png::{tmp_path}/x.tar"], max_pixels=MAX_PIXELS
    )
    assert list(thumbnails) == sorted(paths)
    for number in range(12):
        assert thumbnails[paths[number]] == thumbnails[paths[12 + number]]
        assert thumbnails[paths[number]] == thumbnail_of(photos[number])


def test_storage_failure_is_not_an_unreadable_image(tmp_path, monkeypatch):
    def fail(when, operation, path):
        raise OSError("network unreachable")

    monkeypatch.setattr(folder, "fault_hook", fail)
    monkeypatch.setattr(retry, "wait", lambda seconds: None)
    with pytest.raises(StorageFailure):
        read_thumbnails([str(tmp_path / "any.png")], max_pixels=MAX_PIXELS)


def test_threads_keep_warning_filters(tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(40)]
    for path in paths:
        two_coloured(30, 30).save(path)
    before = list(warnings.filters)
    read_thumbnails(paths, max_pixels=MAX_PIXELS, threads=8)
    assert warnings.filters == before


def test_crop_has_a_thumbnail_of_its_box(tmp_path):
    path = tmp_path / "photo.png"
    two_coloured(400, 200).save(path)
    crops = [f"{path}#xywh=0,0,100,200", f"{path}#xywh=percent:75,0,25,50"]
    outside = f"{path}#xywh=400,0,10,10"
    thumbnails = read_thumbnails([*crops, outside, str(path)], max_pixels=MAX_PIXELS)
    assert list(thumbnails) == sorted([*crops, str(path)])
    left, right = (open_jpeg(thumbnails[crop]) for crop in crops)
    assert (left.size, right.size) == ((80, 160), (160, 160))
    assert is_close(left.getpixel((70, 80)), (255, 0, 0))
    assert is_close(right.getpixel((10, 80)), (0, 0, 255))
