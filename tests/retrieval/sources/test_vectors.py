"""Tests of sources of precomputed vectors: ids, paths, dimensions and errors."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.core.errors import InputError, Mismatch, UsageError
from retrieval.sources import id_files, item_reader, vectors
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.npy import read_header
from retrieval.sources.vectors import NpyVectors, ParquetVectors, open_vectors
from tests.retrieval.sources.contract import NAMES, SourceContract

D = 3


def read_vector(reader, path):
    """Return the (d,) vector at a path."""
    (vector,) = reader.vectors(path, 1)
    if isinstance(vector, np.ndarray):
        return vector
    return vector.values.to_numpy(zero_copy_only=False)


def npy_bytes(array):
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=True)
    return sink.getvalue()


def parquet_bytes(table, **options):
    sink = io.BytesIO()
    pq.write_table(pa.table(table) if isinstance(table, dict) else table, sink, **options)
    return sink.getvalue()


def vector_column(vectors, dtype=np.float32, *, as_lists=False):
    """Return an Arrow column of D-dimensional vectors given as bytes."""
    array = np.array([np.frombuffer(vector, dtype) for vector in vectors], dtype).reshape(-1, D)
    if as_lists:
        return pa.array(list(array), pa.list_(pa.from_numpy_dtype(dtype)))
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), D)


class VectorContract(SourceContract):
    unit, has_other_files = "vectors", False
    kind = np.float32

    def make_images(self, names=NAMES):
        values = np.random.default_rng(0).normal(size=(len(names), D)).astype(self.kind)
        return {name: vector.tobytes() for name, vector in zip(names, values, strict=True)}

    def test_vectors_are_readable_by_path(self, folder):
        expected = {self.expected_id(name): data for name, data in self.make_images().items()}
        with ItemReader() as reader:
            for item in self.make_source(folder, self.make_images()).items():
                vector = read_vector(reader, item.path)
                assert vector.dtype == self.kind
                assert vector.tobytes() == expected[item.image_id]

    def test_dimension(self, folder):
        assert self.make_source(folder, self.make_images()).dimension() == D


class TestParquetFile(VectorContract):
    def make_source(self, folder, images, other_files=()):
        table = {
            "id": pa.array(list(images), pa.string()),
            "embedding": vector_column(images.values()),
            "more": pa.array(range(len(images))),
            "other": vector_column(images.values()),
        }
        return ParquetVectors(folder.put("x.parquet", parquet_bytes(table, row_group_size=4)))

    def missing_source(self, folder):
        return ParquetVectors(f"{folder.root}/x.parquet")


class TestParquetFolderOfLists(VectorContract):
    kind = np.float64

    def make_source(self, folder, images, other_files=()):
        for name, data in images.items():
            rows = vector_column([data], self.kind, as_lists=True)
            folder.put(f"{name}.parquet", parquet_bytes({"clip": rows}))
        if not images:
            folder.put("empty.pq", parquet_bytes({"clip": pa.array([], pa.list_(pa.float64()))}))
        return ParquetVectors(folder.root, embedding_column="clip")

    def missing_source(self, folder):
        return ParquetVectors(folder.root)

    def expected_id(self, name):
        return f"{name}.parquet/0"


class TestNpy(VectorContract):
    kind = np.float16

    def make_source(self, folder, images, other_files=()):
        array = [np.frombuffer(vector, self.kind) for vector in images.values()]
        lines = "".join(f"{name}\n" for name in images)
        return NpyVectors(
            folder.put("x.npy", npy_bytes(np.array(array, self.kind).reshape(-1, D))),
            ids=folder.put("ids.txt", lines.encode()),
        )

    def missing_source(self, folder):
        return NpyVectors(f"{folder.root}/x.npy")


class TestNpyFolder(VectorContract):
    """The source contract for an array in several parts."""

    has_other_files = False

    def make_source(self, folder, images, other_files=()):
        array = [np.frombuffer(vector, self.kind) for vector in images.values()]
        rows = np.array(array, self.kind).reshape(-1, D)
        for number, part in enumerate(np.array_split(rows, 11)):  # more than ten
            folder.put(f"parts/e-{number}.npy", npy_bytes(part))
        lines = "".join(f"{name}\n" for name in images)
        return NpyVectors(f"{folder.root}/parts", ids=folder.put("ids.txt", lines.encode()))

    def missing_source(self, folder):
        return NpyVectors(f"{folder.root}/parts")


# --- ids ------------------------------------------------------------------------------------------


def test_ids_without_id_file_are_row_numbers(local):
    source = open_vectors(local.put("x.npy", npy_bytes(np.eye(D))))
    assert [item.image_id for item in source.items()] == ["0", "1", "2"]


@pytest.mark.parametrize("root", ["{}", "{}/*.npy"])
def test_array_parts_are_concatenated_in_numeric_name_order(local, root):
    array = np.arange(36, dtype=np.float32).reshape(12, D)
    for number, part in enumerate(np.split(array, 12)):
        local.put(f"e{number}.npy", npy_bytes(part))
    local.put("notes.txt", b"")
    source = open_vectors(root.format(local.root))
    items = list(source.items())
    assert [item.image_id for item in items] == [str(row) for row in range(12)]
    with ItemReader() as reader:
        np.testing.assert_array_equal([read_vector(reader, item.path) for item in items], array)


@pytest.mark.parametrize("count", [2, 4])
def test_wrong_id_count_for_array_parts_is_refused(local, count):
    for number in range(3):
        local.put(f"parts/{number}.npy", npy_bytes(np.eye(1, D)))
    ids_path = local.put("i.txt", b"1\n2\n3\n4\n"[: 2 * count])
    with pytest.raises(Mismatch, match=r"has (only 2|more) ids for the 3 vectors"):
        list(open_vectors(f"{local.root}/parts", ids=ids_path).items())


def test_array_parts_of_different_dimensions_are_refused(local):
    local.put("parts/0.npy", npy_bytes(np.eye(2)))
    local.put("parts/1.npy", npy_bytes(np.eye(3)))
    with pytest.raises(InputError, match=r"1\.npy has vectors of dimension 3, and .*0\.npy of 2"):
        list(open_vectors(f"{local.root}/parts").items())
    os.mkfifo(f"{local.root}/parts/2.npy")
    with pytest.raises(InputError, match=r"2\.npy cannot be read: it is a named pipe"):
        list(open_vectors(f"{local.root}/parts").items())


@pytest.mark.parametrize("other", ["a.jpg", "x/a.tar", "a.parquet"])
def test_folder_with_other_data_files_is_no_array(local, other):
    local.put("e.npy", npy_bytes(np.eye(2)))
    assert vectors.is_npy(local.root)
    local.put(other, b"")
    assert not vectors.is_npy(local.root)


EXPECTED_IDS = ["b", "a/1", "ü"]


@pytest.mark.parametrize(
    ("name", "data", "id_column"),
    [
        ("i.txt", "b\r\na/1\nü".encode(), None),
        ("i.npy", npy_bytes(np.array(EXPECTED_IDS)), None),
        ("i.npy", npy_bytes(np.array([each.encode() for each in EXPECTED_IDS])), None),
        ("i.csv", "x,id\n1,b\n2,a/1\n3,ü\n".encode(), None),
        ("i.csv", "x,name\n1,b\n2,a/1\n3,ü\n".encode(), "name"),
        ("i.parquet", parquet_bytes({"x": [1, 2, 3], "image_id": EXPECTED_IDS}), None),
        ("i.parquet", parquet_bytes({"key": EXPECTED_IDS}), None),
    ],
)
def test_id_files_of_each_format(local, monkeypatch, name, data, id_column):
    monkeypatch.setattr(id_files, "_BATCH", 2)
    source = open_vectors(
        local.put("x.npy", npy_bytes(np.eye(D))), ids=local.put(name, data), id_column=id_column
    )
    assert [item.image_id for item in source.items()] == EXPECTED_IDS


def test_integer_ids_are_read_as_text(local):
    ids = id_files.read_ids(local.put("i.npy", npy_bytes(np.array([7, 1 << 62]))), None, {})
    assert list(ids) == ["7", str(1 << 62)]


@pytest.mark.parametrize("count", [2, 4])
def test_wrong_id_count_is_refused(local, count):
    source = open_vectors(
        local.put("x.npy", npy_bytes(np.eye(D))),
        ids=local.put("i.txt", b"1\n2\n3\n4\n"[: 2 * count]),
    )
    with pytest.raises(Mismatch, match=r"--ids .*i\.txt has (only 2|more) ids for the 3 vectors"):
        list(source.items())


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("i.jpg", b"", "unsupported suffix"),
        ("i.npy", npy_bytes(np.array(["a", None], object)), "unpickling"),
        ("i.npy", npy_bytes(np.eye(2)), "of shape"),
        ("i.npy", b"not an array", "not a readable .npy file"),
        ("i.csv", b"a,b\n1,2\n", "--id-column"),
        ("none.txt", None, "does not exist"),
    ],
)
def test_invalid_id_files_are_refused(local, name, data, reason):
    array = local.put("x.npy", npy_bytes(np.eye(2)))
    path = f"{local.root}/{name}" if data is None else local.put(name, data)
    with pytest.raises(InputError, match=reason):
        list(open_vectors(array, ids=path).items())


# --- arrays ---------------------------------------------------------------------------------------


class FileCreator:
    """Object that creates a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.eye(3, dtype=bool), "save vectors as rows of float16"),
        (np.ones(3), "save vectors as rows"),
        (np.ones((2, 2, 2)), "save vectors as rows"),
        (np.ones((3, 0)), "save vectors as rows"),
        (np.ones((2, 2), np.longdouble), "save vectors as rows"),
        (np.ones((2, 2), np.complex64), "save vectors as rows"),
        (np.asfortranarray(np.ones((3, 2))), "ascontiguousarray"),
    ],
)
def test_arrays_without_float_rows_are_refused(local, array, reason):
    path = local.put("x.npy", npy_bytes(array))
    with pytest.raises(InputError, match=rf"x\.npy .*{reason}"):
        list(open_vectors(path).items())


