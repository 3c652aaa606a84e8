"""Small valid images of every supported format, mode and compression.

Formats that Pillow does not write (tiles, RLE, 16-bit RGB) are assembled byte by byte.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, features

WIDTH, HEIGHT = 40, 30


def photo(width=WIDTH, height=HEIGHT, seed=0):
    """Return a smooth random RGB image, which differs in all corners."""
    coarse = np.random.default_rng(seed).integers(30, 225, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def with_alpha(image=None):
    """Return the image as RGBA, its alpha rising from 0 at the left to 255 at the right."""
    image = (image or photo()).convert("RGBA")
    ramp = np.linspace(0, 255, image.width).round().astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (image.height, 1))))
    return image


def grey16():
    """Return a (HEIGHT, WIDTH) uint16 ramp that uses nearly the whole range."""
    return np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 54


def encoded(image, kind, **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def valid_images():
    """Return the bytes of all valid images by name; its first word is the format."""
    return {
        **_jpegs(), **_pngs(), **_web_formats(), **_bitmaps(), **_tiffs(), **_portables(),
        **_other_formats(),
    }  # fmt: skip


def oriented_images():
    """Return the photo with each EXIF orientation, in each format that supports EXIF."""
    images = {}
    for value in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = value
        for image_format, options in {
            "JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {},
        }.items():  # fmt: skip
            images[f"{image_format} turned {value}"] = encoded(
                photo(), image_format, exif=exif, **options
            )
    return images


def frames(count=3):
    colours = ["#f00000", "#0000f0", "#00f000"]
    return [Image.new("RGB", (WIDTH, HEIGHT), colours[number % 3]) for number in range(count)]


def animated(kind, count=3, **options):
    first, *following = frames(count)
    return encoded(first, kind, save_all=True, append_images=following, **options)


def _jpegs():
    cmyk = encoded(photo().convert("CMYK"), "JPEG", quality=90)
    ycck = bytearray(cmyk)
    ycck[cmyk.index(b"Adobe") + 11] = 2  # the colour transform byte: YCCK
    return {
        "JPEG baseline": encoded(photo(), "JPEG", quality=90),
        "JPEG 4:4:4": encoded(photo(), "JPEG", quality=95, subsampling=0),
        "JPEG progressive": encoded(photo(), "JPEG", quality=90, progressive=True),
        "JPEG restarts": encoded(photo(), "JPEG", restart_marker_blocks=2),
        "JPEG grey": encoded(photo().convert("L"), "JPEG", quality=90),
        "JPEG RGB kept": encoded(photo(), "JPEG", quality=90, keep_rgb=True),
        "JPEG CMYK": cmyk,
        "JPEG YCCK": bytes(ycck),
        "MPO": animated("MPO"),
    }


def _pngs():
    palette_image = photo().quantize(13)
    images = {
        f"PNG palette {bits} bits": encoded(photo().quantize(2**bits), "PNG", bits=bits)
        for bits in (1, 2, 4, 8)
    }
    return images | {
        "PNG 1 bit": encoded(photo().convert("1"), "PNG"),
        "PNG grey": encoded(photo().convert("L"), "PNG"),
        "PNG grey 16 bits": encoded(Image.fromarray(grey16()), "PNG"),
        "PNG grey alpha": encoded(with_alpha().convert("LA"), "PNG"),
        "PNG RGB": encoded(photo(), "PNG"),
        "PNG RGBA": encoded(with_alpha(), "PNG"),
        "PNG RGB 16 bits": png(WIDTH, HEIGHT, 16, 2, np.repeat(grey16(), 3, 1).astype(">u2")),
        "PNG palette transparent": encoded(
            palette_image, "PNG", transparency=bytes(range(0, 250, 20))
        ),
        "APNG": animated("PNG"),
    }


def chunk(name, body):
    """Return a PNG chunk: length, name, body and CRC."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, depth, colour, rows, *, before=b""):
    """Return a PNG; `rows` is the array of its samples, or the compressed bytes of its IDAT."""
    if not isinstance(rows, bytes):
        rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _web_formats():
    images = {
        "GIF": encoded(photo().quantize(200), "GIF"),
        "GIF interlaced": encoded(photo().quantize(16), "GIF", interlace=1),
        "GIF animated": animated("GIF"),
        "WEBP lossy": encoded(photo(), "WEBP", quality=90),
        "WEBP lossless": encoded(photo(), "WEBP", lossless=True),
        "WEBP alpha": encoded(with_alpha(), "WEBP", lossless=True, exact=True),
        "WEBP animated": animated("WEBP"),
    }
    if features.check("avif"):
        images["AVIF"] = encoded(photo(), "AVIF")
        images["AVIF alpha"] = encoded(with_alpha(), "AVIF")
        images["AVIF animated"] = animated("AVIF")
    return images


