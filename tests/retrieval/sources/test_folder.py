"""Tests of folder sources: which files are listed, their ids, and reading them by their paths."""

import errno
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from retrieval.core.errors import InputError
from retrieval.sources import image_names
from retrieval.sources.folder import FolderSource
from retrieval.sources.image_names import SUFFIXES, is_image, parent_folder_name
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.walk import modified_ns
from retrieval.storage.input_files import escape_non_utf8, read_uri
from tests.retrieval.sources.contract import SourceContract


def ids(source):
    return sorted(item.image_id for item in source.items())


class TestContract(SourceContract):
    """The source contract for folders."""

    def make_source(self, folder, images, other_files=()):
        if not (images or other_files):
            folder.put("empty.txt", b"")
        for name, data in [*images.items(), *((name, b"x") for name in other_files)]:
            folder.put(name, data)
        return FolderSource(folder.root)

    def missing_source(self, folder):
        return FolderSource(folder.root)


class FolderTests(ABC):
    """Further tests of folder sources, local and behind a URI."""

    @abstractmethod
    def root(self):
        """Return the path or URI of a root that does not exist yet (a fixture)."""

    @abstractmethod
    def put(self, root, name, data):
        """Write a file below the root."""

    def make_source(self, root, *names):
        for name in names:
            self.put(root, name, name.encode())
        return FolderSource(root)

    def test_images_are_listed_once_with_size_and_readable_path(self, root):
        names = ["a.jpg", "cats/a.jpg", "cats/big/b.png", "dogs/c.webp", "zoo/cats/d.gif"]
        items = sorted(self.make_source(root, *names).items(), key=lambda item: item.image_id)
        assert [item.image_id for item in items] == names
        for item in items:
            assert read_uri(item.path) == item.image_id.encode()
            assert item.size == len(item.image_id.encode())

    def test_label_is_parent_folder(self, root):
        source = self.make_source(root, "a.jpg", "cats/a.jpg", "cats/big/b.jpg")
        labels = {item.image_id: item.label for item in source.items()}
        assert labels == {"a.jpg": None, "cats/a.jpg": "cats", "cats/big/b.jpg": "big"}

    @pytest.mark.parametrize("suffix", sorted(SUFFIXES))
    def test_suffixes_are_case_insensitive(self, root, suffix):
        names = [f"{number}.{name}" for number, name in enumerate({suffix, suffix.upper()})]
        names.append("mixed." + suffix[0].upper() + suffix[1:].lower())
        assert ids(self.make_source(root, *names)) == sorted(names)

    def test_files_without_image_suffix_are_skipped(self, root):
        other_files = [
            "notes.txt",
            "jpg",
            "a/png",
            "a.jpg.bak",
            "a.jpgx",
            "a.jpg/b",
            "README",
            "a.",
        ]
        assert ids(self.make_source(root, "x.jpg", *other_files)) == ["x.jpg"]

    def test_special_characters_in_names_are_kept(self, root):
        names = [
            "it's & <b>bold.jpg",
            "two  spaces /a b.jpg",
            "Grüße – 猫.jpg",
            "e\u0301.jpg",  # decomposed: differs from the next name
            "\u00e9.jpg",
            "100%.jpg",
            "a%20b.jpg",
            "a#b?c.jpg",
            "[a]*.jpg",
            "new\nline.jpg",
            "a-b.jpg",
            "a/b.jpg",
        ]
        source = self.make_source(root, *names)
        assert ids(source) == sorted(names)
        for item in source.items():
            assert read_uri(item.path) == item.image_id.encode()

    def test_trailing_slash_of_root_is_ignored(self, root):
        source = self.make_source(root, "cats/a.jpg", "b.jpg")
        assert sorted(FolderSource(root + "/").items(), key=str) == sorted(source.items(), key=str)

    def test_missing_root_is_refused(self, root):
        for call in (ids, FolderSource.check):
            with pytest.raises(InputError, match="does not exist"):
                call(FolderSource(root))

    def test_file_as_root_is_refused(self, root):
        self.put(root, "a.jpg", b"1")
        with pytest.raises(InputError, match="is not a folder"):
            ids(FolderSource(f"{root}/a.jpg"))

    def test_check_refuses_root_without_images(self, root):
        source = self.make_source(root, "notes.txt")
        assert ids(source) == []
        with pytest.raises(InputError, match="contains no images"):
            source.check()
        self.put(root, "a/b/c.jpg", b"1")
        source.check()

    def test_reading_deleted_file_raises_file_not_found(self, root):
        (item,) = self.make_source(root, "a.jpg").items()
        self.delete(root, "a.jpg")
        with pytest.raises(FileNotFoundError):
            read_uri(item.path)


