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

LARGE_COUNT = 70_000  # more than a batch, and than a row group of files.parquet


def record(path: str, size: int = 1) -> FileRecord:
    digest = hashlib.sha256(f"{path}{size}".encode()).hexdigest()
    return FileRecord(path, size if path.endswith(".parquet") else None, size, digest)


def records(count: int) -> list[FileRecord]:
    """Return records in random order; a fifth of the paths occurs twice, with another size."""
    generator = random.Random(count)
    names = [
        f"{'é' if number % 7 == 0 else 'e'}{number}{'.json' if number % 3 else '.parquet'}"
        for number in range(count)
    ]
    result = [record(name, generator.randrange(10**6)) for name in names]
    result += [
        record(name, generator.randrange(10**6)) for name in generator.sample(names, count // 5)
    ]
    generator.shuffle(result)
    return result


@pytest.mark.parametrize("count", [0, 1, 2, 1000, LARGE_COUNT])
def test_inventory_equals_dictionary_of_last_records(count):
    input_records = records(count)
    expected = {record.path: record for record in input_records}
    inventory = as_inventory(iter(input_records))
    assert list(inventory) == sorted(expected)
    assert list(inventory.values()) == [expected[path] for path in sorted(expected)]
    assert len(inventory) == len(expected)
    for path in random.Random(0).sample(sorted(expected), min(count, 50)):
        assert inventory[path] == expected[path]
        assert path in inventory
        assert f"{path}." not in inventory


def test_last_record_of_path_wins():
    first, second, third = (record("a", size) for size in (1, 2, 3))
    collector = RecordCollector([first, second])
    collector.add(as_inventory([third, record("b")]))
    inventory = collector.inventory()
    assert list(inventory.values()) == [third, record("b")]
    assert not len(collector.inventory())


def test_files_parquet_bytes_equal_those_of_python_lists():
    expected = sorted(
        {file_record.path: file_record for file_record in records(LARGE_COUNT)}.values(),
        key=lambda file_record: file_record.path.encode(),
    )
    columns = {
        name: [getattr(file_record, name) for file_record in expected]
        for name in FILES.schema.names
    }
    data = checksummed_parquet(pa.table(columns, schema=FILES.schema))
    assert checksummed_parquet(as_inventory(records(LARGE_COUNT)).table) == data


def test_entries_are_sorted_and_compared_with_inventory():
    names = [file_record.path for file_record in records(1000)]
    entries = collect_entries(Entry(name, len(name)) for name in set(names))
    assert list(entries) == [Entry(name, len(name)) for name in sorted(set(names))]
    known = as_inventory(record(name) for name in names[::2])
    unknown = sorted(set(names) - set(names[::2]))
    assert [entry.path for entry in entries.not_in(known)] == unknown
    assert not len(entries.not_in(as_inventory(record(name) for name in names)))
    assert entries.paths_except(set(unknown)).to_pylist() == sorted(set(names[::2]))
    membership = is_among(entries.paths, known.paths).to_pylist()
    assert membership == [name in known for name in sorted(set(names))]


def test_entry_path_that_is_not_utf8_is_escaped():
    entries = collect_entries([Entry("b\udcff", 1), Entry("a", 2)])
    assert list(entries) == [Entry("a", 2), Entry("b\\udcff", 1)]


def test_filter_with_masks_and_lookup_of_missing_path():
    inventory = as_inventory(records(10))
    assert isinstance(inventory.filter(pa.array([True] * len(inventory))), Inventory)
    assert not len(inventory.filter(pa.array([False] * len(inventory))))
    with pytest.raises(KeyError):
        inventory["nothing"]