def bmp(bits, body, *, compression=0, palette=b""):
    """Return a WIDTH x HEIGHT BMP; `body` holds its rows from the bottom up."""
    start = 54 + len(palette)
    file_header = struct.pack("<2sIII", b"BM", start + len(body), 0, start)
    info_header = struct.pack(
        "<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, compression, len(body), 0, 0,
        len(palette) // 4, 0,
    )  # fmt: skip
    return file_header + info_header + palette + body


def _bitmaps():
    greys = b"".join(bytes([level * 17] * 3) + b"\0" for level in range(16))
    levels = (np.asarray(photo().convert("L"))[::-1] >> 4).astype(np.uint8)
    runs = b"".join(
        b"".join(bytes([1, level]) for level in row) + b"\0\0" for row in levels.tolist()
    )
    nibbles = (levels[:, ::2] << 4) | levels[:, 1::2]
    return {
        "BMP 1 bit": encoded(photo().convert("1"), "BMP"),
        "BMP 4 bits": bmp(4, nibbles.tobytes(), palette=greys),
        "BMP 8 bits": encoded(photo().quantize(100), "BMP"),
        "BMP 8 bits RLE": bmp(8, runs + b"\0\1", compression=1, palette=greys),
        "BMP 24 bits": encoded(photo(), "BMP"),
        "BMP 32 bits": encoded(with_alpha(), "BMP"),
    }


def tiff(tags, body=b"", *, next_ifd=0):
    """Return a little-endian TIFF of one page.

    `tags` maps tag numbers to (field type 3 or 4, values); strip and tile offsets (tags 273 and
    324) are relative to `body`.
    """
    entries = [
        (number, field_type, list(values)) for number, (field_type, values) in sorted(tags.items())
    ]
    start = 8 + 2 + 12 * len(entries) + 4
    external = [
        (number, field_type, values)
        for number, field_type, values in entries
        if len(values) * (2 if field_type == 3 else 4) > 4
    ]
    body_offset = start + sum(
        len(values) * (2 if field_type == 3 else 4) for _, field_type, values in external
    )
    directory, external_offset, external_values = b"", start, b""
    for number, field_type, values in entries:
        numbers = [body_offset + value if number in (273, 324) else value for value in values]
        packed = struct.pack(f"<{len(numbers)}{'H' if field_type == 3 else 'I'}", *numbers)
        directory += struct.pack("<HHI", number, field_type, len(numbers))
        if len(packed) <= 4:
            directory += packed.ljust(4, b"\0")
        else:
            directory += struct.pack("<I", external_offset + len(external_values))
            external_values += packed
    ifd = struct.pack("<H", len(entries)) + directory + struct.pack("<I", next_ifd)
    return b"II*\0\x08\0\0\0" + ifd + external_values + body


def rgb_tags(width, height):
    """Return the tags of an uncompressed RGB TIFF without its strip tags."""
    return {
        256: (4, [width]), 257: (4, [height]), 258: (3, [8, 8, 8]), 259: (3, [1]),
        262: (3, [2]), 277: (3, [3]), 284: (3, [1]),
    }  # fmt: skip


