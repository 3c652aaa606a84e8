"""Tests on 1,640 damaged and unusual images: each becomes a row or a ledger entry."""

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
from tests.retrieval.images.image_cases import EITHER, LEDGER, ROW, claim_cases, image_cases
from tests.retrieval.images.valid_images import oriented_images, valid_images

SMALL_BOUND, DEFAULT_BOUND = 10**6, 178_956_970
MB = 2**20
VALID_IMAGES = valid_images() | oriented_images()


@pytest.fixture(scope="module")
def cases():
    """Return all cases by file name."""
    cases = {f"{number:04d}.jpg": case for number, case in enumerate(image_cases())}
    assert len(cases) == len({case.name for case in cases.values()})
    return cases


@pytest.fixture(scope="module")
def folder(cases, tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    for name, case in cases.items():
        (root / name).write_bytes(case.data)
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
def runs(cases, folder, embedder):
    """Return the batches of two runs: in order without threads, in reverse order with threads."""
    no_fields = dict.fromkeys(field.name for field in fields(Item))
    items = [
        no_fields
        | {"row": row, "image_id": name, "path": str(folder / name), "size": len(case.data)}
        for row, (name, case) in enumerate(cases.items())
    ]
    chunks = [items[first : first + CHUNK] for first in range(0, len(items), CHUNK)]
    results = []
    for threads, order in ((0, 1), (2, -1)):
        decoding = DecodeSettings(
            max_pixels=4 * SMALL_BOUND, embedding_dtype="float16", threads=threads
        )
        batches_by_chunk = [
            list(embed_items(chunk, embedder, decoding)) for chunk in chunks[::order]
        ]
        results.append([batch for batches in batches_by_chunk[::order] for batch in batches])
    return results


def test_each_image_is_row_or_ledger_entry_as_expected(cases, runs):
    rows = [row["image_id"] for batch in runs[0] for row in batch.rows]
    failures = [entry for batch in runs[0] for entry in batch.failures]
    ledger = {entry["image_id"]: entry for entry in failures}
    assert sorted([*rows, *(entry["image_id"] for entry in failures)]) == list(cases)
    assert len(cases) >= 1600
    unexpected = [
        (cases[name].name, ledger.get(name))
        for name in cases
        if cases[name].expected == (LEDGER if name not in ledger else ROW)
    ]
    assert unexpected == []
    assert {entry["stage"] for entry in failures} == {"decode"}
    assert all(entry["message"] and "object at" not in entry["message"] for entry in failures)


def test_results_are_independent_of_order_and_threads(runs):
    for first, second in zip(*runs, strict=True):
        assert first.rows == second.rows
        assert first.failures == second.failures
        assert first.vectors.tobytes() == second.vectors.tobytes()


def test_cases_include_enough_of_each_outcome(cases):
    expected = [case.expected for case in cases.values()]
    assert min(expected.count(ROW), expected.count(LEDGER)) >= 200
    assert expected.count(EITHER) < len(cases) * 0.8


def measure_decoding(folder, max_pixels, tmp_path):
    """Decode a folder in a subprocess; return its measurements and the completed process."""
    report = tmp_path / "report.json"
    process = subprocess.run(
        [sys.executable, "-m", "tests.retrieval.images.measure_decoding",
         str(folder), str(max_pixels), str(report)],
        capture_output=True, cwd=Path(__file__).parents[3], check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(report.read_text()), process


def test_memory_time_and_output_are_bounded(cases, folder, tmp_path):
    measurements, process = measure_decoding(folder, SMALL_BOUND, tmp_path)
    assert sum(measurements["outcomes"].values()) == len(cases)
    assert "MemoryError" not in measurements["outcomes"]
    assert measurements["peak"] < 128 * MB, measurements
    seconds, name = measurements["slowest"]
    assert seconds < 6, cases[name].name
    # libtiff and libjpeg print warnings to stderr; stdout must contain only results
    assert process.stdout == b""


def test_headers_beyond_max_pixels_allocate_no_memory(cases, tmp_path):
    selected = tmp_path / "beyond"
    selected.mkdir()
    for name, case in cases.items():
        if case.name.startswith("claims"):
            (selected / name).write_bytes(case.data)
    measurements, _ = measure_decoding(selected, DEFAULT_BOUND, tmp_path)
    assert sum(measurements["outcomes"].values()) >= 20
    assert "row" not in measurements["outcomes"]
    assert measurements["peak"] < 16 * MB, measurements


@pytest.mark.nightly
def test_headers_within_max_pixels_allocate_bounded_memory(tmp_path):
    selected = tmp_path / "within"
    selected.mkdir()
    for number, case in enumerate(claim_cases()):
        (selected / str(number)).write_bytes(case.data)
    measurements, _ = measure_decoding(selected, DEFAULT_BOUND, tmp_path)
    assert "MemoryError" not in measurements["outcomes"]
    assert measurements["peak"] < 24 * DEFAULT_BOUND, measurements


def decode_with_pillow(data):
    """Return an image decoded by Pillow, upright and composited on white; None above 8 bits."""
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            return None  # more than 8 bits per sample: see test_decode.py
        pixels = upright.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels))[
        ..., :3
    ]


@pytest.mark.parametrize("name", VALID_IMAGES)
def test_valid_images_decode_like_pillow(name):
    data = VALID_IMAGES[name]
    expected = decode_with_pillow(data)
    actual = decode_full(data, max_pixels=SMALL_BOUND).permute(1, 2, 0).numpy()
    if expected is not None:
        assert actual.shape == expected.shape
        assert np.abs(actual - expected.astype(int)).mean() < (0.6 if "JPEG" in name else 0.01)