def test_pickled_array_is_refused_and_not_unpickled(local, tmp_path):
    path = local.put("x.npy", npy_bytes(np.array([[FileCreator(tmp_path / "trace")]], object)))
    with pytest.raises(InputError, match="unpickling"):
        open_vectors(path).dimension()
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("length", [0, 5, 9, 60, 127, 130])
def test_truncated_array_is_refused(local, length):
    path = local.put("x.npy", npy_bytes(np.eye(3))[:length])
    with pytest.raises(InputError, match=r"x\.npy"):
        list(open_vectors(path).items())


def test_concatenated_arrays_are_refused(local):
    path = local.put("x.npy", npy_bytes(np.eye(3)) + npy_bytes(np.eye(3)))
    with pytest.raises(InputError, match=r"x\.npy continues after its last row"):
        list(open_vectors(path).items())


def test_big_endian_array_and_version_2_header(local):
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    sink = io.BytesIO()
    np.lib.format.write_array(sink, array, version=(2, 0))
    source = open_vectors(local.put("x.npy", sink.getvalue()))
    with ItemReader() as reader:
        vectors_read = [read_vector(reader, item.path) for item in source.items()]
    np.testing.assert_array_equal(vectors_read, array)
    assert read_header(io.BytesIO(sink.getvalue()), "x").row_bytes == 12


