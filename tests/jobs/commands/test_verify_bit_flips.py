"""Test that `verify` detects one flipped bit in any file of an output except run.json."""

from pathlib import Path

import numpy as np
import pytest

from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.jobs.embedding.test_store_sync import BROKEN_IMAGE, Source, make_picture
from tests.jobs.in_process import embed_in_process, index_in_process, rank_in_process

SAMPLE, FULL = 150, 10_000


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Return an updated store, its updated index, an index with lossy codes, and matches."""
    root = tmp_path_factory.mktemp("flips")
    source = Source(root / "photos")
    for number, name in enumerate("abcde"):
        source.put(f"{name}.jpg", make_picture(number) if number else BROKEN_IMAGE)
    store, index, matches = root / "store", root / "index", root / "matches"
    options = {"index_factory": "IVF3,SQfp16", "rows_per_shard": 2}
    embed_in_process(source.root, store)
    index_in_process(store, index, **options)
    source.put("f.jpg", make_picture(1))
    source.delete("d.jpg")
    embed_in_process(source.root, store)
    index_in_process(store, index, **options)
    index_in_process(store, root / "lossy", index_factory="IVF2,SQ8")
    rank_in_process(index, store, matches, top_k=2)
    for name in ("store", "index", "lossy", "matches"):
        assert {verdict.state for verdict in verify(open_folder(str(root / name)))} == {"finished"}
    return [root / name for name in ("store", "index", "lossy", "matches")]


def flip_bit(path: Path, generator: np.random.Generator) -> bytes:
    """Flip a random bit of a file, and return the previous content."""
    original = path.read_bytes()
    data = bytearray(original)
    data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
    path.write_bytes(data)
    return original


def check_flips(outputs, count, record_property):
    files = [
        (output, path)
        for output in outputs
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name != "run.json"
    ]
    generator = np.random.default_rng(0)
    for number in range(count):
        output, path = files[number % len(files)]
        original = flip_bit(path, generator)
        states = {verdict.state for verdict in verify(open_folder(str(output)))}
        path.write_bytes(original)
        assert "damaged" in states, path
    kinds = {path.suffix for _, path in files}
    assert kinds == {".json", ".parquet", ".faiss", ".vectors", ".safetensors"}
    record_property("flips", count)
    print(f"{count} flips in {len(files)} files")  # noqa: T201 - read with -rP


def test_sampled_bit_flips_are_detected(outputs, record_property):
    check_flips(outputs, SAMPLE, record_property)


@pytest.mark.nightly
def test_ten_thousand_bit_flips_are_detected(outputs, record_property):
    check_flips(outputs, FULL, record_property)
