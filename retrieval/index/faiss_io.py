"""FAISS access: indexes from factory strings, serialisation, training and centroids.

This is the only module that interprets factory strings, by building the index with FAISS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.core.errors import UsageError
from retrieval.core.records import IndexPlan
from retrieval.core.schemas import Metric


@dataclass(frozen=True)
class IndexKind:
    """The properties of the index that a factory string makes."""

    nlist: int
    code_bytes: int  # per vector
    codes: str | None
    """float16 or float32 where the codes are the vectors themselves; None where they are lossy and
    FAISS itself must search."""


def describe_factory(factory: str, dimension: int, dtype: str, metric: Metric) -> IndexKind:
    """Return the properties of a factory string; raises UsageError where it is no usable IVF."""
    index = _index_from_factory(factory, dimension, metric)
    try:
        inner_ivf = faiss.extract_index_ivf(index)
    except RuntimeError as error:
        kind_name = type(faiss.downcast_index(index)).__name__
        raise UsageError(
            f"--index-factory {factory} makes an {kind_name}, which has no inverted lists to "
            "shard; specify an IVF kind such as IVF1024,SQfp16"
        ) from error
    ivf: Any = faiss.downcast_index(inner_ivf)
    if type(ivf).__name__ == "IndexIVFFlatDedup":
        raise UsageError(
            f"--index-factory {factory} keeps equal vectors once, outside its lists; "
            "specify IVFn,Flat"
        )
    flat = isinstance(faiss.downcast_index(ivf.quantizer), faiss.IndexFlat)
    plain = flat and type(faiss.downcast_index(index)) is type(ivf)
    codes = None
    if plain and type(ivf) is faiss.IndexIVFFlat:
        codes = "float32"
    elif plain and type(ivf) is faiss.IndexIVFScalarQuantizer and dtype == "float16":
        codes = "float16" if ivf.sq.qtype == faiss.ScalarQuantizer.QT_fp16 else None
    return IndexKind(int(ivf.nlist), int(ivf.code_size), codes)


def _index_from_factory(factory: str, dimension: int, metric: Metric) -> Any:
    faiss_metric = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    try:
        return faiss.index_factory(dimension, factory, faiss_metric)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"--index-factory {factory} cannot be made for {dimension} dimensions "
            f"({_last_line(error)}); write it as FAISS does, for example IVF1024,SQfp16"
        ) from error


def _last_line(error: BaseException) -> str:
    """Return the message of a FAISS error without the leading source location."""
    return str(error).rsplit(":", 1)[-1].strip() or type(error).__name__


def extract_ivf(index: Any) -> Any:
    """Return the IVF inside an index, possibly wrapped in transforms or a refinement."""
    return faiss.downcast_index(faiss.extract_index_ivf(index))


def make_empty_index(plan: IndexPlan, centroids: NDArray[np.float32], metric: Metric) -> Any:
    """Return a trained index without rows for (nlist, d) centroids, with lossless codes."""
    index = _index_from_factory(plan.factory, centroids.shape[1], metric)
    if hasattr(index, "by_residual"):
        index.by_residual = False  # otherwise the codes are residuals
    index.quantizer.add(centroids)
    index.train(centroids)  # FAISS does not retrain a filled quantizer
    return index


def make_untrained_index(plan: IndexPlan, dimension: int, metric: Metric) -> Any:
    """Return an untrained index of any IVF kind."""
    index = _index_from_factory(plan.factory, dimension, metric)
    ivf = extract_ivf(index)
    if isinstance(ivf, faiss.IndexIVFScalarQuantizer):
        ivf.by_residual = False
    ivf.cp.min_points_per_centroid = 1  # fewer would only cause a warning
    return index


def train_with_faiss(plan: IndexPlan, index: Any, sample: NDArray[np.float32]) -> None:
    """Train an index on an (n, d) sample, of unit length for cosine.

    Raises UsageError where the sample is too small for the kind of index.
    """
    try:
        index.train(sample)
        read_centroids(index)
    except RuntimeError as error:
        raise UsageError(
            f"--index-factory {plan.factory} cannot be trained on {len(sample)} vectors "
            f"({_last_line(error)}); specify fewer lists, shorter codes, or IVFn,Flat"
        ) from error


def serialize_index(index: Any) -> bytes:
    """Return an index as the bytes of a FAISS file."""
    return bytes(faiss.serialize_index(index))


def deserialize_index(data: bytes) -> Any:
    """Read an index from checked bytes of a FAISS file."""
    return faiss.deserialize_index(np.frombuffer(data, np.uint8))


def read_centroids(index: Any) -> NDArray[np.float32]:
    """Return the (nlist, d) float32 centroids of an IVF index."""
    ivf = extract_ivf(index)
    centroids: NDArray[np.float32] = ivf.quantizer.reconstruct_n(0, ivf.nlist)
    return centroids


def make_index_of_lists(trained: Any, first: int, last: int) -> Any:
    """Return an index without rows that has only the lists first <= list < last of a trained one.

    It is numbered from 0 and encodes as the trained index does.
    """
    ivf = extract_ivf(trained)
    inner_product = ivf.quantizer.metric_type == faiss.METRIC_INNER_PRODUCT
    quantizer = (faiss.IndexFlatIP if inner_product else faiss.IndexFlatL2)(ivf.d)
    quantizer.add(read_centroids(ivf)[first:last])
    size = quantizer, ivf.d, last - first
    if isinstance(ivf, faiss.IndexIVFScalarQuantizer):
        index = faiss.IndexIVFScalarQuantizer(
            *size, ivf.sq.qtype, ivf.metric_type, bool(ivf.by_residual)
        )
        index.sq = ivf.sq
    elif isinstance(ivf, faiss.IndexIVFPQFastScan):
        index = faiss.IndexIVFPQFastScan(*size, ivf.M, ivf.nbits, ivf.metric_type, ivf.bbs)
        index.by_residual, index.pq = ivf.by_residual, ivf.pq
    else:
        index = faiss.IndexIVFFlat(*size, ivf.metric_type)
    index.own_fields = True
    quantizer.this.disown()  # the index deletes it
    index.is_trained = True
    return index


def add_to_lists(
    index: Any, faiss_vectors: NDArray[np.float32], rows: NDArray[np.int64],
    lists: NDArray[np.int64],
) -> None:  # fmt: skip
    """Encode (n, d) vectors and append them to the given lists, (n,), with their rows as ids."""
    if not isinstance(index, faiss.IndexIVFPQFastScan):
        arrays = (np.ascontiguousarray(array) for array in (faiss_vectors, rows, lists))
        index.add_core(len(rows), *map(faiss.swig_ptr, arrays))
        return
    for number, members in group_by_list(lists):  # FAISS packs the codes of a list in blocks
        part = make_index_of_lists(index, number, number + 1)
        part.add_with_ids(faiss_vectors[members], np.ascontiguousarray(rows[members]))
        packed = part.invlists
        index.invlists.add_entries(number, len(members), packed.get_ids(0), packed.get_codes(0))
    index.ntotal += len(rows)


def group_by_list(lists: NDArray[np.integer[Any]]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Iterate over each list that occurs and the positions of its rows, in order."""
    order = np.argsort(lists, kind="stable")
    sizes = np.bincount(lists)
    ends = np.cumsum(sizes)
    for number in np.flatnonzero(sizes).tolist():
        yield number, order[ends[number] - sizes[number] : ends[number]]
