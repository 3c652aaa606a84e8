"""Images with false sizes in their headers, and images that exhaust memory or time.

Each is assembled byte by byte or is an altered valid image, and has at most a few MB.
"""

import io
import struct
import zlib

from PIL import Image, features

from tests.retrieval.images.valid_images import (
    animated,
    bmp,
    chunk,
    encoded,
    frames,
    photo,
    png,
    rgb_tags,
    tiff,
)

BEYOND = 20_000  # side of a square that exceeds the default of --max-pixels
WITHIN = 13_000  # side of a square within that default


def images_claiming(side):
    """Return small files by format, whose headers claim a square of `side` pixels."""
    size = struct.pack("<HH", min(side, 65535), min(side, 65535))
    gif, tga = bytearray(encoded(photo(), "GIF")), bytearray(encoded(photo(), "TGA"))
    gif[6:10], tga[12:16] = size, size
    bitmap = bytearray(bmp(24, b"\0" * 99))
    bitmap[18:26] = struct.pack("<ii", side, side)
    images = {
        "JPEG": _jpeg_claiming(side),
        "JPEG progressive": _jpeg_claiming(side, progressive=True),
        "JPEG grey": _jpeg_claiming(side, grey=True),
        "PNG": png(side, side, 8, 2, zlib.compress(b"\0" * 999)),
        "PNG 16 bits": png(side, side, 16, 6, zlib.compress(b"\0" * 999)),
        "GIF": bytes(gif),
        "WEBP": webp_canvas(side),
        "BMP": bytes(bitmap),
        "TGA": bytes(tga),
        "PPM": b"P6\n%d %d\n255\n" % (side, side) + b"\0" * 99,
        "PGM text": b"P2\n%d %d\n255\n" % (side, side) + b"0 " * 99,
        "PBM": b"P4\n%d %d\n" % (side, side) + b"\0" * 99,
        "TIFF": tiff(
            rgb_tags(side, side) | {273: (4, [0]), 278: (4, [side]), 279: (4, [99])}, b"\0" * 99
        ),
        "TIFF LZW": tiff(
            rgb_tags(side, side) | {259: (3, [5]), 273: (4, [0]), 278: (4, [side]), 279: (4, [99])},
            b"\0" * 99,
        ),
        "TIFF tiles": tiff(
            _tile_tags(side, side, 256) | {324: (4, [0]), 325: (4, [99])}, b"\0" * 99
        ),
        "JPEG2000": _jpeg_2000(side, side),
        "JPEG2000 in the box only": _jpeg_2000(side, side, codestream=False),
        "JPEG2000 in the codestream only": _jpeg_2000(side, side, box=False),
        "ICO": ico(png(side, side, 8, 2, zlib.compress(b"\0" * 999))),
        "ICO BMP": ico(bytes(bitmap[14:])),
    }
    if features.check("avif"):
        images["AVIF"] = _avif_claiming(side)
    return images


def _jpeg_claiming(side, *, grey=False, **options):
    data = bytearray(encoded(photo().convert("L" if grey else "RGB"), "JPEG", **options))
    position = data.index(b"\xff\xc2" if options else b"\xff\xc0") + 5
    data[position : position + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def webp_canvas(side):
    """Return an animated WebP whose canvas, a square of `side`, is larger than its frames."""
    data = bytearray(animated("WEBP"))
    data[24:30] = (side - 1).to_bytes(3, "little") * 2
    return bytes(data)


def _avif_claiming(side):
    data = encoded(photo(), "AVIF")
    position = data.index(b"ispe") + 8
    return data[:position] + struct.pack(">II", side, side) + data[position + 8 :]


def _tile_tags(width, height, side):
    return rgb_tags(width, height) | {259: (3, [8]), 322: (4, [side]), 323: (4, [side])}


def _jpeg_2000(width, height, *, tile=None, components=3, box=True, codestream=True):
    """Return a JPEG 2000 with an altered size in its box or codestream (SIZ), or altered tiles."""
    data = bytearray(encoded(photo(), "JPEG2000"))
    if box:
        position = data.index(b"ihdr") + 4
        data[position : position + 8] = struct.pack(">II", height, width)
    position = data.index(b"\xff\x4f\xff\x51") + 8  # after the length and the capabilities
    if codestream:
        data[position : position + 8] = struct.pack(">II", width, height)
        data[position + 16 : position + 24] = struct.pack(">II", tile or width, tile or height)
    if components != 3:
        marker = position - 4
        data[marker : marker + 2] = struct.pack(">H", 38 + 3 * components)
        data[position + 32 : position + 34 + 9] = (
            struct.pack(">H", components) + b"\7\1\1" * components
        )
    return bytes(data)


def ico(image):
    """Return an ICO that claims 40 x 30 pixels and contains an image."""
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 40, 30, 0, 0, 1, 24, len(image), 22) + image


