"""Cheap products of vectors, each with the most it can be wrong by: they propose, nothing more.

Which one is used is a matter of the hardware and of speed alone, since what a bound cannot exclude
is decided in float64 (`closest.py`, `index/search.py`).

Sources of the bounds: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., eq. 3.5:
|fl(x.y) - x.y| <= gamma_d |x||y| with gamma_d = d u / (1 - d u) for any order of summation. All
sums here run in float32, u = 2^-24. A vector whose numbers are rounded by at most a share `a` each
differs by at most a |x| from itself, so a dot of two such lies within ((1 + a)^2 (1 + gamma_d) - 1)
|x||y| of the true one; a result that is rounded once more, by a share `o`, adds a factor (1 + o).
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.scoring import Block, Float32, Float64, Int64
from retrieval.tables import Metric

U = 2.0**-24  # unit roundoff of float32
UNIT = 2.5 * U  # a number of a vector of unit length was rounded twice, its length once
_CPUINFO = "/proc/cpuinfo"
_BF16, _FP16 = 2.0**-8, 2.0**-11  # unit roundoffs
KEPT = 1 << 28  # bytes: lists are met twice, and again by each block of queries
_FULL = 16  # rows by which matrices of bf16 grow
_WORTH_TORCH = 1e11  # multiplications that take bf16 a second less than float32; torch's import
SAFE = 1e18
"""Lengths up to which no product of two vectors leaves the range of float32, nor of bfloat16."""


@dataclass(frozen=True)
class Ready:
    """Vectors where a product reads them, and as it does."""

    metric: Metric
    norms: Float64  # (n,) of the vectors as they are stored
    matrix: Any  # (n, d), or some rows more that mean nothing
    squares: Any  # (n,) squared lengths of rows for l2, else None
    steps: Any = None  # (n,) float32 and
    lost: Float64 | None = None  # (n,) lengths of what was rounded away: of whole numbers alone

    @cached_property
    def longest(self) -> float:
        """Give the length of the longest."""
        return float(self.norms.max(initial=0.0))

    @cached_property
    def most_lost(self) -> float:
        """Give the most that one lost."""
        return 0.0 if self.lost is None else float(self.lost.max(initial=0.0))


class Product(Protocol):
    """A way to multiply. Keys are (b, n), more is closer.

    For l2 they lack the square of the query's length, the same for all its rows: 2 q.x - |x|^2.
    """

    name: str
    keeps: int  # bytes of lists that may be kept ready

    def ready(self, vectors: Block) -> Ready:
        """Bring vectors to where they are multiplied."""

    def take(self, queries: Ready, which: Int64) -> Ready:
        """Give some of the queries, whose places ascend."""

    def keys(self, queries: Ready, rows: Ready) -> Any:
        """Multiply; where a length is beyond `SAFE` keys may be infinite or NaN."""

    def error(self, queries: Ready, rows: Ready) -> Float64:
        """Say what a query's keys can be wrong by, (b,), whichever of the rows."""

    def kth(self, keys: Any, k: int) -> Float32:
        """Give each query's k-th greatest key, (b,)."""

    def reach(self, keys: Any, low: Float32) -> tuple[Int64, Int64, Float32]:
        """Give the pairs whose key is at least the query's `low`, (b,), ordered by query; (p,)."""


def error_bound(
    metric: Metric, dimension: int, norms: Float64, longest: float, share: float, last: float
) -> Float64:
    """Say what keys can be wrong by; `share` and `last` are the file's a and o."""
    gamma = dimension * U / (1 - dimension * U)
    off = (1 + share) ** 2 * (1 + gamma) * (1 + last) - 1
    # underflow, of products and of numbers on their way; the rounding of the float64 score itself
    tiny = dimension * 2.0**-125
    wide = (dimension + 8) * 2.0**-52
    with np.errstate(over="ignore"):
        if metric == "cosine":
            return np.full(len(norms), 1.001 * off + 3 * tiny + wide)
        product = norms * longest
        under = tiny * (1 + norms + longest)
        if metric == "ip":
            return 1.001 * (off + wide) * product + under
        # twice the product's error, one rounding of |x|^2, one of the difference
        rounding = U * (2 * longest**2 + 2 * product * (1 + off))
        return 1.001 * (2 * off * product + rounding) + under + wide * (norms + longest) ** 2


