"""Reading and decoding of images and crops, where adjacent crops of one photo share its pixels."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock

from retrieval.images.box import split_box
from retrieval.images.decode import Pixels, crop_pixels, decode_full
from retrieval.sources.item_reader import ItemReader


@dataclass
class Photo:
    """The bytes of an image file; its pixels are decoded at the first call of `decode`."""

    data: bytes
    sha256: str  # of the bytes, hex
    _lock: Lock = field(default_factory=Lock, repr=False)
    _pixels: Pixels | None = field(default=None, repr=False)

    def decode(self, path: str, *, max_pixels: int) -> Pixels:
        """Return the pixels (3, H, W) of the whole image or of a crop, as `path` states.

        Those of a whole image are not kept. Raises what `decode_full` raises, and ValueError for a
        box outside the image.
        """
        box = split_box(path)[1]
        if box is None:
            return decode_full(self.data, max_pixels=max_pixels)
        with self._lock:
            if self._pixels is None:
                self._pixels = decode_full(self.data, max_pixels=max_pixels)
            return crop_pixels(self._pixels, box)


class PhotoReader:
    """Reads images by path; keeps the photo of the last crop, for the next crop of it.

    Thread-safe. Memory holds the pixels of one photo more than without crops.
    """

    def __init__(self, reader: ItemReader) -> None:
        self._reader = reader
        self._lock = Lock()
        self._last: tuple[str, Future[Photo]] | None = None

    def read(self, path: str, place: int | None = None, size: int | None = None) -> Photo:
        """Return the photo of an image or a crop; raise what `ItemReader.read` raises."""
        name, box = split_box(path)
        if box is None:
            self._last = None
            return self._read(name, place, size)
        with self._lock:
            last = self._last
            if last is not None and last[0] == name:
                photo = last[1]
            else:
                last, photo = None, Future()
                self._last = name, photo
        if last is None:  # the first crop; other threads wait for the photo
            try:
                photo.set_result(self._read(name, place, size))
            except BaseException as error:
                photo.set_exception(error)
                raise
        return photo.result()

    def _read(self, path: str, place: int | None, size: int | None) -> Photo:
        data = self._reader.read(path, place, size)
        return Photo(data, hashlib.sha256(data).hexdigest())
