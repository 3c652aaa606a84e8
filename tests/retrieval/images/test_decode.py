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
from tests.retrieval.images.valid_images import chunk, png, tiff

BOUND = 10**7
TRANSFORM = Transform("crop", 40, 32, "bilinear", (0.5, 0.25, 0.75), (0.2, 0.2, 0.2))
RESIZES = ("crop", "squash", "pad", "squash-crop")


def photo(width=64, height=48, seed=0):
    """Return a smooth random RGB image, which differs in all corners."""
    coarse = np.random.default_rng(seed).integers(30, 225, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, image_format="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, image_format, **options)
    return sink.getvalue()


def pixels_of(data, max_pixels=BOUND):
    """Return the result of decode_full as a (height, width, 3) uint8 array."""
    pixels = decode_full(data, max_pixels=max_pixels)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3
    return pixels.permute(1, 2, 0).numpy()


def decodes_to(data, image):
    """Return whether the bytes decode to exactly the pixels of an image."""
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
every_format = pytest.mark.parametrize("image_format", [*LOSSLESS, *LOSSY])


def encoded_as(image_format, image):
    return encoded(image, image_format, **(LOSSLESS | LOSSY)[image_format])


# --- files of the data set ---


def test_unusual_and_damaged_files_decode_as_listed(data):
    with (data / "bad" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        expected = list(csv.DictReader(file))
    unexpected = []
    for line in expected:
        content = (data / "bad" / "files" / line["file"]).read_bytes()
        try:
            decoded = decode(content, TRANSFORM, max_pixels=178_956_970)
        except Exception as error:  # noqa: BLE001 - the type is compared below
            names = [error_type.__name__ for error_type in type(error).__mro__]
            if line["expected"] == "ok" or line["what"] not in names:
                unexpected.append((line["file"], repr(error)))
        else:
            if (str(decoded.width), str(decoded.height)) != (line["width"], line["height"]):
                unexpected.append((line["file"], decoded.width, decoded.height))
            assert decoded.pixels.shape == (3, 32, 32)
    assert unexpected == []
    assert len(expected) == 49


def test_photos_decode_like_pillow(data):
    paths = sorted((data / "images" / "queries").glob("*.jpg"))[::30]
    assert len(paths) == 6
    for path in paths:
        with Image.open(path) as image:
            assert (
                np.abs(pixels_of(path.read_bytes()) - np.asarray(image.convert("RGB"), int)).mean()
                < 0.5
            )


# --- formats and modes ---


@pytest.mark.parametrize(
    "image_format", [image_format for image_format in LOSSLESS if image_format != "GIF"]
)
def test_lossless_formats_decode_to_exact_pixels(image_format):
    assert decodes_to(encoded_as(image_format, photo()), photo())


def test_gif_decodes_to_exact_palette_pixels():
    image = photo().quantize(200)
    assert decodes_to(encoded(image, "GIF"), image)


@pytest.mark.parametrize("image_format", LOSSY)
def test_lossy_formats_decode_to_similar_pixels(image_format):
    error = np.abs(pixels_of(encoded_as(image_format, photo())) - np.asarray(photo(), int))
    assert error.mean() < 4


def test_every_supported_format_is_covered():
    assert {*LOSSLESS, *LOSSY, "DIB"} - {"MPO"} >= set(FORMATS)
    assert "EPS" not in FORMATS


def test_postscript_is_not_decoded():
    with pytest.raises(Image.UnidentifiedImageError):
        pixels_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_modes_without_alpha(mode):
    image = photo().convert(mode)
    assert decodes_to(encoded(image), image)


def test_grey_jpeg_has_three_equal_channels():
    pixels = pixels_of(encoded(photo().convert("L"), "JPEG", quality=95)).astype(int)
    assert (pixels == pixels[..., :1]).all()
    assert np.abs(pixels[..., 0] - np.asarray(photo().convert("L"))).mean() < 2


def test_cmyk_jpeg_decodes_like_pillow():
    data = encoded(photo().convert("CMYK"), "JPEG", quality=95)
    assert decodes_to(data, Image.open(io.BytesIO(data)))
    assert np.abs(pixels_of(data) - np.asarray(photo(), int)).mean() < 6


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_reduced_to_upper_8_bits(image_format):
    samples = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21
    pixels = pixels_of(encoded(Image.fromarray(samples), image_format))
    assert (pixels == (samples >> 8)[..., None]).all()


def grey_tiff(samples, **tags):
    """Return a little-endian grey TIFF of (height, width) samples; `tags` are named t280 etc."""
    height, width = samples.shape
    sample_format = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    default_tags = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [8 * samples.itemsize]), 259: (3, [1]),
        262: (3, [1]), 273: (4, [0]), 277: (3, [1]), 278: (4, [height]),
        279: (4, [samples.nbytes]), 339: (3, [sample_format]),
    }  # fmt: skip
    return tiff(
        default_tags | {int(number[1:]): value for number, value in tags.items()}, samples.tobytes()
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.float32([[0, 0.2, 0.5, 1]]), [0, 51, 128, 255]),  # range 0 to 1
        (np.float32([[0, 0.2, 0.3]]), [0, 51, 77]),
        (
            np.float32([[0, 1e-5, 2e-5]]),
            [0, 128, 255],
        ),  # scaled by the maximum, as all values are far below 1
        (np.float32([[0, 100, 200, np.nan]]), [0, 100, 200, 0]),  # range 0 to 255
        (np.float32([[0, 1.5, 3, np.inf, -np.inf]]), [0, 128, 255, 255, 0]),
        (np.float32([[0, 32896, 65535]]), [0, 128, 255]),
        (np.float32([[-1, 0, 1]]), [0, 128, 255]),
        (np.float32([[0, 0]]), [0, 0]),
        (np.uint16([[0, 256, 1024, 4095]]), [0, 16, 64, 255]),  # 12 significant bits
        (np.uint16([[0, 255]]), [0, 255]),  # 8 significant bits
        (np.uint16([[0, 256, 16384, 65535]]), [0, 1, 64, 255]),
        (np.int16([[-1000, 0, 3096]]), [0, 62, 255]),
        (np.uint32([[0, 2**31, 2**32 - 1]]), [0, 128, 255]),
        (np.uint32([[0, 2048, 4095]]), [0, 128, 255]),
        (np.int32([[0, 2**17, 2**18 - 1]]), [0, 128, 255]),
        (np.int32([[-(2**31), 0, 2**31 - 1]]), [0, 128, 255]),
    ],
)
def test_samples_above_8_bits_are_scaled_to_8_bits(values, expected):
    assert pixels_of(grey_tiff(values))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "tags", "expected"),
    [
        (np.uint16([[0, 100, 200]]), {"t281": (3, [65535]), "t280": (3, [0])}, [0, 0, 0]),
        (np.uint16([[0, 512, 1023]]), {"t281": (3, [1023]), "t280": (3, [0])}, [0, 128, 255]),
        (
            np.uint16([[0, 100, 4000]]),
            {"t262": (3, [0])},
            [255, 249, 5],
        ),  # photometric interpretation 0: white is zero
        (np.float32([[0, 1]]), {"t262": (3, [0])}, [255, 0]),
        (np.uint32([[0, 50, 200]]), {"t340": (4, [0]), "t341": (4, [99])}, [0, 128, 255]),
    ],
)
def test_tiff_level_tags_are_applied(values, tags, expected):
    assert pixels_of(grey_tiff(values, **tags))[0, :, 0].tolist() == expected


