"""A bundle at work: uint8 images in, vectors out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.models.bundle import Bundle
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.engines import load_engine
from retrieval.models.openvino import IR
from retrieval.models.pca import Projection, unit
from retrieval.vectors.float_conversions import to_float32

Vectors = NDArray[np.float32]
THREADS = 1
"""Of an engine. A setting and no consequence of the number of workers, since it shapes the bits;
one a core is the fastest on CPUs, whose cores then never wait for one another."""


class Embedder:
    """Embeds batches of a fixed size; a shorter one is padded, so that the shape never changes.

    The shape decides which kernels a library picks and so the last bits of a vector.
    """

    def __init__(self, bundle: Bundle, plan: EnginePlan, ir: IR | None = None) -> None:
        self.bundle = bundle
        self.batch_size = plan.batch_size
        self._engine = load_engine(bundle, plan, ir, threads=THREADS)
        self.ahead = self._engine.ahead
        """Batches that may be under way before the vectors of the first have to be taken."""

    def embed(self, images: list[torch.Tensor]) -> Vectors:
        """Embed up to `batch_size` images, uint8 (3, side, side) each -> (n, d) float32.

        Vectors are projected and have unit length if the bundle says so; a vector without length
        stays so, for the caller to refuse.
        """
        return self.submit(images)()

    def submit(self, images: list[torch.Tensor]) -> Callable[[], Vectors]:
        """Begin on what `embed` does; vectors are taken in the order of the batches."""
        if not images:
            return lambda: np.empty((0, self.bundle.dimension), np.float32)
        pixels = self._engine.blank()
        for place, image in enumerate(images):
            pixels[place] = image.numpy()
        pixels[len(images) :] = 0
        answer = self._engine.submit(pixels)
        return lambda: self._finished(answer()[: len(images)])

    def _finished(self, vectors: Vectors) -> Vectors:
        bundle = self.bundle
        return finish(vectors, normalize=bundle.normalize, projection=bundle.projection)


def finish(vectors: Vectors, *, normalize: bool, projection: Projection | None) -> Vectors:
    """Make of what a network gave, (n, d) float32, what a store holds, (n, D) float32.

    A projection reads vectors of unit length, since it was fitted on such. It moves the origin, and
    would give a vector without length one that means nothing; so that one stays all zero.
    """
    if projection is None:
        return to_float32(unit(vectors)) if normalize else vectors
    projected = projection.apply(unit(vectors))
    projected[~vectors.any(-1)] = 0
    return to_float32(unit(projected) if normalize else projected)
