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
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), mtime
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


def tar_of(*members, form=tarfile.PAX_FORMAT):
    sink = io.BytesIO()
    with tarfile.open(
        fileobj=sink, mode="w", format=form, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def items_of(place, *members, name="x.tar"):
    return list(TarSource(place.put(name, tar_of(*members))).items())


class TestTar(SourceContract):
    """A single tar."""

    def source(self, place, images, others=()):
        members = [member(name, data) for name, data in images.items()]
        data = tar_of(*members, *(member(name, b"x") for name in others))
        return TarSource(place.put("x.tar", data))

    def missing(self, place):
        return TarSource(f"{place.root}/x.tar")

    def image_id(self, name):
        return f"x.tar/{name}"


class TestShards(SourceContract):
    """A folder of tars at several depths; what is no tar counts among the others."""

    def source(self, place, images, others=()):
        half = len(images) // 2
        for tar, part in (("s/0.tar", list(images)[:half]), ("1.TAR", list(images)[half:])):
            place.put(tar, tar_of(*(member(name, images[name]) for name in part)))
        for name in others:
            place.put(name, b"x")
        self.at = {name: "s/0.tar" if n < half else "1.TAR" for n, name in enumerate(images)}
        return TarSource(place.root)

    def missing(self, place):
        return TarSource(place.root)

    def images(self, names=None):
        found = super().images() if names is None else super().images(names)
        half = len(found) // 2
        self.at = {name: "s/0.tar" if n < half else "1.TAR" for n, name in enumerate(found)}
        return found

    def image_id(self, name):
        if not hasattr(self, "at"):
            self.images()
        return f"{self.at[name]}/{name}"


@pytest.fixture(params=["local", "remote"])
def place(request):
    return request.getfixturevalue(request.param)


def test_a_glob_means_the_tars_that_match(place):
    for name in ("a/1.tar", "a/2.tar", "b/1.tar", "b/x.txt"):
        place.put(name, tar_of(member("i.jpg", b"1")))
    ids = sorted(item.image_id for item in TarSource(f"{place.root}/*/1.tar").items())
    assert ids == ["a/1.tar/i.jpg", "b/1.tar/i.jpg"]
    with pytest.raises(InputError, match="matches no file"):
        list(TarSource(f"{place.root}/c*.tar").items())


def test_fsspec_opens_the_path_and_the_place_is_where_the_bytes_begin(place):
    data = tar_of(member("cats/a b.jpg", b"first"), member("ü.jpg", b"second"))
    first, second = TarSource(place.put("x.tar", data)).items()
    assert first.path.startswith("tar://cats/a b.jpg::")
    for item, bytes_ in ((first, b"first"), (second, b"second")):
        assert data[item.place : item.place + item.size] == bytes_
        with fsspec.open(item.path) as file:
            assert file.read() == bytes_


def test_the_last_change_is_the_later_one_of_member_and_tar(local):
    path = local.put("x.tar", tar_of(member("a.jpg", mtime=5), member("b.jpg", mtime=2_000.5)))
    os.utime(path, ns=(1, 1_000_000_000_007))
    assert [item.mtime_ns for item in TarSource(path).items()] == [
        1_000_000_000_007, 2_000_500_000_000,
    ]  # fmt: skip


@pytest.mark.parametrize("mtime", [13_569_465_600, 1e300, float("inf"), float("nan")])
def test_a_time_out_of_range_is_that_of_the_tar_or_unknown(place, mtime):
    info, data = member("a.jpg", b"1", pax_headers={"mtime": str(mtime)})
    path = place.put("x.tar", tar_of((info, data)))
    if "://" not in path:
        os.utime(path, ns=(1, 7))
    (item,) = TarSource(path).items()
    assert item.mtime_ns == 7 or "://" in path


def test_no_time_is_known_where_that_of_the_tar_is_out_of_range_too(local):
    path = local.put("x.tar", tar_of(member("a.jpg", pax_headers={"mtime": "13569465600"})))
    os.utime(path, (0, 13_569_465_600))
    if os.stat(path).st_mtime != 13_569_465_600:
        pytest.skip("this file system keeps no such times")
    assert [item.mtime_ns for item in TarSource(path).items()] == [None]


def test_a_named_pipe_and_a_folder_that_may_not_be_listed_have_problems(local, monkeypatch):
    local.put("b/x.tar", tar_of(member("a.jpg", b"1")))
    local.put("c/x.tar", tar_of(member("a.jpg", b"1")))
    os.mkfifo(f"{local.root}/pipe.tar")
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("/c"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

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
        ((("v1.0/a.jpg", b""), ("v1.0/a.cls", b"dog")), ["dog"]),  # dots of folders do not count
        ((("./a.jpg", b""), ("a.cls", b"dog")), ["dog"]),
        ((("cats/a.jpg", b""), ("cats/a.cls", b" ")), [None]),
        ((("cats/a.jpg", b""), ("cats/a.cls", b"x" * 2000)), ["cats"]),
        ((("cats/a.jpg", b""), ("cats/a.CLS", "Käse".encode())), ["Käse"]),
        (  # one key of WebDataset, two stems: each image has its own label
            (("p.0.jpg", b""), ("p.0.cls", b"0"), ("p.1.jpg", b""), ("p.1.cls", b"1")),
            ["0", "1"],
        ),
        ((("p.0.jpg", b""), ("p.1.jpg", b""), ("p.1.cls", b"1")), [None, "1"]),
        ((("p.0.jpg", b""), ("p.0.cls", b"0"), ("p.cls", b"all"), ("p.1.jpg", b"")), ["0", "all"]),
        ((("v1.0/p.0.jpg", b""), ("v1.0/p.0.cls", b"7"), ("v1.0/p.cls", b"8")), ["7"]),
        ((("a.jpg", b""), ("a.cls", b"7"), ("a.cls", b"7\n")), ["7"]),
        ((("a.jpg", b""), ("b.cls", b"7"), ("b.cls", b"8")), [None]),  # of no image
    ],
)
def test_the_label_is_the_cls_beside_it_or_else_the_folder(local, members, labels):
    found = items_of(local, *(member(name, data) for name, data in members))
    assert [item.label for item in found] == labels