def test_float_image_without_finite_samples_is_refused():
    with pytest.raises(ValueError, match="none of the samples is a finite number"):
        pixels_of(grey_tiff(np.float32([[np.nan, np.inf]])))


def test_photo_decodes_equally_from_all_sample_types():
    grey = np.asarray(photo().convert("L"))
    for samples in (
        grey.astype(np.float32), (grey / 255).astype(np.float32), grey.astype(np.uint16),
        grey.astype(np.uint16) << 4, grey.astype(np.uint32) << 24, grey.astype(np.int32) << 8,
    ):  # fmt: skip
        assert (pixels_of(grey_tiff(samples)) == grey[..., None]).all()


def test_maximum_of_pgm_and_pfm_is_applied():
    ramp = np.arange(100).astype(">u2").tobytes()
    assert pixels_of(b"P5 100 1 1023\n" + ramp)[0, -1, 0] == 99 * 256 // 1024
    assert pixels_of(b"P5 100 1 99\n" + bytes(range(100)))[0, -1, 0] == 255
    floats = np.float32([0, 0.5, 1]).astype("<f4").tobytes()
    assert pixels_of(b"Pf\n3 1\n-1.0\n" + floats)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_png_with_few_significant_bits_is_rescaled(bits):
    grey = np.asarray(photo().convert("L"))
    samples = grey.astype(np.uint16) << (bits - 8)
    assert (pixels_of(encoded(Image.fromarray(samples), "PNG")) == grey[..., None]).all()


