"""Images that lie about their size, and such as want memory or time out of all proportion.

Each is made by hand or by altering a sound one, and none is larger than a few MB.
"""

import io
import struct
import zlib

from PIL import Image, features

from tests.retrieval.images.odd_files_valid import (
    bmp,
    chunk,
    encoded,
    frames,
    moving,
    photo,
    png,
    rgb_tags,
    tiff,
)

BEYOND = 20_000  # a side; its square is beyond the default of --max-pixels
WITHIN = 13_000  # and this one is not


def claims(side):
    """Give small files whose headers claim a square of this side, by format."""
    size = struct.pack("<HH", min(side, 65535), min(side, 65535))
    gif, tga = bytearray(encoded(photo(), "GIF")), bytearray(encoded(photo(), "TGA"))
    gif[6:10], tga[12:16] = size, size
    bitmap = bytearray(bmp(24, b"\0" * 99))
    bitmap[18:26] = struct.pack("<ii", side, side)
    found = {
        "JPEG": _jpeg_of(side),
        "JPEG progressive": _jpeg_of(side, progressive=True),
        "JPEG grey": _jpeg_of(side, grey=True),
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
        "TIFF tiles": tiff(_tiles(side, side, 256) | {324: (4, [0]), 325: (4, [99])}, b"\0" * 99),
        "JPEG2000": _jpeg_2000(side, side),
        "JPEG2000 in one place": _jpeg_2000(side, side, codestream=False),
        "JPEG2000 in the other": _jpeg_2000(side, side, box=False),
        "ICO": icon_of(png(side, side, 8, 2, zlib.compress(b"\0" * 999))),
        "ICO BMP": icon_of(bytes(bitmap[14:])),
    }
    if features.check("avif"):
        found["AVIF"] = _avif_of(side)
    return found


def _jpeg_of(side, *, grey=False, **options):
    data = bytearray(encoded(photo().convert("L" if grey else "RGB"), "JPEG", **options))
    at = data.index(b"\xff\xc2" if options else b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def webp_canvas(side):
    """An animated WebP whose canvas is larger than its frames."""
    data = bytearray(moving("WEBP"))
    data[24:30] = (side - 1).to_bytes(3, "little") * 2
    return bytes(data)


def _avif_of(side):
    data = encoded(photo(), "AVIF")
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", side, side) + data[at + 8 :]


def _tiles(width, height, side):
    return rgb_tags(width, height) | {259: (3, [8]), 322: (4, [side]), 323: (4, [side])}


def _jpeg_2000(width, height, *, tile=None, parts=3, box=True, codestream=True):
    """A JPEG 2000 with another size in its box or in its codestream (SIZ), or other tiles."""
    data = bytearray(encoded(photo(), "JPEG2000"))
    if box:
        at = data.index(b"ihdr") + 4
        data[at : at + 8] = struct.pack(">II", height, width)
    at = data.index(b"\xff\x4f\xff\x51") + 8  # after the length and the capabilities
    if codestream:
        data[at : at + 8] = struct.pack(">II", width, height)
        data[at + 16 : at + 24] = struct.pack(">II", tile or width, tile or height)
    if parts != 3:
        siz = at - 4
        data[siz : siz + 2] = struct.pack(">H", 38 + 3 * parts)
        data[at + 32 : at + 34 + 9] = struct.pack(">H", parts) + b"\7\1\1" * parts
    return bytes(data)


def icon_of(image):
    """An icon that says 40 x 30 and holds this image."""
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 40, 30, 0, 0, 1, 24, len(image), 22) + image


