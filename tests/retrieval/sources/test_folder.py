"""Tests of folder sources: which files are listed, their ids, and reading them by their paths."""

import errno
import os
import socket
import time
import uuid
from abc import ABC, abstractmethod
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from retrieval.core.errors import InputError
from retrieval.sources.folder import FolderSource
from retrieval.sources.image_names import SUFFIXES, is_image, parent_folder_name
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.walk import modified_ns
from retrieval.storage.input_files import escape_non_utf8, read_uri
from tests.retrieval.sources.contract import SourceContract


def ids(source):
    return sorted(item.image_id for item in source.items())


class TestContract(SourceContract):
    """What every source promises."""

    def source(self, place, images, others=()):
        if not (images or others):
            place.put("empty.txt", b"")
        for name, data in [*images.items(), *((name, b"x") for name in others)]:
            place.put(name, data)
        return FolderSource(place.root)

    def missing(self, place):
        return FolderSource(place.root)


class FolderTests(ABC):
    """What a folder promises beyond that, here and behind a URI."""

    @abstractmethod
    def root(self):
        """A fixture that gives the URI of a root that does not exist yet."""

    @abstractmethod
    def put(self, root, name, data):
        """Lay a file below the root."""

    def source(self, root, *names):
        for name in names:
            self.put(root, name, name.encode())
        return FolderSource(root)

    def test_each_image_is_offered_once_with_its_size_and_opens_by_its_path(self, root):
        names = ["a.jpg", "cats/a.jpg", "cats/big/b.png", "dogs/c.webp", "zoo/cats/d.gif"]
        items = sorted(self.source(root, *names).items(), key=lambda item: item.image_id)
        assert [item.image_id for item in items] == names
        for item in items:
            assert read_uri(item.path) == item.image_id.encode()
            assert item.size == len(item.image_id.encode())

    def test_the_label_is_the_folder_an_image_lies_in(self, root):
        source = self.source(root, "a.jpg", "cats/a.jpg", "cats/big/b.jpg")
        labels = {item.image_id: item.label for item in source.items()}
        assert labels == {"a.jpg": None, "cats/a.jpg": "cats", "cats/big/b.jpg": "big"}

    @pytest.mark.parametrize("suffix", sorted(SUFFIXES))
    def test_a_suffix_counts_in_any_case(self, root, suffix):
        names = [f"{number}.{name}" for number, name in enumerate({suffix, suffix.upper()})]
        names.append("mixed." + suffix[0].upper() + suffix[1:].lower())
        assert ids(self.source(root, *names)) == sorted(names)

    def test_other_files_are_left_out(self, root):
        others = ["notes.txt", "jpg", "a/png", "a.jpg.bak", "a.jpgx", "a.jpg/b", "README", "a."]
        assert ids(self.source(root, "x.jpg", *others)) == ["x.jpg"]

    def test_odd_names_are_kept(self, root):
        names = [
            "it's & <b>bold.jpg",
            "two  spaces /a b.jpg",
            "Grüße – 猫.jpg",
            "e\u0301.jpg",  # not composed: another name than the next
            "\u00e9.jpg",
            "100%.jpg",
            "a%20b.jpg",
            "a#b?c.jpg",
            "[a]*.jpg",
            "new\nline.jpg",
            "a-b.jpg",
            "a/b.jpg",
        ]
        source = self.source(root, *names)
        assert ids(source) == sorted(names)
        for item in source.items():
            assert read_uri(item.path) == item.image_id.encode()

    def test_a_slash_at_the_end_of_the_root_makes_no_difference(self, root):
        source = self.source(root, "cats/a.jpg", "b.jpg")
        assert sorted(FolderSource(root + "/").items(), key=str) == sorted(source.items(), key=str)

    def test_a_missing_root_is_refused(self, root):
        for use in (ids, FolderSource.check):
            with pytest.raises(InputError, match="does not exist"):
                use(FolderSource(root))

    def test_a_file_as_root_is_refused(self, root):
        self.put(root, "a.jpg", b"1")
        with pytest.raises(InputError, match="is not a folder"):
            ids(FolderSource(f"{root}/a.jpg"))

    def test_a_root_without_images_offers_nothing_and_is_refused_by_check(self, root):
        source = self.source(root, "notes.txt")
        assert ids(source) == []
        with pytest.raises(InputError, match="holds no images"):
            source.check()
        self.put(root, "a/b/c.jpg", b"1")
        source.check()

    def test_a_file_that_vanished_is_missing_when_it_is_read(self, root):
        (item,) = self.source(root, "a.jpg").items()
        self.remove(root, "a.jpg")
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

    def remove(self, root, name):
        fsspec.filesystem("memory").rm_file(f"{root}/{name}")

    def test_the_last_change_is_what_the_store_says(self, root):
        (item,) = self.source(root, "a.jpg").items()
        assert abs(item.mtime_ns - time.time_ns()) < 60 * 10**9

    @pytest.mark.parametrize("root", ["nonsense://bucket/photos"])
    def test_an_unknown_kind_of_store_is_refused(self, root):
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

    def remove(self, root, name):
        Path(root, name).unlink()

    def test_the_last_change_is_known(self, root):
        source = self.source(root, "a.jpg")
        os.utime(f"{root}/a.jpg", ns=(1, 1_700_000_000_123_456_789))
        (item,) = source.items()
        assert item.mtime_ns == 1_700_000_000_123_456_789

    @pytest.mark.parametrize("form", ["photos", "./photos", "../{name}/photos", "~/photos"])
    def test_paths_are_absolute_however_the_root_is_named(self, root, monkeypatch, form):
        self.put(root, "a b/c.jpg", b"1")
        here = Path(root).parent
        monkeypatch.chdir(here)
        monkeypatch.setenv("HOME", str(here))
        (item,) = FolderSource(form.format(name=here.name)).items()
        assert (item.image_id, item.path) == ("a b/c.jpg", f"{root}/a b/c.jpg")

    def test_a_file_uri_names_a_local_folder(self, root):
        self.put(root, "a b/c.jpg", b"1")
        (item,) = FolderSource(f"file://{root}").items()
        assert (item.image_id, item.path) == ("a b/c.jpg", f"{root}/a b/c.jpg")

    def test_names_that_are_not_utf_8_are_written_with_percents_and_open_again(self, root):
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

    def test_links_to_files_and_folders_are_followed_under_their_own_names(self, root):
        self.put(root, "cats/a.jpg", b"1")
        self.put(root, "../elsewhere/b.jpg", b"12")
        os.symlink("cats/a.jpg", f"{root}/link.jpg")
        os.symlink("../elsewhere", f"{root}/dogs")
        items = {item.image_id: item for item in FolderSource(root).items()}
        assert sorted(items) == ["cats/a.jpg", "dogs/b.jpg", "link.jpg"]
        assert items["dogs/b.jpg"].size == 2
        assert items["dogs/b.jpg"].label == "dogs"

    def test_a_link_to_a_folder_above_is_not_followed(self, root):
        self.put(root, "cats/deep/a.jpg", b"1")
        os.symlink("..", f"{root}/cats/up")
        os.symlink(".", f"{root}/cats/here")
        os.symlink(root, f"{root}/cats/deep/root")
        assert ids(FolderSource(root)) == ["cats/deep/a.jpg"]

    def test_two_folders_that_link_to_each_other_end(self, root):
        self.put(root, "a/1.jpg", b"1")
        self.put(root, "b/2.jpg", b"2")
        os.symlink("../b", f"{root}/a/b")
        os.symlink("../a", f"{root}/b/a")
        assert ids(FolderSource(root)) == ["a/1.jpg", "a/b/2.jpg", "b/2.jpg", "b/a/1.jpg"]

    def test_the_root_may_be_a_link(self, root):
        self.put(root, "a.jpg", b"1")
        os.symlink(root, root + "-link")
        assert ids(FolderSource(root + "-link")) == ["a.jpg"]

    def test_a_link_to_nothing_is_offered_if_it_is_named_like_an_image(self, root):
        """So that it fails and stands in the ledger, as a file that vanished does."""
        self.put(root, "a.jpg", b"1")
        os.symlink("nowhere", f"{root}/dangling.jpg")
        os.symlink("circle.jpg", f"{root}/circle.jpg")
        os.symlink("nowhere", f"{root}/dangling.txt")
        os.symlink("nowhere", f"{root}/folder")
        items = {item.image_id: item for item in FolderSource(root).items()}
        assert sorted(items) == ["a.jpg", "circle.jpg", "dangling.jpg"]
        for name in ("circle.jpg", "dangling.jpg"):
            with pytest.raises(OSError, match=r"symbolic links|No such file"):
                read_uri(items[name].path)

    def test_what_is_neither_file_nor_folder_and_named_like_an_image_has_a_problem(self, root):
        """Opening a named pipe would hang: it is never read, and the ledger names it."""
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
        assert source.others == 1
        for name in ("pipe.jpg", "null.jpg"):
            with ItemReader() as reader, pytest.raises(ValueError, match=r"not a file"):
                reader.read(f"{root}/{name}")

    @pytest.mark.parametrize(
        ("seconds", "known"),
        [
            (-(2**32), True),
            (9_000_000_000, True),
            (13_569_465_600, False),
            (-10_000_000_000, False),
        ],
    )
    def test_a_time_out_of_range_is_unknown(self, root, seconds, known):
        self.put(root, "a.jpg", b"1")
        try:
            os.utime(f"{root}/a.jpg", (0, seconds))
        except OverflowError:
            pytest.skip("this file system keeps no such times")
        if os.stat(f"{root}/a.jpg").st_mtime != seconds:
            pytest.skip("this file system keeps no such times")
        (item,) = FolderSource(root).items()
        assert item.mtime_ns == (seconds * 10**9 if known else None)

    def test_an_empty_root(self, root):
        os.mkdir(root)
        assert ids(FolderSource(root)) == []
        with pytest.raises(InputError, match="holds no images"):
            FolderSource(root).check()

    @pytest.fixture
    def closed(self, monkeypatch):
        """Let some folders and files refuse to be listed or looked at, whoever asks."""
        errors = {}
        listed = os.scandir

        def refuse(path):
            for end, error in errors.items():
                if str(path).endswith(end):
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
            with listed(path) as entries:
                yield map(Entry, entries)

        monkeypatch.setattr(os, "scandir", scandir)
        return errors

    def test_a_subfolder_that_may_not_be_listed_is_one_item_with_a_problem(self, root, closed):
        for name in ("a.jpg", "cats/deep/b.jpg", "cats/c.jpg", "dogs/d.jpg", "mice/e.jpg"):
            self.put(root, name, b"1")
        closed |= {"cats/": errno.EACCES, "mice": errno.EACCES}
        found = {item.image_id: item for item in FolderSource(root).items()}
        assert sorted(found) == ["a.jpg", "cats", "dogs/d.jpg", "mice"]
        for name in ("cats", "mice"):
            assert found[name].problem == "the folder cannot be listed (Permission denied)"
            assert found[name].path == f"{root}/{name}"

    def test_a_file_that_may_not_be_looked_at_is_offered(self, root, closed):
        """As in a folder that may be listed and not entered; reading says why."""
        self.put(root, "cats/a.jpg", b"1")
        self.put(root, "cats/b.jpg", b"1")
        closed |= {"a.jpg": errno.EACCES, "b.jpg": errno.ENOENT}  # the other one is gone since
        (item,) = FolderSource(root).items()
        assert (item.image_id, item.size, item.mtime_ns) == ("cats/a.jpg", None, None)

    @pytest.mark.parametrize(
        ("end", "error"), [("photos/", errno.EACCES), ("cats/", errno.EIO), ("cats/", errno.ESTALE)]
    )
    def test_a_root_that_may_not_be_listed_and_a_disk_that_fails_are_refused(
        self, root, closed, end, error
    ):
        self.put(root, "cats/a.jpg", b"1")
        closed[end] = error
        with pytest.raises(
            InputError, match=rf"{end[:-1]} cannot be listed \({os.strerror(error)}"
        ):
            ids(FolderSource(root))


