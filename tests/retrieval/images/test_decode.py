"""Tests of decoding: formats, modes, orientation, limits, and damaged images."""

import csv
import io
import struct
import time
import tracemalloc
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms import v2

from retrieval.core.records import Transform
from retrieval.images import decode as module
from retrieval.images.decode import FORMATS, MAX_ASPECT, apply_transform, decode, decode_full
from tests.retrieval.images.odd_files_valid import chunk, png, tiff

BOUND = 10**7
PLAIN = Transform("crop", 40, 32, "bilinear", (0.5, 0.25, 0.75), (0.2, 0.2, 0.2))
RESIZES = ("crop", "squash", "pad", "squash-crop")


def photo(width=64, height=48, seed=0):
    """Something like a photo: smooth, and different in all its corners."""
    coarse = np.random.default_rng(seed).integers(30, 225, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def pixels_of(data, max_pixels=BOUND):
    """What decode_full gives, as an array (height, width, 3)."""
    pixels = decode_full(data, max_pixels=max_pixels)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3
    return pixels.permute(1, 2, 0).numpy()


def same(data, image):
    """Whether bytes decode to exactly this picture."""
    return np.array_equal(pixels_of(data), np.asarray(image.convert("RGB")))


LOSSLESS = {
    "PNG": {},
    "GIF": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {},
    "ICO": {"sizes": [(64, 48)]},
    "TGA": {},
    "PPM": {},
    "JPEG2000": {},
}
LOSSY = {"JPEG": {"quality": 90}, "AVIF": {}, "MPO": {"quality": 90}}
every_format = pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])


def in_format(kind, image):
    return encoded(image, kind, **(LOSSLESS | LOSSY)[kind])


# --- real files ---


