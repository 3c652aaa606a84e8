"""Tests of embedding a chunk: each image becomes a row or a failure; kills leave no trace."""

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
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
from retrieval.embedding.embed_chunk import embed_chunk
from retrieval.images.decode import decode
from retrieval.listing.listing import write_listing
from retrieval.models.bundle import write_bundle
from retrieval.models.embedder import Embedder
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.resolve import resolve_bundle
from retrieval.sources.folder import FolderSource
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.parquet import ParquetSource
from retrieval.sources.webdataset import TarSource
from retrieval.storage import finished_output, local, retry, transaction
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store import reader
from retrieval.store.finalize import finish_store
from retrieval.store.layout import failures_path, listing_path, part_path
from retrieval.store.segment import claim_segment
from tests.conftest import draw_photos
from tests.retrieval.storage.faults import FailAt, Killed, broken, inject_faults, operations
from tests.trees import tree

BATCH = 4
DECODING = DecodeSettings(max_pixels=10**6, embedding_dtype="float16")
BROKEN = {
    "class0/a broken one.jpg": ("decode", "UnidentifiedImageError"),
    "class1/cut off.jpg": ("decode", "OSError"),
    "class1/vanished.jpg": ("read", "FileNotFoundError"),
    "empty.png": ("decode", "UnidentifiedImageError"),
    "too large.png": ("decode", "DecompressionBombError"),
}


