"""Tests of tar sources: reading members in place, WebDataset labels, and hostile members."""

import io
import os
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.core.errors import InputError
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.webdataset import TarSource
from tests.retrieval.sources.contract import SourceContract


def member(name, data=b"", *, mtime=0, **changes):
    """Return the TarInfo, its attributes replaced by `changes`, and the data of a member."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), mtime
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


def tar_of(*members, tar_format=tarfile.PAX_FORMAT):
    sink = io.BytesIO()
    with tarfile.open(
        fileobj=sink, mode="w", format=tar_format, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def items_of(folder, *members, name="x.tar"):
    """Write a tar of (info, data) members; return the items of its source."""
    return list(TarSource(folder.put(name, tar_of(*members))).items())


class TestTar(SourceContract):
    """The source contract for a single tar."""

    def make_source(self, folder, images, other_files=()):
        members = [member(name, data) for name, data in images.items()]
        data = tar_of(*members, *(member(name, b"x") for name in other_files))
        return TarSource(folder.put("x.tar", data))

    def missing_source(self, folder):
        return TarSource(f"{folder.root}/x.tar")

    def expected_id(self, name):
        return f"x.tar/{name}"


class TestShards(SourceContract):
    """The source contract for a folder of tars at several depths, with other files."""

    def make_source(self, folder, images, other_files=()):
        middle = len(images) // 2
        for tar, part in (("s/0.tar", list(images)[:middle]), ("1.TAR", list(images)[middle:])):
            folder.put(tar, tar_of(*(member(name, images[name]) for name in part)))
        for name in other_files:
            folder.put(name, b"x")
        self.tar_by_name = {
            name: "s/0.tar" if n < middle else "1.TAR" for n, name in enumerate(images)
        }
        return TarSource(folder.root)

    def missing_source(self, folder):
        return TarSource(folder.root)

    def make_images(self, names=None):
        images = super().make_images() if names is None else super().make_images(names)
        middle = len(images) // 2
        self.tar_by_name = {
            name: "s/0.tar" if n < middle else "1.TAR" for n, name in enumerate(images)
        }
        return images

    def expected_id(self, name):
        if not hasattr(self, "tar_by_name"):
            self.make_images()
        return f"{self.tar_by_name[name]}/{name}"


@pytest.fixture(params=["local", "remote"])
def folder(request):
    return request.getfixturevalue(request.param)


def test_glob_selects_matching_tars(folder):
    for name in ("a/1.tar", "a/2.tar", "b/1.tar", "b/x.txt"):
        folder.put(name, tar_of(member("i.jpg", b"1")))
    ids = sorted(item.image_id for item in TarSource(f"{folder.root}/*/1.tar").items())
    assert ids == ["a/1.tar/i.jpg", "b/1.tar/i.jpg"]
    with pytest.raises(InputError, match="matches no file"):
        list(TarSource(f"{folder.root}/c*.tar").items())


def test_fsspec_opens_paths_and_position_is_byte_offset(folder):
    data = tar_of(member("cats/a b.jpg", b"first"), member("ü.jpg", b"second"))
    first, second = TarSource(folder.put("x.tar", data)).items()
    assert first.path.startswith("tar://cats/a b.jpg::")
    for item, expected in ((first, b"first"), (second, b"second")):
        assert data[item.place : item.place + item.size] == expected
        with fsspec.open(item.path) as file:
            assert file.read() == expected


def test_modification_time_is_later_of_member_and_tar(local):
    path = local.put("x.tar", tar_of(member("a.jpg", mtime=5), member("b.jpg", mtime=2_000.5)))
    os.utime(path, ns=(1, 1_000_000_000_007))
    assert [item.mtime_ns for item in TarSource(path).items()] == [
        1_000_000_000_007, 2_000_500_000_000,
    ]  # fmt: skip


@pytest.mark.parametrize("mtime", [13_569_465_600, 1e300, float("inf"), float("nan")])
def test_member_time_out_of_range_falls_back_to_tar_time(folder, mtime):
    info, data = member("a.jpg", b"1", pax_headers={"mtime": str(mtime)})
    path = folder.put("x.tar", tar_of((info, data)))
    if "://" not in path:
        os.utime(path, ns=(1, 7))
    (item,) = TarSource(path).items()
    assert item.mtime_ns == 7 or "://" in path


def test_member_and_tar_time_out_of_range_yield_none(local):
    path = local.put("x.tar", tar_of(member("a.jpg", pax_headers={"mtime": "13569465600"})))
    os.utime(path, (0, 13_569_465_600))
    if os.stat(path).st_mtime != 13_569_465_600:
        pytest.skip("the file system cannot store this time")
    assert [item.mtime_ns for item in TarSource(path).items()] == [None]


def test_named_pipe_and_unreadable_folder_have_problems(local, monkeypatch):
    local.put("b/x.tar", tar_of(member("a.jpg", b"1")))
    local.put("c/x.tar", tar_of(member("a.jpg", b"1")))
    os.mkfifo(f"{local.root}/pipe.tar")
    original_scandir = os.scandir

    def scandir(path):
        if str(path).endswith("/c"):
            raise PermissionError(13, "Permission denied", path)
        return original_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert {item.image_id: item.problem for item in TarSource(local.root).items()} == {
        "b/x.tar/a.jpg": None,
        "c": "the folder cannot be listed (Permission denied)",
        "pipe.tar": "it is a named pipe, not a file",
    }


@pytest.mark.parametrize(
    ("members", "labels"),
    [
        ((("a.jpg", b""), ("cats/b.jpg", b""), ("x/cats/c.jpg", b"")), [None, "cats", "cats"]),
        ((("a.jpg", b""), ("a.cls", b"7\n")), ["7"]),
        ((("a.cls", b"dog"), ("a.jpg", b"")), ["dog"]),
        ((("s/a.x.jpg", b""), ("s/b.jpg", b""), ("s/a.cls", b"dog")), ["dog", "s"]),
        (
            (("v1.0/a.jpg", b""), ("v1.0/a.cls", b"dog")),
            ["dog"],
        ),  # dots in folder names are ignored
        ((("./a.jpg", b""), ("a.cls", b"dog")), ["dog"]),
        ((("cats/a.jpg", b""), ("cats/a.cls", b" ")), [None]),
        ((("cats/a.jpg", b""), ("cats/a.cls", b"x" * 2000)), ["cats"]),
        ((("cats/a.jpg", b""), ("cats/a.CLS", "Käse".encode())), ["Käse"]),
        (  # one WebDataset key, two stems: the label of the stem is used
            (("p.0.jpg", b""), ("p.0.cls", b"0"), ("p.1.jpg", b""), ("p.1.cls", b"1")),
            ["0", "1"],
        ),
        ((("p.0.jpg", b""), ("p.1.jpg", b""), ("p.1.cls", b"1")), [None, "1"]),
        ((("p.0.jpg", b""), ("p.0.cls", b"0"), ("p.cls", b"all"), ("p.1.jpg", b"")), ["0", "all"]),
        ((("v1.0/p.0.jpg", b""), ("v1.0/p.0.cls", b"7"), ("v1.0/p.cls", b"8")), ["7"]),
        ((("a.jpg", b""), ("a.cls", b"7"), ("a.cls", b"7\n")), ["7"]),
        ((("a.jpg", b""), ("b.cls", b"7"), ("b.cls", b"8")), [None]),  # no image has this key
    ],
)
def test_label_is_cls_member_or_else_folder(local, members, labels):
    items = items_of(local, *(member(name, data) for name, data in members))
    assert [item.label for item in items] == labels


@pytest.mark.parametrize("image", ["s/a.jpg", "s/a.x.jpg"])
def test_conflicting_labels_of_key_are_refused(local, image):
    members = [member(image, b"1"), member("s/a.cls", b"7"), member("./s/a.CLS", b"8")]
    with pytest.raises(InputError, match=r"x\.tar holds two different labels for s/a .*keep one"):
        items_of(local, *members)


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        (member("../up.jpg", b"1"), "leads out"),
        (member("a/../../up.jpg", b"1"), "leads out"),
        (member("/etc/a.jpg", b"1"), "absolute"),
        (member("link.jpg", **LINK), "link in its tar, to /etc/passwd"),
        (member("hard.jpg", type=tarfile.LNKTYPE, linkname="good.jpg"), "link"),
        (member("pipe.jpg", type=tarfile.FIFOTYPE), "neither file nor folder"),
        (member("null.jpg", type=tarfile.CHRTYPE), "neither file nor folder"),
        (member("disk.jpg", type=tarfile.BLKTYPE), "neither file nor folder"),
    ],
)
def test_hostile_members_have_problems_and_write_no_files(local, info, problem):
    items = items_of(local, info, member("good.jpg", b"1"))
    assert [item.problem is None for item in items] == [False, True]
    assert problem in items[0].problem
    assert items[0].image_id == f"x.tar/{info[0].name}"
    assert [path.name for path in Path(local.root).parent.rglob("*") if path.is_file()] == ["x.tar"]


def test_sparse_member_has_problem(local):
    info, _ = member("holes.jpg", type=tarfile.GNUTYPE_SPARSE)
    items = items_of(local, (info, b""), member("good.jpg", b"1"))
    assert "sparse" in items[0].problem
    assert items[1].problem is None


def test_folders_and_links_without_image_names_are_skipped(local):
    source = TarSource(
        local.put(
            "x.tar",
            tar_of(
                member("folder.jpg", type=tarfile.DIRTYPE),
                member("link.txt", **LINK),
                member("a.jpg", b"1"),
            ),
        )
    )
    assert [item.image_id for item in source.items()] == ["x.tar/a.jpg"]
    assert source.skipped_count == 1


def test_last_member_of_duplicate_name_is_used(folder):
    items = items_of(
        folder,
        member("a.jpg", b"first"),
        member("a.jpg (1)", b"not an image"),
        member("./a.jpg", b"second"),
        member("b.jpg", b"other"),
        member("a.jpg", b"third"),
    )
    assert len({item.image_id for item in items}) == 4
    assert [item.problem is None for item in items] == [False, False, True, True]
    assert [item.image_id for item in items if item.problem is None] == [
        "x.tar/b.jpg", "x.tar/a.jpg",
    ]  # fmt: skip
    with ItemReader() as reader:
        assert reader.read(items[3].path) == b"third"
        assert reader.read(items[3].path, items[3].place, items[3].size) == b"third"


def test_ids_of_replaced_members_are_unique(local):
    items = items_of(
        local, *(member(name, b"1") for name in ("a.jpg", "a.jpg", "a.jpg", "a.jpg (1)/b.jpg"))
    )
    assert [item.image_id for item in items] == [
        "x.tar/a.jpg (1)", "x.tar/a.jpg (2)", "x.tar/a.jpg", "x.tar/a.jpg (1)/b.jpg",
    ]  # fmt: skip


def test_link_replaces_earlier_image_of_same_name(local):
    items = items_of(local, member("a.jpg", b"1"), member("a.jpg", **LINK))
    assert [item.image_id for item in items] == ["x.tar/a.jpg (1)", "x.tar/a.jpg"]
    assert all(item.problem for item in items)


@pytest.mark.parametrize(
    "tar_format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT]
)
def test_non_utf8_names_are_escaped_and_readable(local, tar_format):
    name = os.fsdecode(b"caf\xe9/\xff \xc3\xbc.jpg")
    path = local.put(
        "x.tar", tar_of(member(name, b"1"), member("caf%C3.jpg", b"2"), tar_format=tar_format)
    )
    items = list(TarSource(path).items())
    assert [item.image_id for item in items] == ["x.tar/caf%E9/%FF ü.jpg", "x.tar/caf%C3.jpg"]
    with ItemReader() as reader:
        assert [reader.read(item.path) for item in items] == [b"1", b"2"]


def test_long_names_in_each_tar_format(local):
    name = "/".join(["folder" * 8] * 6) + "/a.jpg"
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = local.put("x.tar", tar_of(member(name, b"1"), tar_format=tar_format))
        assert [item.image_id for item in TarSource(path).items()] == [f"x.tar/{name}"]


def damage(data, damage_kind):
    """Return a damaged copy of a tar of three members of 600 bytes (header and two blocks each)."""
    lengths = {
        "in data": 2 * 1536 + 700,
        "in a header": 2 * 1536 + 100,
        "between members": 2 * 1536,
        "before the end mark": 3 * 1536,
    }
    if damage_kind in lengths:
        return data[: lengths[damage_kind]]
    return data[: 2 * 1536] + b"\xff" * 512 + data[2 * 1536 + 512 :]


@pytest.mark.parametrize(
    "damage_kind",
    ["in data", "in a header", "between members", "before the end mark", "header damaged"],
)
def test_damaged_tar_yields_intact_members_then_raises(folder, damage_kind):
    members = [member(f"{number}.jpg", b"x" * 600) for number in range(3)]
    data = damage(tar_of(*members, tar_format=tarfile.USTAR_FORMAT), damage_kind)
    source = TarSource(folder.put("x.tar", data))
    items = []
    with pytest.raises(InputError, match=r"photos/x\.tar is damaged"):
        items.extend(source.items())
    assert [item.image_id for item in items] == [
        f"x.tar/{number}.jpg" for number in range(3 if damage_kind == "before the end mark" else 2)
    ]


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"x" * 5000, b"\xff" * 1024])
def test_file_that_is_no_tar_is_refused_by_name(local, data):
    with pytest.raises(InputError, match=r"x\.tar is damaged"):
        list(TarSource(local.put("x.tar", data)).items())


@pytest.mark.parametrize("size_field", [b"-1", b"0x7fffffff", b"77777777777", b"\xff" * 12])
def test_invalid_member_size_is_refused(local, size_field):
    data = bytearray(tar_of(member("a.jpg", b"1"), member("b.jpg", b"1")))
    header = data[1024:1536]
    header[124:136] = size_field.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    with pytest.raises(InputError, match=r"x\.tar is damaged"):
        list(TarSource(local.put("x.tar", bytes(data))).items())


VALID_TAR = tar_of(
    member("a.jpg", b"1"),
    member("ü" * 200 + ".jpg", b"2", pax_headers={"comment": "x"}),
    member("l.jpg", **LINK),
    member("a.cls", b"cat"),
    member("b.jpg", b"3" * 700),
)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, len(VALID_TAR) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(VALID_TAR)),
)
def test_random_damage_is_read_or_refused(changes, length):
    data = bytearray(VALID_TAR[:length])
    for position, value in changes:
        data[position % max(len(data), 1) : position % max(len(data), 1) + 1] = bytes([value])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.tar")
        path.write_bytes(data)
        items = []
        with suppress(InputError):
            items.extend(TarSource(str(path)).items())
        for item in items:
            assert item.problem or 0 <= item.place <= item.place + item.size <= len(data)


@pytest.mark.parametrize("gap", [0, 512, 70_000 // 512 * 512])
@pytest.mark.parametrize(
    "tar_format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT]
)
def test_concatenated_tars_are_read_completely(folder, tar_format, gap):
    parts = []
    for part in ("first", "second", "third"):
        images = [member(f"{part}/{name}.jpg", f"{part} {name}".encode() * 300) for name in "ab"]
        parts.append(tar_of(*images, member(f"{part}/a.cls", part.encode()), tar_format=tar_format))
    data = (b"\0" * gap).join(parts)
    items = list(TarSource(folder.put("x.tar", data)).items())
    assert [(item.image_id, item.label) for item in items] == [
        (f"x.tar/{part}/{name}.jpg", part) for part in ("first", "second", "third") for name in "ab"
    ]
    with ItemReader() as reader:
        for item in items:
            part, name = item.image_id.split("/")[1], item.image_id[-5]
            expected = f"{part} {name}".encode() * 300
            assert data[item.place : item.place + item.size] == expected
            assert reader.read(item.path, item.place, item.size) == expected
            assert reader.read(item.path) == expected


def test_single_zero_block_does_not_end_tar(local):
    first, second = (
        tar_of(member(f"{name}.jpg", b"x" * 600), tar_format=tarfile.USTAR_FORMAT) for name in "ab"
    )
    data = first[:1536] + b"\0" * 512 + second
    items = TarSource(local.put("x.tar", data)).items()
    assert [item.image_id for item in items] == ["x.tar/a.jpg", "x.tar/b.jpg"]


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 512, b"garbage", b"\0" * 70_000 + b"x", b"\0" * 511 + b"x"]
)
def test_garbage_after_end_mark_is_refused(folder, garbage):
    source = TarSource(folder.put("x.tar", tar_of(member("a.jpg", b"1")) + garbage))
    items = []
    with pytest.raises(
        InputError, match=r"x\.tar is damaged \(at byte \d+ its end mark is followed"
    ):
        items.extend(source.items())
    assert [item.image_id for item in items] == ["x.tar/a.jpg"]


def test_truncated_second_tar_is_refused(local):
    part = tar_of(member("a.jpg", b"x" * 600), tar_format=tarfile.USTAR_FORMAT)
    path = local.put("x.tar", part + part.replace(b"a.jpg", b"b.jpg")[:700])
    with pytest.raises(InputError, match=r"x\.tar is damaged"):
        list(TarSource(path).items())


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_tar_is_refused_with_remedy(local, mode):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=f"w:{mode}") as tar:
        tar.addfile(*member("a.jpg"))
    with pytest.raises(InputError, match=r"x\.tar is compressed.*uncompress"):
        list(TarSource(local.put("x.tar", sink.getvalue())).items())


def test_path_with_double_colon_is_refused(local):
    local.put("a::b/x.tar", tar_of(member("a.jpg", b"1")))
    with pytest.raises(InputError, match="rename it"):
        list(TarSource(local.root).items())


def test_reading_from_changed_or_deleted_tar_raises(local):
    path = local.put("x.tar", tar_of(member("a.jpg", b"x" * 5000)))
    (item,) = TarSource(path).items()
    Path(path).write_bytes(tar_of(member("b.jpg", b"1"))[:2000])
    with ItemReader() as reader:
        with pytest.raises(ValueError, match="ends before"):
            reader.read(item.path, item.place, item.size)
        with pytest.raises(OSError, match=r"no member a\.jpg"):
            reader.read(item.path)
        Path(path).unlink()
        with pytest.raises(FileNotFoundError):
            reader.read(item.path, item.place, item.size)
