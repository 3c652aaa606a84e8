"""Tests of segments: their chunks, and claims that are concurrent or killed."""

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

NO_DELETED_ROWS = np.empty(0, np.int64)


def make_chunks(images, chunk_rows, number=0, base=0):
    return list(Segment(number, base, images, chunk_rows, 0, {}).chunks())


@given(st.integers(0, 3000), st.integers(1, 700), st.integers(0, 99), st.integers(0, 10**9))
def test_chunks_cover_every_row_once_in_order(images, chunk_rows, number, base):
    chunks = make_chunks(images, chunk_rows, number, base)
    assert [row for chunk in chunks for row in range(chunk.first, chunk.last)] == list(
        range(images)
    )
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert {(chunk.segment, chunk.base, chunk.retry) for chunk in chunks} <= {(number, base, 0)}


@given(st.integers(0, 3000), st.integers(1, 700))
def test_all_chunks_but_last_are_full_and_none_is_empty(images, chunk_rows):
    sizes = [chunk.last - chunk.first for chunk in make_chunks(images, chunk_rows)]
    assert all(size == chunk_rows for size in sizes[:-1])
    assert all(0 < size <= chunk_rows for size in sizes)


@pytest.fixture
def folder(tmp_path):
    return open_folder(str(tmp_path / "store"))


@pytest.fixture
def listing(tmp_path):
    (tmp_path / "listing").write_bytes(b"lines")
    return tmp_path / "listing"


def test_segments_are_read_in_order(folder, listing):
    assert read_segments(folder) == []
    first = claim_segment(folder, 0, 0, listing, 3, 7, NO_DELETED_ROWS)
    second = claim_segment(folder, 1, 7, listing, 2, 4, np.array([0, 5]))
    assert read_segments(folder) == [first, second]
    assert row_span([first, second]) == 11
    assert (first.deleted, second.deleted) == (0, 2)


def test_first_claim_of_segment_wins(folder, listing):
    first = claim_segment(folder, 0, 0, listing, 3, 7, NO_DELETED_ROWS)
    assert claim_segment(folder, 0, 0, listing, 4, 7, NO_DELETED_ROWS) == first


def test_files_of_killed_claim_are_ignored_and_removed(folder, listing, tmp_path):
    def kill(when, operation, path):
        if path.endswith("segment.json") and operation == "link":
            raise Killed

    with inject_faults(kill), pytest.raises(Killed):
        claim_segment(folder, 0, 0, listing, 3, 7, np.array([1]))
    other_listing = tmp_path / "other"
    other_listing.write_bytes(b"other lines")
    claimed = claim_segment(folder, 0, 0, other_listing, 3, 8, NO_DELETED_ROWS)
    assert folder.read(listing_path(0)) == b"other lines"
    assert claimed.deleted == 0
    remove_claims(folder, below=0)
    assert sum("claim-00000" in entry.path for entry in folder.entries()) == 2
    remove_claims(folder, below=1)
    assert sorted(entry.path.rsplit("/", 1)[-1] for entry in folder.entries()) == [
        "listing.parquet", "segment.json",
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(40))
def test_claim_after_claim_killed_anywhere_is_consistent(folder, listing, tmp_path, number):
    """The second claim has another listing, as after a change of the source."""

    def kill(when, operation, path):
        raise Killed

    with inject_faults(FailAt(number, kill)), suppress(Killed):
        claim_segment(folder, 0, 0, listing, 3, 7, np.array([1]))
    other_listing = tmp_path / "other"
    other_listing.write_bytes(b"other lines")
    for segment in (
        claim_segment(folder, 0, 0, other_listing, 3, 8, NO_DELETED_ROWS),
        *read_segments(folder),
    ):
        assert segment.images in (7, 8)
        for path, digest in segment.files.items():
            assert hashlib.sha256(folder.read(path)).hexdigest() == digest
        assert folder.exists(deleted_path(0)) == (segment.images == 7)


def test_altered_segment_json_is_damage(folder, listing):
    claim_segment(folder, 0, 0, listing, 3, 7, NO_DELETED_ROWS)
    folder.put(segment_json_path(0), b"{}")
    with pytest.raises(Damaged, match=r"segment\.json was altered"):
        read_segments(folder)
