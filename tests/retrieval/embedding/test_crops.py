"""Tests of crops: each is embedded as if its photo had been cropped beforehand."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from retrieval.embedding.attempt import Attempt
from retrieval.embedding.embed_batch import DecodeSettings, embed_items
from retrieval.images.box import Box
from retrieval.images.decode import decode_full
from retrieval.sources.item_reader import ItemReader
from tests.retrieval.images.valid_images import photo as draw_photo

BOXES = (
    Box(20, 10, 70, 60, False),
    Box(0, 0, 32, 32, False),  # of the size of the network's input: not resized
    Box(60, 40, 500, 500, False),  # clipped
    Box(250_000, 100_000, 500_000, 625_000, True),
)


def rows(paths):
    return [
        {"row": row, "image_id": path, "path": path, "label": None}
        for row, path in enumerate(map(str, paths))
    ]


def embed(paths, embedder, *, threads=0, max_pixels=10**6, attempt=1):
    """Return rows, vectors and failures of images."""
    decoding = DecodeSettings(max_pixels, "float32", threads)
    batches = list(embed_items(rows(paths), embedder, decoding, Attempt(attempt)))
    vectors = np.concatenate([batch.vectors for batch in batches])
    parts = [row for batch in batches for row in batch.rows]
    return parts, vectors, [failure for batch in batches for failure in batch.failures]


@pytest.fixture(params=["PNG", "rotated PNG", "JPEG"])
def photo(request, tmp_path):
    """Write a photo; return its path and its upright pixels."""
    path = tmp_path / "photo.img"
    exif = Image.Exif()
    exif[0x0112] = 6 if request.param == "rotated PNG" else 1
    draw_photo(160, 120).save(path, request.param.split()[-1], exif=exif, quality=95)
    if request.param == "JPEG":  # Pillow's pixels differ a little
        pixels = decode_full(path.read_bytes(), max_pixels=10**6)
        return path, Image.fromarray(pixels.permute(1, 2, 0).numpy())
    with Image.open(path) as image:
        return path, ImageOps.exif_transpose(image)


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("attempt", [1, 2])
def test_vector_is_that_of_the_file_cropped_beforehand(photo, tmp_path, embedder, threads, attempt):
    path, upright = photo
    files = []
    for number, box in enumerate(BOXES):
        files.append(tmp_path / f"{number}.png")
        upright.crop(box.edges(*upright.size)).save(files[-1])
    crops = [path, *(f"{path}{box}" for box in BOXES), path]
    parts, vectors, failures = embed(crops, embedder, threads=threads, attempt=attempt)
    expected, expected_vectors, _ = embed([path, *files, path], embedder)
    assert not failures
    np.testing.assert_array_equal(vectors, expected_vectors)
    sizes = [(row["width"], row["height"]) for row in parts]
    assert sizes == [(row["width"], row["height"]) for row in expected]
    assert {row["sha256"] for row in parts} == {expected[0]["sha256"]}


@pytest.mark.parametrize("threads", [0, 4])
def test_photo_is_read_once_for_adjacent_crops(photo, embedder, threads, monkeypatch):
    read_paths = []
    read = ItemReader.read

    def counted(self, path, place, size):
        read_paths.append(path)
        return read(self, path, place, size)

    monkeypatch.setattr(ItemReader, "read", counted)
    embed([f"{photo[0]}{box}" for box in BOXES * 3], embedder, threads=threads)
    assert read_paths == [str(photo[0])]


def test_box_outside_the_image_is_a_failure_of_its_row(photo, embedder):
    path, upright = photo
    crops = [f"{path}{Box(500, 0, 10, 10, False)}", f"{path}{BOXES[0]}"]
    parts, _, (failure,) = embed(crops, embedder)
    assert [row["row"] for row in parts] == [1]
    assert (failure["row"], failure["stage"], failure["error"]) == (0, "decode", "ValueError")
    width, height = upright.size
    assert failure["message"] == (
        f"the box xywh=500,0,10,10 contains no pixel of the image of {width} x {height}"
    )


def test_size_limit_is_of_the_whole_photo(photo, embedder):
    parts, _, failures = embed([f"{photo[0]}{BOXES[1]}"] * 2, embedder, max_pixels=10**4)
    assert not parts
    assert [failure["error"] for failure in failures] == ["DecompressionBombError"] * 2


def test_unreadable_photo_is_a_failure_of_each_crop(tmp_path, embedder):
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    names = ("broken.jpg", "missing.jpg")
    crops = [f"{tmp_path}/{name}{box}" for name in names for box in BOXES[:2]]
    for threads in (0, 3):
        _, _, failures = embed(crops, embedder, threads=threads)
        assert [failure["stage"] for failure in failures] == ["decode"] * 2 + ["read"] * 2


def test_crops_of_a_photo_that_crashes_its_worker_are_not_read(photo, embedder):
    attempt = Attempt(2, frozenset([str(photo[0])]))
    items = rows([f"{photo[0]}{box}" for box in BOXES])
    batches = list(embed_items(items, embedder, DecodeSettings(10**6, "float32"), attempt))
    errors = [failure["error"] for batch in batches for failure in batch.failures]
    assert errors == ["WorkerDied"] * len(BOXES)


def test_crop_in_parquet_is_embedded(tmp_path, embedder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    image = draw_photo(160, 120)
    image.save(sink, "PNG")
    pq.write_table(pa.table({"image": [sink.getvalue()]}), tmp_path / "x.parquet")
    image.crop((20, 10, 90, 70)).save(tmp_path / "crop.png")
    crop = f"parquet://image/0::{tmp_path}/x.parquet{BOXES[0]}"
    _, (first, second), _ = embed([crop, tmp_path / "crop.png"], embedder)
    np.testing.assert_array_equal(first, second)
