"""Tests of checksummed files: written files are valid, and every flipped bit is detected."""

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

# text that contains checksum marks: blank, truncated or filled in
MARKER_TEXT = st.lists(
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
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | MARKER_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MARKER_TEXT, inner, max_size=3),
    max_leaves=8,
)
JSON_OBJECTS = st.dictionaries(
    MARKER_TEXT.filter(lambda key: key != "seal"), JSON_VALUES, max_size=5
)


def is_valid(data):
    return has_valid_checksum(io.BytesIO(data))


def with_reversed_keys(value):
    """Return the same JSON value, with the keys of every object in reverse order."""
    if isinstance(value, dict):
        return {key: with_reversed_keys(value[key]) for key in reversed(list(value))}
    return [with_reversed_keys(element) for element in value] if isinstance(value, list) else value


def small_table():
    return pa.table({"row": [0, 1, 2], "image_id": ["a", "b", None]})


SAMPLES = {
    "json": checksummed_json({"settings": {"top_k": 10, "name": "Zürich – 猫"}, "kind": "store"}),
    "parquet": checksummed_parquet(small_table(), {"note": "x"}),
    "html": fill_checksum(f"<p>page</p>\n<!-- {CHECKSUM_PLACEHOLDER} -->\n".encode()),
}
every_sample = pytest.mark.parametrize("data", SAMPLES.values(), ids=SAMPLES)


@settings(deadline=None, max_examples=50)
@given(JSON_OBJECTS)
def test_json_round_trip(values):
    data = checksummed_json(values)
    assert is_valid(data)
    assert parse_checksummed_json(data) == values


def test_json_round_trip_of_non_utf8_path():
    path = os.fsdecode(b"/photos/caf\xe9")
    assert parse_checksummed_json(checksummed_json({"input": path})) == {"input": path}


@settings(deadline=None, max_examples=50)
@given(JSON_OBJECTS)
def test_json_bytes_are_independent_of_key_order(values):
    assert checksummed_json(with_reversed_keys(values)) == checksummed_json(values)


def test_checksummed_json_has_sorted_keys_and_seal_last():
    parsed = json.loads(checksummed_json({"b": 1, "z": 2, "a": {"d": 3, "c": 4}}))
    assert list(parsed) == ["a", "b", "z", "seal"]
    assert list(parsed["a"]) == ["c", "d"]


@settings(deadline=None)
@given(
    st.lists(MARKER_TEXT, max_size=5),
    st.dictionaries(MARKER_TEXT.filter(lambda key: key and key != "seal"), MARKER_TEXT, max_size=3),
)
def test_parquet_round_trip_with_metadata(texts, metadata):
    table = pa.table({"text": pa.array(texts, pa.string())})
    data = checksummed_parquet(table, metadata)
    assert is_valid(data)
    assert pq.read_table(io.BytesIO(data)).equals(table)
    assert metadata.items() <= parquet_metadata(data).items()


def test_parquet_bytes_are_independent_of_arrow_chunks():
    table = small_table()
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert checksummed_parquet(chunked) == checksummed_parquet(table)


@every_sample
def test_every_flipped_bit_is_detected(data):
    for position in range(len(data)):
        for bit in range(8):
            altered = bytearray(data)
            altered[position] ^= 1 << bit
            assert not is_valid(bytes(altered)), f"bit {bit} of byte {position}"


@every_sample
def test_missing_and_extra_bytes_are_detected(data):
    assert is_valid(data)
    for length in range(len(data)):
        assert not is_valid(data[:length])
        assert not is_valid(data[-length:] if length else b"")
    for extra in (b"\n", b"\0", b"0" * 64, CHECKSUM_MARK, CHECKSUM_PLACEHOLDER.encode(), data):
        assert not is_valid(data + extra)
        assert not is_valid(extra + data)


@every_sample
def test_swapped_neighbouring_bytes_are_detected(data):
    for position in range(len(data) - 1):
        altered = (
            data[:position]
            + data[position + 1 : position + 2]
            + data[position : position + 1]
            + data[position + 2 :]
        )
        assert altered == data or not is_valid(altered)


def test_parse_of_altered_json_returns_none():
    assert parse_checksummed_json(SAMPLES["json"].replace(b"store", b"Store")) is None
    assert parse_checksummed_json(b"") is None
    assert parse_checksummed_json(b'{"kind": "store"}') is None


@settings(deadline=None, max_examples=50)
@given(JSON_OBJECTS, st.integers(1, 400), st.data())
def test_verification_is_independent_of_window_size(values, window, data):
    original = checksummed_json(values)
    position = data.draw(st.integers(0, len(original) - 1))
    altered = original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WINDOW", window)
        assert is_valid(original)
        assert not is_valid(altered)


def test_last_mark_is_found_with_any_window_size(monkeypatch):
    data = checksummed_json({"a": CHECKSUM_PLACEHOLDER * 2, "b": CHECKSUM_MARK.decode()})
    for window in range(1, len(data) + 2):
        monkeypatch.setattr(module, "_WINDOW", window)
        assert is_valid(data), window


def test_fill_checksum_requires_blank_mark():
    with pytest.raises(ValueError, match="not blank"):
        fill_checksum(SAMPLES["json"])
    with pytest.raises(ValueError, match="not found"):
        fill_checksum(b"text without a mark")


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(1, 200))
def test_fill_file_checksum_equals_fill_checksum(before, after, window):
    data = before + CHECKSUM_PLACEHOLDER.encode() + after
    assume(data.rindex(module.CHECKSUM_MARK) == len(before))  # no mark after the placeholder
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WINDOW", window)
        path = Path(folder, "x")
        path.write_bytes(data)
        fill_file_checksum(path)
        assert path.read_bytes() == fill_checksum(data)


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "no mark"), (b"x" * 99, "no mark"), (SAMPLES["json"], "not blank")]
)
def test_fill_file_checksum_without_blank_mark_keeps_file(tmp_path, data, message):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        fill_file_checksum(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data
