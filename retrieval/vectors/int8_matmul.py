"""Matrix products of vectors quantised to int8: a quarter of the time of float32.

A vector x is represented by x' = s c with a float32 step s and 8-bit integers c. Sums of integer
products are exact, so a dot product is off by the quantisation alone, which is measured:
|q.x - q'.x'| <= |q - q'| |x| + |q'| |x - x'|. Normally distributed numbers lose 0.007 of a vector's
length; vectors with a few large numbers lose much more, and then bfloat16 is used instead.

Used only on CPUs that add such products without saturating (`has_exact_int8`).
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors.matmul import (
    CPU_CACHE_BYTES,
    FLOAT32_PRODUCT,
    FLOAT32_ROUNDOFF,
    UNDERFLOW,
    UNIT_ROUNDING,
    HalfPrecisionProduct,
    PreparedVectors,
    Product,
    choose_product,
    has_bf16,
    read_cpu_flags,
    squared_lengths,
    subtract_centre,
)
from retrieval.vectors.scoring import Float32, Float64, Int64, VectorBlock, split_range

_MAX_INT8 = 127  # the largest int8 magnitude
_COLUMN_MULTIPLE = 4  # columns are padded to a multiple: torch 2.14 reads beyond a shorter matrix
_MIN_STEP = 2.0**-100  # vectors with a smaller step become zero, counted as rounding loss
_ROUNDING_ROWS = 256  # vectors rounded at once: half a MiB at d = 512
_MAX_LOSS = 0.015  # share of its length a vector may lose before bfloat16 is more precise
_MAX_DIMENSION = 1 << 16  # dimension up to which an int32 sum cannot overflow
_MIN_QUERIES_PER_ROW = 64  # queries per row above which quantising it pays
_MIN_SUMS_PER_LIST = 1 << 13  # sums per list below which the calls cost more than they save
_MIN_TORCH_WORK = 5e10  # multiplications that take a second less than in float32; torch's import
_MIN_CALL_WORK = 1e9  # the same where torch is imported already
_FLOAT64_ROUNDOFF: float = 2.0**-52
_SUFFICIENT_ISA = ("VNNI", "BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")


@dataclass(frozen=True)
class Int8Keys:
    """The result of an int8 product: (b, n) int32 sums, and the steps that convert them to keys."""

    sums: NDArray[np.int32]
    queries: PreparedVectors
    rows: PreparedVectors

    def keys(self, positions: Int64 | slice = slice(None)) -> Float32:
        """Return the float32 keys of the selected queries, (q, n)."""
        keys = self.sums[positions].astype(np.float32)
        keys *= self.rows.scales
        keys *= self.queries.scales[positions, None]
        if self.rows.squares is not None:
            keys *= np.float32(2)
            keys -= self.rows.squares
        return keys


class Int8Product:
    """Products in int8 by torch, on the CPU."""

    name = "int8"
    cache_bytes = CPU_CACHE_BYTES

    def __init__(self) -> None:
        import torch

        self._torch = torch

    def prepare(self, vectors: VectorBlock, centre: Float32 | None = None) -> PreparedVectors:
        """Quantise vectors and measure the rounding loss of each."""
        (values, norms), (count, dimension) = subtract_centre(vectors, centre), vectors.values.shape
        matrix = np.zeros((count, dimension + -dimension % _COLUMN_MULTIPLE), np.int8)
        scales, rounding_loss = np.ones(count, np.float32), np.empty(count)
        with np.errstate(over="ignore", invalid="ignore"):
            for part in split_range(count, _ROUNDING_ROWS):
                rows = values[part]
                step = np.maximum(rows.max(1), -rows.min(1)) / np.float32(_MAX_INT8)
                step[step < _MIN_STEP] = 1
                numbers = rows * (1 / step)[:, None]
                np.rint(numbers, out=numbers)
                matrix[part, :dimension], scales[part] = numbers, step
                numbers *= step[:, None]
                numbers -= rows
                rounding_loss[part] = np.einsum("ij,ij->i", numbers, numbers)
            # added: the rounding of the sum of squares in float32, underflow of squares and of
            # their sums below 2^-126, two roundings per number, one for the centre
            rounding_loss = (
                np.sqrt(rounding_loss) * (1 + 2 * dimension * FLOAT32_ROUNDOFF)
                + dimension**0.5 * 2.0**-62
            )
            is_unit = vectors.metric == "cosine"
            rounding_loss += (
                UNIT_ROUNDING + 4 * FLOAT32_ROUNDOFF if is_unit else 5 * FLOAT32_ROUNDOFF * norms
            )
        squares = squared_lengths(vectors.metric, norms)
        return PreparedVectors(
            vectors.metric, norms, matrix, squares, scales, rounding_loss, centre is not None
        )

    def select(self, queries: PreparedVectors, positions: Int64) -> PreparedVectors:
        """Return a copy of the queries at `positions`."""
        assert queries.rounding_loss is not None
        return replace(
            queries, norms=queries.norms[positions], matrix=queries.matrix[positions], squares=None,
            scales=queries.scales[positions], rounding_loss=queries.rounding_loss[positions],
        )  # fmt: skip

    def keys(self, queries: PreparedVectors, rows: PreparedVectors) -> Int8Keys:
        """Return the (b, n) integer products, with the steps that convert them to keys."""
        left, right = map(self._torch.from_numpy, (queries.matrix, rows.matrix))
        sums = self._torch._int_mm(left, right.T)  # noqa: SLF001  (there is no public function)
        return Int8Keys(sums.numpy(), queries, rows)

    def key_error(self, queries: PreparedVectors, rows: PreparedVectors) -> Float64:
        """Bound the error from the rounding losses of both sides and the conversion to keys."""
        assert queries.rounding_loss is not None
        rounding_loss, dimension = queries.rounding_loss, queries.matrix.shape[1]
        is_unit = queries.metric == "cosine"
        query_lengths = rounding_loss + (1.0 if is_unit else queries.norms)
        longest = 1.0 if is_unit else rows.longest
        with np.errstate(over="ignore"):
            max_length, underflow = longest + rows.largest_loss, UNDERFLOW * dimension
            exact = (dimension + 8) * _FLOAT64_ROUNDOFF  # the rounding of the float64 score itself
            row_loss = rows.largest_loss + (8 * FLOAT32_ROUNDOFF + exact) * max_length
            bound: Float64 = rounding_loss * (1.001 * longest)
            bound += query_lengths * (1.001 * row_loss + underflow)
            if queries.metric == "l2":
                bound *= 2
                bound += 1.001 * (
                    8 * FLOAT32_ROUNDOFF * max_length * (query_lengths + max_length)
                    + exact * (query_lengths + max_length) ** 2
                )
            bound += underflow * (1 + max_length)
        return bound

    def kth_key(self, keys: Int8Keys, k: int) -> Float32:
        """Return each query's k-th largest key by partitioning."""
        return FLOAT32_PRODUCT.kth_key(keys.keys(), k)

    def pairs_reaching(self, keys: Int8Keys, low: Float32) -> tuple[Int64, Int64, Float32]:
        """Return the pairs, skipping queries whose largest sum shows that none can reach `low`."""
        if keys.rows.squares is not None:
            return FLOAT32_PRODUCT.pairs_reaching(keys.keys(), low)
        greatest = self._torch.from_numpy(keys.sums).amax(1).numpy().astype(np.float32)
        # rounding is monotone, so no key exceeds this
        upper_bounds = np.maximum(greatest, 0) * keys.rows.scales.max() * keys.queries.scales
        reaching = np.flatnonzero(upper_bounds >= low)
        q, x, values = FLOAT32_PRODUCT.pairs_reaching(keys.keys(reaching), low[reaching])
        return reaching[q], x, values


