"""FAISS access: trained indexes without rows, serialisation, and centroids."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.core.records import IndexPlan
from retrieval.core.schemas import Metric


def make_empty_index(
    plan: IndexPlan,
    centroids: NDArray[np.float32],
    metric: Metric,
    code_sample: NDArray[np.float32] | None = None,
) -> Any:
    """Return a trained index without rows for (nlist, d) centroids.

    `code_sample` (n, d) trains lossy codes, of unit length for cosine; None for lossless ones.
    """
    faiss_metric = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    index: Any = faiss.index_factory(centroids.shape[1], plan.factory, faiss_metric)
    index.by_residual = False  # otherwise the codes are residuals
    index.quantizer.add(centroids)
    if isinstance(index, faiss.IndexIVFPQFastScan):
        index.pq.cp.min_points_per_centroid = 1  # fewer would only cause a warning
    # FAISS does not train a filled quantizer again
    index.train(centroids if code_sample is None else code_sample)
    return index


def serialize_index(index: Any) -> bytes:
    """Return an index as the bytes of a FAISS file."""
    return bytes(faiss.serialize_index(index))


def deserialize_index(data: bytes) -> Any:
    """Read an index from checked bytes of a FAISS file."""
    return faiss.deserialize_index(np.frombuffer(data, np.uint8))


def read_centroids(index: Any) -> NDArray[np.float32]:
    """Return the (nlist, d) float32 centroids of an IVF index."""
    centroids: NDArray[np.float32] = index.quantizer.reconstruct_n(0, index.nlist)
    return centroids


def make_index_of_lists(trained: Any, first: int, last: int) -> Any:
    """Return an index without rows that has only the lists first <= list < last of a trained one.

    It is numbered from 0 and encodes as the trained index does.
    """
    is_l2 = trained.metric_type == faiss.METRIC_L2
    quantizer: Any = (faiss.IndexFlatL2 if is_l2 else faiss.IndexFlatIP)(trained.d)
    quantizer.add(read_centroids(trained)[first:last])
    size, metric = (quantizer, trained.d, last - first), trained.metric_type
    index: Any
    if isinstance(trained, faiss.IndexIVFScalarQuantizer):
        index = faiss.IndexIVFScalarQuantizer(*size, trained.sq.qtype, metric, trained.by_residual)
        index.sq = trained.sq
    elif isinstance(trained, faiss.IndexIVFPQFastScan):
        index = faiss.IndexIVFPQFastScan(*size, trained.pq.M, trained.pq.nbits, metric, trained.bbs)
        index.by_residual, index.pq = trained.by_residual, trained.pq
    else:
        index = faiss.IndexIVFFlat(*size, metric)
    index.own_fields = True
    quantizer.this.disown()  # the index deletes it
    index.is_trained = True
    return index
