"""Embedder: runs a bundle on batches of uint8 images and returns finished vectors.

An engine runs the network; `finish_vectors` then applies the projection and the normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.models.bundle import Bundle
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.engines import load_engine
from retrieval.models.openvino import IR
from retrieval.models.pca import Projection
from retrieval.vectors.float_conversions import to_float32
from retrieval.vectors.normalize import normalize_rows

Vectors = NDArray[np.float32]
THREADS = 1
"""Threads of an engine. A constant, independent of the number of workers, because it changes the
last bits of a vector; one worker per core with one thread each is fastest on CPUs."""


class Embedder:
    """Embeds batches of a fixed size; shorter batches are zero-padded to it.

    The batch shape decides which kernels a library selects, and so the last bits of a vector.
    """

    def __init__(self, bundle: Bundle, plan: EnginePlan, ir: IR | None = None) -> None:
        self.bundle = bundle
        self.batch_size = plan.batch_size
        self._mirrored = bundle.augment_inference == "flip"
        passes = 2 if self._mirrored else 1
        self._engine = load_engine(bundle, plan, ir, threads=THREADS, passes=passes)
        self.ahead = self._engine.ahead // passes
        """Batches that may be in flight before the result of the first must be taken."""

    def embed(self, images: Sequence[ArrayLike]) -> Vectors:
        """Embed up to `batch_size` images, uint8 (3, side, side) each, as (n, d) float32.

        Vectors are averaged over augmented images, projected and normalised as the bundle
        specifies. A zero vector stays zero; the caller must reject it.
        """
        return self.submit(images)()

    def submit(self, images: Sequence[ArrayLike]) -> Callable[[], Vectors]:
        """Start embedding a batch; calling the result waits for its vectors.

        Results must be taken in the order in which batches were submitted.
        """
        if not images:
            return lambda: np.empty((0, self.bundle.dimension), np.float32)
        pixels = self._engine.next_buffer()
        for row, image in enumerate(images):
            pixels[row] = image
        pixels[len(images) :] = 0
        results = [self._engine.submit(pixels)]
        if self._mirrored:
            mirrored = self._engine.next_buffer()
            mirrored[:] = pixels[..., ::-1]
            results.append(self._engine.submit(mirrored))
        bundle = self.bundle

        def finish() -> Vectors:
            vectors = [result()[: len(images)] for result in results]
            mean = sum(vectors[1:], vectors[0]) / len(vectors)
            return finish_vectors(
                to_float32(mean), normalize=bundle.normalize, projection=bundle.projection
            )

        return finish


def finish_vectors(vectors: Vectors, *, normalize: bool, projection: Projection | None) -> Vectors:
    """Project and normalise the vectors of a network: (n, d) float32 -> (n, D) float32.

    A projection was fitted on unit vectors, so its input is normalised first. It also moves the
    origin and would turn a zero vector into a meaningless one, so zero vectors stay zero.
    """
    if projection is None:
        return to_float32(normalize_rows(vectors)) if normalize else vectors
    projected = projection.apply(normalize_rows(vectors))
    projected[~vectors.any(-1)] = 0
    return to_float32(normalize_rows(projected) if normalize else projected)