def colour_files(samples):
    """Yield a PNG, a raw TIFF and a deflated TIFF of (height, width, 3 or 4) 16-bit colours."""
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
def test_16_bit_colours_with_few_significant_bits_are_rescaled(bits):
    colours = np.asarray(photo())
    for data in colour_files(colours.astype(np.uint16) << (bits - 8)):
        assert (pixels_of(data) == colours).all()
    opaque = np.full((48, 64, 1), 65535, np.uint16)
    for data in colour_files(np.concatenate([colours.astype(np.uint16) << (bits - 8), opaque], 2)):
        assert (pixels_of(data) == colours).all()


# --- alpha ---


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "TGA"])
def test_alpha_is_composited_on_white(image_format):
    image = photo().convert("RGBA")
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (48, 1))))
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    pixels = pixels_of(encoded(image, image_format, **options))
    opacity = ramp[None, :, None] / 255
    expected = np.asarray(photo()) * opacity + 255 * (1 - opacity)
    assert (pixels[:, 0] == 255).all()
    assert (pixels[:, -1] == np.asarray(photo())[:, -1]).all()
    assert np.abs(pixels - expected).max() <= 1


def test_grey_with_alpha_is_composited_on_white():
    image = Image.merge("LA", [Image.new("L", (9, 9), 10), Image.new("L", (9, 9), 51)])
    assert set(pixels_of(encoded(image)).ravel()) == {round(10 * 0.2 + 255 * 0.8)}


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_transparent_palette_colour_is_white(image_format):
    image = Image.new("P", (8, 4))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putdata([0, 1] * 16)
    pixels = pixels_of(encoded(image, image_format, transparency=0))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 1].tolist() == [200, 0, 0]


def test_palette_with_alpha_table():
    image = Image.new("P", (3, 1))
    image.putpalette([100, 100, 100] * 3)
    image.putdata([0, 1, 2])
    pixels = pixels_of(encoded(image, transparency=bytes([0, 51, 255])))
    assert pixels[0, :, 0].tolist() == [255, round(100 * 0.2 + 255 * 0.8), 100]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("RGB", (10, 20, 30), [255, 255, 255]), ("L", 77, [255, 255, 255])],
)
def test_transparent_colour_key_is_white(mode, colour, expected):
    data = encoded(Image.new(mode, (4, 4), colour), transparency=colour)
    assert pixels_of(data)[0, 0].tolist() == expected


# --- several frames ---


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_first_frame_is_decoded(image_format):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("#f00000", "#0000f0", "#00f000")]
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    red, green, blue = pixels_of(data).reshape(-1, 3).mean(0)
    assert red > 230
    assert max(green, blue) < 10


# --- orientation ---


def with_orientation(image_format, value, **options):
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(photo(), image_format, exif=exif, **(LOSSLESS | LOSSY)[image_format], **options)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
@pytest.mark.parametrize("value", range(1, 9))
def test_exif_orientation_is_applied(image_format, value):
    data = with_orientation(image_format, value)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright.size == ((64, 48) if value < 5 else (48, 64))
    assert np.abs(pixels_of(data) - np.asarray(upright, int)).mean() < (
        0.5 if image_format == "JPEG" else 0.01
    )
    decoded = decode(data, TRANSFORM, max_pixels=BOUND)
    assert (decoded.width, decoded.height) == upright.size


