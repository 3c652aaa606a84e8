"""Fast matrix products of vectors with rigorous error bounds; they only propose candidates.

The choice of product affects speed alone: whatever a bound cannot exclude is decided in float64
(`pair_collector.py`, `topk.py`).

Sources of the bounds: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., eq. 3.5:
|fl(x.y) - x.y| <= gamma_d |x||y| with gamma_d = d u / (1 - d u) for any order of summation. Sums
run in float32, u = 2^-24; the tensor cores of GPUs align addends and cut them off, which is not
IEEE addition, u = 2^-22 (Fasi et al., "Numerical behavior of NVIDIA tensor cores", 2021). A vector
whose numbers are rounded by at most a share `a` each differs by at most a |x| from itself, so a dot
of two such lies within ((1 + a)^2 (1 + gamma_d) - 1) |x||y| of the true one; a result that is
rounded once more, by a share `o`, adds a factor (1 + o).

A bound grows with the lengths of the vectors. So for l2 a centre is subtracted from vectors that
lie far from the origin (`choose_centre`). Where a bound still leaves many pairs undecided, or
float32 cannot hold the product, a product in float64 proposes (`propose_in_float64`): it takes
twice the time of float32, while scoring the pairs one by one takes a hundred times as long.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import Metric
from retrieval.vectors.float_conversions import to_float64
from retrieval.vectors.normalize import nonzero_lengths
from retrieval.vectors.scoring import (
    Float32,
    Float64,
    Int64,
    VectorBlock,
    compute_squared_norms,
    split_range,
)

FLOAT32_ROUNDOFF = 2.0**-24  # unit roundoff of float32
TENSOR_CORE_U = 2.0**-22  # of the sums of a GPU's tensor cores, which cut addends off
UNIT_ROUNDING = (
    2.5 * FLOAT32_ROUNDOFF
)  # relative error of a number of a unit vector: rounded twice, its length once
_CPUINFO = "/proc/cpuinfo"
_BF16_ROUNDOFF, _FP16_ROUNDOFF = 2.0**-8, 2.0**-11  # unit roundoffs
CPU_CACHE_BYTES = 1 << 28  # lists are read twice, and again for each block of queries
_ROW_MULTIPLE = 16  # bfloat16 matrices are padded to a multiple of this many rows
_MIN_TORCH_WORK = 1e11  # multiplications that take bf16 a second less than float32; torch's import
SAFE_LENGTH = 1e18
"""Sum of two vectors' lengths up to which no product leaves the range of float32 or bfloat16."""

UNDERFLOW: float = 2.0**-123
"""Underflow error allowed per dimension, with a safety factor of eight: numbers below 2^-126 may be
flushed to zero wherever they occur: as input, product, sum or key."""

_FLOAT64_PRODUCT_ELEMENTS = 1 << 20  # elements of a product in float64: 8 MiB
_FLOAT64_ROWS = 1 << 12  # vectors converted to float64 at once: 16 MiB at d = 512
_MEDIAN_ROWS = 33  # rows sampled for the median; odd
_PAIRS_PER_UNDECIDED = 32  # float64 proposes if more than one in this many pairs is undecided
_MIN_UNDECIDED = 128  # up to this many pairs, scoring them is faster than another product


@dataclass(frozen=True)
class PreparedVectors:
    """Vectors in the representation and on the device that a product multiplies."""

    metric: Metric
    norms: Float64  # (n,) lengths, relative to the centre if there is one
    matrix: Any  # (n, d), possibly padded with further rows
    squares: Any  # (n,) squared lengths of rows for l2, else None
    centred: bool = False  # whether a centre was subtracted, which rounds each number

    @cached_property
    def longest(self) -> float:
        """Return the length of the longest vector."""
        return float(self.norms.max(initial=0.0))


