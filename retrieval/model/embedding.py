"""A bundle at work: uint8 images in, vectors out."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.model.backbones import extractor
from retrieval.model.bundle import Bundle
from retrieval.model.engines import Engine, TorchEngine
from retrieval.model.projection import Projection, unit


class Embedder:
    """Embeds batches of a fixed size; a shorter one is padded, so that the shape never changes.

    The shape decides which kernels a library picks and so the last bits of a vector.
    """

    def __init__(self, bundle: Bundle, batch_size: int, *, threads: int = 1) -> None:
        self.bundle = bundle
        self.batch_size = batch_size
        network = extractor(bundle.backbone, bundle.state(), bundle.pooling)
        self._engine: Engine = TorchEngine(network, bundle.transform, threads=threads)
        side = bundle.transform.image_size
        self._batch = torch.zeros((batch_size, 3, side, side), dtype=torch.uint8)

    def embed(self, images: list[torch.Tensor]) -> NDArray[np.float32]:
        """Embed up to `batch_size` images, uint8 (3, side, side) each -> (n, d) float32.

        Vectors are projected and have unit length if the bundle says so; a vector without length
        stays so, for the caller to refuse.
        """
        for place, image in enumerate(images):
            self._batch[place] = image
        self._batch[len(images) :] = 0
        vectors = self._engine.run(self._batch)[: len(images)].copy()
        return finish(vectors, normalize=self.bundle.normalize, projection=self.bundle.projection)


def finish(
    vectors: NDArray[np.float32], *, normalize: bool, projection: Projection | None
) -> NDArray[np.float32]:
    """Make of what a network gave, (n, d) float32, what a store holds, (n, D) float32.

    A projection reads vectors of unit length, since it was fitted on such. It moves the origin, and
    would give a vector without length one that means nothing; so that one stays all zero.
    """
    if projection is None:
        return unit(vectors).astype(np.float32) if normalize else vectors
    projected = projection.apply(unit(vectors))
    projected[~vectors.any(-1)] = 0
    return (unit(projected) if normalize else projected).astype(np.float32)
