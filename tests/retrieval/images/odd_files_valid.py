"""Sound images of every format, mode and compression that a folder may hold, drawn and small.

What Pillow does not write (tiles, RLE, wide BMPs) is put together here by hand.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, features

WIDTH, HEIGHT = 40, 30


def photo(width=WIDTH, height=HEIGHT, seed=0):
    """Something like a photo: smooth, and different in all its corners."""
    coarse = np.random.default_rng(seed).integers(30, 225, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def with_alpha(image=None):
    """The photo, from invisible on the left to opaque on the right."""
    image = (image or photo()).convert("RGBA")
    ramp = np.linspace(0, 255, image.width).round().astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (image.height, 1))))
    return image


def deep():
    """Grey in sixteen bits, all of them used."""
    return np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 54


def encoded(image, kind, **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def sounds():
    """Give every whole image by name; the part before the blank is its format."""
    return {
        **_jpegs(), **_pngs(), **_webs(), **_bitmaps(), **_tiffs(), **_portables(), **_others(),
    }  # fmt: skip


def oriented():
    """Give the photo with each orientation, in each format that holds one."""
    found = {}
    for value in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = value
        for kind, options in {
            "JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {},
        }.items():  # fmt: skip
            found[f"{kind} turned {value}"] = encoded(photo(), kind, exif=exif, **options)
    return found


def frames(count=3):
    colours = ["#f00000", "#0000f0", "#00f000"]
    return [Image.new("RGB", (WIDTH, HEIGHT), colours[n % 3]) for n in range(count)]


def moving(kind, count=3, **options):
    first, *rest = frames(count)
    return encoded(first, kind, save_all=True, append_images=rest, **options)


def _jpegs():
    cmyk = encoded(photo().convert("CMYK"), "JPEG", quality=90)
    ycck = bytearray(cmyk)
    ycck[cmyk.index(b"Adobe") + 11] = 2  # the transform: the four are YCCK
    return {
        "JPEG baseline": encoded(photo(), "JPEG", quality=90),
        "JPEG 4:4:4": encoded(photo(), "JPEG", quality=95, subsampling=0),
        "JPEG progressive": encoded(photo(), "JPEG", quality=90, progressive=True),
        "JPEG restarts": encoded(photo(), "JPEG", restart_marker_blocks=2),
        "JPEG grey": encoded(photo().convert("L"), "JPEG", quality=90),
        "JPEG RGB kept": encoded(photo(), "JPEG", quality=90, keep_rgb=True),
        "JPEG CMYK": cmyk,
        "JPEG YCCK": bytes(ycck),
        "MPO": moving("MPO"),
    }


def _pngs():
    small = photo().quantize(13)
    found = {
        f"PNG palette {bits} bits": encoded(photo().quantize(2**bits), "PNG", bits=bits)
        for bits in (1, 2, 4, 8)
    }
    return found | {
        "PNG 1 bit": encoded(photo().convert("1"), "PNG"),
        "PNG grey": encoded(photo().convert("L"), "PNG"),
        "PNG grey 16 bits": encoded(Image.fromarray(deep()), "PNG"),
        "PNG grey alpha": encoded(with_alpha().convert("LA"), "PNG"),
        "PNG RGB": encoded(photo(), "PNG"),
        "PNG RGBA": encoded(with_alpha(), "PNG"),
        "PNG RGB 16 bits": png(WIDTH, HEIGHT, 16, 2, np.repeat(deep(), 3, 1).astype(">u2")),
        "PNG palette transparent": encoded(small, "PNG", transparency=bytes(range(0, 250, 20))),
        "APNG": moving("PNG"),
    }


def chunk(name, body):
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, depth, colour, rows, *, before=b""):
    """A PNG made by hand: `rows` an array of its samples, or the bytes of its IDAT."""
    if not isinstance(rows, bytes):
        rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _webs():
    found = {
        "GIF": encoded(photo().quantize(200), "GIF"),
        "GIF interlaced": encoded(photo().quantize(16), "GIF", interlace=1),
        "GIF animated": moving("GIF"),
        "WEBP lossy": encoded(photo(), "WEBP", quality=90),
        "WEBP lossless": encoded(photo(), "WEBP", lossless=True),
        "WEBP alpha": encoded(with_alpha(), "WEBP", lossless=True, exact=True),
        "WEBP animated": moving("WEBP"),
    }
    if features.check("avif"):
        found["AVIF"] = encoded(photo(), "AVIF")
        found["AVIF alpha"] = encoded(with_alpha(), "AVIF")
        found["AVIF animated"] = moving("AVIF")
    return found


def bmp(bits, body, *, compression=0, palette=b""):
    """A BMP made by hand, its rows from the bottom up."""
    start = 54 + len(palette)
    head = struct.pack("<2sIII", b"BM", start + len(body), 0, start)
    info = struct.pack(
        "<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, compression, len(body), 0, 0,
        len(palette) // 4, 0,
    )  # fmt: skip
    return head + info + palette + body


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
    """A TIFF made by hand: `tags` number -> (type 3 or 4, values); {body} is where the body is."""
    entries = [(number, kind, list(values)) for number, (kind, values) in sorted(tags.items())]
    start = 8 + 2 + 12 * len(entries) + 4
    long = [(n, k, v) for n, k, v in entries if len(v) * (2 if k == 3 else 4) > 4]
    after = start + sum(len(v) * (2 if k == 3 else 4) for _, k, v in long)
    table, values_at, held = b"", start, b""
    for number, kind, values in entries:
        numbers = [after + value if number in (273, 324) else value for value in values]
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        table += struct.pack("<HHI", number, kind, len(numbers))
        if len(packed) <= 4:
            table += packed.ljust(4, b"\0")
        else:
            table += struct.pack("<I", values_at + len(held))
            held += packed
    ifd = struct.pack("<H", len(entries)) + table + struct.pack("<I", next_ifd)
    return b"II*\0\x08\0\0\0" + ifd + held + body


def rgb_tags(width, height):
    """The tags of an uncompressed RGB TIFF, but for where its pixels are."""
    return {
        256: (4, [width]), 257: (4, [height]), 258: (3, [8, 8, 8]), 259: (3, [1]),
        262: (3, [2]), 277: (3, [3]), 284: (3, [1]),
    }  # fmt: skip


def tiled_tiff():
    """The photo in tiles of 16 x 16, deflated."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:HEIGHT, :WIDTH] = np.asarray(photo())
    tiles = [
        zlib.compress(pixels[top : top + 16, left : left + 16].tobytes())
        for top in range(0, 32, 16)
        for left in range(0, 48, 16)
    ]
    sizes = [len(tile) for tile in tiles]
    places = [sum(sizes[:number]) for number in range(len(sizes))]
    tags = rgb_tags(WIDTH, HEIGHT) | {
        259: (3, [8]), 322: (3, [16]), 323: (3, [16]), 324: (4, places), 325: (4, sizes),
    }  # fmt: skip
    return tiff(tags, b"".join(tiles))