class TestRemote(FolderTests):
    @pytest.fixture
    def root(self):
        root = f"memory://{uuid.uuid4()}/photos"
        yield root
        system = fsspec.filesystem("memory")
        for path in system.find(root):
            system.rm_file(path)

    def put(self, root, name, data):
        fsspec.filesystem("memory").pipe_file(f"{root}/{name}", data)

    def delete(self, root, name):
        fsspec.filesystem("memory").rm_file(f"{root}/{name}")

    def test_remote_modification_time_is_listed(self, root):
        (item,) = self.make_source(root, "a.jpg").items()
        assert abs(item.mtime_ns - time.time_ns()) < 60 * 10**9

    @pytest.mark.parametrize("root", ["nonsense://bucket/photos"])
    def test_unknown_uri_scheme_is_refused(self, root):
        with pytest.raises(InputError, match="nonsense"):
            ids(FolderSource(root))


class TestLocal(FolderTests):
    @pytest.fixture
    def root(self, tmp_path):
        return str(tmp_path / "photos")

    def put(self, root, name, data):
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def delete(self, root, name):
        Path(root, name).unlink()

    def test_local_modification_time_is_listed(self, root):
        source = self.make_source(root, "a.jpg")
        os.utime(f"{root}/a.jpg", ns=(1, 1_700_000_000_123_456_789))
        (item,) = source.items()
        assert item.mtime_ns == 1_700_000_000_123_456_789

    @pytest.mark.parametrize("root_form", ["photos", "./photos", "../{name}/photos", "~/photos"])
    def test_paths_are_absolute_for_relative_roots(self, root, monkeypatch, root_form):
        self.put(root, "a b/c.jpg", b"1")
        parent = Path(root).parent
        monkeypatch.chdir(parent)
        monkeypatch.setenv("HOME", str(parent))
        (item,) = FolderSource(root_form.format(name=parent.name)).items()
        assert (item.image_id, item.path) == ("a b/c.jpg", f"{root}/a b/c.jpg")

    def test_file_uri_as_root(self, root):
        self.put(root, "a b/c.jpg", b"1")
        (item,) = FolderSource(f"file://{root}").items()
        assert (item.image_id, item.path) == ("a b/c.jpg", f"{root}/a b/c.jpg")

    def test_non_utf8_names_are_escaped_and_readable(self, root):
        for name in (b"caf\xe9.jpg", b"\xff/\xc3\xbc\xfc.jpg", b"100%25 \xe9.jpg"):
            path = os.path.join(os.fsencode(root), name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(os.fsdecode(path)).write_bytes(name)
        source = FolderSource(root)
        assert ids(source) == ["%FF/ü%FC.jpg", "100%25 %E9.jpg", "caf%E9.jpg"]
        assert {read_uri(item.path) for item in source.items()} == {
            b"caf\xe9.jpg",
            b"\xff/\xc3\xbc\xfc.jpg",
            b"100%25 \xe9.jpg",
        }
        assert all(item.path.encode() for item in source.items())

    def test_links_to_files_and_folders_are_followed(self, root):
        self.put(root, "cats/a.jpg", b"1")
        self.put(root, "../elsewhere/b.jpg", b"12")
        os.symlink("cats/a.jpg", f"{root}/link.jpg")
        os.symlink("../elsewhere", f"{root}/dogs")
        items = {item.image_id: item for item in FolderSource(root).items()}
        assert sorted(items) == ["cats/a.jpg", "dogs/b.jpg", "link.jpg"]
        assert items["dogs/b.jpg"].size == 2
        assert items["dogs/b.jpg"].label == "dogs"

    def test_link_to_ancestor_folder_is_not_followed(self, root):
        self.put(root, "cats/deep/a.jpg", b"1")
        os.symlink("..", f"{root}/cats/up")
        os.symlink(".", f"{root}/cats/here")
        os.symlink(root, f"{root}/cats/deep/root")
        assert ids(FolderSource(root)) == ["cats/deep/a.jpg"]

    def test_mutually_linked_folders_are_listed_once(self, root):
        self.put(root, "a/1.jpg", b"1")
        self.put(root, "b/2.jpg", b"2")
        os.symlink("../b", f"{root}/a/b")
        os.symlink("../a", f"{root}/b/a")
        assert ids(FolderSource(root)) == ["a/1.jpg", "a/b/2.jpg", "b/2.jpg", "b/a/1.jpg"]

    def test_root_may_be_link(self, root):
        self.put(root, "a.jpg", b"1")
        os.symlink(root, root + "-link")
        assert ids(FolderSource(root + "-link")) == ["a.jpg"]

    def test_dangling_link_with_image_name_is_listed(self, root):
        """Reading then fails, and the ledger records the image, as with a deleted file."""
        self.put(root, "a.jpg", b"1")
        os.symlink("missing", f"{root}/dangling.jpg")
        os.symlink("circle.jpg", f"{root}/circle.jpg")
        os.symlink("missing", f"{root}/dangling.txt")
        os.symlink("missing", f"{root}/folder")
        items = {item.image_id: item for item in FolderSource(root).items()}
        assert sorted(items) == ["a.jpg", "circle.jpg", "dangling.jpg"]
        for name in ("circle.jpg", "dangling.jpg"):
            with pytest.raises(OSError, match=r"symbolic links|No such file"):
                read_uri(items[name].path)

    def test_special_files_with_image_names_have_problems(self, root):
        """Opening a named pipe would hang: it is never read, and recorded in the ledger."""
        self.put(root, "a.jpg", b"1")
        os.mkfifo(f"{root}/pipe.jpg")
        os.mkfifo(f"{root}/pipe")
        os.mkdir(f"{root}/folder.jpg")
        os.symlink("/dev/null", f"{root}/null.jpg")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{root}/socket.jpg")
            source = FolderSource(root)
            assert {item.image_id: item.problem for item in source.items()} == {
                "a.jpg": None,
                "pipe.jpg": "it is a named pipe, not a file",
                "null.jpg": "it is a device, not a file",
                "socket.jpg": "it is a socket, not a file",
            }
        assert source.skipped_count == 1
        for name in ("pipe.jpg", "null.jpg"):
            with ItemReader() as reader, pytest.raises(ValueError, match=r"not a file"):
                reader.read(f"{root}/{name}")

    @pytest.mark.parametrize(
        ("seconds", "in_range"),
        [
            (-(2**32), True),
            (9_000_000_000, True),
            (13_569_465_600, False),
            (-10_000_000_000, False),
        ],
    )
    def test_modification_time_out_of_range_is_none(self, root, seconds, in_range):
        self.put(root, "a.jpg", b"1")
        try:
            os.utime(f"{root}/a.jpg", (0, seconds))
        except OverflowError:
            pytest.skip("the file system cannot store this time")
        if os.stat(f"{root}/a.jpg").st_mtime != seconds:
            pytest.skip("the file system cannot store this time")
        (item,) = FolderSource(root).items()
        assert item.mtime_ns == (seconds * 10**9 if in_range else None)

    def test_check_refuses_empty_root(self, root):
        os.mkdir(root)
        assert ids(FolderSource(root)) == []
        with pytest.raises(InputError, match="contains no images"):
            FolderSource(root).check()

    @pytest.fixture
    def inaccessible(self, monkeypatch):
        """Return a dict path suffix -> errno; scandir and stat of matching paths fail with it."""
        errors = {}
        original_scandir = os.scandir

        def refuse(path):
            for suffix, error in errors.items():
                if str(path).endswith(suffix):
                    raise OSError(error, os.strerror(error), path)

        class Entry:
            def __init__(self, entry):
                self.entry, self.path, self.name = entry, entry.path, entry.name

            def stat(self, *, follow_symlinks=True):
                refuse(self.path)
                return self.entry.stat(follow_symlinks=follow_symlinks)

            def __getattr__(self, name):
                return getattr(self.entry, name)

        @contextmanager
        def scandir(path):
            refuse(f"{path}/")
            with original_scandir(path) as entries:
                yield map(Entry, entries)

        monkeypatch.setattr(os, "scandir", scandir)
        return errors

    def test_unreadable_subfolder_is_single_item_with_problem(self, root, inaccessible):
        for name in ("a.jpg", "cats/deep/b.jpg", "cats/c.jpg", "dogs/d.jpg", "mice/e.jpg"):
            self.put(root, name, b"1")
        inaccessible |= {"cats/": errno.EACCES, "mice": errno.EACCES}
        items = {item.image_id: item for item in FolderSource(root).items()}
        assert sorted(items) == ["a.jpg", "cats", "dogs/d.jpg", "mice"]
        for name in ("cats", "mice"):
            assert items[name].problem == "the folder cannot be listed (Permission denied)"
            assert items[name].path == f"{root}/{name}"

    def test_file_without_stat_permission_is_listed(self, root, inaccessible):
        """As in a folder with read but no execute permission; reading the file fails later."""
        self.put(root, "cats/a.jpg", b"1")
        self.put(root, "cats/b.jpg", b"1")
        inaccessible |= {"a.jpg": errno.EACCES, "b.jpg": errno.ENOENT}  # deleted meanwhile
        (item,) = FolderSource(root).items()
        assert (item.image_id, item.size, item.mtime_ns) == ("cats/a.jpg", None, None)

    @pytest.mark.parametrize(
        ("suffix", "error"),
        [("photos/", errno.EACCES), ("cats/", errno.EIO), ("cats/", errno.ESTALE)],
    )
    def test_unreadable_root_and_disk_errors_are_refused(self, root, inaccessible, suffix, error):
        self.put(root, "cats/a.jpg", b"1")
        inaccessible[suffix] = error
        with pytest.raises(
            InputError, match=rf"{suffix[:-1]} cannot be listed \({os.strerror(error)}"
        ):
            ids(FolderSource(root))


def test_repr_excludes_storage_options():
    assert "hunter2" not in repr(FolderSource("s3://bucket", {"secret": "hunter2"}))


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a.jpg", True), ("b/a.JPG", True), ("jpg", False), ("b.jpg/a", False), ("a.b.png", True)],
)
def test_is_image_checks_suffix(path, expected):
    assert is_image(path) is expected