def bombs():
    """Give what wants memory or time out of all proportion: name -> (bytes, what must come)."""
    zeros = _zeros(300)
    flat = zlib.compress(bytes(31 * 41), 9)

    def sound(*before):
        return png(30, 30, 8, 0, zlib.compress(bytes(31 * 30)), before=b"".join(before))

    return {
        "PNG iCCP of 300 MB": (sound(chunk(b"iCCP", b"x\0\0" + zeros)), "either"),
        "PNG zTXt of 300 MB": (sound(chunk(b"zTXt", b"x\0\0" + zeros)), "either"),
        "PNG iTXt of 300 MB": (sound(chunk(b"iTXt", b"x\0\1\0\0\0" + zeros)), "either"),
        "PNG IDAT of 300 MB": (png(30, 30, 8, 0, zeros), "either"),
        "PNG many texts": (sound(*[chunk(b"tEXt", b"k\0" + b"v" * 9)] * 20_000), "row"),
        "PNG many private chunks": (sound(*[chunk(b"prVt", b"")] * 50_000), "row"),
        "PNG chunk of 2 GB": (sound()[:33] + struct.pack(">I4s", 2**31 - 1, b"tEXt"), "ledger"),
        "PNG chunk of 4 GB": (sound()[:33] + struct.pack(">I4s", 2**32 - 1, b"tEXt"), "ledger"),
        "PNG IDAT of 2 GB": (
            sound()[:33] + struct.pack(">I4s", 2**31 - 1, b"IDAT") + flat, "either",
        ),
        **_animations(), **_tiff_bombs(), **_jpeg_bombs(), **_jpeg_2000_bombs(),
        "BMP header of 4 GB": (b"BM" + struct.pack("<IIII", 99, 0, 54, 2**32 - 1), "ledger"),
        "BMP RLE jumps": (_jumps(), "either"),
        "ICO of 65535 entries": (b"\0\0\1\0\xff\xff" + b"\1\1\0\0\1\0\x18\0" * 131_070, "ledger"),
        "PPM long number": (b"P6\n" + b"1" * 1_000_000, "ledger"),
        "PPM long comment": (b"P6\n#" + b"c" * 1_000_000 + b"\n1 1\n255\n\1\2\3", "row"),
        "PPM text of numbers too long": (b"P2\n1000 1000\n9\n" + b"1" * 2_000_000, "ledger"),
    }  # fmt: skip


def _zeros(megabytes):
    """What zlib makes of so many MB of zeros, without compressing them all."""
    packer, mb = zlib.compressobj(9), bytes(2**20)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(mb) + packer.flush(zlib.Z_FULL_FLUSH)
    again = again.removeprefix(b"\x78\xda")
    head = b"\x78\xda" + head.removeprefix(b"\x78\xda")
    check = 1
    for _ in range(megabytes):
        check = zlib.adler32(mb, check)
    return head + again * megabytes + b"\3\0" + struct.pack(">I", check)


def _jumps():
    data = bytearray(bmp(8, b"\0\2\0\xff" * 99_999, compression=1, palette=b"\0" * 64))
    data[18:26] = struct.pack("<ii", 1000, 1000)
    return bytes(data)


def _animations():
    gif = bytearray(moving("GIF"))
    at = gif.index(b"\x2c\0\0\0\0") + 5
    larger, huge = bytearray(gif), bytearray(gif)
    larger[at : at + 4] = struct.pack("<HH", 60, 50)
    huge[at : at + 4] = struct.pack("<HH", BEYOND, BEYOND)
    one = bytes(gif[: gif.index(b"!\xf9", at)])
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 20_000 + b"\0"
    header = gif.index(b"!")
    apng = bytearray(moving("PNG"))
    place = apng.index(b"fcTL") + 8
    apng[place : place + 8] = struct.pack(">II", BEYOND, BEYOND)
    return {
        "GIF frame larger than its canvas": (bytes(larger), "either"),
        "GIF frame far larger than its canvas": (bytes(huge), "ledger"),
        "GIF of 5000 frames": (one + bytes(gif[len(one) : -1]) * 2500 + b";", "row"),
        "GIF comment of 5 MB": (bytes(gif[:header]) + comment + bytes(gif[header:]), "row"),
        "GIF many comments": (
            bytes(gif[:header]) + b"!\xfe\1c\0" * 200_000 + bytes(gif[header:]), "row",
        ),
        "APNG frame larger than its canvas": (bytes(apng), "either"),
        "APNG of 2000 frames": (_many("PNG"), "row"),
        "WEBP of 2000 frames": (_many("WEBP"), "row"),
        "TIFF of 2000 pages": (_many("TIFF"), "row"),
        "WEBP canvas of 4 gigapixels": (webp_canvas(65_535), "ledger"),
    }  # fmt: skip