def _run_of(which: Int64) -> Int64 | slice:
    """Give ascending places as a slice where they lie side by side."""
    if len(which) and which[-1] - which[0] + 1 == len(which):
        return slice(int(which[0]), int(which[-1]) + 1)
    return which


def squares_of(vectors: Block) -> Float32 | None:
    """Give the squared lengths of rows, (n,), where keys need them."""
    if vectors.metric != "l2":
        return None
    with np.errstate(over="ignore"):
        return (vectors.norms**2).astype(np.float32)


class Single:
    """float32 on this processor, by numpy's BLAS."""

    name = "fp32"
    keeps = KEPT

    def ready(self, vectors: Block) -> Ready:
        """Take them as they are."""
        return Ready(vectors.metric, vectors.norms, vectors.cheap, squares_of(vectors))

    def take(self, queries: Ready, which: Int64) -> Ready:
        """Copy them, unless they lie side by side."""
        part = _run_of(which)
        return Ready(queries.metric, queries.norms[part], queries.matrix[part], None)

    def keys(self, queries: Ready, rows: Ready) -> Float32:
        """Multiply."""
        with np.errstate(over="ignore", invalid="ignore"):
            keys: Float32 = queries.matrix @ rows.matrix.T
            if queries.metric == "l2":
                keys *= np.float32(2)
                keys -= rows.squares
        return keys

    def error(self, queries: Ready, rows: Ready) -> Float64:
        """Allow for the way to unit length; other inputs are exact."""
        share = UNIT if queries.metric == "cosine" else 0.0
        dimension = queries.matrix.shape[1]
        return error_bound(queries.metric, dimension, queries.norms, rows.longest, share, 0.0)

    def kth(self, keys: Float32, k: int) -> Float32:
        """Partition, or look for the greatest."""
        if k == 1:
            greatest: Float32 = keys.max(1)
            return greatest
        place = keys.shape[1] - k
        found: Float32 = np.partition(keys, place, axis=1)[:, place]
        return found

    def reach(self, keys: Float32, low: Float32) -> tuple[Int64, Int64, Float32]:
        """Compare; few pairs are expected."""
        places = np.flatnonzero(keys >= low[:, None])
        q, x = np.divmod(places, keys.shape[1])
        return q, x, keys.ravel()[places]


SINGLE = Single()


