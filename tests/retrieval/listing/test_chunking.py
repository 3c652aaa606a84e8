"""Tests of the chunk size, a function of the number of rows of the listing."""

from hypothesis import given
from hypothesis import strategies as st

from retrieval.listing.chunking import chunk_rows_for

ROWS = st.integers(0, 5000) | st.integers(0, 10**12)


@given(ROWS)
def test_chunk_size_is_power_of_two_from_256_to_4096(rows):
    assert chunk_rows_for(rows) in (256, 512, 1024, 2048, 4096)


@given(ROWS, ROWS)
def test_chunk_size_is_nondecreasing_in_row_count(first_count, second_count):
    smaller, larger = sorted((first_count, second_count))
    assert chunk_rows_for(smaller) <= chunk_rows_for(larger)


@given(st.integers(1, 4_096_000))
def test_at_most_1000_chunks_up_to_largest_chunk_size(rows):
    assert -(-rows // chunk_rows_for(rows)) <= 1000


def test_chunk_size_is_smallest_with_at_most_1000_chunks():
    bounds = {256_000: 256, 256_001: 512, 512_001: 1024, 1_024_001: 2048, 2_048_001: 4096}
    assert {rows: chunk_rows_for(rows) for rows in bounds} == bounds
    assert chunk_rows_for(10**9) == 4096
