"""Cheap products of vectors, each with the most it can be wrong by: they propose, nothing more.

Which one is used is a matter of the hardware and of speed alone, since what a bound cannot exclude
is decided in float64 (`closest.py`, `index/search.py`).

Sources of the bounds: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., eq. 3.5:
|fl(x.y) - x.y| <= gamma_d |x||y| with gamma_d = d u / (1 - d u) for any order of summation. Sums
run in float32, u = 2^-24; the tensor cores of GPUs align addends and cut them off, which is not
IEEE addition, u = 2^-22 (Fasi et al., "Numerical behavior of NVIDIA tensor cores", 2021). A vector
whose numbers are rounded by at most a share `a` each differs by at most a |x| from itself, so a dot
of two such lies within ((1 + a)^2 (1 + gamma_d) - 1) |x||y| of the true one; a result that is
rounded once more, by a share `o`, adds a factor (1 + o).

A bound grows with the lengths of the vectors. So for l2, where lengths mean nothing, vectors are
taken from a centre if they lie far from the origin (`centre_of`). Where a bound still leaves many
pairs undecided, or float32 cannot hold the product, one in float64 proposes (`propose_finely`): it
takes twice the time of one in float32, and scoring those pairs one by one a hundred times as long.
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

from retrieval.conversions import to_float64
from retrieval.scoring import Block, Float32, Float64, Int64, slices, squared_norms_of
from retrieval.tables import Metric

U = 2.0**-24  # unit roundoff of float32
TENSOR_CORE_U = 2.0**-22  # of the sums of a GPU's tensor cores, which cut addends off
UNIT = 2.5 * U  # a number of a vector of unit length was rounded twice, its length once
_CPUINFO = "/proc/cpuinfo"
_BF16, _FP16 = 2.0**-8, 2.0**-11  # unit roundoffs
KEPT = 1 << 28  # bytes: lists are met twice, and again by each block of queries
_FULL = 16  # rows by which matrices of bf16 grow
_WORTH_TORCH = 1e11  # multiplications that take bf16 a second less than float32; torch's import
SAFE = 1e18
"""Sum of two vectors' lengths up to which no product leaves the range of float32 or bfloat16."""

TINY: float = 2.0**-123
"""What underflow can take from a number of one dimension, eight times over: numbers below 2^-126
may be taken for zero wherever they come up, as an input, a product, a sum or a key."""

_FINE = 1 << 20  # elements of a product in float64: 8 MiB
_FINE_ROWS = 1 << 12  # vectors that are float64 at once: 16 MiB at d = 512
_SAMPLED = 33  # rows of which the middle is taken; odd
_DOUBTFUL = 32  # of so many pairs one may be left undecided before float64 proposes
_FEW_DOUBTFUL = 128  # pairs that are scored sooner than they are multiplied again


