"""Make JPEG thumbnails for reports, decoded as for the network but not cropped.

At 160 pixels and quality 80 a photo takes 4 to 6 kB, so a page of two thousand matches is about
10 MB. The decoder is the one used for embedding (orientation, alpha, size limits).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from torch import Tensor

from retrieval.core.errors import LookalikeError
from retrieval.sources.container_paths import reading_order
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.photo_reader import PhotoReader

QUALITY = 80
"""JPEG quality: below it edges ring visibly, above it files grow without a visible gain."""


def make_thumbnail(pixels: Tensor, *, side: int = 160) -> bytes:
    """Return a JPEG of (3, h, w) uint8 pixels with its longer side `side` pixels.

    Smaller images are enlarged, so that all have equal size.
    """
    height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    longer = max(height, width)
    size = (max(1, round(side * width / longer)), max(1, round(side * height / longer)))
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    # an integer reduction first: a photo of 12 megapixels costs a sixth, and looks the same
    small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=QUALITY, optimize=True)
    return sink.getvalue()


def read_thumbnails(
    paths: Iterable[str], *, max_pixels: int, side: int = 160, threads: int = 2
) -> dict[str, bytes]:
    """Return the thumbnails of readable images and crops by path, in the order of the paths' bytes.

    Unreadable images are left out. Raises StorageFailure on a temporary failure of disk or bucket,
    since a later run would read more images.
    """

    def make(path: str) -> bytes | None:
        try:
            pixels = photos.read(path).decode(path, max_pixels=max_pixels)
            return make_thumbnail(pixels, side=side)
        except LookalikeError:
            raise
        except (MemoryError, Exception):  # noqa: BLE001 - decoders raise anything on broken bytes
            return None

    names = sorted(set(paths), key=reading_order)
    # the decoder's own catch_warnings is not thread-safe: overlapping uses would leave
    # their filters in the process, so the previous filters are restored here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ItemReader() as reader, ThreadPoolExecutor(threads, "thumbnail") as pool:
            photos = PhotoReader(reader)
            jpegs = list(pool.map(make, names))
    by_path = dict(zip(names, jpegs, strict=True))
    return {name: data for name, data in sorted(by_path.items()) if data is not None}
