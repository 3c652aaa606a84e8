"""Tests of lossy codes: packed in blocks as by FAISS, and decoded list by list."""

from __future__ import annotations

import dataclasses

import faiss
import numpy as np
import pytest

from retrieval.index.build_shard import append_codes
from retrieval.index.faiss_io import make_empty_index
from retrieval.index.quantized_codes import (
    decode_list,
    encode_vectors,
    fill_packed_lists,
    has_packed_lists,
    to_faiss_vectors,
)
from tests.retrieval.sample_vectors import METRICS, make_plan

ROWS, DIMENSION, NLIST = 333, 12, 5
FACTORIES = (f"IVF{NLIST},SQ8", f"IVF{NLIST},PQ6x4fs", f"IVF{NLIST},PQ3x4fs")
every_factory = pytest.mark.parametrize("factory", FACTORIES)


def sample_vectors():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(ROWS, DIMENSION)).astype(np.float32)
    # the last list is empty, and the first one fills whole blocks of 32 codes
    lists = np.r_[np.zeros(64, np.int64), generator.integers(1, NLIST - 1, ROWS - 64)]
    return vectors, generator.permutation(lists), generator.permutation(1000)[:ROWS]


def make_index(factory, metric):
    """Return a trained index without rows."""
    vectors, _, _ = sample_vectors()
    plan = dataclasses.replace(make_plan(ROWS, "float32", NLIST), factory=factory, codes=None)
    return make_empty_index(plan, vectors[:NLIST], metric, to_faiss_vectors(vectors, metric))


def fill(index, metric):
    """Add the sample vectors to their lists, lists chosen at random."""
    vectors, lists, rows = sample_vectors()
    codes = encode_vectors(index, vectors, metric)
    (fill_packed_lists if has_packed_lists(index) else append_codes)(index, codes, rows, lists)


@every_factory
@pytest.mark.parametrize("metric", METRICS)
def test_lists_hold_the_rows_that_were_assigned(factory, metric):
    index = make_index(factory, metric)
    fill(index, metric)
    _, lists, rows = sample_vectors()
    assert index.ntotal == ROWS
    for number in range(NLIST):
        size = index.invlists.list_size(number)
        ids = faiss.rev_swig_ptr(index.invlists.get_ids(number), size) if size else []
        assert list(ids) == rows[lists == number].tolist()


@every_factory
@pytest.mark.parametrize("metric", METRICS)
def test_decoded_list_equals_the_codes_decoded_by_faiss(factory, metric):
    index = make_index(factory, metric)
    fill(index, metric)
    index = faiss.deserialize_index(faiss.serialize_index(index))
    vectors, lists, _ = sample_vectors()
    quantizer = index.pq if "PQ" in factory else index.sq
    encoded = to_faiss_vectors(vectors, metric)
    expected = quantizer.decode(quantizer.compute_codes(encoded))
    error = np.linalg.norm(expected - encoded, axis=1).mean()
    assert error < (0.05 if "SQ8" in factory else 0.9) * np.linalg.norm(encoded, axis=1).mean()
    for number in range(NLIST):
        np.testing.assert_array_equal(decode_list(index, number), expected[lists == number])


@every_factory
def test_faiss_searches_lists_of_our_codes_like_its_own(factory):
    """FAISS adds each row to the list of its nearest centroid; so do we here."""
    vectors, _, _ = sample_vectors()
    ours, theirs = make_index(factory, "l2"), make_index(factory, "l2")
    _, nearest = theirs.quantizer.search(vectors, 1)
    theirs.add(vectors)
    codes = encode_vectors(ours, vectors, "l2")
    add = fill_packed_lists if has_packed_lists(ours) else append_codes
    add(ours, codes, np.arange(ROWS), nearest[:, 0])
    np.testing.assert_array_equal(faiss.serialize_index(ours), faiss.serialize_index(theirs))


@pytest.mark.parametrize("vectors", [np.full((20, DIMENSION), 3.0), np.zeros((20, DIMENSION))])
@every_factory
def test_equal_vectors_have_equal_decoded_ones(factory, vectors):
    index = make_index(factory, "cosine")
    codes = encode_vectors(index, vectors.astype(np.float32), "cosine")
    assert (codes == codes[0]).all()
