"""Fewer numbers a vector: principal components, fitted while vectors stream past.

What is fitted goes into the bundle and so into every vector, hence it must be the same bytes for
any number of cores. Threaded matrix products are not: the threads part the sum differently, and the
last bits follow. So the products of the fit run on one thread, and applying uses no BLAS at all.
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

_ROWS = 1024
"""Vectors multiplied at once while fitting: 16 MiB at d = 2048."""


def unit(vectors: NDArray[np.floating[Any]]) -> Float64:
    """Bring (n, d) vectors to unit length in float64; one without length stays as it is."""
    wide = to_float64(vectors)
    lengths = np.sqrt((wide * wide).sum(-1, keepdims=True))
    answer: Float64 = wide / np.where(lengths > 0, lengths, 1.0)
    return answer


@dataclass(frozen=True, eq=False)
class Projection:
    """The mean of unit vectors, (d,) float32, and their axes of largest variance, (D, d) float32.

    The axes are orthonormal and ordered by falling variance. Of each the component of largest
    magnitude, the first of equals, is positive, since the data alone do not tell an axis from its
    negative.
    """

    mean: Float32
    axes: Float32

    @cached_property
    def _wide(self) -> tuple[Float64, Float64]:
        return self.mean.astype(np.float64), np.ascontiguousarray(self.axes, np.float64)

    def apply(self, vectors: NDArray[np.floating[Any]]) -> Float64:
        """Project (n, d) vectors -> (n, D) float64.

        Each row is a product of its own, of always the same shape, so that it depends neither on
        its place in the batch nor on n. The product is einsum's own loop, in an order that depends
        on D and d alone: `@` hands large axes to the threads of BLAS.
        """
        mean, axes = self._wide
        projected = np.empty((len(vectors), len(axes)))
        for place, vector in enumerate(vectors):
            np.einsum("ij,j->i", axes, vector - mean, out=projected[place])
        return projected

    def to_bytes(self) -> bytes:
        """Write as safetensors; the same values give the same bytes."""
        axes, mean = np.ascontiguousarray(self.axes), np.ascontiguousarray(self.mean)
        data: bytes = save_safetensors({"axes": axes, "mean": mean})  # memory as it lies
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Projection:
        """Read what `to_bytes` wrote."""
        arrays = load_safetensors(data)
        return cls(arrays["mean"], arrays["axes"])


class Moments:
    """Mean and covariance of vectors that stream past, in memory O(d^2) however many there are.

    They depend on the vectors and their order, not on how these were cut into blocks, since
    products are always taken over the same `_ROWS` in a row. Sums are of differences from the
    first vector: of vectors that lie close together little would be left of sums of their own.
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self._waiting = np.empty((_ROWS, dimension))
        self._first = np.zeros(dimension)
        self._sum = np.zeros(dimension)
        self._outer = np.zeros((dimension, dimension))

    def add(self, block: Float32) -> None:
        """Take in (n, d) vectors, which have unit length already."""
        if self.count == 0 and len(block):
            self._first = to_float64(block[0])
        while len(block):
            filled = self.count % _ROWS
            taken, block = block[: _ROWS - filled], block[_ROWS - filled :]
            self._waiting[filled : filled + len(taken)] = to_float64(taken)
            self.count += len(taken)
            if self.count % _ROWS == 0:
                self._sum, self._outer = self._with(self._waiting)

    def _with(self, rows: Float64) -> tuple[Float64, Float64]:
        """Give both sums with more rows in them."""
        import torch

        differences = rows - self._first
        with _one_thread():
            # a copy: MKL promises the same bits for aligned memory only, which is torch's
            wide = torch.from_numpy(differences).clone()
            outer = (wide.T @ wide).numpy()
        return self._sum + differences.sum(0), self._outer + outer

    def mean_and_covariance(self) -> tuple[Float64, Float64]:
        """Give (d,) and (d, d) of the vectors so far, of which there is at least one."""
        total, outer = self._with(self._waiting[: self.count % _ROWS])
        mean = total / self.count
        return self._first + mean, outer / self.count - np.outer(mean, mean)

    def fit(self, dimensions: int) -> Projection:
        """Give the projection on the `dimensions` axes of largest variance."""
        self._check(dimensions)
        import torch

        mean, covariance = self.mean_and_covariance()
        with _one_thread():
            vectors = torch.linalg.eigh(torch.from_numpy(covariance)).eigenvectors.numpy()
        axes = vectors.T[::-1][:dimensions].astype(np.float32)
        largest = np.abs(axes).argmax(1)
        signs = np.where(axes[np.arange(dimensions), largest] < 0, -1, 1).astype(np.float32)
        return Projection(mean.astype(np.float32), np.ascontiguousarray(axes * signs[:, None]))

    def _check(self, dimensions: int) -> None:
        numbers = len(self._sum)
        if dimensions < 1:
            raise UsageError(f"--pca {dimensions} leaves nothing of a vector; write 1 or more")
        if self.count < 2:
            raise UsageError(
                f"--pca {dimensions} is fitted on two images or more and there are {self.count}; "
                "add some or leave it out"
            )
        if dimensions > (most := min(numbers, self.count - 1)):
            raise UsageError(
                f"--pca {dimensions}: {self.count} images of {numbers} numbers give at most "
                f"{most}; write that or less"
            )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: more part sums among themselves, and the last bits follow."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
