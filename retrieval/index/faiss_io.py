"""What FAISS is asked for: an index from a factory string, its bytes, its centroids.

The one place where a factory string is parsed; what it means is asked of FAISS itself.
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
class Kind:
    """What a factory string makes."""

    nlist: int
    code_bytes: int  # of one vector
    codes: str | None
    """float16 or float32 where the codes are the vectors themselves; None where they lose
    something, and FAISS itself must search."""


def kind_of(factory: str, dimension: int, dtype: str, metric: Metric) -> Kind:
    """Ask FAISS what a factory string makes; what is no IVF is refused with the reason."""
    index = _made(factory, dimension, metric)
    try:
        found = faiss.extract_index_ivf(index)
    except RuntimeError as error:
        what = type(faiss.downcast_index(index)).__name__
        raise UsageError(
            f"--index-factory {factory} makes an {what}, which has no inverted lists to shard; "
            "name an IVF kind such as IVF1024,SQfp16"
        ) from error
    ivf: Any = faiss.downcast_index(found)
    if type(ivf).__name__ == "IndexIVFFlatDedup":
        raise UsageError(
            f"--index-factory {factory} keeps equal vectors once, outside its lists; name IVFn,Flat"
        )
    flat = isinstance(faiss.downcast_index(ivf.quantizer), faiss.IndexFlat)
    plain = flat and type(faiss.downcast_index(index)) is type(ivf)
    codes = None
    if plain and type(ivf) is faiss.IndexIVFFlat:
        codes = "float32"
    elif plain and type(ivf) is faiss.IndexIVFScalarQuantizer and dtype == "float16":
        codes = "float16" if ivf.sq.qtype == faiss.ScalarQuantizer.QT_fp16 else None
    return Kind(int(ivf.nlist), int(ivf.code_size), codes)


def _made(factory: str, dimension: int, metric: Metric) -> Any:
    measure = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    try:
        return faiss.index_factory(dimension, factory, measure)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"--index-factory {factory} cannot be made for {dimension} dimensions "
            f"({_last_line(error)}); write it as FAISS does, for example IVF1024,SQfp16"
        ) from error


def _last_line(error: BaseException) -> str:
    """FAISS' errors begin with the place in its source."""
    return str(error).rsplit(":", 1)[-1].strip() or type(error).__name__


def ivf_of(index: Any) -> Any:
    """Give the IVF inside an index that may have a transform before or a refinement behind it."""
    return faiss.downcast_index(faiss.extract_index_ivf(index))


def empty_index(plan: IndexPlan, centroids: NDArray[np.float32], metric: Metric) -> Any:
    """Make a trained index without rows around (nlist, d) centroids; its codes are the vectors."""
    index = _made(plan.factory, centroids.shape[1], metric)
    if hasattr(index, "by_residual"):
        index.by_residual = False  # else the codes are differences and not the vectors
    index.quantizer.add(centroids)
    index.train(centroids)  # a quantizer that is full already is not trained again
    return index


def made_by_plan(plan: IndexPlan, dimension: int, metric: Metric) -> Any:
    """Make an index of any IVF kind that is not trained."""
    index = _made(plan.factory, dimension, metric)
    ivf = ivf_of(index)
    if isinstance(ivf, faiss.IndexIVFScalarQuantizer):
        ivf.by_residual = False
    ivf.cp.min_points_per_centroid = 1  # below it FAISS only warns
    return index


def train_by_faiss(plan: IndexPlan, index: Any, sample: NDArray[np.float32]) -> None:
    """Let FAISS train what is not trained on an (n, d) sample; for cosine of unit length."""
    try:
        index.train(sample)
        centroids_of(index)
    except RuntimeError as error:
        raise UsageError(
            f"--index-factory {plan.factory} cannot be trained on {len(sample)} vectors "
            f"({_last_line(error)}); name fewer lists, shorter codes, or IVFn,Flat"
        ) from error


def to_bytes(index: Any) -> bytes:
    """Write an index as FAISS does into a file."""
    return bytes(faiss.serialize_index(index))


def from_bytes(data: bytes) -> Any:
    """Read an index whose bytes were checked."""
    return faiss.deserialize_index(np.frombuffer(data, np.uint8))


def centroids_of(index: Any) -> NDArray[np.float32]:
    """Give the (nlist, d) float32 centroids."""
    ivf = ivf_of(index)
    found: NDArray[np.float32] = ivf.quantizer.reconstruct_n(0, ivf.nlist)
    return found
