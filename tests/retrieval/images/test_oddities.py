"""Tests on thousands of damaged and unusual images: each becomes a row or a ledger entry."""

import io
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from retrieval.core.records import Item
from retrieval.embedding.embed_batch import DecodeSettings, embed_items
from retrieval.images.decode import decode_full
from retrieval.models.embedder import Embedder
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.resolve import resolve_bundle
from tests.retrieval.images.odd_files_valid import oriented, sounds
from tests.retrieval.images.oddities import EITHER, LEDGER, ROW, lies, oddities

SMALL, DEFAULT = 10**6, 178_956_970
MB = 2**20
SOUND = sounds() | oriented()


@pytest.fixture(scope="module")
def odd():
    """All of them by the name of their file; what is too large for the bound here goes apart."""
    found = {f"{number:04d}.jpg": oddity for number, oddity in enumerate(oddities())}
    assert len(found) == len({oddity.name for oddity in found.values()})
    return found


@pytest.fixture(scope="module")
def folder(odd, tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    for name, oddity in odd.items():
        (root / name).write_bytes(oddity.data)
    return root


@pytest.fixture(scope="module")
def embedder():
    bundle = resolve_bundle(
        backbone="scratch", weights="random", bundle=None, pooling="avg", normalize=True,
        image_size=32, resize="crop", seed=0,
    )  # fmt: skip
    return Embedder(bundle, EnginePlan("torch", "fp32", "cpu", 32))


CHUNK = 300


@pytest.fixture(scope="module")
def runs(odd, folder, embedder):
    """All embedded by chunks: one after another, and from the last to the first with threads."""
    known = dict.fromkeys(field.name for field in fields(Item))
    items = [
        known | {"row": row, "image_id": name, "path": str(folder / name), "size": len(oddity.data)}
        for row, (name, oddity) in enumerate(odd.items())
    ]
    grid = [items[first : first + CHUNK] for first in range(0, len(items), CHUNK)]
    made = []
    for threads, order in ((0, 1), (2, -1)):
        decoding = DecodeSettings(max_pixels=4 * SMALL, embedding_dtype="float16", threads=threads)
        done = [list(embed_items(chunk, embedder, decoding)) for chunk in grid[::order]]
        made.append([batch for batches in done[::order] for batch in batches])
    return made


def test_each_is_one_row_or_one_line_of_the_ledger_as_expected(odd, runs):
    rows = [row["image_id"] for batch in runs[0] for row in batch.rows]
    failures = [line for batch in runs[0] for line in batch.failures]
    lines = {line["image_id"]: line for line in failures}
    assert sorted([*rows, *(line["image_id"] for line in failures)]) == list(odd)
    assert len(odd) >= 1600
    wrong = [
        (odd[name].name, lines.get(name))
        for name in odd
        if odd[name].expected == (LEDGER if name not in lines else ROW)
    ]
    assert wrong == []
    assert {line["stage"] for line in failures} == {"decode"}
    assert all(line["message"] and "object at" not in line["message"] for line in failures)


def test_rows_vectors_and_ledgers_are_the_same_in_any_order_and_with_threads(runs):
    for one, other in zip(*runs, strict=True):
        assert one.rows == other.rows
        assert one.failures == other.failures
        assert one.vectors.tobytes() == other.vectors.tobytes()


def test_the_table_expects_enough_of_each_outcome(odd):
    expected = [oddity.expected for oddity in odd.values()]
    assert min(expected.count(ROW), expected.count(LEDGER)) >= 200
    assert expected.count(EITHER) < len(odd) * 0.8


def measured(folder, max_pixels, tmp_path):
    """Decode a folder in a process of its own; give what it took and what it printed."""
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.retrieval.images.measured_decoding",
         str(folder), str(max_pixels), str(report)],
        capture_output=True, cwd=Path(__file__).parents[3], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(report.read_text()), done


def test_memory_time_and_output_are_bounded_over_all_of_them(odd, folder, tmp_path):
    took, done = measured(folder, SMALL, tmp_path)
    assert sum(took["outcomes"].values()) == len(odd)
    assert "MemoryError" not in took["outcomes"]
    assert took["peak"] < 128 * MB, took
    seconds, name = took["slowest"]
    assert seconds < 6, odd[name].name
    # libtiff and libjpeg tell of what they found, on stderr; stdout belongs to the answer
    assert done.stdout == b""


def test_claims_beyond_the_default_bound_cost_no_memory(odd, tmp_path):
    apart = tmp_path / "beyond"
    apart.mkdir()
    for name, oddity in odd.items():
        if oddity.name.startswith("claims"):
            (apart / name).write_bytes(oddity.data)
    took, _ = measured(apart, DEFAULT, tmp_path)
    assert sum(took["outcomes"].values()) >= 20
    assert "row" not in took["outcomes"]
    assert took["peak"] < 16 * MB, took


@pytest.mark.nightly
def test_claims_within_the_default_bound_cost_what_honest_images_of_that_size_cost(tmp_path):
    apart = tmp_path / "within"
    apart.mkdir()
    for number, oddity in enumerate(lies()):
        (apart / str(number)).write_bytes(oddity.data)
    took, _ = measured(apart, DEFAULT, tmp_path)
    assert "MemoryError" not in took["outcomes"]
    assert took["peak"] < 24 * DEFAULT, took


def plain(data):
    """What Pillow alone makes of an image: upright, alpha on white."""
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            return None  # more than eight bits: test_decode.py says what becomes of them
        seen = upright.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen))[..., :3]


@pytest.mark.parametrize("name", SOUND)
def test_sound_ones_look_as_pillow_shows_them(name):
    data = SOUND[name]
    wanted = plain(data)
    found = decode_full(data, max_pixels=SMALL).permute(1, 2, 0).numpy()
    if wanted is not None:
        assert found.shape == wanted.shape
        assert np.abs(found - wanted.astype(int)).mean() < (0.6 if "JPEG" in name else 0.01)