@pytest.mark.parametrize("value", [0, 9, 65535])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_invalid_orientation_is_ignored(image_format, value):
    assert pixels_of(with_orientation(image_format, value)).shape == (48, 64, 3)


BROKEN_EXIF = {
    "empty": b"",
    "cut off": b"MM\0*\0\0",
    "garbage": b"\xff" * 99,
    "orientation as text": b"MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\4six\0\0\0\0\0",
    "entry beyond the end": b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\xff\xff\0\0\xff\xff\0\0\0\0",
}


@pytest.mark.parametrize("exif", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_invalid_exif_is_ignored(image_format, exif):
    data = encoded(
        photo(), image_format, exif=b"Exif\0\0" + exif, **(LOSSLESS | LOSSY)[image_format]
    )
    assert pixels_of(data).shape == (48, 64, 3)


# --- broken files ---


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("tenths", range(10))
def test_truncated_image_is_refused(image_format, tenths):
    data = encoded_as(image_format, photo(300, 200))
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
@pytest.mark.parametrize(
    "trailing", [b"", b"\xff", bytes(999)], ids=["none", "half a marker", "zeros"]
)
def test_jpeg_without_end_marker_is_decoded_completely(options, mode, trailing):
    data = encoded(photo().convert(mode), "JPEG", **options)
    assert data.endswith(b"\xff\xd9")
    assert (pixels_of(data[:-2] + trailing) == pixels_of(data)).all()


@every_jpeg
def test_jpeg_missing_more_than_end_marker_is_refused(options):
    data = encoded(photo(), "JPEG", **options)
    complete, scan_start = pixels_of(data), data.index(b"\xff\xda")
    markers = [
        position
        for position in range(scan_start, len(data) - 2)
        if data[position] == 0xFF and data[position + 1]
    ]
    for length in {
        *markers,
        *range(scan_start, len(data) - 4, 41),
        *range(len(data) - 12, len(data) - 4),
    }:
        for trailing in (b"", bytes(99)):
            try:
                decoded = pixels_of(data[:length] + trailing)
            except OSError:
                continue
            # the last bytes may hold only padding bits
            assert length >= len(data) - 8
            assert (decoded == complete).all()


@pytest.mark.parametrize("prefix", [b"\n", b"\r\n\r\n", b"\xef\xbb\xbf", bytes(500)])
def test_bytes_before_jpeg_are_skipped(prefix):
    data = encoded(photo(), "JPEG", quality=90)
    assert (pixels_of(prefix + data) == pixels_of(data)).all()
    assert (pixels_of(prefix + data[:-2]) == pixels_of(data)).all()


def test_heic_is_refused_with_remedy(monkeypatch):
    monkeypatch.setattr(module, "can_decode_heic", lambda: False)
    with pytest.raises(UnidentifiedImageError, match=r"HEIC image; .* pillow-heif"):
        pixels_of(b"\0\0\0\x18ftypheic" + bytes(99))


def test_embedded_jpeg_preview_is_not_decoded():
    with pytest.raises(UnidentifiedImageError):
        pixels_of(b"RAW " + bytes(5000) + encoded(photo(), "JPEG"))


def text_chunks(count, size, **options):
    info = PngInfo()
    for number in range(count):
        info.add_text(f"t{number}", "x" * size, **options)
    return {"pnginfo": info}


LARGE_METADATA = {
    "text": text_chunks(1, 3 << 20),
    "packed text": text_chunks(1, 3 << 20, zip=True),
    "many texts": text_chunks(70, 1_000_000),
    "many packed texts": text_chunks(70, 1_000_000, zip=True),
    "profile": {"icc_profile": bytes(3 << 20)},
}


@pytest.mark.parametrize("options", LARGE_METADATA.values(), ids=LARGE_METADATA)
def test_png_with_large_metadata_keeps_orientation(options):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(), "PNG", exif=exif, **options)
    assert (pixels_of(data) == np.rot90(np.asarray(photo()), -1)).all()


