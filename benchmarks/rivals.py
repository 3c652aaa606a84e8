"""Search methods of other libraries, each measured along its search parameter.

A rival is a function that builds one index after the other (its variants: numbers of lists, code
types, effort of building) and yields each with the seconds it took and its series of settings. A
series ascends in recall; it ends where recall is high enough or rises no more. FAISS trains its own
centroids. The number of threads is that of the process. All vectors are float32, search is by inner
product.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.sides import timed

K = 10
PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Numbers of lists read, or of tree leaves."""

_BEAMS = (10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448, 640, 896, 1280)
"""Lengths of the list of candidates of a graph search."""

_K_FACTORS = (2, 4, 8, 16, 32)
"""Candidates by code per match that are computed again from float16 vectors."""

_LEAST_GAIN = 0.0005
"""Recall that a step of a series must add; with less, the codes are the limit."""

_UNIT_TOLERANCE = 0.01

Search = Callable[[NDArray[np.float32]], NDArray[Any]]
Setting = Mapping[str, float]
Series = Iterable[tuple[Setting, Search]]
"""Settings of a built index, each with its search, which is valid until the next setting."""

Measurements = Iterable[tuple[Setting, Callable[[], dict[str, float]]]]
"""Settings, each with a function that returns its recall and rate."""


@dataclass(frozen=True)
class SearchData:
    """Gallery, queries and the exact neighbours, (q, k), of the queries."""

    rows: NDArray[np.float32]
    queries: NDArray[np.float32]
    exact: NDArray[np.int64]

    @property
    def dimension(self) -> int:
        """Return the dimension of the vectors."""
        return int(self.rows.shape[1])


@dataclass(frozen=True)
class Built:
    """An index with the settings to measure it at."""

    name: str
    seconds: float  # to train and fill it
    series: Sequence[Series]


class Unsuitable(Exception):
    """A rival cannot search these vectors."""


Rival = Callable[[SearchData, Sequence[int]], Iterator[Built]]


def measure(rival: Rival, data: SearchData, lists: Sequence[int], enough: float) -> list[Any]:
    """Build and measure all variants of a rival.

    Args:
        rival: One of `RIVALS`.
        data: The vectors.
        lists: Numbers of lists of the variants that have lists.
        enough: Recall at which a series ends.

    Returns:
        Name, seconds of the build and points (recall, rate, setting) of each variant.
    """
    return [
        {
            "name": built.name,
            "build_seconds": built.seconds,
            "points": [
                point
                for series in built.series
                for point in sweep(_measurements(series, data), enough)
            ],
        }
        for built in rival(data, lists)
    ]


def _measurements(series: Series, data: SearchData) -> Measurements:
    for setting, search in series:
        yield setting, partial(timed, search, data.queries, data.exact)


def sweep(measurements: Measurements, enough: float) -> list[dict[str, Any]]:
    """Measure the settings of a series until recall is enough or rises no more."""
    points: list[dict[str, Any]] = []
    for setting, measured in measurements:
        points.append({**measured(), "setting": setting})
        recall = points[-1]["recall"]
        if recall >= enough or (len(points) > 1 and recall - points[-2]["recall"] < _LEAST_GAIN):
            break
    return points


