"""Principal component analysis (PCA), fitted on a stream of vectors.

The projection becomes part of the bundle and so of every vector, hence its bytes must not depend on
the number of cores. Threaded matrix products do: threads split a sum differently, which changes the
last bits. So the products of the fit run on one thread, and applying a projection uses no BLAS.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from retrieval.core.errors import UsageError
from retrieval.vectors.float_conversions import to_float64

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_BLOCK_ROWS = 1024
"""Vectors per matrix product while fitting: 16 MiB at d = 2048."""


@dataclass(frozen=True, eq=False)
class Projection:
    """The mean of unit vectors, (d,) float32, and their axes of largest variance, (D, d) float32.

    The axes are orthonormal and ordered by decreasing variance. The component of largest magnitude
    of each axis (the first among equals) is positive, because the data determine an axis only up
    to its sign.
    """

    mean: Float32
    axes: Float32

    @cached_property
    def _wide(self) -> tuple[Float64, Float64]:
        return self.mean.astype(np.float64), np.ascontiguousarray(self.axes, np.float64)

    def apply(self, vectors: NDArray[np.floating[Any]]) -> Float64:
        """Project (n, d) vectors onto the axes, (n, D) float64.

        Each row is a separate product of the same shape, so that it depends neither on its position
        in the batch nor on n. The product is einsum's own loop, in an order that depends on D and d
        alone; `@` would use threaded BLAS for large axes.
        """
        mean, axes = self._wide
        projected = np.empty((len(vectors), len(axes)))
        for row, vector in enumerate(vectors):
            np.einsum("ij,j->i", axes, vector - mean, out=projected[row])
        return projected

    def to_bytes(self) -> bytes:
        """Serialize as safetensors; equal values give equal bytes."""
        axes, mean = np.ascontiguousarray(self.axes), np.ascontiguousarray(self.mean)
        data: bytes = save_safetensors({"axes": axes, "mean": mean})  # writes memory in its order
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Projection:
        """Read a projection that `to_bytes` serialized."""
        arrays = load_safetensors(data)
        return cls(arrays["mean"], arrays["axes"])


class StreamingMoments:
    """Mean and covariance of a stream of vectors, in O(d^2) memory.

    They depend on the vectors and their order, not on how the stream was cut into blocks: products
    are always taken over the same `_BLOCK_ROWS` consecutive rows. Differences from the first vector
    are summed, because sums of vectors that lie close together would lose their precision.
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self._pending = np.empty((_BLOCK_ROWS, dimension))
        self._first = np.zeros(dimension)
        self._sum = np.zeros(dimension)
        self._outer = np.zeros((dimension, dimension))

    def add(self, block: Float32) -> None:
        """Add (n, d) float32 vectors of unit length."""
        if self.count == 0 and len(block):
            self._first = to_float64(block[0])
        while len(block):
            filled = self.count % _BLOCK_ROWS
            rows, block = block[: _BLOCK_ROWS - filled], block[_BLOCK_ROWS - filled :]
            self._pending[filled : filled + len(rows)] = to_float64(rows)
            self.count += len(rows)
            if self.count % _BLOCK_ROWS == 0:
                self._sum, self._outer = self._sums_with(self._pending)

    def _sums_with(self, rows: Float64) -> tuple[Float64, Float64]:
        """Return the sum (d,) and the sum of outer products (d, d) including `rows`."""
        import torch

        differences = rows - self._first
        with _single_threaded():
            # a copy: MKL is reproducible only for aligned memory, which torch allocates
            wide = torch.from_numpy(differences).clone()
            outer = (wide.T @ wide).numpy()
        return self._sum + differences.sum(0), self._outer + outer

    def mean_and_covariance(self) -> tuple[Float64, Float64]:
        """Return the mean (d,) and covariance (d, d) of the vectors so far, at least one."""
        total, outer = self._sums_with(self._pending[: self.count % _BLOCK_ROWS])
        mean = total / self.count
        return self._first + mean, outer / self.count - np.outer(mean, mean)

    def fit(self, dimensions: int) -> Projection:
        """Return the projection on the `dimensions` axes of largest variance.

        Raises UsageError if `dimensions` is below 1 or above the rank that the vectors can have.
        """
        self._check(dimensions)
        import torch

        mean, covariance = self.mean_and_covariance()
        with _single_threaded():
            vectors = torch.linalg.eigh(torch.from_numpy(covariance)).eigenvectors.numpy()
        axes = vectors.T[::-1][:dimensions].astype(np.float32)
        largest = np.abs(axes).argmax(1)
        signs = np.where(axes[np.arange(dimensions), largest] < 0, -1, 1).astype(np.float32)
        return Projection(mean.astype(np.float32), np.ascontiguousarray(axes * signs[:, None]))

    def _check(self, dimensions: int) -> None:
        dimension = len(self._sum)
        if dimensions < 1:
            raise UsageError(f"--pca {dimensions} is below 1; write 1 or more")
        if self.count < 2:
            raise UsageError(
                f"--pca {dimensions} needs at least two images and there are {self.count}; "
                "add images or leave out --pca"
            )
        if dimensions > (rank := min(dimension, self.count - 1)):
            raise UsageError(
                f"--pca {dimensions} is too large: {self.count} images of dimension {dimension} "
                f"allow at most {rank}"
            )


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Run torch on one thread, because more threads split sums and change the last bits."""
    import torch

    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