class Product(Protocol):
    """A matrix product of b queries and n rows; its keys are (b, n), larger is closer.

    For l2 keys are 2 q.x - |x|^2, without the squared query length, which `key_offsets` returns; q
    and x are relative to the centre that both sides were prepared with.
    """

    name: str
    cache_bytes: int  # bytes of prepared lists that may be cached

    def prepare(self, vectors: VectorBlock, centre: Float32 | None = None) -> PreparedVectors:
        """Convert vectors for this product, for l2 after subtracting a (d,) centre."""

    def select(self, queries: PreparedVectors, positions: Int64) -> PreparedVectors:
        """Return the prepared queries at ascending positions."""

    def keys(self, queries: PreparedVectors, rows: PreparedVectors) -> Any:
        """Return the (b, n) keys; beyond `SAFE_LENGTH` they may be infinite or NaN."""

    def key_error(self, queries: PreparedVectors, rows: PreparedVectors) -> Float64:
        """Return the largest possible error of each query's keys, (b,), over all rows."""

    def kth_key(self, keys: Any, k: int) -> Float32:
        """Return each query's k-th largest key, (b,)."""

    def pairs_reaching(self, keys: Any, low: Float32) -> tuple[Int64, Int64, Float32]:
        """Return query, row and key, (p,) each, of the pairs whose key is >= `low`, (b,)."""


def error_bound(
    metric: Metric,
    dimension: int,
    norms: Float64,
    longest: float,
    input_rounding: float,
    output_rounding: float,
    sum_roundoff: float = FLOAT32_ROUNDOFF,
) -> Float64:
    """Return the largest error of each query's keys, (b,), by the bound in the module docstring.

    `norms` (b,) are the lengths of the queries, `longest` is that of the longest row. In the bound,
    `input_rounding` is a, `output_rounding` is o, and `sum_roundoff` is u.
    """
    terms = error_terms(
        metric, dimension, norms, input_rounding, output_rounding, sum_roundoff=sum_roundoff
    )
    with np.errstate(over="ignore"):
        bound: Float64 = terms[:, 0] + longest * (terms[:, 1] + longest * terms[:, 2])
    return bound


def error_terms(
    metric: Metric,
    dimension: int,
    norms: Float64,
    input_rounding: float,
    output_rounding: float,
    sum_roundoff: float = FLOAT32_ROUNDOFF,
) -> Float64:
    """Return a, b and c of each query, (b, 3): its key of a row x is off by a + b |x| + c |x|^2.

    The arguments are those of `error_bound`.
    """
    gamma = dimension * sum_roundoff / (1 - dimension * sum_roundoff)
    relative_error = (1 + input_rounding) ** 2 * (1 + gamma) * (1 + output_rounding) - 1
    # `underflow` is that of products and inputs, `score_rounding` that of the float64 score itself,
    # whose clip to [-1, 1] only brings it closer to the cosine
    underflow = (dimension + 8) * UNDERFLOW
    score_rounding = (dimension + 8) * 2.0**-52
    terms = np.zeros((len(norms), 3))
    with np.errstate(over="ignore"):
        if metric == "cosine":
            terms[:, 0] = 1.001 * relative_error + 3 * underflow + score_rounding
            return terms
        terms[:, 0] = underflow * (1 + norms)
        if metric == "ip":
            terms[:, 1] = 1.001 * (relative_error + score_rounding) * norms + underflow
            return terms
        # twice the product's error, one rounding of |x|^2, one of the difference
        product_error = 2 * relative_error + 2 * FLOAT32_ROUNDOFF * (1 + relative_error)
        terms[:, 0] += score_rounding * norms**2
        terms[:, 1] = (1.001 * product_error + 2 * score_rounding) * norms + underflow
        terms[:, 2] = 1.001 * 2 * FLOAT32_ROUNDOFF + score_rounding
    return terms


def _as_slice(positions: Int64) -> Int64 | slice:
    """Return ascending positions as a slice if they are contiguous."""
    if len(positions) and positions[-1] - positions[0] + 1 == len(positions):
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions


def squared_lengths(metric: Metric, norms: Float64) -> Float32 | None:
    """Return the squared lengths of rows, (n,), for l2, else None."""
    if metric != "l2":
        return None
    with np.errstate(over="ignore"):
        return (norms**2).astype(np.float32)


