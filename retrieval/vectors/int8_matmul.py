"""Products of whole numbers: a quarter of the time of float32, for vectors without large numbers.

A vector x travels as x' = s c: a step s and whole numbers c of 8 bits. Sums of their products are
exact, so that a dot is off by the rounding of the vectors alone, which is measured, not assumed:
|q.x - q'.x'| <= |q - q'| |x| + |q'| |x - x'|. Of numbers that are drawn like a bell a vector loses
0.007 of its length; of those with single large numbers much more, and then bfloat16 is finer.

Only processors that add such products without saturating are asked (`multiplies`).
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors.matmul import (
    KEPT,
    SINGLE,
    TINY,
    UNIT,
    Half,
    Product,
    Ready,
    U,
    centred,
    cpu_flags,
    has_bf16,
    product_for,
    squares_of,
)
from retrieval.vectors.scoring import Block, Float32, Float64, Int64, slices

_MOST = 127  # the largest whole number
_FULL = 4  # numbers that are multiplied at once; of a single one torch 2.14 reads beside it
_LEAST = 2.0**-100  # steps below it are not taken: what such vectors say is lost, and noted as lost
_ROWS = 256  # vectors rounded at once: half a MiB at d = 512
_LOST = 0.015  # share of their length that vectors may lose before bfloat16 is finer
_WIDEST = 1 << 16  # numbers of a vector whose sum int32 surely holds
_MET = 64  # queries that meet a row, from which its rounding is worth it
_SUMS = 1 << 13  # of a list, below which calls cost what they spare
_WORTH_TORCH = 5e10  # multiplications that take a second less than in float32; torch's import
_WORTH_A_CALL = 1e9  # the same where torch is there
_FINE: float = 2.0**-52
_ENOUGH = ("VNNI", "BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")


@dataclass(frozen=True)
class Sums:
    """What comes of a product: (b, n) int32 sums, and the steps that make keys of them."""

    sums: NDArray[np.int32]
    queries: Ready
    rows: Ready

    def keys(self, which: Int64 | slice = slice(None)) -> Float32:
        """Give the keys of some queries, (., n)."""
        keys = self.sums[which].astype(np.float32)
        keys *= self.rows.steps
        keys *= self.queries.steps[which, None]
        if self.rows.squares is not None:
            keys *= np.float32(2)
            keys -= self.rows.squares
        return keys


class Int8:
    """Whole numbers by torch, on this processor."""

    name = "int8"
    keeps = KEPT

    def __init__(self) -> None:
        import torch

        self._torch = torch

    def ready(self, vectors: Block, centre: Float32 | None = None) -> Ready:
        """Round, and measure what that loses."""
        (cheap, norms), (count, dimension) = centred(vectors, centre), vectors.values.shape
        matrix = np.zeros((count, dimension + -dimension % _FULL), np.int8)
        steps, lost = np.ones(count, np.float32), np.empty(count)
        with np.errstate(over="ignore", invalid="ignore"):
            for part in slices(count, _ROWS):
                rows = cheap[part]
                step = np.maximum(rows.max(1), -rows.min(1)) / np.float32(_MOST)
                step[step < _LEAST] = 1
                numbers = rows * (1 / step)[:, None]
                np.rint(numbers, out=numbers)
                matrix[part, :dimension], steps[part] = numbers, step
                numbers *= step[:, None]
                numbers -= rows
                lost[part] = np.einsum("ij,ij->i", numbers, numbers)
            # the sum of squares in float32, squares too small for it (below 2^-126 they may count
            # as zero, and so may each sum of them), two roundings a number, one from a centre
            lost = np.sqrt(lost) * (1 + 2 * dimension * U) + dimension**0.5 * 2.0**-62
            whole = vectors.metric == "cosine"
            lost += UNIT + 4 * U if whole else 5 * U * norms
        squares = squares_of(vectors.metric, norms)
        return Ready(vectors.metric, norms, matrix, squares, steps, lost, centre is not None)

    def take(self, queries: Ready, which: Int64) -> Ready:
        """Copy them."""
        assert queries.lost is not None
        return replace(
            queries, norms=queries.norms[which], matrix=queries.matrix[which], squares=None,
            steps=queries.steps[which], lost=queries.lost[which],
        )  # fmt: skip

    def keys(self, queries: Ready, rows: Ready) -> Sums:
        """Multiply."""
        left, right = map(self._torch.from_numpy, (queries.matrix, rows.matrix))
        sums = self._torch._int_mm(left, right.T)  # noqa: SLF001  (it has no other name)
        return Sums(sums.numpy(), queries, rows)

    def error(self, queries: Ready, rows: Ready) -> Float64:
        """Allow for what both sides lost, and for the few roundings on the way to a key."""
        assert queries.lost is not None
        lost, dimension = queries.lost, queries.matrix.shape[1]
        whole = queries.metric == "cosine"
        long = lost + (1.0 if whole else queries.norms)
        longest = 1.0 if whole else rows.longest
        with np.errstate(over="ignore"):
            wide, tiny = longest + rows.most_lost, TINY * dimension
            exact = (dimension + 8) * _FINE  # the rounding of the float64 score itself
            rounded = rows.most_lost + (8 * U + exact) * wide
            found: Float64 = lost * (1.001 * longest)
            found += long * (1.001 * rounded + tiny)
            if queries.metric == "l2":
                found *= 2
                found += 1.001 * (8 * U * wide * (long + wide) + exact * (long + wide) ** 2)
            found += tiny * (1 + wide)
        return found

    def kth(self, keys: Sums, k: int) -> Float32:
        """Partition."""
        return SINGLE.kth(keys.keys(), k)

    def reach(self, keys: Sums, low: Float32) -> tuple[Int64, Int64, Float32]:
        """Look at the greatest sum of each query first: hardly one has a key that reaches."""
        if keys.rows.squares is not None:
            return SINGLE.reach(keys.keys(), low)
        greatest = self._torch.from_numpy(keys.sums).amax(1).numpy().astype(np.float32)
        # each rounding below keeps the order of what is rounded, so no key lies above this
        most = np.maximum(greatest, 0) * keys.rows.steps.max() * keys.queries.steps
        some = np.flatnonzero(most >= low)
        q, x, values = SINGLE.reach(keys.keys(some), low[some])
        return some[q], x, values


def search_product(where: str, queries: float, rows: int, dimension: int, lists: int) -> Product:
    """Choose what multiplies, by how many queries meet each row, and by the rows in all lists."""
    work = queries * rows * dimension
    worth = _WORTH_A_CALL if "torch" in sys.modules else _WORTH_TORCH
    large = queries > _MET and queries * rows / lists > _SUMS
    if where == "cpu" and large and work > worth and multiplies():
        return Int8()
    return product_for(where, work)


def suited(product: Product, queries: Ready) -> Product:
    """Give the product, or a finer one where whole numbers lose too much of such vectors."""
    if not isinstance(product, Int8) or queries.lost is None:
        return product
    share = queries.lost / (1.0 if queries.metric == "cosine" else np.maximum(queries.norms, 1e-30))
    if queries.matrix.shape[1] <= _WIDEST and np.median(share) <= _LOST:
        return product
    return Half("cpu") if has_bf16() else SINGLE


@functools.cache
def multiplies() -> bool:
    """Tell whether this processor adds products of 8 bits fast, and without saturating."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if not {"avx512_vnni", "avx_vnni", "amx_int8"} & cpu_flags():
        return False
    return (not allowed or any(word in allowed for word in _ENOUGH)) and _exact()


def _exact() -> bool:
    """Try the largest numbers, which saturate first."""
    signs = np.random.default_rng(0).choice(np.array([-_MOST, _MOST], np.int8), (64, 512))
    signs[:8] = _MOST
    queries, rows = (Ready("ip", np.ones(len(s)), s, None) for s in (signs[:33], signs[3:]))
    wide = signs.astype(np.int64)
    return np.array_equal(Int8().keys(queries, rows).sums, wide[:33] @ wide[3:].T)