def resource_bombs():
    """Return images that exhaust memory or time if decoded naively: name -> (bytes, expected)."""
    zeros = _compressed_zeros(300)
    packed_pixels = zlib.compress(bytes(31 * 41), 9)

    def valid_png(*before):
        return png(30, 30, 8, 0, zlib.compress(bytes(31 * 30)), before=b"".join(before))

    return {
        "PNG iCCP of 300 MB": (valid_png(chunk(b"iCCP", b"x\0\0" + zeros)), "either"),
        "PNG zTXt of 300 MB": (valid_png(chunk(b"zTXt", b"x\0\0" + zeros)), "either"),
        "PNG iTXt of 300 MB": (valid_png(chunk(b"iTXt", b"x\0\1\0\0\0" + zeros)), "either"),
        "PNG IDAT of 300 MB": (png(30, 30, 8, 0, zeros), "either"),
        "PNG many texts": (valid_png(*[chunk(b"tEXt", b"k\0" + b"v" * 9)] * 20_000), "row"),
        "PNG many private chunks": (valid_png(*[chunk(b"prVt", b"")] * 50_000), "row"),
        "PNG chunk of 2 GB": (valid_png()[:33] + struct.pack(">I4s", 2**31 - 1, b"tEXt"), "ledger"),
        "PNG chunk of 4 GB": (valid_png()[:33] + struct.pack(">I4s", 2**32 - 1, b"tEXt"), "ledger"),
        "PNG IDAT of 2 GB": (
            valid_png()[:33] + struct.pack(">I4s", 2**31 - 1, b"IDAT") + packed_pixels, "either",
        ),
        **_animations(), **_tiff_bombs(), **_jpeg_bombs(), **_jpeg_2000_bombs(),
        "BMP header of 4 GB": (b"BM" + struct.pack("<IIII", 99, 0, 54, 2**32 - 1), "ledger"),
        "BMP RLE jumps": (_bmp_with_jumps(), "either"),
        "ICO of 65535 entries": (b"\0\0\1\0\xff\xff" + b"\1\1\0\0\1\0\x18\0" * 131_070, "ledger"),
        "PPM long number": (b"P6\n" + b"1" * 1_000_000, "ledger"),
        "PPM long comment": (b"P6\n#" + b"c" * 1_000_000 + b"\n1 1\n255\n\1\2\3", "row"),
        "PPM text of numbers too long": (b"P2\n1000 1000\n9\n" + b"1" * 2_000_000, "ledger"),
    }  # fmt: skip


def _compressed_zeros(megabytes):
    """Return the zlib stream of so many MB of zeros, made from a single compressed MB."""
    packer, megabyte = zlib.compressobj(9), bytes(2**20)
    header = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(megabyte) + packer.flush(zlib.Z_FULL_FLUSH)
    block = block.removeprefix(b"\x78\xda")
    header = b"\x78\xda" + header.removeprefix(b"\x78\xda")
    checksum = 1
    for _ in range(megabytes):
        checksum = zlib.adler32(megabyte, checksum)
    return header + block * megabytes + b"\3\0" + struct.pack(">I", checksum)


def _bmp_with_jumps():
    data = bytearray(bmp(8, b"\0\2\0\xff" * 99_999, compression=1, palette=b"\0" * 64))
    data[18:26] = struct.pack("<ii", 1000, 1000)
    return bytes(data)


