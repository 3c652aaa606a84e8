"""Tests that the chunk size depends on the length of the listing only."""

from hypothesis import given
from hypothesis import strategies as st

from retrieval.listing.chunking import chunk_rows_for

ROWS = st.integers(0, 5000) | st.integers(0, 10**12)


@given(ROWS)
def test_the_size_is_a_power_of_two_from_256_to_4096(rows):
    assert chunk_rows_for(rows) in (256, 512, 1024, 2048, 4096)


@given(ROWS, ROWS)
def test_more_rows_never_make_smaller_chunks(one, other):
    fewer, more = sorted((one, other))
    assert chunk_rows_for(fewer) <= chunk_rows_for(more)


@given(st.integers(1, 4_096_000))
def test_up_to_its_largest_size_there_are_at_most_a_thousand_chunks(rows):
    assert -(-rows // chunk_rows_for(rows)) <= 1000


def test_the_size_is_the_smallest_that_keeps_to_a_thousand_chunks():
    bounds = {256_000: 256, 256_001: 512, 512_001: 1024, 1_024_001: 2048, 2_048_001: 4096}
    assert {rows: chunk_rows_for(rows) for rows in bounds} == bounds
    assert chunk_rows_for(10**9) == 4096