def test_parent_folder_name_and_escaping():
    expected = {
        "a.jpg": None,
        "x/a.jpg": "x",
        "x/y/a.jpg": "y",
        "/a.jpg": None,
        "/x/a.jpg": "x",
        "x//a.jpg": None,
        "http://host:80/a.jpg": None,
        "s3://bucket/x/a.jpg": "x",
        "file:///a.jpg": None,
        "file:///x/a.jpg": "x",
        "a/b://c/d.jpg": "c",
        "http://a.jpg": None,
    }
    for path, name in expected.items():
        assert parent_folder_name(path) == name
    assert escape_non_utf8(os.fsdecode(b"\x80\xff%41\xc3\xbc")) == "%80%FF%41ü"


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, None),
        ({"LastModified": None, "ETag": "x"}, None),
        ({"LastModified": datetime(2026, 1, 1, tzinfo=UTC)}, 1_767_225_600_000_000_000),
        ({"last_modified": datetime(2026, 1, 1)}, 1_767_225_600_000_000_000),  # noqa: DTZ001
        ({"updated": "2026-01-01T00:00:00.000001Z"}, 1_767_225_600_000_001_000),
        ({"updated": "yesterday"}, None),
        ({"mtime": 1.5, "created": 7}, 1_500_000_000),
        ({"mtime": 1_700_000_000}, 1_700_000_000_000_000_000),
        ({"created": 7}, 7_000_000_000),
        ({"LastModified": datetime(2400, 1, 1, tzinfo=UTC)}, None),
        ({"LastModified": datetime(1500, 1, 1, tzinfo=UTC)}, None),
        ({"updated": "9999-12-31T23:59:59Z"}, None),
        ({"mtime": 1e300}, None),
        ({"mtime": float("nan")}, None),
        ({"mtime": float("inf")}, None),
        ({"mtime": 1 << 70}, None),
    ],
)
def test_modified_ns_reads_metadata_of_each_file_system(info, expected):
    assert modified_ns(info) == expected