def choose_search_product(
    device: str, queries: float, rows: int, dimension: int, lists: int
) -> Product:
    """Return the fastest product for a search on `device` ("cpu" or "cuda").

    `queries` is the mean number of queries per row, `rows` the number of rows in all `lists`.
    """
    work = queries * rows * dimension
    min_work = _MIN_CALL_WORK if "torch" in sys.modules else _MIN_TORCH_WORK
    large = queries > _MIN_QUERIES_PER_ROW and queries * rows / lists > _MIN_SUMS_PER_LIST
    if device == "cpu" and large and work > min_work and has_exact_int8():
        return Int8Product()
    return choose_product(device, work)


def suitable_product(product: Product, queries: PreparedVectors) -> Product:
    """Return the product, or a more precise one if int8 loses too much of these queries."""
    if not isinstance(product, Int8Product) or queries.rounding_loss is None:
        return product
    share = queries.rounding_loss / (
        1.0 if queries.metric == "cosine" else np.maximum(queries.norms, 1e-30)
    )
    if queries.matrix.shape[1] <= _MAX_DIMENSION and np.median(share) <= _MAX_LOSS:
        return product
    return HalfPrecisionProduct("cpu") if has_bf16() else FLOAT32_PRODUCT


@functools.cache
def has_exact_int8() -> bool:
    """Return whether this CPU multiplies int8 fast and adds the products without saturating."""
    max_isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if not {"avx512_vnni", "avx_vnni", "amx_int8"} & read_cpu_flags():
        return False
    return (not max_isa or any(word in max_isa for word in _SUFFICIENT_ISA)) and _sums_are_exact()


def _sums_are_exact() -> bool:
    """Return whether products of the largest numbers, which saturate first, are exact."""
    signs = np.random.default_rng(0).choice(np.array([-_MAX_INT8, _MAX_INT8], np.int8), (64, 512))
    signs[:8] = _MAX_INT8
    queries, rows = (
        PreparedVectors("ip", np.ones(len(part)), part, None) for part in (signs[:33], signs[3:])
    )
    wide_signs = signs.astype(np.int64)
    return np.array_equal(
        Int8Product().keys(queries, rows).sums, wide_signs[:33] @ wide_signs[3:].T
    )