def choose_centre(sample: VectorBlock) -> Float32 | None:
    """Return the (d,) centre to subtract from l2 vectors before they are multiplied.

    The centre is the coordinate-wise median of some rows, robust against outliers. None for other
    metrics, or where the vectors lie around the origin.
    """
    if sample.metric != "l2" or len(sample) == 0:
        return None
    positions = np.unique(np.linspace(0, len(sample) - 1, _MEDIAN_ROWS).astype(np.int64))
    sampled_rows = sample.take(positions)
    middle = len(sampled_rows) // 2
    centre: Float32 = np.partition(sampled_rows.float32_values, middle, axis=0)[middle]
    length = float(compute_squared_norms(centre[None])[0])
    return centre if length > 0.75 * float(np.median(sampled_rows.squared_norms)) else None


def subtract_centre(vectors: VectorBlock, centre: Float32 | None) -> tuple[Float32, Float64]:
    """Return the (n, d) product input relative to a centre, and the lengths of its rows, (n,)."""
    if centre is None:
        return vectors.matmul_input, vectors.norms
    squares = np.empty(len(vectors))
    for part in split_range(len(vectors), _FLOAT64_ROWS // 32):
        squares[part] = (_from_centre(vectors.float32_values[part], centre) ** 2).sum(-1)
    with np.errstate(over="ignore"):
        return vectors.float32_values - centre, np.sqrt(squares)


def _from_centre(vectors: Float32, centre: Float32 | None) -> Float64:
    """Return vectors in float64, relative to a centre if there is one."""
    values = to_float64(vectors)
    if centre is not None:
        values -= to_float64(centre)
    return values


def key_offsets(queries: PreparedVectors) -> Float64:
    """Return the squared query lengths that l2 keys leave out, (b,); zeros for other metrics."""
    return queries.norms**2 if queries.metric == "l2" else np.zeros(len(queries.norms))


def fits_float32(vectors: PreparedVectors) -> NDArray[np.bool_]:
    """Return a mask, (n,), of the vectors whose products with each other stay within float32."""
    if vectors.metric == "cosine":
        return np.ones(len(vectors.norms), np.bool_)
    return vectors.norms <= SAFE_LENGTH / 2


def too_many_undecided(undecided: int | np.integer[Any], pairs: int) -> bool:
    """Return whether enough of the pairs are undecided that float64 should propose again."""
    return bool(undecided > max(_MIN_UNDECIDED, pairs // _PAIRS_PER_UNDECIDED))


@dataclass(frozen=True)
class ProposedPairs:
    """Pairs (queries[q], rows[x]) that may reach their query's floor, ordered by query and row.

    Arrays are (p,). A key differs from the true one by at most its slack. `floors` (b,) are the
    minimum keys: the given ones, raised to what the query's `top` best rows here surely reach.
    """

    q: Int64
    x: Int64
    keys: Float32
    slack: Float64
    floors: Float64


def propose_in_float64(
    queries: VectorBlock,
    rows: VectorBlock,
    floors: Float64,
    top: int | None,
    centre: Float32 | None = None,
) -> ProposedPairs:
    """Multiply in float64 and return the pairs that may reach their query's floor.

    `floors` (b,) are compared with keys plus `key_offsets`. With `top`, pairs must also be able to
    be among the `top` best of these rows. The bound of a pair depends on its own lengths only.
    """
    empty = np.empty(0, np.int64)
    result = [(empty, empty, np.empty(0, np.float32), np.empty(0))]
    floors = floors.copy()
    for part in split_range(len(queries), max(64, _FLOAT64_PRODUCT_ELEMENTS // max(1, len(rows)))):
        keys, slack = _float64_keys(queries.take(part), rows, centre)
        if top is not None and top <= len(rows):
            kth_index = len(rows) - top
            guaranteed = np.partition(keys - slack, kth_index, axis=1)[:, kth_index]
            floors[part] = np.maximum(floors[part], guaranteed)
        q, x = np.nonzero(keys + slack >= floors[part, None])
        with np.errstate(over="ignore"):
            float32_keys = keys[q, x].astype(np.float32)
        total_slack = (
            np.broadcast_to(slack, keys.shape)[q, x]
            + FLOAT32_ROUNDOFF * np.abs(keys[q, x])
            + UNDERFLOW
        )
        not_finite = ~np.isfinite(float32_keys)
        float32_keys[not_finite], total_slack[not_finite] = 0, np.inf
        result.append((q + part.start, x, float32_keys, total_slack))
    q, x, float32_keys, total_slack = (
        np.concatenate(column) for column in zip(*result, strict=True)
    )
    return ProposedPairs(q, x, float32_keys, total_slack, floors)


def _float64_keys(
    queries: VectorBlock, rows: VectorBlock, centre: Float32 | None
) -> tuple[Float64, Float64]:
    """Return keys in float64, (b, n), and their error bounds, which broadcast to (b, n).

    The bound is that of the module docstring with u = 2^-53. Lengths, centred numbers and the score
    itself are rounded too: at most 4 d + 8 roundings separate cosines, fewer for other metrics.
    """
    left, query_norms = _float64_rows(queries, slice(None), centre)
    keys, norms = np.empty((len(queries), len(rows))), np.empty(len(rows))
    for part in split_range(len(rows), _FLOAT64_ROWS):
        right, norms[part] = _float64_rows(rows, part, centre)
        keys[:, part] = left @ right.T
    relative_error = (2 * left.shape[1] + 24) * 2.0**-52
    if queries.metric == "cosine":
        return keys, np.full((1, 1), relative_error)
    if queries.metric == "ip":
        return keys, relative_error * query_norms[:, None] * norms
    keys *= 2
    keys -= norms**2
    return keys, relative_error * (query_norms[:, None] + norms) ** 2


def _float64_rows(
    vectors: VectorBlock, part: slice, centre: Float32 | None
) -> tuple[Float64, Float64]:
    """Return vectors[part] in float64, of unit length for cosine, and their lengths."""
    values = _from_centre(vectors.float32_values[part], centre)
    norms = vectors.norms[part]
    if vectors.metric == "cosine":
        values /= nonzero_lengths(norms)[:, None]
    elif centre is not None:
        norms = np.sqrt((values**2).sum(-1))
    return values, norms


def _input_rounding(vectors: PreparedVectors) -> float:
    """Return the relative rounding error of each number of prepared float32 vectors."""
    return (
        UNIT_ROUNDING
        if vectors.metric == "cosine"
        else FLOAT32_ROUNDOFF
        if vectors.centred
        else 0.0
    )


class Float32Product:
    """Products in float32 on the CPU, by numpy's BLAS."""

    name = "fp32"
    cache_bytes = CPU_CACHE_BYTES

    def prepare(self, vectors: VectorBlock, centre: Float32 | None = None) -> PreparedVectors:
        """Return float32 vectors, relative to the centre if there is one."""
        matrix, norms = subtract_centre(vectors, centre)
        squares = squared_lengths(vectors.metric, norms)
        return PreparedVectors(vectors.metric, norms, matrix, squares, centred=centre is not None)

    def select(self, queries: PreparedVectors, positions: Int64) -> PreparedVectors:
        """Select queries, without a copy if their positions are contiguous."""
        part = _as_slice(positions)
        norms, matrix = queries.norms[part], queries.matrix[part]
        return replace(queries, norms=norms, matrix=matrix, squares=None)

    def keys(self, queries: PreparedVectors, rows: PreparedVectors) -> Float32:
        """Return the (b, n) float32 keys; the product runs in BLAS."""
        with np.errstate(over="ignore", invalid="ignore"):
            keys: Float32 = queries.matrix @ rows.matrix.T
            if queries.metric == "l2":
                keys *= np.float32(2)
                keys -= rows.squares
        return keys

    def key_error(self, queries: PreparedVectors, rows: PreparedVectors) -> Float64:
        """Bound the error, with the rounding of normalised or centred inputs."""
        input_rounding = _input_rounding(queries)
        dimension = queries.matrix.shape[1]
        return error_bound(
            queries.metric, dimension, queries.norms, rows.longest, input_rounding, 0.0
        )

    def error_terms(self, queries: PreparedVectors) -> Float64:
        """Return what `error_terms` returns for these queries."""
        dimension = queries.matrix.shape[1]
        return error_terms(queries.metric, dimension, queries.norms, _input_rounding(queries), 0.0)

    def kth_key(self, keys: Float32, k: int) -> Float32:
        """Return each query's k-th largest key by partitioning."""
        if k == 1:
            greatest: Float32 = keys.max(1)
            return greatest
        kth_index = keys.shape[1] - k
        result: Float32 = np.partition(keys, kth_index, axis=1)[:, kth_index]
        return result

    def pairs_reaching(self, keys: Float32, low: Float32) -> tuple[Int64, Int64, Float32]:
        """Return the pairs, found by comparing all keys."""
        flat_positions = np.flatnonzero(keys >= low[:, None])
        q, x = np.divmod(flat_positions, keys.shape[1])
        return q, x, keys.ravel()[flat_positions]


FLOAT32_PRODUCT = Float32Product()


class HalfPrecisionProduct:
    """Products in half precision by torch, on the CPU (bfloat16) or on a GPU.

    A GPU returns float32 sums; there vectors of unit length are float16, eight times as precise.
    The CPU rounds sums to bfloat16. It also compiles a kernel for each new shape, which costs more
    than the product, so row counts are padded to few sizes.
    """

    def __init__(self, device: str) -> None:
        import torch

        self._torch, self._device = torch, device
        self._gpu = device != "cpu"
        self.name = "cuda" if self._gpu else "bf16"
        self.cache_bytes = (
            torch.cuda.get_device_properties(0).total_memory // 2 if self._gpu else CPU_CACHE_BYTES
        )
        if self._gpu:
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

    def _uses_float16(self, metric: Metric) -> bool:
        return self._gpu and metric == "cosine"

    def prepare(self, vectors: VectorBlock, centre: Float32 | None = None) -> PreparedVectors:
        """Round and move vectors to the device; on the CPU pad with zero rows."""
        torch = self._torch
        dtype = torch.float16 if self._uses_float16(vectors.metric) else torch.bfloat16
        values, norms = subtract_centre(vectors, centre)
        matrix = torch.from_numpy(values).to(self._device, dtype)
        if not self._gpu and (padding := -len(matrix) % _ROW_MULTIPLE):
            matrix = torch.nn.functional.pad(matrix, (0, 0, 0, padding))
        squares: Any = squared_lengths(vectors.metric, norms)
        if squares is not None:
            squares = torch.from_numpy(squares).to(self._device)
        return PreparedVectors(vectors.metric, norms, matrix, squares, centred=centre is not None)

    def select(self, queries: PreparedVectors, positions: Int64) -> PreparedVectors:
        """Select queries on their device; on the CPU pad with further rows."""
        torch, part = self._torch, _as_slice(positions)
        norms = queries.norms[part]
        if isinstance(part, slice):
            matrix = queries.matrix[
                part.start : part.start + len(positions) + -len(positions) % _ROW_MULTIPLE
            ]
        elif self._gpu:
            matrix = queries.matrix[torch.from_numpy(positions).to(self._device)]
        else:
            positions = np.concatenate(
                [positions, np.zeros(-len(positions) % _ROW_MULTIPLE, np.int64)]
            )
            bits = queries.matrix.view(torch.int16).numpy()[positions]  # numpy copies rows faster
            matrix = torch.from_numpy(bits).view(torch.bfloat16)
        return replace(queries, norms=norms, matrix=matrix, squares=None)

    def keys(self, queries: PreparedVectors, rows: PreparedVectors) -> Any:
        """Return the keys as float32."""
        torch = self._torch
        if self._gpu:
            keys = torch.mm(queries.matrix, rows.matrix.T, out_dtype=torch.float32)
        else:
            keys = torch.mm(queries.matrix, rows.matrix.T)
        keys = keys[: len(queries.norms), : len(rows.norms)].float().contiguous()
        if queries.metric == "l2":
            keys.mul_(2).sub_(rows.squares)
        return keys

    def key_error(self, queries: PreparedVectors, rows: PreparedVectors) -> Float64:
        """Bound the error from rounding both inputs, and on the CPU the sums."""
        input_rounding = _FP16_ROUNDOFF if self._uses_float16(queries.metric) else _BF16_ROUNDOFF
        input_rounding = (1 + input_rounding) * (1 + _input_rounding(queries)) - 1
        dimension = queries.matrix.shape[1]
        output_rounding, sum_roundoff = (
            (0.0, TENSOR_CORE_U) if self._gpu else (_BF16_ROUNDOFF, FLOAT32_ROUNDOFF)
        )
        error = error_bound(
            queries.metric,
            dimension,
            queries.norms,
            rows.longest,
            input_rounding,
            output_rounding,
            sum_roundoff,
        )
        if self._uses_float16(queries.metric):  # float16 numbers below 2^-14 have fewer digits
            error += 2 * dimension**0.5 * 2.0**-24
        return error

    def kth_key(self, keys: Any, k: int) -> Float32:
        """Return each query's k-th largest key, selected on the device."""
        if not self._gpu:
            return FLOAT32_PRODUCT.kth_key(keys.numpy(), k)
        result: Float32 = keys.topk(k, dim=1, sorted=True).values[:, -1].cpu().numpy()
        return result

    def pairs_reaching(self, keys: Any, low: Float32) -> tuple[Int64, Int64, Float32]:
        """Return the pairs, compared on the device."""
        if not self._gpu:
            return FLOAT32_PRODUCT.pairs_reaching(keys.numpy(), low)
        floor = self._torch.from_numpy(low).to(self._device)
        flat_positions = (keys >= floor[:, None]).view(-1).nonzero().view(-1)
        values: Float32 = keys.view(-1)[flat_positions].cpu().numpy()
        q, x = np.divmod(flat_positions.cpu().numpy(), keys.shape[1])
        return q, x, values


def compute_pair_keys(
    queries: PreparedVectors, rows: PreparedVectors, q: Int64, x: Int64
) -> Float32:
    """Return float32 keys, (p,), of single pairs prepared by `FLOAT32_PRODUCT`.

    They satisfy the error bound of that product.
    """
    keys = np.empty(len(q), np.float32)
    left, right = np.ascontiguousarray(queries.matrix), np.ascontiguousarray(rows.matrix)
    q, x = np.ascontiguousarray(q), np.ascontiguousarray(x)
    pointers = [faiss.swig_ptr(array) for array in (left, q, right, x, keys)]
    if len(q):
        library: Any = faiss
        library.pairwise_indexed_inner_product(left.shape[1], len(q), *pointers)
    if queries.metric == "l2":
        keys *= np.float32(2)
        keys -= rows.squares[x]
    return keys


def choose_product(device: str, work: float) -> Product:
    """Return the fastest product for `work` multiplications on `device`: "cpu" or "cuda"."""
    if device == "cuda":
        return HalfPrecisionProduct("cuda")
    return HalfPrecisionProduct("cpu") if work > _MIN_TORCH_WORK and has_bf16() else FLOAT32_PRODUCT


def choose_search_product(device: str) -> Product:
    """Return the product of a search on `device`: "cpu" or "cuda".

    On a CPU a search spends a quarter of its time in float32 products, so that a coarser product,
    whose pairs are compared again, does not pay.
    """
    return HalfPrecisionProduct("cuda") if device == "cuda" else FLOAT32_PRODUCT


@functools.cache
def has_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 faster than float32."""
    max_isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    supported = {"avx512_bf16", "amx_bf16"} & read_cpu_flags()
    return bool(supported) and not max_isa.startswith(("AVX2", "SSE"))


def read_cpu_flags() -> set[str]:
    """Return the CPU's feature flags from /proc/cpuinfo; empty where it is unreadable."""
    try:
        with open(_CPUINFO) as file:
            match = re.search(r"^flags\s*:(.*)$", file.read(), re.MULTILINE)
    except OSError:
        return set()
    return set(match[1].split()) if match else set()


def round_down_to_float32(values: Float64) -> NDArray[np.float32]:
    """Round down to float32 and one step further, so that no key equal to a value is lost."""
    with np.errstate(over="ignore"):
        return np.nextafter(values.astype(np.float32), np.float32(-np.inf))
