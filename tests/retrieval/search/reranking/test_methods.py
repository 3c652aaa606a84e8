"""Test the re-ranking methods against float64 oracles written from the papers, and --rerank."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.config.options import Reranking, parse_reranking
from retrieval.search.reranking.rerank_block import METHODS, pairwise_cosines
from tests.retrieval.sample_vectors import dtypes, quick, seeds

every_method = pytest.mark.parametrize("method", METHODS)


def draw_cosines(seed, count, dimension=6):
    """Draw a query and `count` candidates in clusters, closest first, and return their cosines."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(4, dimension))
    vectors = centres[generator.integers(0, 4, count + 1)]
    vectors = vectors + 0.5 * generator.normal(size=vectors.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-(vectors[1:] @ vectors[0]))
    vectors = np.vstack([vectors[:1], vectors[1:][order]])
    return vectors @ vectors.T


# --- k-reciprocal encoding ------------------------------------------------------------------------


class KReciprocalEncoding:
    """The sets, weights and distances of arXiv 1701.08398 for one query, image 0."""

    def __init__(self, cosines, k1=20, k2=6, distance_share=0.3):
        self.images = range(len(cosines))
        self.k1, self.k2, self.distance_share = k1, k2, distance_share
        largest = [max(1 - cosines[p][g] for g in self.images if g != p) for p in self.images]
        self.distance = {
            (p, g): 0.0 if p == g else (1 - cosines[p][g]) / largest[p]
            for p in self.images
            for g in self.images
        }

    def ordered(self, p):
        return sorted(self.images, key=lambda g: (g != p, self.distance[p, g], g))

    def reciprocal(self, p, k):  # R(p, k); each image is also its own neighbour
        return {g for g in self.ordered(p)[: k + 1] if p in self.ordered(g)[: k + 1]}

    def extended(self, p):  # R*(p, k1)
        result = original = self.reciprocal(p, self.k1)
        for q in original:
            half = self.reciprocal(q, self.k1 // 2)
            if len(original & half) * 3 >= 2 * len(half):
                result = result | half
        return result

    def encoding(self, p):  # of which the Jaccard distance takes minima and maxima
        members = self.extended(p)
        weights = [math.exp(-self.distance[p, g]) if g in members else 0.0 for g in self.images]
        return [weight / sum(weights) for weight in weights]

    def similarities(self):
        """Return 1 - d* of each candidate."""
        encodings = [self.encoding(p) for p in self.images]
        averaged = [
            np.mean([encodings[g] for g in self.ordered(p)[: self.k2]], axis=0) for p in self.images
        ]
        results = []
        for g in self.images[1:]:
            pairs = list(zip(averaged[0], averaged[g], strict=True))
            jaccard = 1 - sum(map(min, pairs)) / sum(map(max, pairs))
            final = (1 - self.distance_share) * jaccard
            results.append(1 - final - self.distance_share * self.distance[0, g])
        return results


@pytest.mark.parametrize(("seed", "count"), [(0, 1), (1, 3), (2, 25), (3, 45)])
def test_k_reciprocal_equals_the_sets_of_the_paper(seed, count):
    cosines = draw_cosines(seed, count)
    expected = KReciprocalEncoding(cosines).similarities()
    np.testing.assert_allclose(METHODS["k-reciprocal"](cosines), expected, rtol=0, atol=1e-12)


# --- augmentation ---------------------------------------------------------------------------------


def augment_by_definition(vectors, neighbours=9):
    """Return (1 + cosine) / 2 of the query and each candidate, after summing the vectors."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    sums = []
    for number, vector in enumerate(unit):
        others = sorted(
            (i for i in range(len(unit)) if i != number), key=lambda i, v=vector: -(unit[i] @ v)
        )
        total = vector + sum(
            (max(0.0, unit[i] @ vector) * unit[i] for i in others[:neighbours]), 0 * vector
        )
        sums.append(total / np.linalg.norm(total))
    return [(1 + other @ sums[0]) / 2 for other in sums[1:]]


@pytest.mark.parametrize(("seed", "count"), [(0, 1), (1, 5), (2, 40)])
def test_augmentation_equals_the_sum_of_vectors(seed, count):
    vectors = np.random.default_rng(seed).normal(size=(count + 1, 4))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarities = METHODS["augment"](unit @ unit.T)
    np.testing.assert_allclose(similarities, augment_by_definition(vectors), rtol=0, atol=1e-12)


# --- every method ---------------------------------------------------------------------------------


@every_method
@quick
@given(seed=seeds, count=st.integers(0, 30))
def test_similarities_are_finite_and_from_0_to_1(method, seed, count):
    similarities = METHODS[method](draw_cosines(seed, count))
    assert similarities.shape == (count,)
    assert ((similarities >= 0) & (similarities <= 1)).all()


@every_method
def test_copies_and_zero_vectors_have_finite_similarities(method):
    copies = pairwise_cosines(np.ones(3, np.float32), np.ones((4, 3), np.float32))
    assert METHODS[method](copies).tolist() == [1.0] * 4
    zeros = pairwise_cosines(np.zeros(3, np.float32), np.zeros((4, 3), np.float32))
    assert np.isfinite(METHODS[method](zeros)).all()


@quick
@given(seeds, dtypes, dtypes)
def test_pairwise_cosines_are_those_of_all_pairs(seed, query_dtype, dtype):
    generator = np.random.default_rng(seed)
    query, candidates = generator.normal(size=5), generator.normal(size=(7, 5))
    query, candidates = query.astype(query_dtype), candidates.astype(dtype)
    vectors = np.vstack([query[None], candidates]).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = pairwise_cosines(query, candidates)
    np.testing.assert_allclose(cosines, unit @ unit.T, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(cosines, cosines.T)


# --- the option -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("k-reciprocal", Reranking("k-reciprocal", 200)),
        (" augment:50 ", Reranking("augment", 50)),
        ("augment:1000", Reranking("augment", 1000)),
        ("expand", Reranking("expand", 5, 3.0)),
        ("expand:10", Reranking("expand", 10, 3.0)),
        ("expand:007,0", Reranking("expand", 7, 0.0)),
        ("expand:5000,2.5", Reranking("expand", 5000, 2.5)),
    ],
)
def test_reranking_is_parsed(text, expected):
    assert parse_reranking(text) == expected


@every_method
def test_each_method_has_a_default_count(method):
    assert parse_reranking(method) == Reranking(method, 200)


@pytest.mark.parametrize(
    "text",
    ["", "10", "other", "expand:", "expand:0", "expand:-1", "expand:5,", "expand:5,-1",
     "expand:5,inf", "expand:5;3", "expand:5,1e3", "expand:\u0663", "expand:2.5", "augment:5,3",
     "k-reciprocal:1001", "k-reciprocal:0", "k-reciprocal:99999999"],
)  # fmt: skip
def test_invalid_rerankings_are_refused(text):
    with pytest.raises(ValueError, match=r"is no re-ranking; write|matches; write"):
        parse_reranking(text)
