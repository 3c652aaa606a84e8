"""Tests of sources of precomputed vectors: ids, paths, dimensions and errors."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.core.errors import InputError, Mismatch, UsageError
from retrieval.sources import id_files, vectors
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.npy import read_header
from retrieval.sources.vectors import NpyVectors, ParquetVectors, open_vectors
from tests.retrieval.sources.contract import NAMES, SourceContract

D = 3


def npy(array):
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=True)
    return sink.getvalue()


def parquet(table, **options):
    sink = io.BytesIO()
    pq.write_table(pa.table(table) if isinstance(table, dict) else table, sink, **options)
    return sink.getvalue()


def column(data, kind=np.float32, *, listed=False):
    """Vectors, as bytes, as a column."""
    array = np.array([np.frombuffer(one, kind) for one in data], kind).reshape(-1, D)
    if listed:
        return pa.array(list(array), pa.list_(pa.from_numpy_dtype(kind)))
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), D)


class VectorContract(SourceContract):
    unit, others = "vectors", False
    kind = np.float32

    def images(self, names=NAMES):
        values = np.random.default_rng(0).normal(size=(len(names), D)).astype(self.kind)
        return {name: one.tobytes() for name, one in zip(names, values, strict=True)}

    def test_every_path_opens_to_the_numbers(self, place):
        wanted = {self.image_id(name): data for name, data in self.images().items()}
        with ItemReader() as reader:
            for item in self.source(place, self.images()).items():
                found = reader.vector(item.path)
                assert found.dtype == self.kind
                assert found.tobytes() == wanted[item.image_id]

    def test_the_dimension_is_told(self, place):
        assert self.source(place, self.images()).dimension() == D


class TestParquetFile(VectorContract):
    def source(self, place, images, others=()):
        table = {
            "id": pa.array(list(images), pa.string()),
            "embedding": column(images.values()),
            "more": pa.array(range(len(images))),
            "other": column(images.values()),
        }
        return ParquetVectors(place.put("x.parquet", parquet(table, row_group_size=4)))

    def missing(self, place):
        return ParquetVectors(f"{place.root}/x.parquet")


class TestParquetFolderOfLists(VectorContract):
    kind = np.float64

    def source(self, place, images, others=()):
        for name, data in images.items():
            rows = column([data], self.kind, listed=True)
            place.put(f"{name}.parquet", parquet({"clip": rows}))
        if not images:
            place.put("empty.pq", parquet({"clip": pa.array([], pa.list_(pa.float64()))}))
        return ParquetVectors(place.root, embedding_column="clip")

    def missing(self, place):
        return ParquetVectors(place.root)

    def image_id(self, name):
        return f"{name}.parquet/0"


class TestNpy(VectorContract):
    kind = np.float16

    def source(self, place, images, others=()):
        array = [np.frombuffer(one, self.kind) for one in images.values()]
        lines = "".join(f"{name}\n" for name in images)
        return NpyVectors(
            place.put("x.npy", npy(np.array(array, self.kind).reshape(-1, D))),
            ids=place.put("ids.txt", lines.encode()),
        )

    def missing(self, place):
        return NpyVectors(f"{place.root}/x.npy")


class TestNpyFolder(VectorContract):
    """Parts of one array, at several depths, and files of other kinds."""

    others = False

    def source(self, place, images, others=()):
        array = [np.frombuffer(one, self.kind) for one in images.values()]
        rows = np.array(array, self.kind).reshape(-1, D)
        for number, part in enumerate(np.array_split(rows, 11)):  # more than ten
            place.put(f"parts/e-{number}.npy", npy(part))
        lines = "".join(f"{name}\n" for name in images)
        return NpyVectors(f"{place.root}/parts", ids=place.put("ids.txt", lines.encode()))

    def missing(self, place):
        return NpyVectors(f"{place.root}/parts")


# --- ids ----------------------------------------------------------------------------------------


def test_without_ids_they_are_the_numbers_of_the_rows(local):
    source = open_vectors(local.put("x.npy", npy(np.eye(D))))
    assert [item.image_id for item in source.items()] == ["0", "1", "2"]


@pytest.mark.parametrize("root", ["{}", "{}/*.npy"])
def test_parts_of_an_array_are_numbered_through_by_the_numbers_in_their_names(local, root):
    array = np.arange(36, dtype=np.float32).reshape(12, D)
    for number, part in enumerate(np.split(array, 12)):
        local.put(f"e{number}.npy", npy(part))
    local.put("notes.txt", b"")
    source = open_vectors(root.format(local.root))
    found = list(source.items())
    assert [item.image_id for item in found] == [str(row) for row in range(12)]
    with ItemReader() as reader:
        np.testing.assert_array_equal([reader.vector(item.path) for item in found], array)


@pytest.mark.parametrize("count", [2, 4])
def test_as_many_ids_as_rows_in_all_parts(local, count):
    for number in range(3):
        local.put(f"parts/{number}.npy", npy(np.eye(1, D)))
    ids_ = local.put("i.txt", b"1\n2\n3\n4\n"[: 2 * count])
    with pytest.raises(Mismatch, match=r"has (only 2|more) ids for the 3 vectors"):
        list(open_vectors(f"{local.root}/parts", ids=ids_).items())


def test_parts_that_do_not_make_one_array_are_refused(local):
    local.put("parts/0.npy", npy(np.eye(2)))
    local.put("parts/1.npy", npy(np.eye(3)))
    with pytest.raises(InputError, match=r"1\.npy has vectors of 3 numbers and .*0\.npy of 2"):
        list(open_vectors(f"{local.root}/parts").items())
    os.mkfifo(f"{local.root}/parts/2.npy")
    with pytest.raises(InputError, match=r"2\.npy cannot be read: it is a named pipe"):
        list(open_vectors(f"{local.root}/parts").items())


@pytest.mark.parametrize("other", ["a.jpg", "x/a.tar", "a.parquet"])
def test_a_folder_of_images_tars_or_parquet_is_no_array(local, other):
    local.put("e.npy", npy(np.eye(2)))
    assert vectors.is_npy(local.root)
    local.put(other, b"")
    assert not vectors.is_npy(local.root)


WANTED = ["b", "a/1", "ü"]


@pytest.mark.parametrize(
    ("name", "data", "named"),
    [
        ("i.txt", "b\r\na/1\nü".encode(), None),
        ("i.npy", npy(np.array(WANTED)), None),
        ("i.npy", npy(np.array([one.encode() for one in WANTED])), None),
        ("i.csv", "x,id\n1,b\n2,a/1\n3,ü\n".encode(), None),
        ("i.csv", "x,name\n1,b\n2,a/1\n3,ü\n".encode(), "name"),
        ("i.parquet", parquet({"x": [1, 2, 3], "image_id": WANTED}), None),
        ("i.parquet", parquet({"key": WANTED}), None),
    ],
)
def test_ids_of_every_kind(local, monkeypatch, name, data, named):
    monkeypatch.setattr(id_files, "_BATCH", 2)
    source = open_vectors(
        local.put("x.npy", npy(np.eye(D))), ids=local.put(name, data), id_column=named
    )
    assert [item.image_id for item in source.items()] == WANTED


def test_whole_numbers_are_ids_too(local):
    found = id_files.read_ids(local.put("i.npy", npy(np.array([7, 1 << 62]))), None, {})
    assert list(found) == ["7", str(1 << 62)]


@pytest.mark.parametrize("count", [2, 4])
def test_as_many_ids_as_vectors(local, count):
    source = open_vectors(
        local.put("x.npy", npy(np.eye(D))), ids=local.put("i.txt", b"1\n2\n3\n4\n"[: 2 * count])
    )
    with pytest.raises(Mismatch, match=r"--ids .*i\.txt has (only 2|more) ids for the 3 vectors"):
        list(source.items())


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("i.jpg", b"", "of no kind"),
        ("i.npy", npy(np.array(["a", None], object)), "unpickling"),
        ("i.npy", npy(np.eye(2)), "of shape"),
        ("i.npy", b"no array", "no .npy file"),
        ("i.csv", b"a,b\n1,2\n", "--id-column"),
        ("none.txt", None, "does not exist"),
    ],
)
def test_ids_that_are_refused(local, name, data, why):
    array = local.put("x.npy", npy(np.eye(2)))
    path = f"{local.root}/{name}" if data is None else local.put(name, data)
    with pytest.raises(InputError, match=why):
        list(open_vectors(array, ids=path).items())


# --- arrays -------------------------------------------------------------------------------------


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


@pytest.mark.parametrize(
    ("array", "why"),
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
def test_arrays_that_hold_no_vectors(local, array, why):
    path = local.put("x.npy", npy(array))
    with pytest.raises(InputError, match=rf"x\.npy .*{why}"):
        list(open_vectors(path).items())


def test_nothing_is_unpickled(local, tmp_path):
    path = local.put("x.npy", npy(np.array([[Trap(tmp_path / "trace")]], object)))
    with pytest.raises(InputError, match="unpickling"):
        open_vectors(path).dimension()
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("cut", [0, 5, 9, 60, 127, 130])
def test_an_array_that_is_cut_off_is_refused(local, cut):
    path = local.put("x.npy", npy(np.eye(3))[:cut])
    with pytest.raises(InputError, match=r"x\.npy"):
        list(open_vectors(path).items())


def test_arrays_saved_one_behind_the_other_are_refused(local):
    path = local.put("x.npy", npy(np.eye(3)) + npy(np.eye(3)))
    with pytest.raises(InputError, match=r"x\.npy goes on behind its last row"):
        list(open_vectors(path).items())


def test_any_byte_order_and_later_headers(local):
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    sink = io.BytesIO()
    np.lib.format.write_array(sink, array, version=(2, 0))
    source = open_vectors(local.put("x.npy", sink.getvalue()))
    with ItemReader() as reader:
        found = [reader.vector(item.path) for item in source.items()]
    np.testing.assert_array_equal(found, array)
    assert read_header(io.BytesIO(sink.getvalue()), "x").row_bytes == 12


# --- columns ------------------------------------------------------------------------------------


def test_columns_that_are_refused(local):
    both = parquet({"a": column([b"\0" * 12]), "b": column([b"\0" * 12]), "n": [1]})
    path = local.put("x.parquet", both)
    with pytest.raises(InputError, match=r"--embedding-column \(there are a, b, n\)"):
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
        open_vectors(local.put("x.npy", npy(np.eye(2))), embedding_column="a")
    with pytest.raises(InputError, match="holds no vectors"):
        open_vectors(local.put("photo.jpg", b""))
    with pytest.raises(InputError, match="does not exist"):
        open_vectors(f"{local.root}/nowhere")


def test_further_columns_and_labels_go_along(local):
    table = {
        "image_id": [3, 1], "embedding": column([b"\0" * 12] * 2), "label": ["cat", None],
        "price": [1.5, 2.5], "seen": pa.array([True, None]),
    }  # fmt: skip
    source = open_vectors(local.put("x.parquet", parquet(table)))
    assert source.columns().names == ["price", "seen"]
    found = [(item.image_id, item.label, item.more) for item in source.items()]
    assert found == [("3", "cat", (1.5, True)), ("1", None, (2.5, None))]


def test_lists_of_any_length_have_the_length_of_most(local, monkeypatch):
    rows = pa.array([None, [], [1.0], [1.0, 2.0], [3.0, 4.0]], pa.large_list(pa.float16()))
    path = local.put("x.parquet", parquet({"v": rows}))
    assert open_vectors(path).dimension() == 2
    monkeypatch.setattr(vectors, "_SAMPLE_ROWS", 2)
    assert open_vectors(path).dimension() in (1, 2)
    with ItemReader() as reader:
        items = list(open_vectors(path).items())
        assert [len(reader.vector(item.path)) for item in items[1:]] == [0, 1, 2, 2]
        with pytest.raises(ValueError, match="holds no vector"):
            reader.vector(items[0].path)


@pytest.mark.parametrize("shape", [(D,), (1, D), (D, 1)])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_tensors_of_one_dimension_are_vectors(local, shape, kind):
    array = np.arange(4 * D, dtype=kind).reshape(4, *shape)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(array)
    column = pa.concat_arrays([column, pa.nulls(1, column.type)])
    source = open_vectors(local.put("x.parquet", parquet({"id": list("abcde"), "clip": column})))
    assert source.dimension() == D
    found = list(source.items())
    assert [item.image_id for item in found] == list("abcde")
    with ItemReader() as reader:
        read = [reader.vector(item.path) for item in found[:4]]
        assert {one.dtype for one in read} == {np.dtype(kind)}
        np.testing.assert_array_equal(read, array.reshape(4, D))
        assert reader.read(found[0].path) == array[0].tobytes()
        with pytest.raises(ValueError, match="holds no vector"):
            reader.vector(found[4].path)


@pytest.mark.parametrize("array", [np.ones((2, 2, 2), np.float32), np.ones((2, D), np.int64)])
def test_other_tensors_are_no_vectors(local, array):
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(array)
    path = local.put("x.parquet", parquet({"clip": column}))
    with pytest.raises(InputError, match="no column that must be the vectors"):
        open_vectors(path)


def test_a_null_among_the_numbers_is_no_number(local):
    rows = pa.array([[1.0, None]], pa.list_(pa.float32(), 2))
    (item,) = open_vectors(local.put("x.parquet", parquet({"v": rows}))).items()
    with ItemReader() as reader:
        np.testing.assert_array_equal(reader.vector(item.path), [1.0, np.nan])