def _tiffs():
    found = {
        f"TIFF {compression}": encoded(photo(), "TIFF", compression=compression)
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    }
    return found | {
        "TIFF 1 bit G4": encoded(photo().convert("1"), "TIFF", compression="group4"),
        "TIFF CMYK": encoded(photo().convert("CMYK"), "TIFF"),
        "TIFF LAB": encoded(Image.merge("LAB", photo().split()), "TIFF"),
        "TIFF RGBA": encoded(with_alpha(), "TIFF", compression="tiff_lzw"),
        "TIFF palette": encoded(photo().quantize(99), "TIFF"),
        "TIFF 16 bits": encoded(Image.fromarray(deep()), "TIFF"),
        "TIFF 32 bits": encoded(Image.fromarray(deep().astype(np.int32)), "TIFF"),
        "TIFF float32": encoded(Image.fromarray((deep() / 256).astype(np.float32)), "TIFF"),
        "TIFF pages": moving("TIFF"),
        "TIFF tiles": tiled_tiff(),
    }


def _portables():
    ascii_rgb = " ".join(map(str, np.asarray(photo()).ravel())).encode()
    bits = (np.asarray(photo().convert("1")) ^ 1).astype(np.uint8)
    return {
        "PPM": encoded(photo(), "PPM"),
        "PPM text": b"P3\n# a comment\n%d %d\n255\n" % (WIDTH, HEIGHT) + ascii_rgb + b"\n",
        "PPM 16 bits": b"P6 %d %d 65535\n" % (WIDTH, HEIGHT)
        + np.repeat(deep(), 3, 1).astype(">u2").tobytes(),
        "PGM": encoded(photo().convert("L"), "PPM"),
        "PGM text": b"P2\n%d %d\n9\n" % (WIDTH, HEIGHT) + b"0 3 9 " * (WIDTH * HEIGHT // 3),
        "PGM 16 bits": b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + deep().astype(">u2").tobytes(),
        "PBM": encoded(photo().convert("1"), "PPM"),
        "PBM text": b"P1\n%d %d\n" % (WIDTH, HEIGHT) + " ".join(map(str, bits.ravel())).encode(),
    }


def _others():
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
        "JPEG2000 16 bits": encoded(Image.fromarray(deep()), "JPEG2000"),
    }
