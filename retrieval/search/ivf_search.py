"""One shard against one block of queries, list by list.

For each inverted list, all queries that read it meet its vectors in one cheap product
(`products.py`). First every query meets its closest lists, as many as surely hold k rows: that sets
the key which a row must reach. Then all others, of which hardly a row does. Where a list or a query
is too long for the product, or its bound leaves many pairs undecided, one in float64 takes its
place. What the bounds cannot exclude is decided in float64 at the end, so the candidates are the
same for any product, block and order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.schemas import CANDIDATES
from retrieval.index.faiss_io import centroids_of
from retrieval.index.kmeans import list_metric
from retrieval.index.shard import Shard
from retrieval.search.exclusions import Pairs, is_barred, most_barred
from retrieval.search.topk_accumulator import UNDECIDED, Found, runs
from retrieval.vectors.int8_matmul import suited
from retrieval.vectors.matmul import (
    SINGLE,
    Product,
    Ready,
    centre_of,
    floor_of,
    is_safe,
    pair_keys,
    propose_finely,
    shift_of,
    too_doubtful,
)
from retrieval.vectors.scoring import Block, Float32, Float64, Int64, block, slices
from retrieval.vectors.topk import closest

_OPENING = 4  # lists at most that set what must be reached
_ENOUGH = 2  # times k rows in them
_PRODUCT = 1 << 19  # elements of one product: 2 MiB, which stays near the core
_SAMPLED_LISTS = 33  # that the centre of a shard is taken from


@dataclass(frozen=True)
class Asked:
    """A block of queries, and what is known of them."""

    queries: Block
    numbers: Int64  # (q,) their rows, which stand in the column `query`
    floors: Float64 | None = None  # (q,) keys that a match must reach, -inf where nothing is known
    barred: Pairs | None = None  # pairs that are no match
    least: float = -np.inf  # no match has a key below it

    def known(self) -> Float64:
        """Give the keys that a match must reach, as far as they are known."""
        floors = np.full(len(self.queries), -np.inf) if self.floors is None else self.floors
        return np.maximum(floors, self.least)


class Searcher:
    """A shard and what multiplies; lists that were made ready stay so while there is `room`.

    `room` are bytes of this machine's memory; a GPU has its own. `undecided` is how many pairs of
    a query and a row may wait to be decided.
    """

    def __init__(
        self,
        shard: Shard,
        product: Product = SINGLE,
        room: int = 1 << 62,
        undecided: int = UNDECIDED,
    ) -> None:
        self.shard, self.product, self.undecided = shard, product, undecided
        self.centre = _centre_of(shard)
        self._kept: dict[int, Ready] = {}
        self._room = product.keeps if product.name == "cuda" else min(product.keeps, room)

    def asked(self, queries: Block) -> Ready:
        """Give queries as the product reads them; what needs a finer product gets it from here on.

        So the first block decides: queries and rows come from the same model.
        """
        ready = self.product.ready(queries, self.centre)
        finer = suited(self.product, ready)
        if finer is self.product:
            return ready
        self.product, self._kept = finer, {}
        return finer.ready(queries, self.centre)

    def ready(self, number: int) -> Ready:
        """Give the rows of a list as the product reads them."""
        found = self._kept.get(number)
        if found is None:
            found = self.product.ready(self.shard.list_block(number), self.centre)
            self._room -= found.matrix.nbytes
            if self._room >= 0:
                self._kept[number] = found
        return found

    def search(self, asked: Asked, probes: Int64 | None, k: int) -> pa.Table:
        """Find the k best candidates of the shard for each query: table CANDIDATES, unordered.

        `probes` is (q, nprobe), the lists each query reads, closest first; None is all lists. Rows
        that are surely below a query's floor may be left out.
        """
        shard, search = self.shard, _Search(self, asked, k)
        first = _closest_lists(shard, asked.queries) if probes is None else probes
        opening = _opening(shard, asked, first[:, :_OPENING], k)
        for number, which in _pairs(first[:, :_OPENING], opening):
            search.open(number, which)
        search.found.tighten()
        if probes is None:
            everybody = np.arange(len(asked.queries))
            for number in range(shard.index.nlist):
                search.meet(number, everybody)
        else:
            rest = np.ones(probes.shape, np.bool_)
            rest[:, : opening.shape[1]] = ~opening
            for number, which in _pairs(probes, rest):
                search.meet(number, which)
        found = search.found
        found.settle()
        places = np.where(found.keys >= asked.least, found.places, -1)
        return candidates_table(shard.metadata, found.keys, places, found.lists, asked.numbers)


def _centre_of(shard: Shard) -> Float32 | None:
    """Return the centre that products of a shard's vectors are taken from, by some of its lists."""
    if shard.metric != "l2":
        return None
    filled = np.flatnonzero(shard.sizes)
    lists = filled[:: max(1, len(filled) // _SAMPLED_LISTS)][:_SAMPLED_LISTS].tolist()
    parts = [shard.listed(number)[1] for number in lists]
    some = [part[:: max(1, len(part) * len(lists) // _SAMPLED_LISTS)] for part in parts]
    return centre_of(block(np.concatenate(some), "l2")) if some else None


def _closest_lists(shard: Shard, queries: Block) -> Int64:
    measure = list_metric(shard.metric)
    centroids = block(centroids_of(shard.index), measure)
    asked = block(queries.values, measure, queries.squared_norms)
    return closest(asked, centroids, min(_OPENING, len(centroids)))


def _opening(shard: Shard, asked: Asked, first: Int64, k: int) -> NDArray[np.bool_]:
    """Tell which of a query's first lists it reads to learn what must be reached, if it does."""
    before = np.cumsum(shard.sizes[first], axis=1) - shard.sizes[first]
    opening = before < _ENOUGH * k
    return opening & np.isneginf(asked.known())[:, None]


def _pairs(probes: Int64, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, Int64]]:
    """Group the wanted (query, list) pairs by list: its number, and the queries that read it."""
    query, place = np.nonzero(wanted)
    lists = probes[query, place]
    short = lists.astype(np.uint16) if lists.max(initial=0) < 1 << 16 else lists  # sorts faster
    order = np.argsort(short, kind="stable")
    query, lists = query[order], lists[order]
    for number, run in runs(lists):
        yield number, query[run]


class _Search:
    """Lists meeting queries."""

    def __init__(self, searcher: Searcher, asked: Asked, k: int) -> None:
        self._searcher, self._shard, self._k = searcher, searcher.shard, k
        self._queries, self._ready = asked.queries, searcher.asked(asked.queries)
        self._product = searcher.product
        self._barred = _by_list(self._shard, asked.barred)
        self._single = SINGLE.ready(asked.queries, searcher.centre)
        self._safe = is_safe(self._single)
        shift = shift_of(self._single)
        self.found = Found(self._shard, asked.queries, k, asked.known(), shift, searcher.undecided)
        self._opened: dict[int, Int64] = {}  # the queries that have read a list, by its number

    def open(self, number: int, which: Int64) -> None:
        """Let some queries read a list first, once, to learn what they must reach.

        On a processor in float32: few pairs meet, and most of what a coarse product cannot exclude
        would have to be looked at again.
        """
        barred, product = self._barred.get(number, _NOBODY), self._product
        self._opened[number] = which
        vectors = self._shard.list_block(number)
        if product.name == "cuda":
            sides = self._ready, self._searcher.ready(number)
        else:
            product = SINGLE
            sides = self._single, SINGLE.ready(vectors, self._searcher.centre)
        self._meet(number, which, product, sides, self._k + most_barred(barred))

    def meet(self, number: int, which: Int64) -> None:
        """Let some queries read one list; those that have opened it get nothing from it again.

        They may be among `which`: a product with all queries costs less than one without some.
        """
        rows = self._searcher.ready(number)
        opened = self._opened.get(number)
        self._meet(number, which, self._product, (self._ready, rows), None, opened)

    def _meet(
        self,
        number: int,
        which: Int64,
        product: Product,
        sides: tuple[Ready, Ready],
        top: int | None,
        opened: Int64 | None = None,
    ) -> None:
        if (count := len(sides[1].norms)) == 0:
            return
        barred = self._barred.get(number, _NOBODY)
        fresh = _fresh(opened, len(self._queries))
        safe = self._safe[which] & is_safe(sides[1]).all()
        parts = [
            (group[part], trusted)
            for group, trusted in ((which[safe], True), (which[~safe], False))
            for part in slices(len(group), max(1, _PRODUCT // count))
        ]
        for asked, trusted in parts:
            pairs = self._reaching(number, asked, product, sides, top) if trusted else None
            if pairs is None:
                pairs = self._finely(number, asked, top)
            q, x, keys, slack = pairs
            if fresh is not None:
                keep = fresh[q]
                q, x, keys, slack = q[keep], x[keep], keys[keep], slack[keep]
            if len(barred[0]):
                keep = ~is_barred(barred, q, x)
                q, x, keys, slack = q[keep], x[keep], keys[keep], slack[keep]
            self.found.add(number, q, x, keys, slack)

    def _reaching(
        self,
        number: int,
        which: Int64,
        product: Product,
        sides: tuple[Ready, Ready],
        top: int | None,
    ) -> tuple[Int64, Int64, Float32, Float64] | None:
        """Give the pairs of some queries and rows of a list that may be among the best.

        Where nothing is known yet, those of a list that may be among its `top` best. Also their
        keys, and what these can be wrong by. None if that leaves too many undecided.
        """
        queries, rows = sides
        if len(which) < len(queries.norms):
            queries = product.take(queries, which)
        keys, slack = product.keys(queries, rows), product.error(queries, rows)
        low = self.found.floors[which] - slack
        if top is not None and top < len(rows.norms):
            low = np.maximum(low, product.kth(keys, top).astype(np.float64) - 2 * slack)
        q, x, values = product.reach(keys, floor_of(low))
        pairs = len(which) * len(rows.norms)
        undecided = np.count_nonzero(values < (low + 2 * slack)[q])
        q, slack = which[q], slack[q]
        if product is not SINGLE and len(q):
            if 2 * undecided > pairs and too_doubtful(undecided, pairs):
                return None
            q, x, values, slack = self._finer(number, q, x)
            undecided = np.count_nonzero(values - slack < self.found.floors[q])
        return None if too_doubtful(undecided, pairs) else (q, x, values, slack)

    def _finely(
        self, number: int, which: Int64, top: int | None
    ) -> tuple[Int64, Int64, Float32, Float64]:
        """Return what `_reaching` does, by a product in float64; it may raise the floors."""
        rows, centre = self._shard.list_block(number), self._searcher.centre
        floors = self.found.floors[which]
        proposed = propose_finely(self._queries.take(which), rows, floors, top, centre)
        self.found.floors[which] = proposed.floors
        return which[proposed.q], proposed.x, proposed.keys, proposed.slack

    def _finer(self, number: int, q: Int64, x: Int64) -> tuple[Int64, Int64, Float32, Float64]:
        """Look at pairs again in float32."""
        rows = SINGLE.ready(self._shard.list_block(number), self._searcher.centre)
        keys = pair_keys(self._single, rows, q, x)
        slack = SINGLE.error(replace(self._single, norms=self._single.norms[q]), rows)
        keep = np.flatnonzero(keys + slack >= self.found.floors[q])
        return q[keep], x[keep], keys[keep], slack[keep]


_NOBODY = np.empty(0, np.int64), np.empty(0, np.int64)


def _fresh(opened: Int64 | None, count: int) -> NDArray[np.bool_] | None:
    """Return which of `count` queries have not opened a list; None where none has."""
    if opened is None:
        return None
    fresh = np.ones(count, np.bool_)
    fresh[opened] = False
    return fresh


def _by_list(shard: Shard, barred: tuple[Int64, Int64] | None) -> dict[int, tuple[Int64, Int64]]:
    """Sort barred pairs by list: queries, and places in it among its live rows."""
    if barred is None or len(barred[0]) == 0:
        return {}
    query, place = barred
    found = {}
    for number in range(shard.index.nlist):
        own = shard.places(number)
        order = np.argsort(own)
        at = np.minimum(np.searchsorted(own, place, sorter=order), len(own) - 1)
        here = np.flatnonzero(own[order[at]] == place) if len(own) else at[:0]
        if len(here):
            found[number] = query[here], order[at[here]]
    return found


def candidates_table(
    metadata: pa.Table, keys: Float64, places: Int64, lists: NDArray[np.integer], numbers: Int64
) -> pa.Table:
    """Say of places in a shard what the table CANDIDATES says; -1 is none, and said nothing of.

    `keys`, `places` and `lists` are (q, k); `numbers` (q,) name the queries.
    """
    query, rank = np.nonzero(places >= 0)
    known = metadata.select(["row", "image_id", "path", "label"]).take(places[query, rank])
    columns = {
        "query": numbers[query],
        "key": keys[query, rank],
        "row": known["row"],
        "list": lists[query, rank],
        "image_id": known["image_id"],
        "path": known["path"],
        "label": known["label"],
    }
    return pa.table(columns).cast(CANDIDATES)