def test_large_compressed_png_text_is_not_decompressed():
    packer = zlib.compressobj(1)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    rows = np.asarray(photo()).reshape(48, -1)
    data = png(64, 48, 8, 2, rows, before=chunk(b"zTXt", b"bomb\0\0" + bomb))
    tracemalloc.start()
    assert (pixels_of(data) == np.asarray(photo())).all()
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@every_format
def test_truncation_at_any_length_raises_or_decodes(image_format):
    data = encoded_as(image_format, photo())
    for length in range(0, len(data), 1 + len(data) // 60):
        assert_raises_or_decodes(data[:length])


def assert_raises_or_decodes(data):
    try:
        decoded = decode(data, TRANSFORM, max_pixels=10**5)
    except Exception:  # noqa: BLE001 - decoders raise any exception
        return
    assert decoded.pixels.shape == (3, 32, 32)
    assert 0 < decoded.width * decoded.height <= 10**5


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_or_decode(data):
    assert_raises_or_decodes(data)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([*LOSSLESS, *LOSSY]), st.data())
def test_altered_bytes_raise_or_decode(image_format, draw):
    data = bytearray(encoded_as(image_format, photo()))
    for _ in range(draw.draw(st.integers(1, 8))):
        # headers are where decoders are most sensitive
        position = draw.draw(st.integers(0, min(80, len(data) - 1)) | st.integers(0, len(data) - 1))
        data[position] = draw.draw(st.integers(0, 255))
    assert_raises_or_decodes(bytes(data))