class Half:
    """Half precision by torch, on this processor (bf16) or on a GPU.

    A GPU gives float32 sums as they are; there vectors of unit length travel as float16, which is
    eight times as fine. A processor rounds its sums to bfloat16. It also builds a kernel for each
    shape that it meets, which costs more than the product, so shapes are filled up to few sizes.
    """

    def __init__(self, device: str) -> None:
        import torch

        self._torch, self._device = torch, device
        self._gpu = device != "cpu"
        self.name = "cuda" if self._gpu else "bf16"
        self.keeps = torch.cuda.get_device_properties(0).total_memory // 2 if self._gpu else KEPT
        if self._gpu:
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

    def _fine(self, metric: Metric) -> bool:
        return self._gpu and metric == "cosine"

    def ready(self, vectors: Block) -> Ready:
        """Round, and move; on a processor rows of zeros fill it up."""
        torch = self._torch
        dtype = torch.float16 if self._fine(vectors.metric) else torch.bfloat16
        matrix = torch.from_numpy(vectors.cheap).to(self._device, dtype)
        if not self._gpu and (more := -len(matrix) % _FULL):
            matrix = torch.nn.functional.pad(matrix, (0, 0, 0, more))
        squares = squares_of(vectors)
        if squares is not None:
            squares = torch.from_numpy(squares).to(self._device)
        return Ready(vectors.metric, vectors.norms, matrix, squares)

    def take(self, queries: Ready, which: Int64) -> Ready:
        """Copy them where they are; on a processor others fill it up."""
        torch, part = self._torch, _run_of(which)
        norms = queries.norms[part]
        if isinstance(part, slice):
            matrix = queries.matrix[part.start : part.start + len(which) + -len(which) % _FULL]
        elif self._gpu:
            matrix = queries.matrix[torch.from_numpy(which).to(self._device)]
        else:
            which = np.concatenate([which, np.zeros(-len(which) % _FULL, np.int64)])
            bits = queries.matrix.view(torch.int16).numpy()[which]  # numpy copies rows faster
            matrix = torch.from_numpy(bits).view(torch.bfloat16)
        return Ready(queries.metric, norms, matrix, None)

    def keys(self, queries: Ready, rows: Ready) -> Any:
        """Multiply; float32 come out, whatever they were rounded to on the way."""
        torch = self._torch
        if self._gpu:
            keys = torch.mm(queries.matrix, rows.matrix.T, out_dtype=torch.float32)
        else:
            keys = torch.mm(queries.matrix, rows.matrix.T)
        keys = keys[: len(queries.norms), : len(rows.norms)].float().contiguous()
        if queries.metric == "l2":
            keys.mul_(2).sub_(rows.squares)
        return keys

    def error(self, queries: Ready, rows: Ready) -> Float64:
        """Allow for both sides being rounded, and on a processor the sum."""
        share = _FP16 if self._fine(queries.metric) else _BF16
        if queries.metric == "cosine":
            share = (1 + share) * (1 + UNIT) - 1
        dimension = queries.matrix.shape[1]
        last = 0.0 if self._gpu else _BF16
        error = error_bound(queries.metric, dimension, queries.norms, rows.longest, share, last)
        if self._fine(queries.metric):  # numbers below 2^-14 keep fewer digits
            error += 2 * dimension**0.5 * 2.0**-24
        return error

    def kth(self, keys: Any, k: int) -> Float32:
        """Let the device select."""
        if not self._gpu:
            return SINGLE.kth(keys.numpy(), k)
        found: Float32 = keys.topk(k, dim=1, sorted=True).values[:, -1].cpu().numpy()
        return found

    def reach(self, keys: Any, low: Float32) -> tuple[Int64, Int64, Float32]:
        """Compare on the device; only what is found comes back."""
        if not self._gpu:
            return SINGLE.reach(keys.numpy(), low)
        floor = self._torch.from_numpy(low).to(self._device)
        places = (keys >= floor[:, None]).view(-1).nonzero().view(-1)
        values: Float32 = keys.view(-1)[places].cpu().numpy()
        q, x = np.divmod(places.cpu().numpy(), keys.shape[1])
        return q, x, values


def propose(queries: Block, rows: Block) -> tuple[Float32, Float64]:
    """Give float32 keys (b, n) and, a query, the most they can be wrong by, (b,) float64."""
    left, right = SINGLE.ready(queries), SINGLE.ready(rows)
    return SINGLE.keys(left, right), SINGLE.error(left, right)


def pair_keys(queries: Block, rows: Block, q: Int64, x: Int64) -> Float32:
    """Give the float32 keys of single pairs, (p,): within the same bound as those of a product."""
    keys = np.empty(len(q), np.float32)
    left, right = np.ascontiguousarray(queries.cheap), np.ascontiguousarray(rows.cheap)
    q, x = np.ascontiguousarray(q), np.ascontiguousarray(x)
    pointers = [faiss.swig_ptr(array) for array in (left, q, right, x, keys)]
    if len(q):
        library: Any = faiss
        library.pairwise_indexed_inner_product(left.shape[1], len(q), *pointers)
    if queries.metric == "l2":
        keys *= np.float32(2)
        keys -= (rows.norms[x] ** 2).astype(np.float32)
    return keys


def product_for(where: str, work: float) -> Product:
    """Choose the product for so many multiplications on a `cpu`, or on a GPU: `cuda`."""
    if where == "cuda":
        return Half("cuda")
    return Half("cpu") if work > _WORTH_TORCH and has_bf16() else SINGLE


@functools.cache
def has_bf16() -> bool:
    """Tell whether this processor multiplies bfloat16 faster than float32."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    there = {"avx512_bf16", "amx_bf16"} & cpu_flags()
    return bool(there) and not allowed.startswith(("AVX2", "SSE"))


def cpu_flags() -> set[str]:
    """Give what Linux says that this processor can do."""
    try:
        with open(_CPUINFO) as file:
            words = re.search(r"^flags\s*:(.*)$", file.read(), re.MULTILINE)
    except OSError:
        return set()
    return set(words[1].split()) if words else set()


def floor_of(values: Float64) -> NDArray[np.float32]:
    """Round down to float32, and once more, so that nothing that just reaches it is lost."""
    with np.errstate(over="ignore"):
        return np.nextafter(values.astype(np.float32), np.float32(-np.inf))
