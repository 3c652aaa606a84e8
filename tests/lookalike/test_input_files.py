"""Test inputs from memory: what is written, that it is read as the data, and when it is kept."""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

import lookalike
from lookalike.input_files import written_inputs
from retrieval.images.decode import decode_full
from retrieval.sources.box_columns import BoxColumns
from retrieval.sources.detect import open_source
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.vectors import open_vectors

VECTORS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
IDS = ["b", "a", "d", "c"]


def write(verb, output, **arguments):
    """Return the arguments of a verb with the paths of its inputs."""
    with written_inputs(verb, {**arguments, "output": output}) as paths:
        return paths


def read_vectors(arguments, name):
    """Return ids and vectors of an input, as the commands read it."""
    source = open_vectors(
        arguments[name], embedding_column=arguments.get("embedding_column"),
        ids=arguments.get("ids"),
    )  # fmt: skip
    items = list(source.items())
    with ItemReader() as reader:
        vectors = np.array([reader.vectors(item.path, 1).tolist()[0] for item in items])
    return [item.image_id for item in items], vectors


FRAMES = {
    "arrow": pa.table({"image_id": IDS, "vector": list(VECTORS)}),
    "pandas": pd.DataFrame({"image_id": IDS, "vector": list(VECTORS)}),
    "pandas with an index": pd.DataFrame(
        {"vector": list(VECTORS)}, index=pd.Index(IDS, name="image_id")
    ),
    "polars": pl.DataFrame({"image_id": IDS, "vector": pl.Series(VECTORS)}),
    "polars lists": pl.DataFrame({"image_id": IDS, "vector": VECTORS.tolist()}),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_vectors_of_a_data_frame(tmp_path, frame):
    arguments = write("index", tmp_path / "idx", embeddings=frame, embedding_column=None)
    assert Path(arguments["embeddings"]) == tmp_path / ".idx.inputs" / "embeddings.parquet"
    assert arguments["embedding_column"] == "vector"
    ids, vectors = read_vectors(arguments, "embeddings")
    assert ids == IDS
    np.testing.assert_array_equal(vectors.astype(np.float32), VECTORS)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_vectors_of_an_array(tmp_path, dtype):
    array = np.asfortranarray((10 * VECTORS).astype(dtype))
    arguments = write("rank", f"{tmp_path}/m/", queries=array, ids=None)
    ids, vectors = read_vectors(arguments, "queries")
    assert ids == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(vectors, array)
    assert Path(arguments["queries"]).parent == tmp_path / ".m.inputs"


@pytest.mark.parametrize("ids", [IDS, np.array(IDS), pd.Series(IDS)])
def test_ids_of_an_array(tmp_path, ids):
    arguments = write("embed", tmp_path / "s", input=VECTORS, ids=ids)
    assert read_vectors(arguments, "input")[0] == IDS


def paths_in(values):
    return {
        "list": values,
        "tuple of paths": tuple(map(Path, values)),
        "pandas": pd.DataFrame({"file": values, "size_class": ["x"] * len(values)}),
        "pandas column": pd.Series(values, name="path"),
        "unnamed pandas column": pd.Series(values),
        "polars": pl.DataFrame({"file": values}),
        "arrow": pa.table({"file": values}),
    }


@pytest.mark.parametrize("form", paths_in([]))
def test_paths_are_relative_to_the_current_folder(tmp_path, monkeypatch, photos, form):
    photos("photos", 2)
    monkeypatch.chdir(tmp_path)
    names = ["photos/class1/photo0001.jpg", str(tmp_path / "photos/class0/photo0000.jpg")]
    arguments = write("run", "out", gallery=paths_in(names)[form], queries="q")
    items = list(open_source(arguments["gallery"]).items())
    assert [item.image_id for item in items] == names
    assert [Path(item.path) for item in items] == [tmp_path / names[0], Path(names[1])]
    assert [item.label for item in items] == ["class1", "class0"]
    assert arguments["queries"] == "q"


def test_ids_of_a_table_of_paths_are_kept(tmp_path):
    frame = pd.DataFrame({"image_id": ["x"], "path": ["a.jpg"], "label": ["cat"]})
    (item,) = open_source(write("run", tmp_path / "o", gallery=frame)["gallery"]).items()
    assert (item.image_id, item.label) == ("x", "cat")


def test_images_keep_their_pixels(tmp_path):
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 256, (5, 7, 3), np.uint8)),
        Image.fromarray(random.integers(0, 256, (6, 4), np.uint8)),
        Image.new("CMYK", (3, 3), (0, 255, 0, 0)),
    ]
    turned = images[0].copy()
    turned.getexif()[0x0112] = 3  # upside down
    arguments = write("predict", tmp_path / "o", input=[*images, turned])
    items = sorted(open_source(arguments["input"]).items(), key=lambda item: item.image_id)
    assert [item.image_id for item in items] == [f"00000{number}.png" for number in range(4)]
    pixels = [
        decode_full(Path(item.path).read_bytes(), max_pixels=100).permute(1, 2, 0).numpy()
        for item in items
    ]
    for image, decoded in zip(images, pixels, strict=False):
        np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(pixels[3], pixels[0][::-1, ::-1])
    write("predict", tmp_path / "o", input=images[:1])
    assert [path.name for path in (tmp_path / ".o.inputs/input").iterdir()] == ["000000.png"]


