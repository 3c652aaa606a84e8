"""Tests that chunks of a segment depend on its length only, and that it is claimed once."""

import hashlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.core.errors import Damaged
from retrieval.storage.local import open_folder
from retrieval.store.layout import deleted_path, listing_path, segment_json_path
from retrieval.store.segment import Segment, claim_segment, read_segments, remove_claims, row_span
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults

NOTHING = np.empty(0, np.int64)


def cut(images, chunk_rows, number=0, base=0):
    return list(Segment(number, base, images, chunk_rows, 0, {}).chunks())


@given(st.integers(0, 3000), st.integers(1, 700), st.integers(0, 99), st.integers(0, 10**9))
def test_chunks_hold_every_line_once_and_in_order(images, chunk_rows, number, base):
    made = cut(images, chunk_rows, number, base)
    assert [line for c in made for line in range(c.first, c.last)] == list(range(images))
    assert [chunk.number for chunk in made] == list(range(len(made)))
    assert {(chunk.segment, chunk.base, chunk.retry) for chunk in made} <= {(number, base, 0)}


@given(st.integers(0, 3000), st.integers(1, 700))
def test_all_chunks_but_the_last_are_full_and_none_is_empty(images, chunk_rows):
    sizes = [chunk.last - chunk.first for chunk in cut(images, chunk_rows)]
    assert all(size == chunk_rows for size in sizes[:-1])
    assert all(0 < size <= chunk_rows for size in sizes)


@pytest.fixture
def folder(tmp_path):
    return open_folder(str(tmp_path / "store"))


@pytest.fixture
def listing(tmp_path):
    (tmp_path / "listing").write_bytes(b"lines")
    return tmp_path / "listing"


def test_segments_are_read_in_their_order(folder, listing):
    assert read_segments(folder) == []
    one = claim_segment(folder, 0, 0, listing, 3, 7, NOTHING)
    two = claim_segment(folder, 1, 7, listing, 2, 4, np.array([0, 5]))
    assert read_segments(folder) == [one, two]
    assert row_span([one, two]) == 11
    assert (one.deleted, two.deleted) == (0, 2)


def test_the_first_claim_stands(folder, listing):
    one = claim_segment(folder, 0, 0, listing, 3, 7, NOTHING)
    assert claim_segment(folder, 0, 0, listing, 4, 7, NOTHING) == one


def test_what_a_killed_claim_left_is_in_nobodys_way(folder, listing, tmp_path):
    def kill(when, operation, path):
        if path.endswith("segment.json") and operation == "link":
            raise Killed

    with inject_faults(kill), pytest.raises(Killed):
        claim_segment(folder, 0, 0, listing, 3, 7, np.array([1]))
    other = tmp_path / "other"
    other.write_bytes(b"other lines")
    claimed = claim_segment(folder, 0, 0, other, 3, 8, NOTHING)
    assert folder.read(listing_path(0)) == b"other lines"
    assert claimed.deleted == 0
    remove_claims(folder, below=0)
    assert sum("claim-00000" in e.path for e in folder.entries()) == 2
    remove_claims(folder, below=1)
    assert sorted(e.path.rsplit("/", 1)[-1] for e in folder.entries()) == [
        "listing.parquet", "segment.json",
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(40))
def test_a_claim_killed_anywhere_is_whole_for_whoever_comes_next(folder, listing, tmp_path, number):
    """Even if the source has another listing by then."""

    def kill(when, operation, path):
        raise Killed

    with inject_faults(FailAt(number, kill)), suppress(Killed):
        claim_segment(folder, 0, 0, listing, 3, 7, np.array([1]))
    other = tmp_path / "other"
    other.write_bytes(b"other lines")
    for found in (claim_segment(folder, 0, 0, other, 3, 8, NOTHING), *read_segments(folder)):
        assert found.images in (7, 8)
        for path, digest in found.files.items():
            assert hashlib.sha256(folder.read(path)).hexdigest() == digest
        assert folder.exists(deleted_path(0)) == (found.images == 7)


def test_an_altered_segment_json_is_found(folder, listing):
    claim_segment(folder, 0, 0, listing, 3, 7, NOTHING)
    folder.put(segment_json_path(0), b"{}")
    with pytest.raises(Damaged, match=r"segment\.json was altered"):
        read_segments(folder)