def tiled_tiff():
    """Return the photo as a TIFF with deflated tiles of 16 x 16 pixels."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:HEIGHT, :WIDTH] = np.asarray(photo())
    tiles = [
        zlib.compress(pixels[top : top + 16, left : left + 16].tobytes())
        for top in range(0, 32, 16)
        for left in range(0, 48, 16)
    ]
    sizes = [len(tile) for tile in tiles]
    offsets = [sum(sizes[:number]) for number in range(len(sizes))]
    tags = rgb_tags(WIDTH, HEIGHT) | {
        259: (3, [8]), 322: (3, [16]), 323: (3, [16]), 324: (4, offsets), 325: (4, sizes),
    }  # fmt: skip
    return tiff(tags, b"".join(tiles))


def _tiffs():
    images = {
        f"TIFF {compression}": encoded(photo(), "TIFF", compression=compression)
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    }
    return images | {
        "TIFF 1 bit G4": encoded(photo().convert("1"), "TIFF", compression="group4"),
        "TIFF CMYK": encoded(photo().convert("CMYK"), "TIFF"),
        "TIFF LAB": encoded(Image.merge("LAB", photo().split()), "TIFF"),
        "TIFF RGBA": encoded(with_alpha(), "TIFF", compression="tiff_lzw"),
        "TIFF palette": encoded(photo().quantize(99), "TIFF"),
        "TIFF 16 bits": encoded(Image.fromarray(grey16()), "TIFF"),
        "TIFF 32 bits": encoded(Image.fromarray(grey16().astype(np.int32)), "TIFF"),
        "TIFF float32": encoded(Image.fromarray((grey16() / 256).astype(np.float32)), "TIFF"),
        "TIFF pages": animated("TIFF"),
        "TIFF tiles": tiled_tiff(),
    }


def _portables():
    ascii_rgb = " ".join(map(str, np.asarray(photo()).ravel())).encode()
    bits = (np.asarray(photo().convert("1")) ^ 1).astype(np.uint8)
    return {
        "PPM": encoded(photo(), "PPM"),
        "PPM text": b"P3\n# a comment\n%d %d\n255\n" % (WIDTH, HEIGHT) + ascii_rgb + b"\n",
        "PPM 16 bits": b"P6 %d %d 65535\n" % (WIDTH, HEIGHT)
        + np.repeat(grey16(), 3, 1).astype(">u2").tobytes(),
        "PGM": encoded(photo().convert("L"), "PPM"),
        "PGM text": b"P2\n%d %d\n9\n" % (WIDTH, HEIGHT) + b"0 3 9 " * (WIDTH * HEIGHT // 3),
        "PGM 16 bits": b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + grey16().astype(">u2").tobytes(),
        "PBM": encoded(photo().convert("1"), "PPM"),
        "PBM text": b"P1\n%d %d\n" % (WIDTH, HEIGHT) + " ".join(map(str, bits.ravel())).encode(),
    }


def _other_formats():
    return {
        "ICO": encoded(photo(), "ICO", sizes=[(WIDTH, HEIGHT)]),
        "ICO BMP": encoded(with_alpha(), "ICO", sizes=[(WIDTH, HEIGHT)], bitmap_format="bmp"),
        "ICO several": encoded(photo(64, 64), "ICO", sizes=[(16, 16), (64, 64)]),
        "TGA": encoded(photo(), "TGA"),
        "TGA RLE": encoded(photo().quantize(20), "TGA", compression="tga_rle"),
        "TGA alpha": encoded(with_alpha(), "TGA"),
        "JPEG2000": encoded(photo(), "JPEG2000"),
        "JPEG2000 lossy": encoded(photo(), "JPEG2000", irreversible=True, quality_layers=[10]),
        "JPEG2000 tiles": encoded(photo(), "JPEG2000", tile_size=(16, 16)),
        "JPEG2000 bare": encoded(with_alpha(), "JPEG2000", no_jp2=True),
        "JPEG2000 16 bits": encoded(Image.fromarray(grey16()), "JPEG2000"),
    }
