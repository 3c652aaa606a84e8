"""Small pictures for the report: read once, decoded as for the network, shrunk, written as JPEG.

At 160 pixels and quality 80 a photo takes 4 to 6 kB, so that a page of two thousand matches opens
at once and can still be sent. The decoder is the one that fed the network (orientation, alpha,
bounds): what the page shows is what was embedded, but whole, without the crop.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from torch import Tensor

from retrieval.core.errors import LookalikeError
from retrieval.images.decode import decode_full
from retrieval.sources.container_paths import reading_order
from retrieval.sources.item_reader import Opener

QUALITY = 80
"""Below it the edges of small pictures ring visibly; above it the bytes grow and the eye gains
nothing."""


def thumbnail(data: bytes, *, side: int = 160, max_pixels: int) -> bytes:
    """Give a JPEG of the whole image, oriented, its longer side `side` pixels.

    A smaller image is enlarged, so that all stand equally large. Raises what the decoders raise.
    """
    return thumbnail_of(decode_full(data, max_pixels=max_pixels), side=side)


def thumbnail_of(pixels: Tensor, *, side: int = 160) -> bytes:
    """Give such a JPEG of (3, h, w) uint8 pixels."""
    height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    longer = max(height, width)
    size = (max(1, round(side * width / longer)), max(1, round(side * height / longer)))
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    # an integer reduction first: a photo of 12 megapixels costs a sixth, and looks the same
    small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=QUALITY, optimize=True)
    return sink.getvalue()


def thumbnails(paths: Iterable[str], *, max_pixels: int, threads: int = 2) -> dict[str, bytes]:
    """Give the thumbnail of each image that can be read, by path, in the order of the paths' bytes.

    What cannot be read is left out: the page says so in its place. A disk or bucket that fails for
    now still raises `StorageFailure`, since the same page would show more in an hour.
    """

    def make(path: str) -> bytes | None:
        try:
            return thumbnail(opener.read(path), max_pixels=max_pixels)
        except LookalikeError:
            raise
        except (MemoryError, Exception):  # noqa: BLE001 - decoders raise anything on broken bytes
            return None

    names = sorted(set(paths), key=reading_order)
    # the decoder's own catch_warnings is not made for threads: two that overlap would leave their
    # filters behind in the process, so those of before are put back here, once all are through
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Opener() as opener, ThreadPoolExecutor(threads, "thumbnail") as pool:
            made = list(pool.map(make, names))
    found = dict(zip(names, made, strict=True))
    return {name: data for name, data in sorted(found.items()) if data is not None}
