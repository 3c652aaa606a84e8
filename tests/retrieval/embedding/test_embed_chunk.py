"""Tests of embedding a chunk.

Each image becomes a row of the part or a failure, and an interrupted run is resumed to the same
bytes.
"""

import hashlib
import os
import shutil
import tarfile
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from retrieval.core.errors import Damaged, LookalikeError, StorageFailure
from retrieval.core.schemas import FAILURES, part_table
from retrieval.embedding import embed_batch
from retrieval.embedding.embed_batch import DecodeSettings
from retrieval.images.decode import decode
from retrieval.listing.listing import write_listing
from retrieval.sources.folder import FolderSource
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.parquet import ParquetSource
from retrieval.sources.webdataset import TarSource
from retrieval.storage import finished_output, local, retry, transaction
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store import reader
from retrieval.store.layout import failures_path, listing_path, part_path
from tests.file_tree import read_tree
from tests.retrieval.embedding.conftest import (
    BATCH,
    ScriptedEmbedder,
    StoreBuilder,
)
from tests.retrieval.storage.faults import (
    FailAt,
    Killed,
    inject_faults,
    raise_io_error,
    record_operations,
)

BROKEN = {
    "class0/a corrupted file.jpg": ("decode", "UnidentifiedImageError"),
    "class1/cut off.jpg": ("decode", "OSError"),
    "class1/vanished.jpg": ("read", "FileNotFoundError"),
    "empty.png": ("decode", "UnidentifiedImageError"),
    "too large.png": ("decode", "DecompressionBombError"),
}


# --- rows and failures of a chunk ---


def test_each_image_becomes_one_row_or_one_failure(builder):
    listed = {row["image_id"]: row for row in builder.table(listing_path(0)).to_pylist()}
    assert len(builder.grid) == 3
    row_numbers = []
    for chunk in builder.grid:
        result = builder.embed(chunk)
        rows, failures = builder.rows(chunk), builder.failures(chunk)
        assert (result.number, result.rows, result.failures) == (
            chunk.number, len(rows), len(failures),
        )  # fmt: skip
        for records in (rows, failures):
            numbers = [record["row"] for record in records]
            assert numbers == sorted(numbers)
            row_numbers += numbers
        assert sorted(row_numbers) == list(range(chunk.last))
        for record in [*rows, *failures]:
            listed_row = listed[record["image_id"]]
            assert (record["row"], record["path"]) == (listed_row["row"], listed_row["path"])
    assert any(
        np.diff(builder.table(part_path(builder.grid[n]))["row"].to_numpy()).max() > 1
        for n in (0, 1)
    )


def test_failures_record_stage_error_and_message(builder):
    failures = []
    for chunk in builder.grid:
        builder.embed(chunk)
        failures += builder.failures(chunk)
    assert {
        failure["image_id"]: (failure["stage"], failure["error"]) for failure in failures
    } == BROKEN
    assert all(failure["message"] and "\n" not in failure["message"] for failure in failures)
    assert "cannot identify image file" in [failure["message"] for failure in failures]
    assert builder.table(failures_path(builder.grid[0])).schema.equals(FAILURES.schema)


def test_rows_record_hash_size_label_and_embedding(builder, embedder):
    for chunk in builder.grid:
        builder.embed(chunk)
        assert builder.table(part_path(chunk)).schema.equals(
            part_table(embedder.bundle.dimension, "float16").schema
        )
        for row in builder.rows(chunk):
            content = Path(row["path"]).read_bytes()
            assert row["sha256"] == hashlib.sha256(content).hexdigest()
            assert (row["width"], row["height"]) == (64, 48)
            assert row["label"] == row["image_id"].split("/")[0]
            pixels = decode(content, embedder.bundle.transform, max_pixels=10**6).pixels
            assert np.allclose(row["embedding"], embedder.embed([pixels])[0], atol=1e-3)
            assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=2e-3)


def test_result_lists_written_files_and_bytes_read(builder):
    chunk = builder.grid[0]
    result = builder.embed(chunk)
    assert [record.path for record in result.files] == [
        failures_path(builder.grid[0]),
        part_path(builder.grid[0]),
    ]
    for record in result.files:
        assert record == transaction.file_record(record.path, builder.folder.read(record.path))
    assert result.read_bytes == sum(os.path.getsize(row["path"]) for row in builder.rows(chunk))