# --- columns --------------------------------------------------------------------------------------


def test_invalid_columns_and_options_are_refused(local):
    data = parquet_bytes(
        {"a": vector_column([b"\0" * 12]), "b": vector_column([b"\0" * 12]), "n": [1]}
    )
    path = local.put("x.parquet", data)
    with pytest.raises(InputError, match=r"--embedding-column \(columns: a, b, n\)"):
        open_vectors(path)
    with pytest.raises(InputError, match=r"n .* no lists of numbers"):
        open_vectors(path, embedding_column="n")
    with pytest.raises(UsageError, match="--embedding-column c is no column"):
        open_vectors(path, embedding_column="c")
    with pytest.raises(UsageError, match="--id-column c is no column"):
        open_vectors(path, embedding_column="a", id_column="c")
    with pytest.raises(UsageError, match=r"--ids is for \.npy"):
        open_vectors(path, ids="x")
    with pytest.raises(UsageError, match="--embedding-column is for Parquet"):
        open_vectors(local.put("x.npy", npy_bytes(np.eye(2))), embedding_column="a")
    with pytest.raises(InputError, match="contains no vectors"):
        open_vectors(local.put("photo.jpg", b""))
    with pytest.raises(InputError, match="does not exist"):
        open_vectors(f"{local.root}/missing")