def test_truncated_image_is_refused_despite_load_truncated_images(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded_as("PNG", photo(300, 200))
    with pytest.raises((OSError, SyntaxError)):
        pixels_of(data[: len(data) // 2])


def test_bytes_after_image_are_ignored():
    for image_format in ("JPEG", "PNG"):
        data = encoded_as(image_format, photo())
        assert np.array_equal(pixels_of(data + b"garbage" * 99), pixels_of(data))


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


def with_claimed_size(image_format, width, height):
    """Return a small file whose header claims another size."""
    data = bytearray(encoded_as(image_format, photo()))
    if image_format == "JPEG":
        position = data.index(b"\xff\xc0") + 5
        data[position : position + 4] = struct.pack(">HH", height, width)
    elif image_format == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif image_format == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif image_format == "TGA":
        data[12:16] = struct.pack("<HH", width, height)
    elif image_format == "PPM":
        return b"P6\n%d %d\n255\n" % (width, height) + b"\0" * 99
    else:
        return huge_png(width, height)
    return bytes(data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP", "TGA", "PPM"])
def test_header_beyond_max_pixels_is_refused_before_decoding(image_format):
    data = with_claimed_size(image_format, 20_000, 20_000)
    assert len(data) < 20_000
    start = time.perf_counter()
    with pytest.raises(Image.DecompressionBombError, match="400000000"):
        decode(data, TRANSFORM, max_pixels=178_956_970)
    assert time.perf_counter() - start < 1


@every_format
def test_max_pixels_bound_is_exact(image_format):
    data = encoded_as(image_format, photo())
    assert pixels_of(data, 64 * 48).shape == (48, 64, 3)
    for bound in (64 * 48 - 1, 64 * 48 // 2, 64 * 48 // 2 - 1, 1):
        with pytest.raises(Image.DecompressionBombError):
            pixels_of(data, bound)


def test_max_pixels_bound_is_independent_of_warning_filters(monkeypatch):
    """Warning filters are global: another thread may restore its own at any time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monkeypatch.setattr(warnings, "simplefilter", lambda *args: None)
        with pytest.raises(Image.DecompressionBombError, match="64 x 48 pixels"):
            pixels_of(encoded_as("PNG", photo()), 64 * 48 - 1)


# --- resizing ---


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2), (2, 3000), (31, 33), (640, 480)])
def test_output_shape_is_independent_of_image_size(resize, size):
    decoded = decode(encoded(photo(*size)), replace(TRANSFORM, resize=resize), max_pixels=BOUND)
    assert decoded.pixels.shape == (3, 32, 32)
    assert decoded.pixels.dtype == torch.uint8
    assert (decoded.width, decoded.height) == size


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(3000, 2), (2, 3000), (9000, 1), (1, 9000)])
def test_intermediate_images_are_bounded(monkeypatch, resize, size):
    pixel_counts = []
    original = module.functional.interpolate

    def recording_interpolate(pixels, shape, **options):
        pixel_counts.append(shape[0] * shape[1])
        return original(pixels, shape, **options)

    monkeypatch.setattr(module.functional, "interpolate", recording_interpolate)
    decode(encoded(photo(*size)), replace(TRANSFORM, resize=resize), max_pixels=BOUND)
    assert pixel_counts
    assert max(pixel_counts) <= MAX_ASPECT * 40 * 40


def torchvision_crop(image, transform):
    """Return the image resized and center-cropped by torchvision, as for training the weights."""
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
def test_crop_equals_torchvision_preprocessing(height, width, resize_size, side, interpolation):
    if max(height, width) > MAX_ASPECT * min(height, width):
        width = height
    transform = Transform("crop", resize_size, side, interpolation, TRANSFORM.mean, TRANSFORM.std)
    assert torch.equal(
        apply_transform(noise(height, width), transform),
        torchvision_crop(noise(height, width), transform),
    )


@pytest.mark.parametrize(("height", "width"), [(2, 3000), (3000, 2), (5, 1000), (9, 90)])
def test_crop_of_elongated_image_approximates_full_resize(height, width):
    image = noise(height, width)
    error = apply_transform(image, TRANSFORM).int() - torchvision_crop(image, TRANSFORM).int()
    assert error.abs().float().mean() < 1


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90))
def test_squash_resizes_whole_image_to_square(height, width):
    image = noise(height, width)
    expected = v2.functional.resize(image, [32, 32], antialias=True)
    assert torch.equal(apply_transform(image, replace(TRANSFORM, resize="squash")), expected)


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90))
def test_squash_crop_is_center_crop_of_squashed_image(height, width):
    image = noise(height, width)
    squashed = v2.functional.resize(image, [40, 40], antialias=True)
    decoded = apply_transform(image, replace(TRANSFORM, resize="squash-crop"))
    assert torch.equal(decoded, squashed[:, 4:36, 4:36])


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90))
def test_pad_keeps_aspect_ratio_on_mean_colour(height, width):
    image = noise(height, width)
    padded = apply_transform(image, replace(TRANSFORM, resize="pad"))
    scale = 32 / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (32 - new_height) // 2, (32 - new_width) // 2
    expected = torch.tensor([128, 64, 191], dtype=torch.uint8)[:, None, None].repeat(1, 32, 32)
    expected[:, top : top + new_height, left : left + new_width] = v2.functional.resize(
        image, [new_height, new_width], antialias=True
    )
    assert torch.equal(padded, expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(640, 480), (375, 500), (200, 90), (30, 25)])
def test_jpeg_resize_approximates_pillow(size, interpolation):
    transform = replace(TRANSFORM, interpolation=interpolation)
    data = encoded(photo(*size), "JPEG", quality=90)
    resampling = Image.Resampling[interpolation.upper()]
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    shape = (40, int(40 * height / width)) if width < height else (int(40 * width / height), 40)
    resized = image.resize(shape, resampling)
    left, top = round((resized.width - 32) / 2), round((resized.height - 32) / 2)
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32)), int)
    decoded = decode(data, transform, max_pixels=BOUND).pixels.permute(1, 2, 0).numpy()
    assert np.abs(decoded - expected).mean() < 1


@every_format
def test_decoding_is_deterministic(image_format):
    data = encoded_as(image_format, photo())
    first, second = (decode(data, TRANSFORM, max_pixels=BOUND).pixels for _ in range(2))
    assert torch.equal(first, second)