@pytest.mark.parametrize("image", ["s/a.jpg", "s/a.x.jpg"])
def test_two_different_labels_for_one_key_are_refused(local, image):
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
def test_hostile_members_are_offered_with_a_problem_and_change_nothing(local, info, problem):
    found = items_of(local, info, member("good.jpg", b"1"))
    assert [item.problem is None for item in found] == [False, True]
    assert problem in found[0].problem
    assert found[0].image_id == f"x.tar/{info[0].name}"
    assert [path.name for path in Path(local.root).parent.rglob("*") if path.is_file()] == ["x.tar"]


def test_a_sparse_member_is_offered_with_a_problem(local):
    info, _ = member("holes.jpg", type=tarfile.GNUTYPE_SPARSE)
    found = items_of(local, (info, b""), member("good.jpg", b"1"))
    assert "sparse" in found[0].problem
    assert found[1].problem is None


def test_folders_links_and_devices_that_are_not_named_like_images_are_no_images(local):
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
    assert source.others == 1


def test_of_members_of_one_name_the_last_counts(place):
    found = items_of(
        place,
        member("a.jpg", b"first"),
        member("a.jpg (1)", b"no image"),
        member("./a.jpg", b"second"),
        member("b.jpg", b"other"),
        member("a.jpg", b"third"),
    )
    assert len({item.image_id for item in found}) == 4
    assert [item.problem is None for item in found] == [False, False, True, True]
    assert [item.image_id for item in found if item.problem is None] == [
        "x.tar/b.jpg", "x.tar/a.jpg",
    ]  # fmt: skip
    with ItemReader() as reader:
        assert reader.read(found[3].path) == b"third"
        assert reader.read(found[3].path, found[3].place, found[3].size) == b"third"


def test_an_id_for_a_replaced_member_is_one_that_no_member_has(local):
    found = items_of(
        local, *(member(name, b"1") for name in ("a.jpg", "a.jpg", "a.jpg", "a.jpg (1)/b.jpg"))
    )
    assert [item.image_id for item in found] == [
        "x.tar/a.jpg (1)", "x.tar/a.jpg (2)", "x.tar/a.jpg", "x.tar/a.jpg (1)/b.jpg",
    ]  # fmt: skip


def test_a_link_that_replaces_an_image_is_the_one_that_counts(local):
    found = items_of(local, member("a.jpg", b"1"), member("a.jpg", **LINK))
    assert [item.image_id for item in found] == ["x.tar/a.jpg (1)", "x.tar/a.jpg"]
    assert all(item.problem for item in found)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_names_that_are_not_utf_8_are_written_with_percents_and_open_again(local, form):
    name = os.fsdecode(b"caf\xe9/\xff \xc3\xbc.jpg")
    path = local.put("x.tar", tar_of(member(name, b"1"), member("caf%C3.jpg", b"2"), form=form))
    found = list(TarSource(path).items())
    assert [item.image_id for item in found] == ["x.tar/caf%E9/%FF ü.jpg", "x.tar/caf%C3.jpg"]
    with ItemReader() as reader:
        assert [reader.read(item.path) for item in found] == [b"1", b"2"]


def test_long_names_of_every_form_are_whole(local):
    name = "/".join(["folder" * 8] * 6) + "/a.jpg"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = local.put("x.tar", tar_of(member(name, b"1"), form=form))
        assert [item.image_id for item in TarSource(path).items()] == [f"x.tar/{name}"]


def broken(data, how):
    """Damage a tar of three members of 600 bytes (a header and two blocks each)."""
    at = {
        "in data": 2 * 1536 + 700,
        "in a header": 2 * 1536 + 100,
        "between members": 2 * 1536,
        "before the end mark": 3 * 1536,
    }
    if how in at:
        return data[: at[how]]
    return data[: 2 * 1536] + b"\xff" * 512 + data[2 * 1536 + 512 :]


