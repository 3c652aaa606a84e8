"""FAISS access: indexes from factory strings, serialisation, training and centroids.

This is the only module that interprets factory strings, by building the index with FAISS.
"""

from __future__ import annotations

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