def test_each_odd_or_broken_file_comes_out_as_expected(data):
    with (data / "bad" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        expected = list(csv.DictReader(file))
    wrong = []
    for line in expected:
        content = (data / "bad" / "files" / line["file"]).read_bytes()
        try:
            found = decode(content, PLAIN, max_pixels=178_956_970)
        except Exception as error:  # noqa: BLE001 - which one is compared below
            names = [kind.__name__ for kind in type(error).__mro__]
            if line["expected"] == "ok" or line["what"] not in names:
                wrong.append((line["file"], repr(error)))
        else:
            if (str(found.width), str(found.height)) != (line["width"], line["height"]):
                wrong.append((line["file"], found.width, found.height))
            assert found.pixels.shape == (3, 32, 32)
    assert wrong == []
    assert len(expected) == 49


def test_real_photos_decode_as_pillow_decodes_them(data):
    paths = sorted((data / "images" / "queries").glob("*.jpg"))[::30]
    assert len(paths) == 6
    for path in paths:
        with Image.open(path) as image:
            assert (
                np.abs(pixels_of(path.read_bytes()) - np.asarray(image.convert("RGB"), int)).mean()
                < 0.5
            )


# --- formats and modes ---


@pytest.mark.parametrize("kind", [kind for kind in LOSSLESS if kind != "GIF"])
def test_lossless_formats_give_the_very_pixels(kind):
    assert same(in_format(kind, photo()), photo())


def test_a_gif_gives_the_very_pixels_of_its_palette():
    image = photo().quantize(200)
    assert same(encoded(image, "GIF"), image)


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_give_nearly_the_pixels(kind):
    error = np.abs(pixels_of(in_format(kind, photo())) - np.asarray(photo(), int))
    assert error.mean() < 4


def test_all_formats_of_the_list_are_tried_here():
    assert {*LOSSLESS, *LOSSY, "DIB"} - {"MPO"} >= set(FORMATS)
    assert "EPS" not in FORMATS


def test_no_program_is_started_for_a_drawing():
    with pytest.raises(Image.UnidentifiedImageError):
        pixels_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_modes_without_alpha(mode):
    image = photo().convert(mode)
    assert same(encoded(image), image)


def test_a_grey_jpeg_has_three_equal_channels():
    pixels = pixels_of(encoded(photo().convert("L"), "JPEG", quality=95)).astype(int)
    assert (pixels == pixels[..., :1]).all()
    assert np.abs(pixels[..., 0] - np.asarray(photo().convert("L"))).mean() < 2


def test_a_cmyk_jpeg_has_the_colours_pillow_gives_it():
    data = encoded(photo().convert("CMYK"), "JPEG", quality=95)
    assert same(data, Image.open(io.BytesIO(data)))
    assert np.abs(pixels_of(data) - np.asarray(photo(), int)).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_the_upper_eight(kind):
    deep = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21
    pixels = pixels_of(encoded(Image.fromarray(deep), kind))
    assert (pixels == (deep >> 8)[..., None]).all()


def grey_tiff(samples, **tags):
    """A grey TIFF made by hand, with the tags that Pillow does not write; little-endian."""
    height, width = samples.shape
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    plain = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [8 * samples.itemsize]), 259: (3, [1]),
        262: (3, [1]), 273: (4, [0]), 277: (3, [1]), 278: (4, [height]),
        279: (4, [samples.nbytes]), 339: (3, [kind]),
    }  # fmt: skip
    return tiff(
        plain | {int(number[1:]): value for number, value in tags.items()}, samples.tobytes()
    )


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.float32([[0, 0.2, 0.5, 1]]), [0, 51, 128, 255]),  # of 1
        (np.float32([[0, 0.2, 0.3]]), [0, 51, 77]),
        (np.float32([[0, 1e-5, 2e-5]]), [0, 128, 255]),  # of the largest: nothing is near 1
        (np.float32([[0, 100, 200, np.nan]]), [0, 100, 200, 0]),  # of 255
        (np.float32([[0, 1.5, 3, np.inf, -np.inf]]), [0, 128, 255, 255, 0]),
        (np.float32([[0, 32896, 65535]]), [0, 128, 255]),
        (np.float32([[-1, 0, 1]]), [0, 128, 255]),
        (np.float32([[0, 0]]), [0, 0]),
        (np.uint16([[0, 256, 1024, 4095]]), [0, 16, 64, 255]),  # of 12 bits
        (np.uint16([[0, 255]]), [0, 255]),  # of 8
        (np.uint16([[0, 256, 16384, 65535]]), [0, 1, 64, 255]),
        (np.int16([[-1000, 0, 3096]]), [0, 62, 255]),
        (np.uint32([[0, 2**31, 2**32 - 1]]), [0, 128, 255]),
        (np.uint32([[0, 2048, 4095]]), [0, 128, 255]),
        (np.int32([[0, 2**17, 2**18 - 1]]), [0, 128, 255]),
        (np.int32([[-(2**31), 0, 2**31 - 1]]), [0, 128, 255]),
    ],
)
def test_samples_of_more_bits_fill_the_eight(values, wanted):
    assert pixels_of(grey_tiff(values))[0, :, 0].tolist() == wanted


@pytest.mark.parametrize(
    ("values", "tags", "wanted"),
    [
        (np.uint16([[0, 100, 200]]), {"t281": (3, [65535]), "t280": (3, [0])}, [0, 0, 0]),
        (np.uint16([[0, 512, 1023]]), {"t281": (3, [1023]), "t280": (3, [0])}, [0, 128, 255]),
        (np.uint16([[0, 100, 4000]]), {"t262": (3, [0])}, [255, 249, 5]),  # white is 0
        (np.float32([[0, 1]]), {"t262": (3, [0])}, [255, 0]),
        (np.uint32([[0, 50, 200]]), {"t340": (4, [0]), "t341": (4, [99])}, [0, 128, 255]),
    ],
)
def test_what_a_tiff_says_of_its_levels_counts(values, tags, wanted):
    assert pixels_of(grey_tiff(values, **tags))[0, :, 0].tolist() == wanted


def test_a_float_image_without_a_number_is_refused():
    with pytest.raises(ValueError, match="none of the samples is a finite number"):
        pixels_of(grey_tiff(np.float32([[np.nan, np.inf]])))


def test_a_photo_looks_the_same_in_any_samples():
    grey = np.asarray(photo().convert("L"))
    for samples in (
        grey.astype(np.float32), (grey / 255).astype(np.float32), grey.astype(np.uint16),
        grey.astype(np.uint16) << 4, grey.astype(np.uint32) << 24, grey.astype(np.int32) << 8,
    ):  # fmt: skip
        assert (pixels_of(grey_tiff(samples)) == grey[..., None]).all()


