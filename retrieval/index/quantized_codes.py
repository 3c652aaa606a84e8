"""Lossy codes of vectors, by FAISS: a byte a number (SQ8), 4-bit product quantization, float16.

A code depends on its vector alone, not on the list. Vectors of cosine are encoded with unit length,
so decoded vectors are compared by `kmeans.assignment_metric`: dot products, or l2. The search
compares decoded vectors like stored ones (`search/ivf_search.py`), and scores the best of them by
the stored vectors (`search/rescore.py`).
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import Metric, Vectors
from retrieval.vectors.scoring import Float32, Int64, block

CANDIDATES_PER_MATCH = 10
"""Candidates that are scored exactly per requested match."""

Codes = NDArray[np.uint8]


def to_faiss_vectors(vectors: Vectors, metric: Metric) -> Float32:
    """Return (n, d) vectors as FAISS input: contiguous float32, of unit length for cosine."""
    return np.ascontiguousarray(block(vectors, metric).matmul_input)


def has_packed_lists(index: Any) -> bool:
    """Return whether lists hold blocks of codes for FAISS' fast scan, instead of single codes."""
    return isinstance(index, faiss.IndexIVFPQFastScan)


def encode_vectors(index: Any, vectors: Vectors, metric: Metric) -> Codes:
    """Return the codes of (n, d) vectors, (n, code size) uint8."""
    codes: Codes = _quantizer(index).compute_codes(to_faiss_vectors(vectors, metric))
    return codes


def decode_list(index: Any, number: int) -> Float32:
    """Return the vectors that the codes of a list stand for, (n, d) float32."""
    lists = faiss.downcast_InvertedLists(index.invlists)
    size = lists.list_size(number)
    if size == 0:
        return np.empty((0, index.d), np.float32)
    if has_packed_lists(index):
        codes = _unpack_codes(lists, number)
    else:
        stored = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
        codes = stored.reshape(size, -1)
    vectors: Float32 = _quantizer(index).decode(codes)
    return vectors


def _quantizer(index: Any) -> Any:
    """Return the quantizer of the codes, which encodes and decodes."""
    return index.pq if has_packed_lists(index) else index.sq


def fill_packed_lists(
    index: Any, codes: Codes, rows: Int64, lists: NDArray[np.integer[Any]]
) -> None:
    """Add all codes of an index, (n, code size), to its empty packed lists, in row order."""
    inverted: Any = faiss.downcast_InvertedLists(index.invlists)
    order = np.argsort(lists, kind="stable")
    ends = np.cumsum(np.bincount(lists, minlength=index.nlist))
    for number, members in enumerate(np.split(order, ends[:-1])):
        if len(members):
            ids, packed = rows[members], _pack_codes(inverted.packer, codes[members])
            inverted.add_entries(number, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(packed))
    index.ntotal += len(order)


def _pack_codes(packer: Any, codes: Codes) -> Codes:
    """Return (n, code size) codes as blocks, (blocks, block size); the last one ends in zeros."""
    blocks = -(-len(codes) // packer.nvec)
    single = np.zeros((blocks, packer.nvec, packer.code_size), np.uint8)
    single.reshape(-1, packer.code_size)[: len(codes)] = codes
    packed = np.zeros((blocks, packer.block_size), np.uint8)
    for unpacked_block, packed_block in zip(single, packed, strict=True):
        packer.pack_all(faiss.swig_ptr(unpacked_block), faiss.swig_ptr(packed_block))
    return packed


def _unpack_codes(lists: Any, number: int) -> Codes:
    """Return the codes of a list of blocks, (n, code size)."""
    packer, size = lists.packer, lists.list_size(number)
    blocks = -(-size // packer.nvec)
    packed = faiss.rev_swig_ptr(lists.get_codes(number), blocks * packer.block_size)
    single = np.zeros((blocks, packer.nvec, packer.code_size), np.uint8)
    for packed_block, unpacked_block in zip(packed.reshape(blocks, -1), single, strict=True):
        packer.unpack_all(faiss.swig_ptr(packed_block), faiss.swig_ptr(unpacked_block))
    return single.reshape(-1, packer.code_size)[:size]