def exact_neighbours(rows: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the exact neighbours of queries by inner product, (q, K)."""
    neighbours: NDArray[np.int64] = faiss.knn(queries, rows, K, faiss.METRIC_INNER_PRODUCT)[1]
    return neighbours


def flat(data: SearchData, lists: Sequence[int]) -> Iterator[Built]:
    """Search uncompressed lists."""
    for count in lists:
        yield _inverted(data, f"IVF{count},Flat")


def pq(data: SearchData, lists: Sequence[int]) -> Iterator[Built]:
    """Search 4-bit product-quantizer codes by fast-scan, refined with float16 vectors."""
    for count in lists:
        factory = f"IVF{count},PQ{data.dimension // 2}x4fs,Refine(SQfp16)"
        yield _inverted(data, factory, _K_FACTORS)


def rabitq(data: SearchData, lists: Sequence[int]) -> Iterator[Built]:
    """Search RaBitQ codes by fast-scan, refined with float16 vectors."""
    for count in lists:
        yield _inverted(data, f"IVF{count},RaBitQfs,Refine(SQfp16)", _K_FACTORS)


def panorama(data: SearchData, lists: Sequence[int]) -> Iterator[Built]:
    """Search lists by prefixes of principal components, which exclude rows early.

    It is an index for the Euclidean distance, whose order is that of inner products for vectors of
    unit length only.
    """
    lengths = np.linalg.norm(data.rows, axis=1)
    if np.abs(lengths - 1).max() > _UNIT_TOLERANCE:
        raise Unsuitable("FlatPanorama orders by distance and the vectors have no unit length")
    for count in lists:
        factory = f"PCA{data.dimension},IVF{count},FlatPanorama8"
        yield _inverted(data, factory, metric=faiss.METRIC_L2)


def big_batch(data: SearchData, lists: Sequence[int]) -> Iterator[Built]:
    """Search list by list for all queries at once, with `faiss.contrib.big_batch_search`."""
    from faiss.contrib.big_batch_search import big_batch_search

    threads = faiss.omp_get_max_threads()
    for count in lists:
        name = f"IVF{count},Flat"
        index, seconds = _train_and_add(data, name, faiss.METRIC_INNER_PRODUCT)

        def series(index: Any = index, count: int = count) -> Series:
            for probes in _up_to(count):
                index.nprobe = probes
                yield (
                    {"nprobe": probes},
                    lambda batch: big_batch_search(
                        index, batch, K, method="knn_function", threaded=threads
                    )[1],
                )

        yield Built(name, seconds, [series()])


def hnsw(data: SearchData, lists: Sequence[int]) -> Iterator[Built]:  # noqa: ARG001 - no lists
    """Search a graph of float32 or float16 vectors."""
    for codes in ("Flat", "SQfp16"):
        for effort in (40, 200):  # 40 is the default
            started = time.perf_counter()
            index: Any = faiss.index_factory(
                data.dimension, f"HNSW32,{codes}", faiss.METRIC_INNER_PRODUCT
            )
            index.hnsw.efConstruction = effort
            index.train(data.rows)
            index.add(data.rows)
            seconds = time.perf_counter() - started

            def series(index: Any = index) -> Series:
                for beam in _BEAMS:
                    index.hnsw.efSearch = beam
                    yield {"efSearch": beam}, lambda batch: index.search(batch, K)[1]

            yield Built(f"HNSW32,{codes}, efConstruction {effort}", seconds, [series()])


def scann(data: SearchData, lists: Sequence[int]) -> Iterator[Built]:
    """Search ScaNN: a tree, anisotropic codes, and scores computed again in float32."""
    import scann as library

    for count in lists:
        started = time.perf_counter()
        builder = library.scann_ops_pybind.builder(data.rows, K, "dot_product")
        builder.set_n_training_threads(_threads())
        builder.tree(num_leaves=count, num_leaves_to_search=1)
        index = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()
        index.set_num_threads(_threads())
        seconds = time.perf_counter() - started

        def series(reordered: int, index: Any = index, count: int = count) -> Series:
            for probes in _up_to(count):
                search = partial(_search_scann, index, reordered, probes)
                yield {"leaves": probes, "reordered": reordered}, search

        yield Built(f"tree {count}, AH, reorder", seconds, [series(n) for n in (30, 100, 300)])


def _search_scann(
    index: Any, reordered: int, leaves: int, batch: NDArray[np.float32]
) -> NDArray[Any]:
    neighbours: NDArray[Any] = index.search_batched_parallel(batch, K, reordered, leaves)[0]
    return neighbours


def svs(data: SearchData, lists: Sequence[int]) -> Iterator[Built]:  # noqa: ARG001 - no lists
    """Search a Vamana graph of Intel's Scalable Vector Search, of float32 or float16 vectors."""
    import svs as library

    for dtype in (np.float32, np.float16):
        started = time.perf_counter()
        parameters = library.VamanaBuildParameters(alpha=0.95, graph_max_degree=64, window_size=128)
        index = library.Vamana.build(
            parameters, data.rows.astype(dtype), library.DistanceType.MIP, num_threads=_threads()
        )
        seconds = time.perf_counter() - started

        def series(index: Any = index, dtype: Any = dtype) -> Series:
            for beam in _BEAMS:
                index.search_window_size = beam
                yield {"window": beam}, lambda batch: index.search(batch.astype(dtype), K)[0]

        yield Built(f"Vamana64, {np.dtype(dtype).name}", seconds, [series()])


def hnswlib(data: SearchData, lists: Sequence[int]) -> Iterator[Built]:  # noqa: ARG001 - no lists
    """Search the graph of hnswlib."""
    import hnswlib as library

    started = time.perf_counter()
    index = library.Index(space="ip", dim=data.dimension)
    index.init_index(max_elements=len(data.rows), M=16, ef_construction=200)
    index.add_items(data.rows, num_threads=_threads())
    seconds = time.perf_counter() - started

    def series() -> Series:
        for beam in _BEAMS:
            index.set_ef(beam)
            yield (
                {"ef": beam},
                lambda batch: index.knn_query(batch, K, num_threads=_threads())[0],
            )

    yield Built("M 16, ef_construction 200", seconds, [series()])


def usearch(data: SearchData, lists: Sequence[int]) -> Iterator[Built]:  # noqa: ARG001 - no lists
    """Search the graph of usearch, of float16 vectors."""
    from usearch.index import Index

    started = time.perf_counter()
    index = Index(ndim=data.dimension, metric="ip", dtype="f16", connectivity=16, expansion_add=128)
    index.add(np.arange(len(data.rows)), data.rows, threads=_threads())
    seconds = time.perf_counter() - started

    def series() -> Series:
        for beam in _BEAMS:
            index.expansion_search = beam
            yield {"expansion": beam}, lambda batch: _keys(index, batch)

    yield Built("connectivity 16, float16", seconds, [series()])


def _keys(index: Any, batch: NDArray[np.float32]) -> NDArray[Any]:
    keys: NDArray[Any] = index.search(batch, K, threads=_threads()).keys.astype(np.int64)
    return keys


def _inverted(
    data: SearchData,
    factory: str,
    k_factors: Sequence[int] = (),
    metric: int = faiss.METRIC_INNER_PRODUCT,
) -> Built:
    index, seconds = _train_and_add(data, factory, metric)
    inverted: Any = faiss.extract_index_ivf(index)

    def series(k_factor: int | None = None) -> Series:
        for probes in _up_to(inverted.nlist):
            inverted.nprobe = probes
            setting: dict[str, float] = {"nprobe": probes}
            if k_factor is not None:
                index.k_factor = setting["k_factor"] = k_factor
            yield setting, lambda batch: index.search(batch, K)[1]

    return Built(factory, seconds, [series(factor) for factor in k_factors] or [series()])


def _train_and_add(data: SearchData, factory: str, metric: int) -> tuple[Any, float]:
    started = time.perf_counter()
    index: Any = faiss.index_factory(data.dimension, factory, metric)
    index.train(data.rows)
    index.add(data.rows)
    return index, time.perf_counter() - started


def _up_to(lists: int) -> Iterator[int]:
    return (probes for probes in PROBES if probes <= lists)


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


RIVALS: dict[str, Rival] = {
    "flat": flat, "pq": pq, "rabitq": rabitq, "panorama": panorama, "big_batch": big_batch,
    "hnsw": hnsw, "scann": scann, "svs": svs, "hnswlib": hnswlib, "usearch": usearch,
}  # fmt: skip
OPTIONAL = ("scann", "svs", "hnswlib", "usearch")
"""Rivals of other packages than faiss, measured where these can be imported."""


def installed() -> list[str]:
    """Return the rivals whose package is installed."""
    return [name for name in RIVALS if name not in OPTIONAL or find_spec(name) is not None]