def test_the_maximum_that_a_pgm_or_pfm_has_counts():
    ramp = np.arange(100).astype(">u2").tobytes()
    assert pixels_of(b"P5 100 1 1023\n" + ramp)[0, -1, 0] == 99 * 256 // 1024
    assert pixels_of(b"P5 100 1 99\n" + bytes(range(100)))[0, -1, 0] == 255
    floats = np.float32([0, 0.5, 1]).astype("<f4").tobytes()
    assert pixels_of(b"Pf\n3 1\n-1.0\n" + floats)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_png_of_few_bits_in_sixteen_is_not_dark(bits):
    grey = np.asarray(photo().convert("L"))
    deep = grey.astype(np.uint16) << (bits - 8)
    assert (pixels_of(encoded(Image.fromarray(deep), "PNG")) == grey[..., None]).all()


def colour_files(samples):
    """The same colours of 16 bits, (height, width, 3 or 4), in each way a file may hold them."""
    height, width, count = samples.shape
    rows = samples.reshape(height, -1)
    yield png(width, height, 16, 2 if count == 3 else 6, rows.astype(">u2"))
    for compression, pack in ((1, bytes), (8, zlib.compress)):
        body = pack(rows.astype("<u2").tobytes())
        extra = {338: (3, [2])} if count == 4 else {}
        yield tiff(
            {
                256: (4, [width]), 257: (4, [height]), 258: (3, [16] * count),
                259: (3, [compression]), 262: (3, [2]), 273: (4, [0]), 277: (3, [count]),
                278: (4, [height]), 279: (4, [len(body)]), 284: (3, [1]), **extra,
            },
            body,
        )  # fmt: skip


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_colours_of_few_bits_in_sixteen_are_not_dark(bits):
    colours = np.asarray(photo())
    for data in colour_files(colours.astype(np.uint16) << (bits - 8)):
        assert (pixels_of(data) == colours).all()
    opaque = np.full((48, 64, 1), 65535, np.uint16)
    for data in colour_files(np.concatenate([colours.astype(np.uint16) << (bits - 8), opaque], 2)):
        assert (pixels_of(data) == colours).all()


# --- alpha ---


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "TGA"])
def test_alpha_is_seen_on_white(kind):
    image = photo().convert("RGBA")
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (48, 1))))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = pixels_of(encoded(image, kind, **options))
    share = ramp[None, :, None] / 255
    wanted = np.asarray(photo()) * share + 255 * (1 - share)
    assert (pixels[:, 0] == 255).all()
    assert (pixels[:, -1] == np.asarray(photo())[:, -1]).all()
    assert np.abs(pixels - wanted).max() <= 1


def test_grey_with_alpha_is_seen_on_white():
    image = Image.merge("LA", [Image.new("L", (9, 9), 10), Image.new("L", (9, 9), 51)])
    assert set(pixels_of(encoded(image)).ravel()) == {round(10 * 0.2 + 255 * 0.8)}


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_is_white(kind):
    image = Image.new("P", (8, 4))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putdata([0, 1] * 16)
    pixels = pixels_of(encoded(image, kind, transparency=0))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 1].tolist() == [200, 0, 0]


def test_a_palette_with_a_table_of_alphas():
    image = Image.new("P", (3, 1))
    image.putpalette([100, 100, 100] * 3)
    image.putdata([0, 1, 2])
    pixels = pixels_of(encoded(image, transparency=bytes([0, 51, 255])))
    assert pixels[0, :, 0].tolist() == [255, round(100 * 0.2 + 255 * 0.8), 100]


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [("RGB", (10, 20, 30), [255, 255, 255]), ("L", 77, [255, 255, 255])],
)
def test_one_colour_may_be_transparent(mode, colour, seen):
    data = encoded(Image.new(mode, (4, 4), colour), transparency=colour)
    assert pixels_of(data)[0, 0].tolist() == seen


# --- several frames ---


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_the_first_frame_stands_for_all(kind):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("#f00000", "#0000f0", "#00f000")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    red, green, blue = pixels_of(data).reshape(-1, 3).mean(0)
    assert red > 230
    assert max(green, blue) < 10


# --- orientation ---


