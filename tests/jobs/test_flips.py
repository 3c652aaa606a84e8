"""One flipped bit, anywhere in any file of ours but run.json, and `verify` finds it."""

from pathlib import Path

import numpy as np
import pytest

from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.jobs.embedding.test_store_sync import BROKEN, Source, picture
from tests.jobs.here import embed_here, index_here, rank_here

SAMPLE, ALL = 150, 10_000


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A store that grew, an index that followed it (and an index of another kind), and matches."""
    root = tmp_path_factory.mktemp("flips")
    source = Source(root / "photos")
    for number, name in enumerate("abcde"):
        source.put(f"{name}.jpg", picture(number) if number else BROKEN)
    store, index, matches = root / "store", root / "index", root / "matches"
    asked = {"index_factory": "IVF3,SQfp16", "rows_per_shard": 2}
    embed_here(source.root, store)
    index_here(store, index, **asked)
    source.put("f.jpg", picture(1))
    source.delete("d.jpg")
    embed_here(source.root, store)
    index_here(store, index, **asked)
    index_here(store, root / "lossy", index_factory="IVF2,SQ8")
    rank_here(index, store, matches, top_k=2)
    for name in ("store", "index", "lossy", "matches"):
        assert {verdict.state for verdict in verify(open_folder(str(root / name)))} == {"finished"}
    return [root / name for name in ("store", "index", "lossy", "matches")]


def flip(path: Path, generator: np.random.Generator) -> bytes:
    """Turn one bit; gives what was there."""
    kept = path.read_bytes()
    data = bytearray(kept)
    data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
    path.write_bytes(data)
    return kept


def find_all(outputs, count, record_property):
    files = [
        (output, path)
        for output in outputs
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name != "run.json"
    ]
    generator = np.random.default_rng(0)
    for number in range(count):
        output, path = files[number % len(files)]
        kept = flip(path, generator)
        states = {verdict.state for verdict in verify(open_folder(str(output)))}
        path.write_bytes(kept)
        assert "damaged" in states, path
    kinds = {path.suffix for _, path in files}
    assert kinds == {".json", ".parquet", ".faiss", ".safetensors"}
    record_property("flips", count)
    print(f"{count} flips in {len(files)} files")  # noqa: T201 - read with -rP


def test_a_sample_of_flips(outputs, record_property):
    find_all(outputs, SAMPLE, record_property)


@pytest.mark.nightly
def test_ten_thousand_flips(outputs, record_property):
    find_all(outputs, ALL, record_property)