def test_remote_folders_are_listed_lazily(remote, monkeypatch):
    for name in ("a/1.jpg", "a/b/2.jpg", "c/3.jpg"):
        remote.put(name, b"x")
    listed_paths = []
    filesystem = fsspec.filesystem("memory", use_listings_cache=False)
    original_ls = type(filesystem).ls
    monkeypatch.setattr(
        type(filesystem),
        "ls",
        lambda self, path, **kwargs: listed_paths.append(path) or original_ls(self, path, **kwargs),
    )
    items = FolderSource(remote.root).items()
    next(items)
    assert len(listed_paths) == 2
    assert len(list(items)) == 2
    assert len(listed_paths) == 4


def test_local_folders_are_listed_lazily(local, monkeypatch):
    for number in range(50):
        local.put(f"{number}.jpg", b"x")
    visited = []
    original_scandir = os.scandir

    class RecordingScandir:
        def __init__(self, path):
            self.entries = original_scandir(path)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.entries.close()

        def __iter__(self):
            for entry in self.entries:
                visited.append(entry.name)
                yield entry

    monkeypatch.setattr(os, "scandir", RecordingScandir)
    items = FolderSource(local.root).items()
    next(items)
    assert len(visited) == 1
    assert len(list(items)) == 49


def test_check_refuses_heic_folder_with_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(image_names, "can_decode_heic", lambda: False)
    for number in range(3):
        (tmp_path / f"{number}.HEIC").write_bytes(b"")
    source = FolderSource(str(tmp_path))
    with pytest.raises(InputError, match=r"holds 3 HEIC files .* pillow-heif"):
        source.check()