@dataclass(frozen=True)
class Ready:
    """Vectors where a product reads them, and as it does."""

    metric: Metric
    norms: Float64  # (n,) of the vectors, from the centre if there is one
    matrix: Any  # (n, d), or some rows more that mean nothing
    squares: Any  # (n,) squared lengths of rows for l2, else None
    steps: Any = None  # (n,) float32 and
    lost: Float64 | None = None  # (n,) lengths of what was rounded away: of whole numbers alone
    centred: bool = False  # whether a centre was subtracted, and each number rounded by that

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

    For l2 they lack the square of the query's length, the same for all its rows: 2 q.x - |x|^2,
    where q and x are taken from the centre that both sides were made ready with (`shift_of`).
    """

    name: str
    keeps: int  # bytes of lists that may be kept ready

    def ready(self, vectors: Block, centre: Float32 | None = None) -> Ready:
        """Bring vectors to where they are multiplied; of l2 those from a centre, (d,)."""

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
    metric: Metric,
    dimension: int,
    norms: Float64,
    longest: float,
    share: float,
    last: float,
    unit: float = U,
) -> Float64:
    """Return the error bound of keys; `share`, `last`, `unit`: a, o, u of the module docstring."""
    gamma = dimension * unit / (1 - dimension * unit)
    off = (1 + share) ** 2 * (1 + gamma) * (1 + last) - 1
    # underflow, of products and of numbers on their way; the rounding of the float64 score itself,
    # whose clip to [-1, 1] brings it only closer to the cosine
    tiny = (dimension + 8) * TINY
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


def squares_of(metric: Metric, norms: Float64) -> Float32 | None:
    """Give the squared lengths of rows, (n,), where keys need them."""
    if metric != "l2":
        return None
    with np.errstate(over="ignore"):
        return (norms**2).astype(np.float32)


def centre_of(sample: Block) -> Float32 | None:
    """Return what to subtract from vectors like the sampled ones before they are multiplied, (d,).

    None where nothing is gained: lengths mean something, or the origin is as good. It is the middle
    of some rows number by number, which no single odd row can move.
    """
    if sample.metric != "l2" or len(sample) == 0:
        return None
    places = np.unique(np.linspace(0, len(sample) - 1, _SAMPLED).astype(np.int64))
    some = sample.take(places)
    middle = len(some) // 2
    centre: Float32 = np.partition(some.wide, middle, axis=0)[middle]
    length = float(squared_norms_of(centre[None])[0])
    return centre if length > 0.75 * float(np.median(some.squared_norms)) else None


def centred(vectors: Block, centre: Float32 | None) -> tuple[Float32, Float64]:
    """Return what products read of vectors from a centre, (n, d), and the lengths of that, (n,)."""
    if centre is None:
        return vectors.cheap, vectors.norms
    squares = np.empty(len(vectors))
    for part in slices(len(vectors), _FINE_ROWS // 32):
        squares[part] = (_from_centre(vectors.wide[part], centre) ** 2).sum(-1)
    with np.errstate(over="ignore"):
        return vectors.wide - centre, np.sqrt(squares)


def _from_centre(wide: Float32, centre: Float32 | None) -> Float64:
    """Return vectors in float64, from a centre if there is one."""
    values = to_float64(wide)
    if centre is not None:
        values -= to_float64(centre)
    return values


def shift_of(queries: Ready) -> Float64:
    """Return what a query's keys lack of minus its distance, (b,)."""
    return queries.norms**2 if queries.metric == "l2" else np.zeros(len(queries.norms))


def is_safe(vectors: Ready) -> NDArray[np.bool_]:
    """Return which vectors, (n,), multiplied with others that are safe, stay within float32."""
    if vectors.metric == "cosine":
        return np.ones(len(vectors.norms), np.bool_)
    return vectors.norms <= SAFE / 2