def test_pixels_of_images_of_many_bits_are_kept(tmp_path):
    values = np.array([[0, 300], [40_000, 65_535]], np.int32)
    write("predict", tmp_path / "o", input=[Image.fromarray(values)])
    with Image.open(tmp_path / ".o.inputs/input/000000.png") as image:
        np.testing.assert_array_equal(np.asarray(image), values)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.array([[0.5, 1000]], np.float32)),
        Image.fromarray(np.array([[0, 70_000]], np.int32)),
        Image.fromarray(np.array([[-1, 7]], np.int32)),
        Image.new("RGB", (0, 4)),
    ],
)
def test_images_that_png_cannot_hold_are_refused(tmp_path, image):
    with pytest.raises(lookalike.UsageError, match=f"image of mode {image.mode} and size"):
        write("predict", tmp_path / "o", input=[image])


def test_same_data_is_the_same_file(tmp_path):
    frame = pd.DataFrame({"image_id": IDS, "embedding": list(VECTORS)})

    def modified(data):
        path = write("index", tmp_path / "i", embeddings=data, embedding_column=None)["embeddings"]
        return path, Path(path).stat().st_mtime_ns

    first = modified(frame)
    assert modified(frame.copy()) == first
    assert modified(pa.Table.from_pandas(frame)) == first
    path, time = modified(frame[:3])
    assert path == first[0]
    assert time > first[1]


def test_labels_and_temporary_files(tmp_path):
    labels = pd.DataFrame({"image_id": IDS, "label": ["x"] * 4})
    with written_inputs("evaluate", {"matches": "m", "labels": labels}) as arguments:
        written = pa.parquet.read_table(arguments["labels"])
        assert written.to_pylist() == labels.to_dict("records")
    assert not Path(arguments["labels"]).exists()


@pytest.mark.parametrize(
    ("verb", "option", "data", "message"),
    [
        ("run", "gallery", VECTORS, "this numpy.ndarray is no input; pass a path, a list of paths"),
        ("run", "gallery", FRAMES["arrow"], "the column vector holds vectors, and this command"),
        ("run", "gallery", [], "this list is empty; pass a path, a list of paths"),
        ("run", "queries", [1, 2], "this list is no input"),
        ("run", "queries", ["a.jpg", 3], "this int is no input"),
        ("index", "embeddings", pd.DataFrame({"a": [1]}), "the table has no column of vectors"),
        ("index", "embeddings", VECTORS[0], "the array is float32 of shape (3,); pass numbers"),
        ("index", "embeddings", np.array([["a"]]), "the array is <U1 of shape (1, 1)"),
        ("embed", "input", object(), "the array is object of shape ()"),
        ("rank", "ids", [1.5], "this list is no input; pass a path, or a list with one id per row"),
    ],
)
def test_other_data_is_refused(tmp_path, verb, option, data, message):
    with pytest.raises(lookalike.UsageError) as error:
        write(verb, tmp_path / "o", **{option: data, "embedding_column": None})
    assert str(error.value).startswith(f"--{option}: {message}")


def test_boxes_in_a_column_of_lists_are_no_vectors(tmp_path):
    frame = pd.DataFrame({"file": ["a.jpg", "a.jpg"], "bbox": [[0.1, 0.2, 0.3, 0.4], None]})
    arguments = write(
        "run", tmp_path / "out", gallery=frame, image_column="file", box_columns="bbox"
    )
    boxes = BoxColumns(("bbox",), "relative")
    items = open_source(arguments["gallery"], image_column="file", boxes=boxes).items()
    assert [item.image_id for item in items] == ["a.jpg#xywh=percent:10,20,30,40", "a.jpg"]