@pytest.fixture(scope="module")
def embedder():
    bundle = resolve_bundle(
        backbone="scratch", weights="random", bundle=None, pooling="avg", normalize=True,
        image_size=32, resize="crop", seed=0,
    )  # fmt: skip
    return Embedder(bundle, EnginePlan("torch", "fp32", "cpu", BATCH))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Nine photos and what may go wrong with one, in three chunks of five."""
    root = draw_photos(tmp_path_factory.mktemp("source"), 9)
    whole = (root / "class0" / "photo0000.jpg").read_bytes()
    (root / "class0" / "a broken one.jpg").write_bytes(b"no photo at all")
    (root / "class1" / "cut off.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "class1" / "vanished.jpg").symlink_to("nowhere")
    (root / "empty.png").write_bytes(b"")
    Image.new("1", (2000, 1000)).save(root / "too large.png")
    return str(root)


class Run:
    """A store of a source as `lookalike embed` makes it, step by step and without Ray."""

    def __init__(self, source, output, embedder, decoding=DECODING, chunk_rows=5):
        self.source, self.embedder, self.decoding = source, embedder, decoding
        self.folder = open_folder(str(output))
        self.chunk_rows = chunk_rows

    def begin(self):
        with tempfile.TemporaryDirectory() as scratch:
            listing = Path(scratch, "listing.parquet")
            items = FolderSource(self.source).items()
            self.images, _ = write_listing(items, listing, chunk_rows=self.chunk_rows)
            transaction.claim_output(self.folder, "store", {"bundle": self.embedder.bundle.digest})
            nothing = np.empty(0, np.int64)
            segment = claim_segment(
                self.folder, 0, 0, listing, self.chunk_rows, self.images, nothing
            )
            self.grid = list(segment.chunks())
        write_bundle(self.folder, self.embedder.bundle)
        return self

    def embed(self, chunk):
        return embed_chunk(chunk, self.folder, self.embedder, self.decoding)

    def all(self):
        self.begin()
        if not finished_output.is_finished(self.folder):
            known = [record for chunk in self.grid for record in self.embed(chunk).files]
            finish_store(self.folder, self.embedder.bundle.dimension, known, 0.5)
        return self

    def table(self, path):
        return pq.read_table(io.BytesIO(self.folder.read(path)))

    def rows(self, chunk):
        return self.table(part_path(chunk)).to_pylist()

    def ledger(self, chunk):
        path = failures_path(chunk)
        return self.table(path).to_pylist() if self.folder.exists(path) else []


@pytest.fixture
def run(source, tmp_path, embedder):
    return Run(source, tmp_path / "store", embedder).begin()


# --- what a chunk becomes ---


def test_each_image_is_one_row_or_one_line_of_the_ledger(run):
    listed = {row["image_id"]: row for row in run.table(listing_path(0)).to_pylist()}
    assert len(run.grid) == 3
    seen = []
    for chunk in run.grid:
        result = run.embed(chunk)
        rows, ledger = run.rows(chunk), run.ledger(chunk)
        assert (result.number, result.rows, result.failures) == (
            chunk.number, len(rows), len(ledger),
        )  # fmt: skip
        for lines in (rows, ledger):
            numbers = [line["row"] for line in lines]
            assert numbers == sorted(numbers)
            seen += numbers
        assert sorted(seen) == list(range(chunk.last))
        for line in [*rows, *ledger]:
            was = listed[line["image_id"]]
            assert (line["row"], line["path"]) == (was["row"], was["path"])
    assert any(
        np.diff(run.table(part_path(run.grid[n]))["row"].to_numpy()).max() > 1 for n in (0, 1)
    )


def test_the_ledger_says_what_went_wrong(run):
    lines = []
    for chunk in run.grid:
        run.embed(chunk)
        lines += run.ledger(chunk)
    assert {line["image_id"]: (line["stage"], line["error"]) for line in lines} == BROKEN
    assert all(line["message"] and "\n" not in line["message"] for line in lines)
    assert "cannot identify image file" in [line["message"] for line in lines]
    assert run.table(failures_path(run.grid[0])).schema.equals(FAILURES.schema)


def test_a_row_says_what_its_image_is(run, embedder):
    for chunk in run.grid:
        run.embed(chunk)
        assert run.table(part_path(chunk)).schema.equals(
            part_table(embedder.bundle.dimension, "float16").schema
        )
        for row in run.rows(chunk):
            content = Path(row["path"]).read_bytes()
            assert row["sha256"] == hashlib.sha256(content).hexdigest()
            assert (row["width"], row["height"]) == (64, 48)
            assert row["label"] == row["image_id"].split("/")[0]
            pixels = decode(content, embedder.bundle.transform, max_pixels=10**6).pixels
            assert np.allclose(row["embedding"], embedder.embed([pixels])[0], atol=1e-3)
            assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=2e-3)


def test_the_result_names_the_files_and_counts_the_bytes(run):
    chunk = run.grid[0]
    result = run.embed(chunk)
    assert [record.path for record in result.files] == [
        failures_path(run.grid[0]),
        part_path(run.grid[0]),
    ]
    for record in result.files:
        assert record == transaction.file_record(record.path, run.folder.read(record.path))
    assert result.read_bytes == sum(os.path.getsize(row["path"]) for row in run.rows(chunk))


def test_a_chunk_of_nothing_but_broken_images_has_an_empty_part(tmp_path, embedder):
    root = tmp_path / "photos"
    root.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (root / name).write_bytes(b"rubbish")
    run = Run(str(root), tmp_path / "store", embedder).begin()
    result = run.embed(run.grid[0])
    assert (result.rows, result.failures) == (0, 2)
    assert run.rows(run.grid[0]) == []
    assert len(run.ledger(run.grid[0])) == 2


def test_without_failures_there_is_no_ledger(run, photos, tmp_path, embedder):
    run = Run(str(photos("sound", 3)), tmp_path / "sound-store", embedder).begin()
    result = run.embed(run.grid[0])
    assert [record.path for record in result.files] == [part_path(run.grid[0])]
    assert not run.folder.exists(failures_path(run.grid[0]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_vectors_are_stored_as_asked(source, tmp_path, embedder, dtype):
    run = Run(source, tmp_path / "store", embedder, DecodeSettings(10**6, dtype)).begin()
    run.embed(run.grid[0])
    vectors = reader.read_vectors(run.table(part_path(run.grid[0])))
    assert vectors.dtype == dtype
    assert vectors.shape[1] == embedder.bundle.dimension


class Scripted:
    """An embedder that gives the vectors it was told, `ahead` batches later."""

    def __init__(self, like, *vectors, ahead=0):
        self.bundle, self.batch_size, self.ahead = like.bundle, like.batch_size, ahead
        self.vectors = list(vectors)
        self.under_way = 0

    def submit(self, images):
        taken, self.vectors = self.vectors[: len(images)], self.vectors[len(images) :]
        self.under_way += 1
        assert self.under_way <= self.ahead + 1

        def answer():
            self.under_way -= 1
            return np.array(taken, np.float32).reshape(len(taken), self.bundle.dimension)

        return answer


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_vector_that_cannot_be_searched_for_stands_in_the_ledger(
    tmp_path, photos, embedder, ahead
):
    sound = np.linspace(0, 1, embedder.bundle.dimension, dtype=np.float32)
    odd = (sound * np.nan, sound + np.inf, sound * 1e6, sound * 0, sound * 1e-12)
    scripted = Scripted(embedder, sound, *odd, sound, ahead=ahead)
    root = photos("photos", 7, classes=1)
    (root / "class0" / "photo0001b.jpg").write_bytes(b"broken: found before its neighbours are")
    run = Run(str(root), tmp_path / "store", scripted, chunk_rows=8).begin()
    result = run.embed(run.grid[0])
    assert (result.rows, result.failures) == (2, 6)
    assert [row["row"] for row in run.rows(run.grid[0])] == [0, 7]
    assert [(line["row"], line["stage"], line["message"]) for line in run.ledger(run.grid[0])] == [
        (1, "embed", "the vector is not finite as stored"),
        (2, "decode", "cannot identify image file"),
        (3, "embed", "the vector is not finite as stored"),
        (4, "embed", "the vector is not finite as stored"),
        (5, "embed", "the vector has no length"),
        (6, "embed", "the vector has no length"),
    ]


def test_a_photo_of_a_name_that_is_not_utf_8_may_vanish_too(tmp_path, embedder):
    root = tmp_path / "photos"
    root.mkdir()
    name = os.fsdecode(os.fsencode(root) + b"/caf\xe9.jpg")
    Image.new("RGB", (40, 30)).save(root / "sound.jpg")
    Path(name).write_bytes(b"")
    run = Run(str(root), tmp_path / "store", embedder).begin()
    os.unlink(name)
    assert run.embed(run.grid[0]).failures == 1
    (line,) = run.ledger(run.grid[0])
    assert (line["image_id"], line["stage"]) == ("caf%E9.jpg", "read")


def test_source_and_store_may_lie_in_buckets(source, tmp_path, embedder):
    system = fsspec.filesystem("memory")
    try:
        for path in Path(source).rglob("*.*"):
            if path.exists():
                system.put_file(str(path), f"/embed/photos/{path.relative_to(source)}")
        run = Run("memory://embed/photos", "memory://embed/store", embedder).all()
        manifest = finished_output.read_manifest(run.folder, kind="store")
        assert (manifest.counts["rows"], manifest.counts["failures"]) == (9, 4)  # no links there
        assert {verdict.state for verdict in verify(run.folder)} == {"finished"}
    finally:
        system.rm("/embed", recursive=True)


# --- once, and the same however it is cut ---


def test_a_second_call_leaves_the_part_as_it_is_and_reads_no_image(run):
    chunk = run.grid[1]
    first = run.embed(chunk)
    before = tree(Path(run.folder.uri()))
    moments = operations(lambda: setattr(run, "second", run.embed(chunk)))
    own = [part_path(chunk), failures_path(chunk)][: 1 + bool(first.failures)]
    assert {path for _, _, path in moments} == {run.folder.uri(path) for path in own}
    assert tree(Path(run.folder.uri())) == before
    second = run.second
    assert (second.number, second.rows, second.failures) == (1, first.rows, first.failures)
    assert second.files == first.files


@pytest.mark.parametrize("path_of", [part_path, failures_path])
def test_an_altered_part_or_ledger_is_refused(run, path_of):
    chunk = next(chunk for chunk in run.grid if run.embed(chunk).failures)
    path = path_of(chunk)
    data = run.folder.read(path)
    run.folder.put(path, data[:99] + bytes([data[99] ^ 1]) + data[100:])
    with pytest.raises(Damaged, match=rf"{path} was altered"):
        run.embed(chunk)


def test_chunks_may_be_done_in_any_order(source, tmp_path, embedder):
    forth = Run(source, tmp_path / "forth", embedder).all()
    back = Run(source, tmp_path / "back", embedder).begin()
    for chunk in reversed(back.grid):
        back.embed(chunk)
    back.all()
    assert tree(Path(forth.folder.uri()), but=()) == tree(Path(back.folder.uri()), but=())


def test_a_vector_does_not_depend_on_what_else_is_in_its_batch(tmp_path, photos, embedder):
    root = str(photos("photos", 9))
    decoding = DecodeSettings(10**6, "float32")
    found = []
    for chunk_rows in (1, 2, 3, BATCH, 5, 9):
        run = Run(root, tmp_path / f"{chunk_rows}", embedder, decoding, chunk_rows).begin()
        parts = [run.embed(chunk) and part_path(chunk) for chunk in run.grid]
        found.append(np.concatenate([reader.read_vectors(run.table(path)) for path in parts]))
    assert np.linalg.matrix_rank(found[0]) > 1
    for vectors in found[1:]:
        assert np.abs(vectors - found[0]).max() < 1e-6


@pytest.mark.parametrize("threads", [1, 3])
def test_decoding_ahead_gives_the_same_bytes(source, tmp_path, embedder, threads):
    """As beside a GPU: images, failures and the order of both are those of one thread."""
    trees = []
    for number in (0, threads):
        decoding = DecodeSettings(10**6, "float16", number)
        run = Run(source, tmp_path / f"{number}", embedder, decoding).all()
        trees.append(tree(Path(run.folder.uri()), but=()))
    assert trees[0] == trees[1]


def test_decoding_ahead_stays_within_two_batches(source, embedder, monkeypatch):
    read, taken = [], []
    plain = ItemReader.read

    def counted(self, path, place, size):
        read.append(path)
        assert len(read) - len(taken) <= 3 * BATCH + 1  # two ahead, and the one in hand
        return plain(self, path, place, size)

    monkeypatch.setattr(ItemReader, "read", counted)
    path = str(Path(source, "class0/photo0000.jpg"))
    item = {"image_id": "x", "path": path, "label": None, "size": 1}
    items = [{**item, "row": row} for row in range(12 * BATCH)]
    for batch in embed_batch.embed_items(items, embedder, DecodeSettings(10**6, "float16", 2)):
        taken += batch.rows
    assert [row["row"] for row in taken] == list(range(12 * BATCH))


# --- containers ---


def in_tar(root, target):
    """The photos of a folder in a tar, after two members that cannot be read as images."""
    with tarfile.open(target, "w") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "class0/photo0000.jpg"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("class0/photo0000.jpg"))  # replaced by the later one
        tar.add(root, "")
    return TarSource(str(target)), {"x.tar/link.jpg", "x.tar/class0/photo0000.jpg (1)"}


def in_parquet(root, target):
    paths = sorted(path for path in root.rglob("*.jpg"))
    images = [path.read_bytes() for path in paths] + [None]
    pq.write_table(pa.table({"image": images}), target, row_group_size=4)
    return ParquetSource(str(target)), {f"x.parquet/{len(paths)}"}


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize(("make", "name"), [(in_tar, "x.tar"), (in_parquet, "x.parquet")])
def test_images_in_containers_give_the_vectors_of_their_files(
    photos, tmp_path, embedder, make, name, threads
):
    root = photos("photos", 9)
    source, broken = make(root, tmp_path / name)
    found = {}
    for images in (FolderSource(str(root)), source):
        write_listing(images.items(), tmp_path / "listing.parquet")
        items = pq.read_table(tmp_path / "listing.parquet").to_pylist()
        decoding = DecodeSettings(10**6, "float16", threads)
        batches = list(embed_batch.embed_items(items, embedder, decoding))
        rows = [row for batch in batches for row in batch.rows]
        vectors = np.concatenate([batch.vectors for batch in batches])
        found[type(images)] = sorted(
            (row["sha256"], vector.tobytes()) for row, vector in zip(rows, vectors, strict=True)
        )
        size = sum(path.stat().st_size for path in root.rglob("*.jpg"))
        assert sum(batch.size for batch in batches) == size
    assert found[FolderSource] == found[type(source)]
    failures = [failure for batch in batches for failure in batch.failures]
    assert {failure["image_id"] for failure in failures} == broken


def test_what_a_source_says_is_no_image_is_not_read(tmp_path, embedder, monkeypatch):
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
def no_waits(monkeypatch):
    monkeypatch.setattr(retry, "wait", lambda seconds: None)


def test_a_store_that_stays_away_stops_the_chunk_and_is_not_the_image_s_fault(run, no_waits):
    def unreachable(when, operation, path):
        if path.endswith("photo0003.jpg"):
            raise ConnectionResetError("reset")

    chunk = next(c for c in run.grid if c.first <= _row_of(run, "photo0003.jpg") < c.last)
    before = tree(Path(run.folder.uri()))
    with inject_faults(unreachable), pytest.raises(StorageFailure, match=r"photo0003\.jpg"):
        run.embed(chunk)
    assert tree(Path(run.folder.uri())) == before
    run.embed(chunk)
    assert "class0/photo0003.jpg" in [row["image_id"] for row in run.rows(chunk)]


def _row_of(run, name):
    rows = run.table(listing_path(0)).to_pylist()
    return next(row["row"] for row in rows if row["image_id"].endswith(name))


def test_an_error_that_passes_costs_no_image(run, no_waits):
    chunk = run.grid[0]
    reads = [m for m in operations(lambda: run.embed(chunk)) if m[1] == "read"]
    wanted = run.folder.read(part_path(run.grid[0]))
    for number in range(len(reads)):
        run.folder.delete(part_path(run.grid[0]))
        with inject_faults(_nth_image_read(number, run.source)):
            run.embed(chunk)
        assert run.folder.read(part_path(run.grid[0])) == wanted


def _nth_image_read(number, source):
    fail = FailAt(number, broken)

    def look(*moment):
        if moment[1] == "read" and moment[2].startswith(source):
            fail(*moment)

    return look


def test_a_ledger_of_a_killed_attempt_does_not_outlive_it(tmp_path, photos, embedder):
    """What failed then may have come back: it must not stand in the ledger and in the part."""
    root = photos("photos", 3)
    missing = root / "class1" / "photo0001.jpg"
    run = Run(str(root), tmp_path / "store", embedder).begin()
    chunk = run.grid[0]
    missing.rename(tmp_path / "aside")

    def kill(when, operation, path):
        if (when, operation) == ("before", "write") and "parts" in path:
            raise Killed

    with inject_faults(kill), pytest.raises(Killed):
        run.embed(chunk)
    assert [line["image_id"] for line in run.ledger(chunk)] == ["class1/photo0001.jpg"]
    (tmp_path / "aside").rename(missing)
    assert run.embed(chunk).rows == 3
    assert run.ledger(chunk) == []


# --- the N-th operation fails, or the process dies there, for N = 0, 1, 2, … ---


class Harmed:
    """Runs on one output with a fault at one moment; what stands there then is what is left."""

    def __init__(self, source, embedder, folder):
        self.source, self.embedder, self.folder = source, embedder, Path(folder)
        self.unharmed = tree(Path(self.run("unharmed").folder.uri()), but=())
        self.moments = operations(lambda: self.run("rehearsal"))

    def run(self, name):
        return Run(self.source, self.folder / name, self.embedder).all()

    def fail(self, number):
        """Raise an error once at a moment, as a disk does that is full for a second."""
        name = f"failed-{number}"
        with inject_faults(FailAt(number, broken)), suppress(OSError, LookalikeError):
            self.run(name)
        self.judge(name)

    def kill(self, number):
        """Keep what a process leaves that dies at a moment: no clean-up of its own runs."""
        name, kept = f"killed-{number}", self.folder / f"kept-{number}"

        def die(when, operation, path):
            if (when, operation) == ("before", "write"):
                Path(path).write_bytes(b"half of i")
            if (self.folder / name).exists():
                shutil.copytree(self.folder / name, kept)
            raise Killed

        with dead_names(), inject_faults(FailAt(number, die)), suppress(Killed):
            self.run(name)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        if kept.exists():
            kept.rename(self.folder / name)
        self.judge(name)

    def judge(self, name):
        """Whatever is left is sound, and the same command makes the very same store of it."""
        if (self.folder / name).exists():
            verdicts = verify(open_folder(str(self.folder / name)))
            assert not any(verdict.problems for verdict in verdicts), verdicts
        self.run(name)
        left = tree(self.folder / name, but=())
        assert left.keys() == self.unharmed.keys()
        assert left == self.unharmed
        shutil.rmtree(self.folder / name)


@contextmanager
def dead_names():
    """Let temporary files be named as those of a process that is no more."""
    name = local.temporary_name

    def named():
        host, pid, _, serial = name().rsplit("-", 3)
        return f"{host}-{pid}-1-{serial}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "temporary_name", named)
        yield


@pytest.fixture(scope="module")
def harmed(source, embedder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "wait", lambda seconds: None)
        yield Harmed(source, embedder, tmp_path_factory.mktemp("harmed"))


def test_the_loop_passes_every_kind_of_operation(harmed):
    kinds = {(when, operation) for when, operation, _ in harmed.moments}
    names = ("read", "make folder", "write", "sync", "link", "replace", "delete")
    assert kinds == {(when, name) for when in ("before", "after") for name in names}
    assert len(harmed.moments) > 150


SAMPLE = 16


@pytest.mark.parametrize("fault", ["fail", "kill"])
def test_a_fault_at_a_sample_of_moments_leaves_no_trace(harmed, fault):
    for number in range(0, len(harmed.moments), -(-len(harmed.moments) // SAMPLE)):
        getattr(harmed, fault)(number)


@pytest.mark.nightly
@pytest.mark.parametrize("fault", ["fail", "kill"])
def test_a_fault_at_any_moment_leaves_no_trace(harmed, fault, record_property):
    record_property("moments", len(harmed.moments))
    for number in range(len(harmed.moments)):
        getattr(harmed, fault)(number)