def test_chunk_of_only_unreadable_images_has_empty_part(tmp_path, embedder):
    root = tmp_path / "photos"
    root.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (root / name).write_bytes(b"rubbish")
    builder = StoreBuilder(str(root), tmp_path / "store", embedder).prepare()
    result = builder.embed(builder.grid[0])
    assert (result.rows, result.failures) == (0, 2)
    assert builder.rows(builder.grid[0]) == []
    assert len(builder.failures(builder.grid[0])) == 2


def test_chunk_without_failures_writes_no_failures_file(builder, photos, tmp_path, embedder):
    builder = StoreBuilder(str(photos("valid", 3)), tmp_path / "valid-store", embedder).prepare()
    result = builder.embed(builder.grid[0])
    assert [record.path for record in result.files] == [part_path(builder.grid[0])]
    assert not builder.folder.exists(failures_path(builder.grid[0]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_vectors_are_stored_in_requested_dtype(source, tmp_path, embedder, dtype):
    builder = StoreBuilder(
        source, tmp_path / "store", embedder, DecodeSettings(10**6, dtype)
    ).prepare()
    builder.embed(builder.grid[0])
    vectors = reader.read_vectors(builder.table(part_path(builder.grid[0])))
    assert vectors.dtype == dtype
    assert vectors.shape[1] == embedder.bundle.dimension


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_vectors_that_cannot_be_searched_are_recorded_as_failures(
    tmp_path, photos, embedder, ahead
):
    valid = np.linspace(0, 1, embedder.bundle.dimension, dtype=np.float32)
    unsearchable = (valid * np.nan, valid + np.inf, valid * 1e6, valid * 0, valid * 1e-12)
    scripted = ScriptedEmbedder(embedder, valid, *unsearchable, valid, ahead=ahead)
    root = photos("photos", 7, classes=1)
    (root / "class0" / "photo0001b.jpg").write_bytes(
        b"not an image: fails in decoding, before its neighbours fail in embedding"
    )
    builder = StoreBuilder(str(root), tmp_path / "store", scripted, chunk_rows=8).prepare()
    result = builder.embed(builder.grid[0])
    assert (result.rows, result.failures) == (2, 6)
    assert [row["row"] for row in builder.rows(builder.grid[0])] == [0, 7]
    assert [
        (failure["row"], failure["stage"], failure["message"])
        for failure in builder.failures(builder.grid[0])
    ] == [
        (1, "embed", "the vector is not finite as stored"),
        (2, "decode", "cannot identify image file"),
        (3, "embed", "the vector is not finite as stored"),
        (4, "embed", "the vector is not finite as stored"),
        (5, "embed", "the vector has no length"),
        (6, "embed", "the vector has no length"),
    ]


def test_deleted_image_with_non_utf8_name_is_recorded_as_failure(tmp_path, embedder):
    root = tmp_path / "photos"
    root.mkdir()
    name = os.fsdecode(os.fsencode(root) + b"/caf\xe9.jpg")
    Image.new("RGB", (40, 30)).save(root / "valid.jpg")
    Path(name).write_bytes(b"")
    builder = StoreBuilder(str(root), tmp_path / "store", embedder).prepare()
    os.unlink(name)
    assert builder.embed(builder.grid[0]).failures == 1
    (failure,) = builder.failures(builder.grid[0])
    assert (failure["image_id"], failure["stage"]) == ("caf%E9.jpg", "read")


def test_source_and_store_on_object_storage(source, tmp_path, embedder):
    system = fsspec.filesystem("memory")
    try:
        for path in Path(source).rglob("*.*"):
            if path.exists():
                system.put_file(str(path), f"/embed/photos/{path.relative_to(source)}")
        builder = StoreBuilder("memory://embed/photos", "memory://embed/store", embedder).build()
        manifest = finished_output.read_manifest(builder.folder, kind="store")
        assert (manifest.counts["rows"], manifest.counts["failures"]) == (
            9,
            4,
        )  # object storage has no symbolic links
        assert {verdict.state for verdict in verify(builder.folder)} == {"finished"}
    finally:
        system.rm("/embed", recursive=True)


# --- repeated calls, order and batching ---


def test_second_call_keeps_part_and_reads_no_image(builder):
    chunk = builder.grid[1]
    first_result = builder.embed(chunk)
    before = read_tree(Path(builder.folder.uri()))
    storage_operations = record_operations(
        lambda: setattr(builder, "second_result", builder.embed(chunk))
    )
    chunk_files = [part_path(chunk), failures_path(chunk)][: 1 + bool(first_result.failures)]
    assert {path for _, _, path in storage_operations} == {
        builder.folder.uri(path) for path in chunk_files
    }
    assert read_tree(Path(builder.folder.uri())) == before
    second_result = builder.second_result
    assert second_result.number == 1
    assert second_result.rows == first_result.rows
    assert second_result.failures == first_result.failures
    assert second_result.files == first_result.files


@pytest.mark.parametrize("path_of", [part_path, failures_path])
def test_altered_part_or_failures_file_raises_damaged(builder, path_of):
    chunk = next(chunk for chunk in builder.grid if builder.embed(chunk).failures)
    path = path_of(chunk)
    data = builder.folder.read(path)
    builder.folder.put(path, data[:99] + bytes([data[99] ^ 1]) + data[100:])
    with pytest.raises(Damaged, match=rf"{path} was altered"):
        builder.embed(chunk)


def test_chunk_order_does_not_change_output(source, tmp_path, embedder):
    forward = StoreBuilder(source, tmp_path / "forward", embedder).build()
    backward = StoreBuilder(source, tmp_path / "backward", embedder).prepare()
    for chunk in reversed(backward.grid):
        backward.embed(chunk)
    backward.build()
    assert read_tree(Path(forward.folder.uri()), exclude=()) == read_tree(
        Path(backward.folder.uri()), exclude=()
    )


def test_vectors_do_not_depend_on_batch_composition(tmp_path, photos, embedder):
    root = str(photos("photos", 9))
    decoding = DecodeSettings(10**6, "float32")
    vectors_by_chunk_rows = []
    for chunk_rows in (1, 2, 3, BATCH, 5, 9):
        builder = StoreBuilder(
            root, tmp_path / f"{chunk_rows}", embedder, decoding, chunk_rows
        ).prepare()
        parts = [builder.embed(chunk) and part_path(chunk) for chunk in builder.grid]
        vectors_by_chunk_rows.append(
            np.concatenate([reader.read_vectors(builder.table(path)) for path in parts])
        )
    assert np.linalg.matrix_rank(vectors_by_chunk_rows[0]) > 1
    for batched in vectors_by_chunk_rows[1:]:
        assert np.abs(batched - vectors_by_chunk_rows[0]).max() < 1e-6


@pytest.mark.parametrize("threads", [1, 3])
def test_decoding_in_threads_writes_same_bytes(source, tmp_path, embedder, threads):
    """Rows, failures and their order equal those of single-threaded decoding."""
    trees = []
    for number in (0, threads):
        decoding = DecodeSettings(10**6, "float16", number)
        builder = StoreBuilder(source, tmp_path / f"{number}", embedder, decoding).build()
        trees.append(read_tree(Path(builder.folder.uri()), exclude=()))
    assert trees[0] == trees[1]


def test_decoding_in_threads_prefetches_at_most_two_batches(source, embedder, monkeypatch):
    read_paths, embedded_rows = [], []
    original_read = ItemReader.read

    def counted(self, path, place, size):
        read_paths.append(path)
        # two prefetched batches and the current one
        assert len(read_paths) - len(embedded_rows) <= 3 * BATCH + 1
        return original_read(self, path, place, size)

    monkeypatch.setattr(ItemReader, "read", counted)
    path = str(Path(source, "class0/photo0000.jpg"))
    item = {"image_id": "x", "path": path, "label": None, "size": 1}
    items = [{**item, "row": row} for row in range(12 * BATCH)]
    decoding = DecodeSettings(10**6, "float16", 2)
    for batch in embed_batch.embed_items(items, embedder, decoding):
        embedded_rows += batch.rows
    assert [row["row"] for row in embedded_rows] == list(range(12 * BATCH))


# --- containers ---


def in_tar(root, target):
    """Return a tar source of a folder's photos and the image_ids of its two unreadable members."""
    with tarfile.open(target, "w") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "class0/photo0000.jpg"
        tar.addfile(link)
        tar.addfile(
            tarfile.TarInfo("class0/photo0000.jpg")
        )  # superseded by the later member of the same name
        tar.add(root, "")
    return TarSource(str(target)), {"x.tar/link.jpg", "x.tar/class0/photo0000.jpg (1)"}


def in_parquet(root, target):
    """Return a Parquet source of a folder's photos and the image_id of its null image."""
    paths = sorted(path for path in root.rglob("*.jpg"))
    images = [path.read_bytes() for path in paths] + [None]
    pq.write_table(pa.table({"image": images}), target, row_group_size=4)
    return ParquetSource(str(target)), {f"x.parquet/{len(paths)}"}


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize(("make", "name"), [(in_tar, "x.tar"), (in_parquet, "x.parquet")])
def test_images_in_containers_get_same_vectors_as_files(
    photos, tmp_path, embedder, make, name, threads
):
    root = photos("photos", 9)
    source, broken = make(root, tmp_path / name)
    vectors_by_source = {}
    for images in (FolderSource(str(root)), source):
        write_listing(images.items(), tmp_path / "listing.parquet")
        items = pq.read_table(tmp_path / "listing.parquet").to_pylist()
        decoding = DecodeSettings(10**6, "float16", threads)
        batches = list(embed_batch.embed_items(items, embedder, decoding))
        rows = [row for batch in batches for row in batch.rows]
        vectors = np.concatenate([batch.vectors for batch in batches])
        vectors_by_source[type(images)] = sorted(
            (row["sha256"], vector.tobytes()) for row, vector in zip(rows, vectors, strict=True)
        )
        size = sum(path.stat().st_size for path in root.rglob("*.jpg"))
        assert sum(batch.size for batch in batches) == size
    assert vectors_by_source[FolderSource] == vectors_by_source[type(source)]
    failures = [failure for batch in batches for failure in batch.failures]
    assert {failure["image_id"] for failure in failures} == broken


def test_items_with_problem_are_recorded_without_reading(tmp_path, embedder, monkeypatch):
    monkeypatch.setattr(ItemReader, "read", lambda *_: pytest.fail("read"))
    item = {
        "row": 7, "image_id": "x", "path": "/x", "label": "cat", "size": None,
        "place": 5, "problem": "it is a link",
    }  # fmt: skip
    (batch,) = embed_batch.embed_items([item], embedder, DecodeSettings(10**6, "float16"))
    assert batch.failures == [
        {"row": 7, "image_id": "x", "path": "/x", "label": "cat", "stage": "list",
         "error": "NotAnImage", "message": "it is a link"}
    ]  # fmt: skip


# --- faults ---


@pytest.fixture
def no_retry_delay(monkeypatch):
    monkeypatch.setattr(retry, "wait", lambda seconds: None)


def test_unreachable_storage_aborts_chunk_without_recording_failures(builder, no_retry_delay):
    def unreachable(when, operation, path):
        if path.endswith("photo0003.jpg"):
            raise ConnectionResetError("reset")

    chunk = next(c for c in builder.grid if c.first <= row_of(builder, "photo0003.jpg") < c.last)
    before = read_tree(Path(builder.folder.uri()))
    with inject_faults(unreachable), pytest.raises(StorageFailure, match=r"photo0003\.jpg"):
        builder.embed(chunk)
    assert read_tree(Path(builder.folder.uri())) == before
    builder.embed(chunk)
    assert "class0/photo0003.jpg" in [row["image_id"] for row in builder.rows(chunk)]


def row_of(builder, name):
    rows = builder.table(listing_path(0)).to_pylist()
    return next(row["row"] for row in rows if row["image_id"].endswith(name))


def test_transient_read_errors_lose_no_image(builder, no_retry_delay):
    chunk = builder.grid[0]
    recorded = record_operations(lambda: builder.embed(chunk))
    reads = [operation for _, operation, _ in recorded if operation == "read"]
    expected = builder.folder.read(part_path(builder.grid[0]))
    for number in range(len(reads)):
        builder.folder.delete(part_path(builder.grid[0]))
        with inject_faults(fail_nth_image_read(number, builder.source)):
            builder.embed(chunk)
        assert builder.folder.read(part_path(builder.grid[0])) == expected


def fail_nth_image_read(number, source):
    fail = FailAt(number, raise_io_error)

    def hook(when, operation, path):
        if operation == "read" and path.startswith(source):
            fail(when, operation, path)

    return hook


def test_failures_of_killed_attempt_are_replaced(tmp_path, photos, embedder):
    """An image that is readable again must not remain in the failures beside its row."""
    root = photos("photos", 3)
    photo = root / "class1" / "photo0001.jpg"
    builder = StoreBuilder(str(root), tmp_path / "store", embedder).prepare()
    chunk = builder.grid[0]
    photo.rename(tmp_path / "aside")

    def kill(when, operation, path):
        if (when, operation) == ("before", "write") and "parts" in path:
            raise Killed

    with inject_faults(kill), pytest.raises(Killed):
        builder.embed(chunk)
    assert [failure["image_id"] for failure in builder.failures(chunk)] == ["class1/photo0001.jpg"]
    (tmp_path / "aside").rename(photo)
    assert builder.embed(chunk).rows == 3
    assert builder.failures(chunk) == []


# --- the N-th storage operation fails or the process is killed there, for N = 0, 1, 2, … ---


class FaultyRuns:
    """Runs with one injected fault each, and checks of the output after the fault and a resume."""

    def __init__(self, source, embedder, folder):
        self.source, self.embedder, self.folder = source, embedder, Path(folder)
        self.expected = read_tree(Path(self.build("reference").folder.uri()), exclude=())
        self.operations = record_operations(lambda: self.build("recording"))

    def build(self, name):
        """Build the whole store in a subfolder."""
        return StoreBuilder(self.source, self.folder / name, self.embedder).build()

    def fail(self, number):
        """Raise an I/O error at one operation, as a disk does that is full for a moment."""
        name = f"failed-{number}"
        with inject_faults(FailAt(number, raise_io_error)), suppress(OSError, LookalikeError):
            self.build(name)
        self.check_and_resume(name)

    def kill(self, number):
        """Kill the run at one operation and keep the output as it was, without any clean-up."""
        name, copied = f"killed-{number}", self.folder / f"copied-{number}"

        def kill_process(when, operation, path):
            if (when, operation) == ("before", "write"):
                Path(path).write_bytes(b"truncated")
            if (self.folder / name).exists():
                shutil.copytree(self.folder / name, copied)
            raise Killed

        with (
            temporary_names_of_dead_process(),
            inject_faults(FailAt(number, kill_process)),
            suppress(Killed),
        ):
            self.build(name)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        if copied.exists():
            copied.rename(self.folder / name)
        self.check_and_resume(name)

    def check_and_resume(self, name):
        """Check that the output verifies and that a second run completes it to the same bytes."""
        if (self.folder / name).exists():
            verdicts = verify(open_folder(str(self.folder / name)))
            assert not any(verdict.problems for verdict in verdicts), verdicts
        self.build(name)
        resumed = read_tree(self.folder / name, exclude=())
        assert resumed.keys() == self.expected.keys()
        assert resumed == self.expected
        shutil.rmtree(self.folder / name)


@contextmanager
def temporary_names_of_dead_process():
    """Name temporary files after a process that does not exist."""
    original_name = local.temporary_name

    def name_of_dead_process():
        host, pid, _, serial = original_name().rsplit("-", 3)
        return f"{host}-{pid}-1-{serial}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "temporary_name", name_of_dead_process)
        yield


@pytest.fixture(scope="module")
def faulty_runs(source, embedder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "wait", lambda seconds: None)
        yield FaultyRuns(source, embedder, tmp_path_factory.mktemp("faulty-runs"))


def test_fault_injection_covers_every_kind_of_operation(faulty_runs):
    kinds = {(when, operation) for when, operation, _ in faulty_runs.operations}
    names = ("read", "make folder", "write", "sync", "link", "replace", "delete")
    assert kinds == {(when, name) for when in ("before", "after") for name in names}
    assert len(faulty_runs.operations) > 150


SAMPLED_OPERATIONS = 9


@pytest.mark.parametrize("fault", ["fail", "kill"])
def test_fault_at_sampled_operations_leaves_no_trace(faulty_runs, fault):
    for number in range(
        0, len(faulty_runs.operations), -(-len(faulty_runs.operations) // SAMPLED_OPERATIONS)
    ):
        getattr(faulty_runs, fault)(number)


@pytest.mark.nightly
@pytest.mark.parametrize("fault", ["fail", "kill"])
def test_fault_at_any_operation_leaves_no_trace(faulty_runs, fault, record_property):
    record_property("operations", len(faulty_runs.operations))
    for number in range(len(faulty_runs.operations)):
        getattr(faulty_runs, fault)(number)