def turned(kind, value, **options):
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(photo(), kind, exif=exif, **(LOSSLESS | LOSSY)[kind], **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_obeyed(kind, value):
    data = turned(kind, value)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright.size == ((64, 48) if value < 5 else (48, 64))
    assert np.abs(pixels_of(data) - np.asarray(upright, int)).mean() < (
        0.5 if kind == "JPEG" else 0.01
    )
    found = decode(data, PLAIN, max_pixels=BOUND)
    assert (found.width, found.height) == upright.size


@pytest.mark.parametrize("value", [0, 9, 65535])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_that_is_none_leaves_the_photo_as_it_lies(kind, value):
    assert pixels_of(turned(kind, value)).shape == (48, 64, 3)


BROKEN_EXIF = {
    "empty": b"",
    "cut off": b"MM\0*\0\0",
    "rubbish": b"\xff" * 99,
    "orientation as text": b"MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\4six\0\0\0\0\0",
    "entry beyond the end": b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\xff\xff\0\0\xff\xff\0\0\0\0",
}


@pytest.mark.parametrize("exif", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_loses_no_photo(kind, exif):
    data = encoded(photo(), kind, exif=b"Exif\0\0" + exif, **(LOSSLESS | LOSSY)[kind])
    assert pixels_of(data).shape == (48, 64, 3)


# --- broken files ---


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("tenths", range(10))
def test_what_is_cut_off_is_refused(kind, tenths):
    data = in_format(kind, photo(300, 200))
    with pytest.raises((OSError, SyntaxError, ValueError)):
        pixels_of(data[: len(data) * tenths // 10])


JPEGS = {
    "baseline": {"quality": 90},
    "restarts": {"restart_marker_blocks": 2},
    "progressive": {"progressive": True},
    "progressive restarts": {"progressive": True, "restart_marker_blocks": 2},
    "subsampled": {"subsampling": 2, "quality": 60},
}
every_jpeg = pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)


@every_jpeg
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("behind", [b"", b"\xff", bytes(999)], ids=["nothing", "half", "zeros"])
def test_a_jpeg_without_its_end_mark_is_whole(options, mode, behind):
    data = encoded(photo().convert(mode), "JPEG", **options)
    assert data.endswith(b"\xff\xd9")
    assert (pixels_of(data[:-2] + behind) == pixels_of(data)).all()


@every_jpeg
def test_a_jpeg_that_lacks_more_than_its_end_mark_is_refused(options):
    data = encoded(photo(), "JPEG", **options)
    whole, first = pixels_of(data), data.index(b"\xff\xda")
    marks = [at for at in range(first, len(data) - 2) if data[at] == 0xFF and data[at + 1]]
    for cut in {*marks, *range(first, len(data) - 4, 41), *range(len(data) - 12, len(data) - 4)}:
        for behind in (b"", bytes(99)):
            try:
                found = pixels_of(data[:cut] + behind)
            except OSError:
                continue
            # bits that are left of the last byte may show nothing
            assert cut >= len(data) - 8
            assert (found == whole).all()


@pytest.mark.parametrize("before", [b"\n", b"\r\n\r\n", b"\xef\xbb\xbf", bytes(500)])
def test_a_jpeg_may_have_something_before_it(before):
    data = encoded(photo(), "JPEG", quality=90)
    assert (pixels_of(before + data) == pixels_of(data)).all()
    assert (pixels_of(before + data[:-2]) == pixels_of(data)).all()


def test_heic_is_named_whatever_the_file_is_called():
    with pytest.raises(UnidentifiedImageError, match=r"HEIC image; .* pillow-heif"):
        pixels_of(b"\0\0\0\x18ftypheic" + bytes(99))


def test_a_preview_deep_in_another_file_is_not_taken_for_the_photo():
    with pytest.raises(UnidentifiedImageError):
        pixels_of(b"RAW " + bytes(5000) + encoded(photo(), "JPEG"))


def texts(count, size, **options):
    info = PngInfo()
    for number in range(count):
        info.add_text(f"t{number}", "x" * size, **options)
    return {"pnginfo": info}


LARGE = {
    "text": texts(1, 3 << 20),
    "packed text": texts(1, 3 << 20, zip=True),
    "many texts": texts(70, 1_000_000),
    "many packed texts": texts(70, 1_000_000, zip=True),
    "profile": {"icc_profile": bytes(3 << 20)},
}


@pytest.mark.parametrize("options", LARGE.values(), ids=LARGE)
def test_a_png_may_have_any_text_and_keeps_its_orientation(options):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(), "PNG", exif=exif, **options)
    assert (pixels_of(data) == np.rot90(np.asarray(photo()), -1)).all()


def test_text_that_unpacks_to_gigabytes_is_not_unpacked():
    packer = zlib.compressobj(1)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    rows = np.asarray(photo()).reshape(48, -1)
    data = png(64, 48, 8, 2, rows, before=chunk(b"zTXt", b"bomb\0\0" + bomb))
    tracemalloc.start()
    assert (pixels_of(data) == np.asarray(photo())).all()
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@every_format
def test_cut_off_anywhere_it_raises_or_decodes_and_nothing_else(kind):
    data = in_format(kind, photo())
    for length in range(0, len(data), 1 + len(data) // 60):
        raises_or_decodes(data[:length])


def raises_or_decodes(data):
    try:
        found = decode(data, PLAIN, max_pixels=10**5)
    except Exception:  # noqa: BLE001 - decoders raise anything at all
        return
    assert found.pixels.shape == (3, 32, 32)
    assert 0 < found.width * found.height <= 10**5


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_or_decode_and_nothing_else(data):
    raises_or_decodes(data)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([*LOSSLESS, *LOSSY]), st.data())
def test_altered_bytes_raise_or_decode_and_nothing_else(kind, draw):
    data = bytearray(in_format(kind, photo()))
    for _ in range(draw.draw(st.integers(1, 8))):
        # headers are where it hurts
        at = draw.draw(st.integers(0, min(80, len(data) - 1)) | st.integers(0, len(data) - 1))
        data[at] = draw.draw(st.integers(0, 255))
    raises_or_decodes(bytes(data))


def test_a_setting_of_pillow_s_made_elsewhere_lets_no_truncated_file_through(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = in_format("PNG", photo(300, 200))
    with pytest.raises((OSError, SyntaxError)):
        pixels_of(data[: len(data) // 2])


def test_rubbish_after_a_photo_does_no_harm():
    for kind in ("JPEG", "PNG"):
        data = in_format(kind, photo())
        assert np.array_equal(pixels_of(data + b"rubbish" * 99), pixels_of(data))


# --- size ---


def huge_png(width, height):
    def chunk(name, body):
        crc = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (
        chunk(b"IHDR", header),
        chunk(b"IDAT", zlib.compress(b"\0" * 999)),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def claiming(kind, width, height):
    """A small file whose header claims another size."""
    data = bytearray(in_format(kind, photo()))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "TGA":
        data[12:16] = struct.pack("<HH", width, height)
    elif kind == "PPM":
        return b"P6\n%d %d\n255\n" % (width, height) + b"\0" * 99
    else:
        return huge_png(width, height)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TGA", "PPM"])
def test_a_header_that_claims_too_much_is_refused_at_once(kind):
    data = claiming(kind, 20_000, 20_000)
    assert len(data) < 20_000
    began = time.perf_counter()
    with pytest.raises(Image.DecompressionBombError, match="400000000"):
        decode(data, PLAIN, max_pixels=178_956_970)
    assert time.perf_counter() - began < 1


@every_format
def test_the_bound_is_exact(kind):
    data = in_format(kind, photo())
    assert pixels_of(data, 64 * 48).shape == (48, 64, 3)
    for bound in (64 * 48 - 1, 64 * 48 // 2, 64 * 48 // 2 - 1, 1):
        with pytest.raises(Image.DecompressionBombError):
            pixels_of(data, bound)


def test_the_bound_is_exact_whatever_the_filters_of_warnings_are(monkeypatch):
    """They belong to the process: a thread beside this one may have put back its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monkeypatch.setattr(warnings, "simplefilter", lambda *args: None)
        with pytest.raises(Image.DecompressionBombError, match="64 x 48 pixels"):
            pixels_of(in_format("PNG", photo()), 64 * 48 - 1)


# --- resizing ---


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2), (2, 3000), (31, 33), (640, 480)])
def test_whatever_the_size_the_shape_that_comes_out_is_the_network_s(resize, size):
    found = decode(encoded(photo(*size)), replace(PLAIN, resize=resize), max_pixels=BOUND)
    assert found.pixels.shape == (3, 32, 32)
    assert found.pixels.dtype == torch.uint8
    assert (found.width, found.height) == size


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(3000, 2), (2, 3000), (9000, 1), (1, 9000)])
def test_no_picture_becomes_large_on_the_way(monkeypatch, resize, size):
    made = []
    function = module.functional.interpolate

    def watched(pixels, shape, **options):
        made.append(shape[0] * shape[1])
        return function(pixels, shape, **options)

    monkeypatch.setattr(module.functional, "interpolate", watched)
    decode(encoded(photo(*size)), replace(PLAIN, resize=resize), max_pixels=BOUND)
    assert made
    assert max(made) <= MAX_ASPECT * 40 * 40


def oracle(image, transform):
    """torchvision's own preprocessing, as the weights were made for."""
    mode = v2.InterpolationMode(transform.interpolation)
    steps = [v2.Resize(transform.resize_size, mode, antialias=True)]
    return v2.Compose([*steps, v2.CenterCrop(transform.image_size)])(image)


def noise(height, width):
    generator = np.random.default_rng(height * 1000 + width)
    return torch.from_numpy(generator.integers(0, 256, (3, height, width), dtype=np.uint8))


@settings(deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(20, 50), st.integers(8, 20),
    st.sampled_from(["bilinear", "bicubic"]),
)  # fmt: skip
def test_crop_is_torchvision_s_own_preprocessing(height, width, resize_size, side, interpolation):
    if max(height, width) > MAX_ASPECT * min(height, width):
        width = height
    transform = Transform("crop", resize_size, side, interpolation, PLAIN.mean, PLAIN.std)
    assert torch.equal(
        apply_transform(noise(height, width), transform), oracle(noise(height, width), transform)
    )


@pytest.mark.parametrize(("height", "width"), [(2, 3000), (3000, 2), (5, 1000), (9, 90)])
def test_a_long_picture_is_cropped_as_if_it_had_been_resized_whole(height, width):
    image = noise(height, width)
    error = apply_transform(image, PLAIN).int() - oracle(image, PLAIN).int()
    assert error.abs().float().mean() < 1


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90))
def test_squash_fits_the_whole_picture_into_the_square(height, width):
    image = noise(height, width)
    wanted = v2.functional.resize(image, [32, 32], antialias=True)
    assert torch.equal(apply_transform(image, replace(PLAIN, resize="squash")), wanted)


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90))
def test_squash_crop_takes_the_middle_of_the_squashed_picture(height, width):
    image = noise(height, width)
    squashed = v2.functional.resize(image, [40, 40], antialias=True)
    found = apply_transform(image, replace(PLAIN, resize="squash-crop"))
    assert torch.equal(found, squashed[:, 4:36, 4:36])


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90))
def test_pad_shows_the_whole_picture_in_its_proportions_on_the_mean(height, width):
    image = noise(height, width)
    padded = apply_transform(image, replace(PLAIN, resize="pad"))
    scale = 32 / max(height, width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (32 - tall) // 2, (32 - wide) // 2
    wanted = torch.tensor([128, 64, 191], dtype=torch.uint8)[:, None, None].repeat(1, 32, 32)
    wanted[:, top : top + tall, left : left + wide] = v2.functional.resize(
        image, [tall, wide], antialias=True
    )
    assert torch.equal(padded, wanted)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(640, 480), (375, 500), (200, 90), (30, 25)])
def test_a_jpeg_comes_out_as_pillow_would_resize_it(size, interpolation):
    transform = replace(PLAIN, interpolation=interpolation)
    data = encoded(photo(*size), "JPEG", quality=90)
    kind = Image.Resampling[interpolation.upper()]
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    shape = (40, int(40 * height / width)) if width < height else (int(40 * width / height), 40)
    small = image.resize(shape, kind)
    left, top = round((small.width - 32) / 2), round((small.height - 32) / 2)
    wanted = np.asarray(small.crop((left, top, left + 32, top + 32)), int)
    found = decode(data, transform, max_pixels=BOUND).pixels.permute(1, 2, 0).numpy()
    assert np.abs(found - wanted).mean() < 1


@every_format
def test_the_same_bytes_give_the_same_pixels(kind):
    data = in_format(kind, photo())
    one, other = (decode(data, PLAIN, max_pixels=BOUND).pixels for _ in range(2))
    assert torch.equal(one, other)