@pytest.mark.parametrize(
    "how", ["in data", "in a header", "between members", "before the end mark", "header damaged"]
)
def test_a_broken_tar_gives_what_is_whole_and_is_then_refused(place, how):
    members = [member(f"{number}.jpg", b"x" * 600) for number in range(3)]
    data = broken(tar_of(*members, form=tarfile.USTAR_FORMAT), how)
    source = TarSource(place.put("x.tar", data))
    found = []
    with pytest.raises(InputError, match=r"photos/x\.tar is broken"):
        found.extend(source.items())
    assert [item.image_id for item in found] == [
        f"x.tar/{number}.jpg" for number in range(3 if how == "before the end mark" else 2)
    ]


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"x" * 5000, b"\xff" * 1024])
def test_what_is_no_tar_is_refused_by_name(local, data):
    with pytest.raises(InputError, match=r"x\.tar is broken"):
        list(TarSource(local.put("x.tar", data)).items())


@pytest.mark.parametrize("bits", [b"-1", b"0x7fffffff", b"77777777777", b"\xff" * 12])
def test_a_size_that_cannot_be_is_refused(local, bits):
    data = bytearray(tar_of(member("a.jpg", b"1"), member("b.jpg", b"1")))
    header = data[1024:1536]
    header[124:136] = bits.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    with pytest.raises(InputError, match=r"x\.tar is broken"):
        list(TarSource(local.put("x.tar", bytes(data))).items())


SOUND = tar_of(
    member("a.jpg", b"1"),
    member("ü" * 200 + ".jpg", b"2", pax_headers={"comment": "x"}),
    member("l.jpg", **LINK),
    member("a.cls", b"cat"),
    member("b.jpg", b"3" * 700),
)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(SOUND)),
)
def test_whatever_is_damaged_a_tar_is_read_or_refused(changes, length):
    data = bytearray(SOUND[:length])
    for at, value in changes:
        data[at % max(len(data), 1) : at % max(len(data), 1) + 1] = bytes([value])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.tar")
        path.write_bytes(data)
        found = []
        with suppress(InputError):
            found.extend(TarSource(str(path)).items())
        for item in found:
            assert item.problem or 0 <= item.place <= item.place + item.size <= len(data)


@pytest.mark.parametrize("gap", [0, 512, 70_000 // 512 * 512])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_tars_that_were_concatenated_are_read_to_the_last_end_mark(place, form, gap):
    parts = []
    for part in ("first", "second", "third"):
        images = [member(f"{part}/{n}.jpg", f"{part} {n}".encode() * 300) for n in "ab"]
        parts.append(tar_of(*images, member(f"{part}/a.cls", part.encode()), form=form))
    data = (b"\0" * gap).join(parts)
    found = list(TarSource(place.put("x.tar", data)).items())
    assert [(item.image_id, item.label) for item in found] == [
        (f"x.tar/{part}/{name}.jpg", part) for part in ("first", "second", "third") for name in "ab"
    ]
    with ItemReader() as reader:
        for item in found:
            part, name = item.image_id.split("/")[1], item.image_id[-5]
            wanted = f"{part} {name}".encode() * 300
            assert data[item.place : item.place + item.size] == wanted
            assert reader.read(item.path, item.place, item.size) == wanted
            assert reader.read(item.path) == wanted


def test_one_block_of_zeros_between_members_does_not_end_a_tar(local):
    first, second = (
        tar_of(member(f"{n}.jpg", b"x" * 600), form=tarfile.USTAR_FORMAT) for n in "ab"
    )
    data = first[:1536] + b"\0" * 512 + second
    found = TarSource(local.put("x.tar", data)).items()
    assert [item.image_id for item in found] == ["x.tar/a.jpg", "x.tar/b.jpg"]


@pytest.mark.parametrize(
    "after", [b"\xff" * 512, b"garbage", b"\0" * 70_000 + b"x", b"\0" * 511 + b"x"]
)
def test_what_follows_an_end_mark_and_is_no_tar_is_refused(place, after):
    source = TarSource(place.put("x.tar", tar_of(member("a.jpg", b"1")) + after))
    found = []
    with pytest.raises(InputError, match=r"x\.tar is broken \(at byte \d+ something follows"):
        found.extend(source.items())
    assert [item.image_id for item in found] == ["x.tar/a.jpg"]


def test_a_second_tar_that_is_cut_off_is_refused(local):
    part = tar_of(member("a.jpg", b"x" * 600), form=tarfile.USTAR_FORMAT)
    path = local.put("x.tar", part + part.replace(b"a.jpg", b"b.jpg")[:700])
    with pytest.raises(InputError, match=r"x\.tar is broken"):
        list(TarSource(path).items())


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_refused_with_the_way_out(local, mode):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=f"w:{mode}") as tar:
        tar.addfile(*member("a.jpg"))
    with pytest.raises(InputError, match=r"x\.tar is compressed.*uncompress"):
        list(TarSource(local.put("x.tar", sink.getvalue())).items())


def test_a_path_by_which_nothing_can_be_chained_is_refused(local):
    local.put("a::b/x.tar", tar_of(member("a.jpg", b"1")))
    with pytest.raises(InputError, match="rename it"):
        list(TarSource(local.root).items())


def test_reading_from_a_tar_that_has_changed_since(local):
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