class MeetingFileSystem(MemoryFileSystem):
    """A file system of which listing a folder below the root waits for another such listing."""

    protocol = "meeting"
    meeting: threading.Barrier
    unlistable = ""

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("meeting://"))

    def ls(self, path, detail=True, **options):
        if self.unlistable and path.endswith(self.unlistable):
            raise PermissionError(errno.EACCES, "Forbidden", path)
        if path.rstrip("/").rsplit("/", 1)[-1].startswith("day"):
            self.meeting.wait(timeout=30)
        return super().ls(path, detail, **options)


@pytest.fixture
def meeting(monkeypatch):
    monkeypatch.setattr(MeetingFileSystem, "meeting", threading.Barrier(2), raising=False)
    fsspec.register_implementation("meeting", MeetingFileSystem, clobber=True)
    system = fsspec.filesystem("meeting")
    root = f"/{uuid.uuid4()}/photos"
    for day in range(6):
        for number in range(3):
            system.pipe_file(f"{root}/day{day}/deep/{number}.jpg", b"x")
    yield f"meeting://{root}"
    system.rm(root, recursive=True)


def test_remote_folders_are_listed_at_the_same_time(meeting):
    expected = [f"day{day}/deep/{number}.jpg" for day in range(6) for number in range(3)]
    assert ids(FolderSource(meeting)) == expected


def test_remote_listing_can_be_ended_early(meeting):
    items = FolderSource(meeting).items()
    assert next(items).image_id.endswith(".jpg")
    items.close()


def test_remote_folder_that_cannot_be_listed_is_refused(meeting, monkeypatch):
    monkeypatch.setattr(MeetingFileSystem, "unlistable", "day3/deep")
    with pytest.raises(InputError, match=r"photos cannot be listed .*Forbidden"):
        ids(FolderSource(meeting))
