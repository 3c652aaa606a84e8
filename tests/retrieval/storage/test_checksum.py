"""Tests of checksummed files: written files verify, and any flipped bit is detected."""

import io
import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retrieval.storage import checksum as module
from retrieval.storage.checksum import (
    CHECKSUM_MARK,
    CHECKSUM_PLACEHOLDER,
    checksummed_json,
    checksummed_parquet,
    fill_checksum,
    fill_file_checksum,
    has_valid_checksum,
    parquet_metadata,
    parse_checksummed_json,
)

# text that looks like our seal, whole, cut off, filled in or merely text
PLANTED = st.lists(
    st.sampled_from(
        [
            CHECKSUM_MARK.decode(),
            CHECKSUM_PLACEHOLDER,
            CHECKSUM_PLACEHOLDER[:-1],
            CHECKSUM_MARK.decode() + "a" * 64,
        ]
    )
    | st.text()
).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | PLANTED,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLANTED, inner, max_size=3),
    max_leaves=8,
)
OBJECT = st.dictionaries(PLANTED.filter(lambda key: key != "seal"), JSON, max_size=5)


def sealed(data):
    return has_valid_checksum(io.BytesIO(data))


def backwards(value):
    """The same value, the keys of every object in the opposite order."""
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(list(value))}
    return [backwards(each) for each in value] if isinstance(value, list) else value


def small_table():
    return pa.table({"row": [0, 1, 2], "image_id": ["a", "b", None]})


SMALL = {
    "json": checksummed_json({"settings": {"top_k": 10, "name": "Zürich – 猫"}, "kind": "store"}),
    "parquet": checksummed_parquet(small_table(), {"note": "x"}),
    "html": fill_checksum(f"<p>page</p>\n<!-- {CHECKSUM_PLACEHOLDER} -->\n".encode()),
}
small = pytest.mark.parametrize("data", SMALL.values(), ids=SMALL)


@settings(deadline=None, max_examples=50)
@given(OBJECT)
def test_json_comes_back_as_it_was(values):
    data = checksummed_json(values)
    assert sealed(data)
    assert parse_checksummed_json(data) == values


def test_a_path_that_is_not_utf_8_comes_back_too():
    path = os.fsdecode(b"/photos/caf\xe9")
    assert parse_checksummed_json(checksummed_json({"input": path})) == {"input": path}


@settings(deadline=None, max_examples=50)
@given(OBJECT)
def test_same_values_give_the_same_json_whatever_the_order_of_their_keys(values):
    assert checksummed_json(backwards(values)) == checksummed_json(values)


def test_sealed_json_is_plain_json_with_sorted_keys_and_the_seal_last():
    plain = json.loads(checksummed_json({"b": 1, "z": 2, "a": {"d": 3, "c": 4}}))
    assert list(plain) == ["a", "b", "z", "seal"]
    assert list(plain["a"]) == ["c", "d"]


@settings(deadline=None)
@given(
    st.lists(PLANTED, max_size=5),
    st.dictionaries(PLANTED.filter(lambda key: key and key != "seal"), PLANTED, max_size=3),
)
def test_parquet_comes_back_as_it_was_notes_included(texts, notes):
    table = pa.table({"text": pa.array(texts, pa.string())})
    data = checksummed_parquet(table, notes)
    assert sealed(data)
    assert pq.read_table(io.BytesIO(data)).equals(table)
    assert notes.items() <= parquet_metadata(data).items()


def test_same_rows_give_the_same_parquet_however_they_are_chunked():
    table = small_table()
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert checksummed_parquet(chunked) == checksummed_parquet(table)


@small
def test_every_single_flipped_bit_is_found(data):
    for at in range(len(data)):
        for bit in range(8):
            altered = bytearray(data)
            altered[at] ^= 1 << bit
            assert not sealed(bytes(altered)), f"bit {bit} of byte {at}"


@small
def test_missing_and_trailing_bytes_are_found(data):
    assert sealed(data)
    for length in range(len(data)):
        assert not sealed(data[:length])
        assert not sealed(data[-length:] if length else b"")
    for more in (b"\n", b"\0", b"0" * 64, CHECKSUM_MARK, CHECKSUM_PLACEHOLDER.encode(), data):
        assert not sealed(data + more)
        assert not sealed(more + data)


@small
def test_two_bytes_that_changed_places_are_found(data):
    for at in range(len(data) - 1):
        altered = data[:at] + data[at + 1 : at + 2] + data[at : at + 1] + data[at + 2 :]
        assert altered == data or not sealed(altered)


def test_altered_json_is_not_read():
    assert parse_checksummed_json(SMALL["json"].replace(b"store", b"Store")) is None
    assert parse_checksummed_json(b"") is None
    assert parse_checksummed_json(b'{"kind": "store"}') is None


@settings(deadline=None, max_examples=50)
@given(OBJECT, st.integers(1, 400), st.data())
def test_windows_may_end_anywhere_also_within_a_mark(values, window, data):
    whole = checksummed_json(values)
    at = data.draw(st.integers(0, len(whole) - 1))
    altered = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WINDOW", window)
        assert sealed(whole)
        assert not sealed(altered)


def test_every_width_of_window_finds_the_last_of_several_marks(monkeypatch):
    data = checksummed_json({"a": CHECKSUM_PLACEHOLDER * 2, "b": CHECKSUM_MARK.decode()})
    for window in range(1, len(data) + 2):
        monkeypatch.setattr(module, "_WINDOW", window)
        assert sealed(data), window


def test_only_a_blank_mark_is_filled_in():
    with pytest.raises(ValueError, match="not blank"):
        fill_checksum(SMALL["json"])
    with pytest.raises(ValueError, match="not found"):
        fill_checksum(b"no mark at all")


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(1, 200))
def test_a_file_is_sealed_in_place_as_its_bytes_would_be(before, after, window):
    data = before + CHECKSUM_PLACEHOLDER.encode() + after
    assume(data.rindex(module.CHECKSUM_MARK) == len(before))  # one mark, at the end
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WINDOW", window)
        path = Path(folder, "x")
        path.write_bytes(data)
        fill_file_checksum(path)
        assert path.read_bytes() == fill_checksum(data)


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "no mark"), (b"x" * 99, "no mark"), (SMALL["json"], "not blank")]
)
def test_a_file_without_a_blank_mark_is_left_as_it_is(tmp_path, data, message):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        fill_file_checksum(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data
