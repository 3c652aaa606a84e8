"""Tests of columnar inventories and entries against Python dictionaries and lists."""

import hashlib
import random

import pyarrow as pa
import pytest

from retrieval.core.records import FileRecord
from retrieval.core.schemas import FILES
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.folder import Entry
from retrieval.storage.inventory import (
    Inventory,
    RecordCollector,
    as_inventory,
    collect_entries,
    is_among,
)

MANY = 70_000  # more than a batch, and than a row group of files.parquet


def record(path: str, size: int = 1) -> FileRecord:
    digest = hashlib.sha256(f"{path}{size}".encode()).hexdigest()
    return FileRecord(path, size if path.endswith(".parquet") else None, size, digest)


def records(count: int) -> list[FileRecord]:
    """Records in no order, some paths twice with another size."""
    draws = random.Random(count)
    names = [f"{'é' if n % 7 == 0 else 'e'}{n}{'.json' if n % 3 else '.parquet'}" for n in
             range(count)]  # fmt: skip
    found = [record(name, draws.randrange(10**6)) for name in names]
    found += [record(name, draws.randrange(10**6)) for name in draws.sample(names, count // 5)]
    draws.shuffle(found)
    return found


@pytest.mark.parametrize("count", [0, 1, 2, 1000, MANY])
def test_an_inventory_says_what_a_dictionary_says(count):
    offered = records(count)
    expected = {record.path: record for record in offered}
    made = as_inventory(iter(offered))
    assert list(made) == sorted(expected)
    assert list(made.values()) == [expected[path] for path in sorted(expected)]
    assert len(made) == len(expected)
    for path in random.Random(0).sample(sorted(expected), min(count, 50)):
        assert made[path] == expected[path]
        assert path in made
        assert f"{path}." not in made


def test_the_last_record_of_a_path_counts_however_it_comes():
    first, second, third = (record("a", size) for size in (1, 2, 3))
    gathered = RecordCollector([first, second])
    gathered.add(as_inventory([third, record("b")]))
    made = gathered.inventory()
    assert list(made.values()) == [third, record("b")]
    assert not len(gathered.inventory())


def test_the_bytes_of_files_parquet_are_those_of_plain_lists():
    expected = sorted({r.path: r for r in records(MANY)}.values(), key=lambda r: r.path.encode())
    columns = {name: [getattr(r, name) for r in expected] for name in FILES.schema.names}
    data = checksummed_parquet(pa.table(columns, schema=FILES.schema))
    assert checksummed_parquet(as_inventory(records(MANY)).table) == data


def test_a_listing_is_ordered_and_told_from_an_inventory():
    names = [r.path for r in records(1000)]
    entries = collect_entries(Entry(name, len(name)) for name in set(names))
    assert list(entries) == [Entry(name, len(name)) for name in sorted(set(names))]
    half = as_inventory(record(name) for name in names[::2])
    outside = sorted(set(names) - set(names[::2]))
    assert [entry.path for entry in entries.not_in(half)] == outside
    assert not len(entries.not_in(as_inventory(record(name) for name in names)))
    assert entries.paths_except(set(outside)).to_pylist() == sorted(set(names[::2]))
    inside = is_among(entries.paths, half.paths).to_pylist()
    assert inside == [name in half for name in sorted(set(names))]


def test_a_path_that_is_no_text_stands_in_a_listing():
    entries = collect_entries([Entry("b\udcff", 1), Entry("a", 2)])
    assert list(entries) == [Entry("a", 2), Entry("b\\udcff", 1)]


def test_lines_at_places_and_none():
    made = as_inventory(records(10))
    assert isinstance(made.filter(pa.array([True] * len(made))), Inventory)
    assert not len(made.filter(pa.array([False] * len(made))))
    with pytest.raises(KeyError):
        made["nothing"]