def _animations():
    gif = bytearray(animated("GIF"))
    position = gif.index(b"\x2c\0\0\0\0") + 5
    larger, huge = bytearray(gif), bytearray(gif)
    larger[position : position + 4] = struct.pack("<HH", 60, 50)
    huge[position : position + 4] = struct.pack("<HH", BEYOND, BEYOND)
    single_frame = bytes(gif[: gif.index(b"!\xf9", position)])
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 20_000 + b"\0"
    header = gif.index(b"!")
    apng = bytearray(animated("PNG"))
    frame_position = apng.index(b"fcTL") + 8
    apng[frame_position : frame_position + 8] = struct.pack(">II", BEYOND, BEYOND)
    return {
        "GIF frame larger than its canvas": (bytes(larger), "either"),
        "GIF frame far larger than its canvas": (bytes(huge), "ledger"),
        "GIF of 5000 frames": (
            single_frame + bytes(gif[len(single_frame) : -1]) * 2500 + b";", "row",
        ),
        "GIF comment of 5 MB": (bytes(gif[:header]) + comment + bytes(gif[header:]), "row"),
        "GIF many comments": (
            bytes(gif[:header]) + b"!\xfe\1c\0" * 200_000 + bytes(gif[header:]), "row",
        ),
        "APNG frame larger than its canvas": (bytes(apng), "either"),
        "APNG of 2000 frames": (_long_animation("PNG"), "row"),
        "WEBP of 2000 frames": (_long_animation("WEBP"), "row"),
        "TIFF of 2000 pages": (_long_animation("TIFF"), "row"),
        "WEBP canvas of 4 gigapixels": (webp_canvas(65_535), "ledger"),
    }  # fmt: skip


def _long_animation(image_format):
    first, second, _ = (frame.resize((4, 4)) for frame in frames(3))
    sink = io.BytesIO()
    first.save(sink, image_format, save_all=True, append_images=[second, first] * 1000)
    return sink.getvalue()


def _tiff_bombs():
    pixels = bytes(4 * 4 * 3)
    tags_4x4 = rgb_tags(4, 4) | {273: (4, [0]), 278: (4, [4]), 279: (4, [48])}
    deflated = zlib.compress(pixels)
    images = {"TIFF IFD loops": (tiff(tags_4x4, pixels, next_ifd=8), "row")}
    for side in (32_000, 2**20, 2**31 - 16):
        tags = _tile_tags(40, 30, side) | {324: (4, [0]), 325: (4, [len(deflated)])}
        images[f"TIFF tile of {side}"] = (tiff(tags, deflated), "ledger")
    tall_strip = tags_4x4 | {259: (3, [8]), 278: (4, [2**31 - 1])}
    large_strip = tags_4x4 | {279: (4, [2**32 - 1])}
    many_samples = tags_4x4 | {277: (3, [65535]), 258: (3, [8] * 65535)}
    bigtiff = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60) + b"\0" * 99
    false_count = bytearray(tiff(tags_4x4, pixels))
    count = false_count.index(struct.pack("<HH", 273, 4)) + 4
    false_count[count : count + 4] = struct.pack("<I", 2**31 - 1)
    return images | {
        "TIFF strip of endless rows": (tiff(tall_strip, zlib.compress(pixels)), "either"),
        "TIFF strip of 4 GB": (tiff(large_strip, pixels), "either"),
        "TIFF of 65535 samples": (tiff(many_samples, pixels), "ledger"),
        "TIFF of a million offsets": (
            tiff(tags_4x4 | {273: (4, [0] * 1_000_000)}, pixels), "either",
        ),
        "TIFF of 2 billion offsets": (bytes(false_count), "ledger"),
        "BigTIFF of 2^60 tags": (bigtiff, "ledger"),
    }  # fmt: skip


def _jpeg_bombs():
    original = encoded(photo(), "JPEG", progressive=True)
    scan = original.rindex(b"\xff\xda")
    scans = bytearray(original[:scan] + original[scan:-2] * 20_000 + b"\xff\xd9")
    position = original.index(b"\xff\xc2") + 5
    scans[position : position + 4] = struct.pack(">HH", 2000, 2000)
    comments = b"\xff\xfe" + struct.pack(">H", 65535) + b"c" * 65533
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "d" * 60_000
    return {
        "JPEG of 20000 scans": (bytes(scans), "ledger"),
        "JPEG of 3 MB of comments": (original[:2] + comments * 50 + original[2:], "row"),
        "JPEG huge EXIF": (encoded(photo(), "JPEG", exif=exif), "row"),
        "JPEG broken ICC": (encoded(photo(), "JPEG", icc_profile=b"\xff" * 99_999), "row"),
        "JPEG fill bytes": (original[:2] + b"\xff" * 3_000_000 + original[2:], "either"),
    }


def _jpeg_2000_bombs():
    return {
        "JPEG2000 tiles of 40 x 40": (_jpeg_2000(10_000, 10_000, tile=40), "ledger"),
        "JPEG2000 tiles of one pixel": (_jpeg_2000(250, 250, tile=1), "ledger"),
        "JPEG2000 of 16384 components": (
            _jpeg_2000(250, 250, tile=1, components=16_384), "ledger",
        ),
    }  # fmt: skip
