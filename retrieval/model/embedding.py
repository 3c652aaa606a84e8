"""A bundle at work: uint8 images in, vectors out."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.model.backbones import extractor
from retrieval.model.bundle import Bundle
from retrieval.model.engines import Engine, TorchEngine


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

        Vectors have unit length if the bundle says so; a vector without length stays as it is, for
        the caller to refuse.
        """
        for place, image in enumerate(images):
            self._batch[place] = image
        self._batch[len(images) :] = 0
        vectors = self._engine.run(self._batch)[: len(images)].copy()
        if self.bundle.normalize:
            wide = vectors.astype(np.float64)
            lengths = np.sqrt((wide * wide).sum(-1, keepdims=True))
            vectors = (wide / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
        return vectors