def test_options_stay_out_of_what_is_printed():
    assert "hunter2" not in repr(FolderSource("s3://bucket", {"secret": "hunter2"}))


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a.jpg", True), ("b/a.JPG", True), ("jpg", False), ("b.jpg/a", False), ("a.b.png", True)],
)
def test_the_suffix_of_the_name_tells_an_image(path, expected):
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
def test_the_last_change_is_read_as_each_store_writes_it(info, expected):
    assert modified_ns(info) == expected


def test_a_listing_holds_no_more_than_a_folder_of_a_store(remote, monkeypatch):
    for name in ("a/1.jpg", "a/b/2.jpg", "c/3.jpg"):
        remote.put(name, b"x")
    asked = []
    system = fsspec.filesystem("memory", use_listings_cache=False)
    plain = type(system).ls
    monkeypatch.setattr(
        type(system), "ls", lambda self, path, **kw: asked.append(path) or plain(self, path, **kw)
    )
    found = FolderSource(remote.root).items()
    next(found)
    assert len(asked) == 2
    assert len(list(found)) == 2
    assert len(asked) == 4


def test_a_folder_is_walked_without_being_listed_as_a_whole(local, monkeypatch):
    for number in range(50):
        local.put(f"{number}.jpg", b"x")
    met = []
    plain = os.scandir

    class Counted:
        def __init__(self, path):
            self.entries = plain(path)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.entries.close()

        def __iter__(self):
            for entry in self.entries:
                met.append(entry.name)
                yield entry

    monkeypatch.setattr(os, "scandir", Counted)
    found = FolderSource(local.root).items()
    next(found)
    assert len(met) == 1
    assert len(list(found)) == 49


def test_a_folder_of_heic_files_is_refused_with_the_way_out(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.HEIC").write_bytes(b"")
    source = FolderSource(str(tmp_path))
    with pytest.raises(InputError, match=r"holds 3 HEIC files .* pillow-heif"):
        source.check()