def test_labels_and_extra_columns_are_listed(local):
    table = {
        "image_id": [3, 1], "embedding": vector_column([b"\0" * 12] * 2), "label": ["cat", None],
        "price": [1.5, 2.5], "seen": pa.array([True, None]),
    }  # fmt: skip
    source = open_vectors(local.put("x.parquet", parquet_bytes(table)))
    assert source.columns().names == ["price", "seen"]
    actual = [(item.image_id, item.label, item.more) for item in source.items()]
    assert actual == [("3", "cat", (1.5, True)), ("1", None, (2.5, None))]


def test_dimension_is_most_common_list_length(local, monkeypatch):
    rows = pa.array([None, [], [1.0], [1.0, 2.0], [3.0, 4.0]], pa.large_list(pa.float16()))
    path = local.put("x.parquet", parquet_bytes({"v": rows}))
    assert open_vectors(path).dimension() == 2
    monkeypatch.setattr(vectors, "_SAMPLE_ROWS", 2)
    assert open_vectors(path).dimension() in (1, 2)
    with ItemReader() as reader:
        items = list(open_vectors(path).items())
        assert [len(read_vector(reader, item.path)) for item in items[1:]] == [0, 1, 2, 2]
        assert not reader.vectors(items[0].path, 1)[0].is_valid


@pytest.mark.parametrize("shape", [(D,), (1, D), (D, 1)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_dimensional_tensor_column_is_read(local, shape, dtype):
    array = np.arange(4 * D, dtype=dtype).reshape(4, *shape)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(array)
    column = pa.concat_arrays([column, pa.nulls(1, column.type)])
    source = open_vectors(
        local.put("x.parquet", parquet_bytes({"id": list("abcde"), "clip": column}))
    )
    assert source.dimension() == D
    items = list(source.items())
    assert [item.image_id for item in items] == list("abcde")
    with ItemReader() as reader:
        actual = [read_vector(reader, item.path) for item in items[:4]]
        assert {vector.dtype for vector in actual} == {np.dtype(dtype)}
        np.testing.assert_array_equal(actual, array.reshape(4, D))
        assert reader.read(items[0].path) == array[0].tobytes()
        assert not reader.vectors(items[4].path, 1)[0].is_valid


@pytest.mark.parametrize("array", [np.ones((2, 2, 2), np.float32), np.ones((2, D), np.int64)])
def test_other_tensor_columns_are_refused(local, array):
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(array)
    path = local.put("x.parquet", parquet_bytes({"clip": column}))
    with pytest.raises(InputError, match=r"unclear which column of .* holds vectors"):
        open_vectors(path)


def test_null_in_vector_is_nan(local):
    rows = pa.array([[1.0, None]], pa.list_(pa.float32(), 2))
    (item,) = open_vectors(local.put("x.parquet", parquet_bytes({"v": rows}))).items()
    with ItemReader() as reader:
        np.testing.assert_array_equal(read_vector(reader, item.path), [1.0, np.nan])


@pytest.mark.parametrize("first", range(0, 12, 2))
def test_consecutive_rows_are_read_at_once(local, monkeypatch, first):
    """Across decoded batches and row groups of Parquet."""
    monkeypatch.setattr(item_reader, "_VECTOR_ROWS", 2)
    array = np.random.default_rng(0).normal(size=(12, D)).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(array.ravel(), D)
    sink = io.BytesIO()
    pq.write_table(pa.table({"v": lists}), sink, row_group_size=5)
    paths = [local.put("x.parquet", sink.getvalue()), local.put("x.npy", npy_bytes(array))]
    with ItemReader() as reader:
        for path in paths:
            items = list(open_vectors(path).items())
            vectors = reader.vectors(items[first].path, 12 - first)
            actual = vectors if path.endswith("npy") else vectors.flatten().to_numpy()
            np.testing.assert_array_equal(np.reshape(actual, (-1, D)), array[first:])
            with pytest.raises(ValueError, match="has no row 12"):
                reader.vectors(items[first].path, 13 - first)