def too_doubtful(undecided: int | np.integer[Any], pairs: int) -> bool:
    """Return whether so many of some pairs are undecided that float64 should propose again."""
    return bool(undecided > max(_FEW_DOUBTFUL, pairs // _DOUBTFUL))


@dataclass(frozen=True)
class Proposed:
    """Pairs that may reach a query's floor, ordered by query and by row; each array is (p,).

    A key differs from the true one by at most its slack. `floors` (b,) are what a query's rows must
    reach after all: those it had, or what its `top` best rows here surely reach.
    """

    q: Int64
    x: Int64
    keys: Float32
    slack: Float64
    floors: Float64


def propose_finely(
    queries: Block, rows: Block, floors: Float64, top: int | None, centre: Float32 | None = None
) -> Proposed:
    """Multiply in float64, and return the pairs that may reach a query's floor.

    `floors` (b,) are in terms of keys (`shift_of`). With `top` they must also be among the `top`
    best of these rows. Lengths count pair by pair: no row widens the bound of another.
    """
    empty = np.empty(0, np.int64)
    found = [(empty, empty, np.empty(0, np.float32), np.empty(0))]
    floors = floors.copy()
    for part in slices(len(queries), max(64, _FINE // max(1, len(rows)))):
        keys, slack = _fine_keys(queries.take(part), rows, centre)
        if top is not None and top <= len(rows):
            place = len(rows) - top
            sure = np.partition(keys - slack, place, axis=1)[:, place]
            floors[part] = np.maximum(floors[part], sure)
        q, x = np.nonzero(keys + slack >= floors[part, None])
        with np.errstate(over="ignore"):
            near = keys[q, x].astype(np.float32)
        wider = np.broadcast_to(slack, keys.shape)[q, x] + U * np.abs(keys[q, x]) + TINY
        beyond = ~np.isfinite(near)
        near[beyond], wider[beyond] = 0, np.inf
        found.append((q + part.start, x, near, wider))
    q, x, near, wider = (np.concatenate(column) for column in zip(*found, strict=True))
    return Proposed(q, x, near, wider, floors)


def _fine_keys(queries: Block, rows: Block, centre: Float32 | None) -> tuple[Float64, Float64]:
    """Return keys in float64, (b, n), and what each can be wrong by, of a shape like that.

    By the file's bound with u = 2^-53, where a length, a centred number and the score itself are
    rounded as a sum is: no more than 4 d + 8 roundings by which cosines differ, fewer for others.
    """
    left, long = _fine(queries, slice(None), centre)
    keys, norms = np.empty((len(queries), len(rows))), np.empty(len(rows))
    for part in slices(len(rows), _FINE_ROWS):
        right, norms[part] = _fine(rows, part, centre)
        keys[:, part] = left @ right.T
    share = (2 * left.shape[1] + 24) * 2.0**-52
    if queries.metric == "cosine":
        return keys, np.full((1, 1), share)
    if queries.metric == "ip":
        return keys, share * long[:, None] * norms
    keys *= 2
    keys -= norms**2
    return keys, share * (long[:, None] + norms) ** 2


def _fine(vectors: Block, part: slice, centre: Float32 | None) -> tuple[Float64, Float64]:
    """Return some vectors in float64, of unit length for cosine, and their lengths."""
    values = _from_centre(vectors.wide[part], centre)
    norms = vectors.norms[part]
    if vectors.metric == "cosine":
        values /= np.where(norms > 0, norms, 1.0)[:, None]
    elif centre is not None:
        norms = np.sqrt((values**2).sum(-1))
    return values, norms


def _share_of(vectors: Ready) -> float:
    """Return the share by which each number of float32 vectors was rounded on its way."""
    return UNIT if vectors.metric == "cosine" else U if vectors.centred else 0.0


class Single:
    """float32 on this processor, by numpy's BLAS."""

    name = "fp32"
    keeps = KEPT

    def ready(self, vectors: Block, centre: Float32 | None = None) -> Ready:
        """Take them as they are."""
        matrix, norms = centred(vectors, centre)
        squares = squares_of(vectors.metric, norms)
        return Ready(vectors.metric, norms, matrix, squares, centred=centre is not None)

    def take(self, queries: Ready, which: Int64) -> Ready:
        """Copy them, unless they lie side by side."""
        part = _run_of(which)
        norms, matrix = queries.norms[part], queries.matrix[part]
        return replace(queries, norms=norms, matrix=matrix, squares=None)

    def keys(self, queries: Ready, rows: Ready) -> Float32:
        """Multiply."""
        with np.errstate(over="ignore", invalid="ignore"):
            keys: Float32 = queries.matrix @ rows.matrix.T
            if queries.metric == "l2":
                keys *= np.float32(2)
                keys -= rows.squares
        return keys

    def error(self, queries: Ready, rows: Ready) -> Float64:
        """Allow for the way to unit length, or from a centre; other inputs are exact."""
        share = _share_of(queries)
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

    def ready(self, vectors: Block, centre: Float32 | None = None) -> Ready:
        """Round, and move; on a processor rows of zeros fill it up."""
        torch = self._torch
        dtype = torch.float16 if self._fine(vectors.metric) else torch.bfloat16
        values, norms = centred(vectors, centre)
        matrix = torch.from_numpy(values).to(self._device, dtype)
        if not self._gpu and (more := -len(matrix) % _FULL):
            matrix = torch.nn.functional.pad(matrix, (0, 0, 0, more))
        squares: Any = squares_of(vectors.metric, norms)
        if squares is not None:
            squares = torch.from_numpy(squares).to(self._device)
        return Ready(vectors.metric, norms, matrix, squares, centred=centre is not None)

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
        return replace(queries, norms=norms, matrix=matrix, squares=None)

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
        share = (1 + share) * (1 + _share_of(queries)) - 1
        dimension = queries.matrix.shape[1]
        last, unit = (0.0, TENSOR_CORE_U) if self._gpu else (_BF16, U)
        error = error_bound(
            queries.metric, dimension, queries.norms, rows.longest, share, last, unit
        )
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


def pair_keys(queries: Ready, rows: Ready, q: Int64, x: Int64) -> Float32:
    """Return the keys of pairs of what `SINGLE` made ready, (p,), within the same bound."""
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