def _many(kind):
    first, second, _ = (frame.resize((4, 4)) for frame in frames(3))
    sink = io.BytesIO()
    first.save(sink, kind, save_all=True, append_images=[second, first] * 1000)
    return sink.getvalue()


def _tiff_bombs():
    pixels = bytes(4 * 4 * 3)
    plain = rgb_tags(4, 4) | {273: (4, [0]), 278: (4, [4]), 279: (4, [48])}
    deflated = zlib.compress(pixels)
    found = {"TIFF IFD loops": (tiff(plain, pixels, next_ifd=8), "row")}
    for side in (32_000, 2**20, 2**31 - 16):
        tags = _tiles(40, 30, side) | {324: (4, [0]), 325: (4, [len(deflated)])}
        found[f"TIFF tile of {side}"] = (tiff(tags, deflated), "ledger")
    tall = plain | {259: (3, [8]), 278: (4, [2**31 - 1])}
    raw = plain | {279: (4, [2**32 - 1])}
    many = plain | {277: (3, [65535]), 258: (3, [8] * 65535)}
    big = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60) + b"\0" * 99
    lie = bytearray(tiff(plain, pixels))
    lie[lie.index(struct.pack("<HH", 273, 4)) + 4 :][:4] = b""
    count = lie.index(struct.pack("<HH", 273, 4)) + 4
    lie[count : count + 4] = struct.pack("<I", 2**31 - 1)
    return found | {
        "TIFF strip of endless rows": (tiff(tall, zlib.compress(pixels)), "either"),
        "TIFF strip of 4 GB": (tiff(raw, pixels), "either"),
        "TIFF of 65535 samples": (tiff(many, pixels), "ledger"),
        "TIFF of a million offsets": (
            tiff(plain | {273: (4, [0] * 1_000_000)}, pixels), "either",
        ),
        "TIFF of 2 thousand million offsets": (bytes(lie), "ledger"),
        "BigTIFF of 2^60 tags": (big, "ledger"),
    }  # fmt: skip


def _jpeg_bombs():
    whole = encoded(photo(), "JPEG", progressive=True)
    scan = whole.rindex(b"\xff\xda")
    scans = bytearray(whole[:scan] + whole[scan:-2] * 20_000 + b"\xff\xd9")
    at = whole.index(b"\xff\xc2") + 5
    scans[at : at + 4] = struct.pack(">HH", 2000, 2000)
    comments = b"\xff\xfe" + struct.pack(">H", 65535) + b"c" * 65533
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "d" * 60_000
    return {
        "JPEG of 20000 scans": (bytes(scans), "ledger"),
        "JPEG of 3 MB of comments": (whole[:2] + comments * 50 + whole[2:], "row"),
        "JPEG huge EXIF": (encoded(photo(), "JPEG", exif=exif), "row"),
        "JPEG broken ICC": (encoded(photo(), "JPEG", icc_profile=b"\xff" * 99_999), "row"),
        "JPEG fill bytes": (whole[:2] + b"\xff" * 3_000_000 + whole[2:], "either"),
    }


def _jpeg_2000_bombs():
    return {
        "JPEG2000 tiles of 40 x 40": (_jpeg_2000(10_000, 10_000, tile=40), "ledger"),
        "JPEG2000 tiles of one pixel": (_jpeg_2000(250, 250, tile=1), "ledger"),
        "JPEG2000 of 16384 components": (
            _jpeg_2000(250, 250, tile=1, parts=16_384), "ledger",
        ),
    }  # fmt: skip
