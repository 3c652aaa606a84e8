"""Embed query images in this process by the bundle of an index."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps

from jobs.config.options import MAX_PIXELS
from jobs.runtime.progress import print_message
from lookalike.html_view import restored_pillow_settings
from retrieval.core.errors import InputError, LookalikeError, UsageError
from retrieval.core.schemas import Vectors
from retrieval.images.box import split_box
from retrieval.images.decode import decode
from retrieval.models.bundle import Bundle
from retrieval.models.embedder import Embedder
from retrieval.models.engine_plan import OPENVINO, TORCH, EnginePlan, plan_engine
from retrieval.models.engines import convert_bundle
from retrieval.models.openvino import ConversionFailed
from retrieval.sources.item_reader import ItemReader
from retrieval.vectors.scoring import split_range

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_EQUAL_MODES = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
"""Modes of PNG by those modes of Pillow whose transparency RGB would lose."""

_MAX_GRAY = 65_535
"""Largest value of a pixel of mode I;16."""


@dataclass
class ImageEmbedder:
    """Embeds images on the CPU, as `rank` embeds query images there."""

    bundle: Bundle
    dtype: str  # of the vectors: float16 or float32
    _embedders: list[Embedder] = field(default_factory=list, repr=False)

    def embed(self, images: Sequence[bytes], names: Sequence[str]) -> Vectors:
        """Return the vectors of encoded images, (n, d).

        `names` are for messages; one that is the path of a crop selects its part of the image.
        Raises InputError if an image cannot be decoded, or has no direction.
        """
        embedder = self._embedder()
        parts = [np.empty((0, self.bundle.dimension), self.dtype)]
        with restored_pillow_settings():
            for part in split_range(len(images), embedder.batch_size):
                pairs = zip(images[part], names[part], strict=True)
                pixels = [self._decode(data, name) for data, name in pairs]
                parts.append(embedder.embed(pixels).astype(self.dtype))
        vectors: Vectors = np.concatenate(parts)
        usable = np.isfinite(vectors).all(1) & vectors.any(1)
        if not usable.all():
            raise InputError(f"{names[int(np.argmin(usable))]} has no finite vector other than 0")
        return vectors

    def _decode(self, data: bytes, name: str) -> torch.Tensor:
        try:
            transform, box = self.bundle.transform, split_box(name)[1]
            return decode(data, transform, max_pixels=MAX_PIXELS, box=box).pixels
        except LookalikeError:
            raise
        except (MemoryError, Exception) as error:  # decoders raise anything at all
            raise InputError(f"{name} cannot be decoded ({error})") from error

    def _embedder(self) -> Embedder:
        """Return the embedder; the network is converted and loaded at the first call."""
        if not self._embedders:
            plan = plan_engine(None, None, "cpu", None, gpus=False)
            self._embedders.append(_load_embedder(self.bundle, plan))
        return self._embedders[0]


def _load_embedder(bundle: Bundle, plan: EnginePlan) -> Embedder:
    """Load the network, by torch if OpenVINO cannot convert it."""
    if plan.engine == OPENVINO:
        try:
            return Embedder(bundle, plan, convert_bundle(bundle, plan))
        except ConversionFailed as error:
            print_message(f"OpenVINO cannot convert {bundle.backbone} ({error}): torch runs it")
    return Embedder(bundle, EnginePlan(TORCH, plan.precision, plan.device, plan.batch_size))


def read_files(paths: Sequence[str]) -> Iterator[bytes]:
    """Yield the bytes of images at paths or URIs; raise InputError if one cannot be read."""
    with ItemReader() as reader:
        for path in paths:
            try:
                yield reader.read(path)
            except LookalikeError:
                raise
            except (OSError, ValueError) as error:
                raise InputError(f"{path} cannot be read ({error})") from error


def encode_png(image: Any) -> bytes:
    """Return a Pillow image as PNG, which keeps its pixels, with its EXIF orientation applied.

    Raises UsageError for an image that PNG cannot hold: without pixels, of floats, or of integers
    of more than 16 bits.
    """
    sink = io.BytesIO()
    try:
        upright: Image.Image = ImageOps.exif_transpose(image)
        _to_png_mode(upright).save(sink, "PNG")
    except (OSError, SystemError, ValueError) as error:
        raise UsageError(
            f"the Pillow image of mode {image.mode} and size {image.width} x {image.height} cannot "
            f"be written as PNG ({error}); convert it to L, I;16 or RGB"
        ) from error
    return sink.getvalue()


def _to_png_mode(image: Image.Image) -> Image.Image:
    """Return an image in a mode that PNG has; raise ValueError if pixels would be clipped."""
    if image.mode in _PNG_MODES:
        return image
    if image.mode == "F":
        raise ValueError("it has floats")
    if image.mode.startswith("I"):
        wide = image.convert("I")
        low, high = cast("tuple[int, int]", wide.getextrema())  # of its only band
        if low < 0 or high > _MAX_GRAY:
            raise ValueError(f"its values are not from 0 to {_MAX_GRAY}")
        return wide.convert("I;16")
    return image.convert(_EQUAL_MODES.get(image.mode, "RGB"))
