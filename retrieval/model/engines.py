"""What runs a network on a batch of one fixed shape: a class an engine."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from retrieval.tables import Transform


class Engine(Protocol):
    """Runs a network; batches have the one shape it was made for."""

    def run(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        """Turn uint8 (batch, 3, side, side) into float32 (batch, d)."""
        ...


class TorchEngine:
    """PyTorch, float32, channels last (1.4 to 1.9 times the default layout on a CPU)."""

    name = "torch"
    precision = "fp32"

    def __init__(self, network: nn.Module, transform: Transform, *, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._network = network.eval().to(memory_format=torch.channels_last)
        self._mean = torch.tensor(transform.mean).view(3, 1, 1) * 255
        self._scale = 1 / (torch.tensor(transform.std).view(3, 1, 1) * 255)

    def run(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        """Normalise on the way in, so that batches travel as uint8."""
        with torch.inference_mode():
            images = (pixels.float() - self._mean) * self._scale
            vectors = self._network(images.contiguous(memory_format=torch.channels_last))
        answer: NDArray[np.float32] = vectors.float().numpy()
        return answer
