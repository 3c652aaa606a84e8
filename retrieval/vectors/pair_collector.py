"""Propose and bound: collect the pairs of queries and rows that may be among the k best.

Rows are added block by block. A cheap product gives keys with an error bound (`matmul.py`), and
compiled code keeps the pairs that the bounds cannot exclude (`pair_kernels.py`). The caller decides
between them in float64, at the end or when a query has more of them than its buffer holds. So the
result does not depend on the product, the blocks or their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors.matmul import (
    FLOAT32_PRODUCT,
    PreparedVectors,
    Product,
    compute_pair_keys,
    fits_float32,
    key_offsets,
    propose_in_float64,
    round_down_to_float32,
    too_many_undecided,
)
from retrieval.vectors.scoring import Float32, Float64, Int64, VectorBlock, split_range

MAX_PENDING = 1 << 22
"""Maximum number of pairs that are collected but not scored: 48 MiB, and 64 MiB to score them."""

ExcludedPairs = tuple[Int64, Int64]
"""Queries and numbers of rows, (e,) each, ordered by both, that are not matches."""

Part = tuple[slice, Int64]
"""A slice of prepared rows, and the positions, ascending, of the queries to compare with them."""

_PENDING_PER_K = 4  # pending pairs of a query per match ...
_MIN_PENDING = 64  # ... and at least
_BLOCK_ROWS = 1 << 10  # rows of one product
_PRODUCT_ELEMENTS = (
    1 << 18  # keys of products that are made at once: a MiB, which stays in a core's caches
)
_COARSE_ELEMENTS = 1 << 22  # the same for products whose calls cost more than float32's
_FLOAT64_QUERIES = 1 << 10  # queries whose pairs by float64 keys are held at once
_ROW_MULTIPLE = 16  # `pair_kernels.LANES`: keys of a query are padded to a multiple


@dataclass(frozen=True)
class PreparedRows:
    """Rows as a product reads them, (n, d); made by `prepare_rows`."""

    rows: VectorBlock
    prepared: PreparedVectors
    product: Product
    centre: Float32 | None

    def __len__(self) -> int:
        return len(self.prepared.norms)

    @cached_property
    def fit_float32(self) -> bool:
        """Return whether products of all rows stay within float32."""
        return bool(fits_float32(self.prepared).all())

    def to_float32(self) -> PreparedVectors:
        """Return the rows prepared for a product in float32."""
        return FLOAT32_PRODUCT.prepare(self.rows, self.centre)


def prepare_rows(
    rows: VectorBlock, centre: Float32 | None = None, product: Product = FLOAT32_PRODUCT
) -> PreparedRows:
    """Convert rows for a product, for l2 after subtracting a (d,) centre."""
    return PreparedRows(rows, product.prepare(rows, centre), product, centre)


def pad_rows(matrix: Float32, first: int, last: int) -> Float32:
    """Return the rows first <= number < last and further ones: `pair_kernels.LANES` or a multiple.

    Further rows are the next ones of the matrix, or zeros at its end.
    """
    padded_last = last + -(last - first) % _ROW_MULTIPLE
    if padded_last <= len(matrix):
        return matrix[first:padded_last]
    return np.pad(matrix[first:last], ((0, padded_last - last), (0, 0)))


def pending_per_query(k: int, rows: int) -> int:
    """Return the number of pairs that a buffer holds for each query, of all pairs with `rows`."""
    return max(1, min(max(_MIN_PENDING, _PENDING_PER_K * k), rows))


class PairCollector:
    """Collects the pairs that may be among the k best of each query.

    Rows are numbered from 0 to `row_count` by the caller, and each pair is added once. `decide`
    receives the queries (p,), ascending, and row numbers (p,) of pending pairs; it returns the key
    that the k best pairs decided so far reach, for each of these queries once.

    `known_keys` (q,) are keys that a row must reach, `excluded` pairs are dropped, and about
    `max_pending` pairs are held at once.
    """

    def __init__(
        self,
        queries: VectorBlock,
        k: int,
        row_count: int,
        decide: Callable[[Int64, Int64], Float64],
        *,
        product: Product = FLOAT32_PRODUCT,
        centre: Float32 | None = None,
        known_keys: Float64 | None = None,
        excluded: ExcludedPairs | None = None,
        max_pending: int = MAX_PENDING,
    ) -> None:
        from retrieval.vectors import pair_kernels

        count = len(queries)
        self._kernels, self._queries, self._k, self._decide = pair_kernels, queries, k, decide
        self._product, self._centre = product, centre
        self._in_float32 = FLOAT32_PRODUCT.prepare(queries, centre)
        self._prepared = (
            self._in_float32 if product is FLOAT32_PRODUCT else product.prepare(queries, centre)
        )
        self._fit_float32 = fits_float32(self._in_float32)
        self._all_fit_float32 = bool(self._fit_float32.all())
        self._error_terms = FLOAT32_PRODUCT.error_terms(self._in_float32)
        self._offsets = key_offsets(self._in_float32)  # cheap keys minus keys of scores
        known = np.full(count, -np.inf) if known_keys is None else known_keys
        self._thresholds = known + self._offsets  # on the scale of cheap keys
        self._excluded = excluded or (np.empty(0, np.int64), np.empty(0, np.int64))
        self._excluded_starts = np.searchsorted(self._excluded[0], np.arange(count + 1))
        capacity = pending_per_query(k, row_count)
        shape = (count, max(1, min(capacity, max_pending // max(1, count))))
        self._lows, self._highs = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._numbers, self._counts = np.empty(shape, np.int32), np.zeros(count, np.int64)
        self._is_decided = np.zeros(count, np.bool_)  # queries of which pairs were decided
        self._scratch = np.empty(max(shape[1], _BLOCK_ROWS), np.float32)
        self._memory: dict[str, Float32] = {}

    @property
    def _buffers(self) -> tuple[Float64, Float32, Float32, NDArray[np.int32], Int64, Float32]:
        buffers = self._lows, self._highs, self._numbers, self._counts, self._scratch
        return self._thresholds, *buffers

    def multiply(self, rows: PreparedRows, first_number: int, positions: Int64) -> None:
        """Add the pairs of rows with the queries at `positions`, ascending, that may be needed.

        The first row has the number `first_number`.
        """
        self.multiply_parts(rows, first_number, [(slice(0, len(rows)), positions)])

    def multiply_parts(self, rows: PreparedRows, first_number: int, parts: Iterable[Part]) -> None:
        """Add the pairs of each part of the rows with its queries that may be needed.

        Row 0 has the number `first_number`. Products that are not float32 need all rows in a part.
        """
        if not (rows.fit_float32 and self._all_fit_float32):
            parts = [self._add_large(rows, first_number, part) for part in parts]
        parts = [part for part in parts if part[0].stop > part[0].start and len(part[1])]
        if self._product is FLOAT32_PRODUCT:
            for group in _group_parts(parts, rows.prepared.matrix.shape[1]):
                self._add_in_float32(rows, first_number, group)
            return
        step = max(1, _COARSE_ELEMENTS // max(1, len(rows)))
        for _, positions in parts:
            for selected in split_range(len(positions), step):
                self._add_coarsely(rows, first_number, positions[selected])

    def _add_large(self, rows: PreparedRows, first_number: int, part: Part) -> Part:
        """Add the pairs that float32 cannot hold in float64; return the part with other queries."""
        selected, positions = part
        safe = self._fit_float32[positions] & fits_float32(rows.prepared)[selected].all()
        self._add_in_float64(
            rows.rows.take(selected), first_number + selected.start, positions[~safe]
        )
        return selected, positions[safe]

    def raise_thresholds(self) -> int:
        """Raise the thresholds to keys that k pairs surely reach, and drop the pairs below.

        Return the number of pending pairs.
        """
        return self._kernels.raise_thresholds(self._k, *self._buffers)

    def certain_rows(self) -> tuple[NDArray[np.bool_], Int64]:
        """Return which queries need no decision, (q,), and their k best row numbers, (c, k).

        They have exactly k pending pairs, and none was decided. The numbers are ordered by
        approximate keys, closest first. Valid after `raise_thresholds`.
        """
        is_certain = (self._counts == self._k) & ~self._is_decided
        lows = self._lows[is_certain, : self._k]
        order = np.argsort(-lows, axis=1, kind="stable")
        numbers = np.take_along_axis(self._numbers[is_certain, : self._k], order, 1)
        return is_certain, numbers.astype(np.int64)

    def decide_pending(self, queries: Int64 | None = None) -> None:
        """Let the pending pairs of some queries, ascending, be decided, by default those of all."""
        if self.raise_thresholds():
            every_query = np.arange(len(self._queries))
            self._decide_pairs(*self._take_pending(every_query if queries is None else queries))

    def _add_in_float32(self, rows: PreparedRows, first_number: int, group: list[Part]) -> None:
        """Add pairs of some parts of the rows by float32 products."""
        prepared = rows.prepared
        matrix, dimension = prepared.matrix, prepared.matrix.shape[1]
        positions = np.concatenate([part[1] for part in group]) if len(group) > 1 else group[0][1]
        queries = self._select(positions, dimension)
        runs = np.array([(len(q), x.start, x.stop - x.start) for x, q in group], np.int64)
        padded = runs[:, 2] + -runs[:, 2] % _ROW_MULTIPLE
        keys = self._reuse("keys", int(runs[:, 0] @ padded), 1).ravel()
        first = offset = 0
        with np.errstate(over="ignore", invalid="ignore"):  # of the rows beside a part
            for selected, of_part in group:
                right = pad_rows(matrix, selected.start, selected.stop).T
                last, width = first + len(of_part), right.shape[1]
                products = keys[offset : offset + len(of_part) * width].reshape(-1, width)
                np.matmul(queries[first:last], right, out=products)
                first, offset = last, offset + products.size
        is_full = np.empty(len(positions), np.bool_)
        if self._kernels.collect(
            keys, positions, runs, first_number,
            _NO_SQUARES if prepared.squares is None else prepared.squares, prepared.norms,
            self._error_terms, self._excluded_starts, self._excluded[1], self._k, *self._buffers,
            is_full,
        ):  # fmt: skip
            first = 0
            for selected, of_part in group:
                full = of_part[is_full[first : first + len(of_part)]]
                self._add_in_float64(rows.rows.take(selected), first_number + selected.start, full)
                first += len(of_part)

    def _select(self, positions: Int64, dimension: int) -> Float32:
        """Return the queries at some positions, a copy only where they are not contiguous."""
        matrix: Float32 = self._in_float32.matrix
        if (np.diff(positions) == 1).all():
            return matrix[positions[0] : positions[-1] + 1]
        selected = self._reuse("queries", len(positions), dimension)
        return np.take(matrix, positions, axis=0, out=selected, mode="clip")

    def _reuse(self, name: str, count: int, width: int) -> Float32:
        """Return memory for a (count, width) float32 matrix, the same again if it is large enough.

        Fresh memory for each product would cost as much as the product of a short list.
        """
        memory = self._memory.get(name)
        if memory is None or len(memory) < count * width:
            memory = self._memory[name] = np.empty(count * width, np.float32)
        return memory[: count * width].reshape(count, width)

    def _add_in_float64(self, rows: VectorBlock, first_number: int, positions: Int64) -> None:
        """Add pairs by float64 keys, and raise the thresholds."""
        top = self._k + self._max_excluded(first_number, first_number + len(rows))
        for part in split_range(len(positions), _FLOAT64_QUERIES):
            selected = positions[part]
            proposed = propose_in_float64(
                self._queries.take(selected), rows, self._thresholds[selected], top, self._centre
            )
            self._thresholds[selected] = proposed.floors
            self._add(
                selected[proposed.q], first_number + proposed.x, proposed.keys, proposed.slack
            )

    def _max_excluded(self, first_number: int, last_number: int) -> int:
        """Return the largest number of rows in a range that are excluded for one query."""
        query, numbers = self._excluded_by_row
        first, last = np.searchsorted(numbers, [first_number, last_number])
        return int(np.unique(query[first:last], return_counts=True)[1].max(initial=0))

    @cached_property
    def _excluded_by_row(self) -> ExcludedPairs:
        """Return the excluded pairs ordered by the number of their row."""
        order = np.argsort(self._excluded[1], kind="stable")
        return self._excluded[0][order], self._excluded[1][order]

    def _add_coarsely(self, rows: PreparedRows, first_number: int, positions: Int64) -> None:
        """Add pairs by a product that is not float32 on the CPU.

        Pairs that reach the threshold are compared again in float32, or in float64 where more than
        half of them are undecided.
        """
        queries, product = self._prepared, self._product
        if len(positions) < len(queries.norms):
            queries = product.select(queries, positions)
        keys = product.keys(queries, rows.prepared)
        slack = product.key_error(queries, rows.prepared)
        thresholds = self._thresholds[positions]
        low, is_unset = thresholds - slack, np.isneginf(thresholds)
        top = self._k + self._max_excluded(first_number, first_number + len(rows))
        if is_unset.any() and top < len(rows):
            kth = product.kth_key(keys, top).astype(np.float64) - 2 * slack
            low[is_unset] = kth[is_unset]
        q, x, values = product.pairs_reaching(keys, round_down_to_float32(low))
        pairs = len(positions) * len(rows)
        undecided = np.count_nonzero(values < (low + 2 * slack)[q])
        if 2 * undecided > pairs and too_many_undecided(undecided, pairs):
            self._add_in_float64(rows.rows, first_number, positions)
            return
        q = positions[q]
        keys, slack = self._compare_in_float32(rows.to_float32(), q, x)
        keep = np.flatnonzero(keys + slack >= self._thresholds[q])
        undecided = np.count_nonzero((keys - slack)[keep] < self._thresholds[q[keep]])
        if too_many_undecided(undecided, pairs):
            self._add_in_float64(rows.rows, first_number, positions)
        else:
            self._add(q[keep], first_number + x[keep], keys[keep], slack[keep])

    def _compare_in_float32(
        self, rows: PreparedVectors, q: Int64, x: Int64
    ) -> tuple[Float32, Float64]:
        """Return float32 keys and error bounds of pairs, (p,) each."""
        keys = compute_pair_keys(self._in_float32, rows, q, x)
        terms, lengths = self._error_terms[q], rows.norms[x]
        return keys, terms[:, 0] + lengths * (terms[:, 1] + lengths * terms[:, 2])

    def _add(self, q: Int64, numbers: Int64, keys: Float32, slack: Float64) -> None:
        """Add single pairs, (p,) each; those that do not fit are decided."""
        if len(q) == 0:
            return
        rejected = np.empty(len(q), np.bool_)
        q, numbers = np.ascontiguousarray(q), np.ascontiguousarray(numbers)
        slack = np.ascontiguousarray(slack)
        if self._kernels.add_pairs(
            q, numbers, keys.astype(np.float64), slack, self._excluded_starts, self._excluded[1],
            self._k, *self._buffers, rejected,
        ):  # fmt: skip
            pending, pending_numbers = self._take_pending(np.unique(q[rejected]))
            query = np.concatenate([pending, q[rejected]])
            order = np.argsort(query, kind="stable")
            numbers = np.concatenate([pending_numbers, numbers[rejected]])
            self._decide_pairs(query[order], numbers[order])

    def _take_pending(self, queries: Int64) -> tuple[Int64, Int64]:
        """Return queries and row numbers of the pending pairs of some queries, and remove these."""
        counts = self._counts[queries]
        filled = np.arange(self._numbers.shape[1]) < counts[:, None]
        numbers = self._numbers[queries][filled].astype(np.int64)
        self._counts[queries] = 0
        return np.repeat(queries, counts), numbers

    def _decide_pairs(self, query: Int64, numbers: Int64) -> None:
        """Let pairs be decided, and raise the thresholds of their queries."""
        if len(query):
            decided = query[np.flatnonzero(np.diff(query, prepend=-1))]
            self._is_decided[decided] = True
            reached = self._decide(query, numbers) + self._offsets[decided]
            self._thresholds[decided] = np.maximum(self._thresholds[decided], reached)


def _group_parts(parts: Iterable[Part], dimension: int) -> Iterator[list[Part]]:
    """Yield the parts, cut to products of limited size, in groups that are multiplied at once."""
    group: list[Part] = []
    elements = 0
    for part, positions in parts:
        for rows, selected in _cut_part(part, positions):
            size = len(selected) * max(rows.stop - rows.start, dimension)
            if group and elements + size > _PRODUCT_ELEMENTS:
                yield group
                group, elements = [], 0
            group.append((rows, selected))
            elements += size
    if group:
        yield group


def _cut_part(part: slice, positions: Int64) -> Iterable[Part]:
    """Return a part, cut where it has too many rows or keys for a product."""
    count = part.stop - part.start
    if count <= _BLOCK_ROWS and len(positions) * (count + _ROW_MULTIPLE) <= _PRODUCT_ELEMENTS:
        return [(part, positions)]
    pieces = []
    for first in range(part.start, part.stop, _BLOCK_ROWS):
        rows = slice(first, min(first + _BLOCK_ROWS, part.stop))
        step = max(_ROW_MULTIPLE, _PRODUCT_ELEMENTS // (rows.stop - first + _ROW_MULTIPLE))
        pieces += [(rows, positions[cut]) for cut in split_range(len(positions), step)]
    return pieces


_NO_SQUARES = np.empty(0, np.float32)
