"""Embed query images in this process by the bundle of an index."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from jobs.config.options import MAX_PIXELS
from jobs.runtime.progress import print_message
from lookalike.html_view import restored_pillow_settings
from retrieval.core.errors import InputError, LookalikeError
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
    """Return a Pillow image as PNG, which keeps its pixels, with its EXIF orientation applied."""
    upright: Image.Image = ImageOps.exif_transpose(image)
    if upright.mode not in _PNG_MODES:
        upright = upright.convert("RGB")
    sink = io.BytesIO()
    upright.save(sink, "PNG")
    return sink.getvalue()
