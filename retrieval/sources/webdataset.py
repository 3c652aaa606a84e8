"""Images in tar files: one, or a folder or glob of them, as WebDataset lays its shards.

Only headers are read, and where a label stands in a `.cls` of a few bytes, that. Nothing is ever
unpacked, so that a member's name or kind can do no harm: what would be harmful on unpacking is
offered with a problem, and goes to the ledger. Tars that were concatenated are read to their last
end mark (`tar_members.py`). Which of two members of one name counts, and which label belongs to an
image, is known at the end of a tar; memory is the names of one, some 0.5 KB an image, and shards
are small.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from retrieval.core.errors import InputError
from retrieval.core.records import Item
from retrieval.sources.base import Source
from retrieval.sources.container_paths import TarMember
from retrieval.sources.image_names import is_image, parent
from retrieval.sources.tar_members import DAMAGE, tar_members
from retrieval.sources.walk import HIDDEN_FILES, Found, PassedOver, files_at, seconds_to_ns
from retrieval.storage.ignored_files import hidden_part
from retrieval.storage.input_files import open_uri, readable

TAR = (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")

_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
_BLOCK = 1 << 16
"""Bytes of a remote tar fetched at a time: several headers of small images, little of large ones.
fsspec's own 5 MB would read all of most tars."""

_LABEL = 1 << 10
"""A `.cls` beyond this many bytes is no label."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A member that is named like an image."""

    name: str  # as it stands in the tar
    place: int
    size: int
    mtime: float
    problem: str | None


@dataclass
class _Contents:
    """What one tar holds, as far as it could be read; `broken` says why no further."""

    images: list[_Member] = field(default_factory=list)
    labels: dict[str, str | None] = field(default_factory=dict)  # by the stem of their .cls
    contradictions: set[str] = field(default_factory=set)  # stems of .cls that say two things
    others: int = 0
    passed_over: PassedOver = field(default_factory=PassedOver)
    broken: str | None = None

    def add_label(self, stem: str, label: str | None) -> None:
        if self.labels.setdefault(stem, label) != label:
            self.contradictions.add(stem)

    def label_of(self, tar: Found, name: str) -> str | None:
        """Return the label of an image: that of `STEM.cls`, of WebDataset's `KEY.cls`, its folder.

        WebDataset's key ends at the first dot, so that `prod.000.jpg` and `prod.001.jpg` share
        the key `prod`; the whole stem comes first, for it can mean this image only.
        """
        for stem in (_stem(name), _key(name)):
            if stem in self.contradictions:
                raise InputError(
                    f"{tar.path} holds two different labels for {stem} (two files {stem}.cls); "
                    "keep one of them"
                )
            if stem in self.labels:
                return self.labels[stem]
        return parent(name)


@dataclass
class TarSource(Source):
    """Images in tars; the label is what the `.cls` beside an image says, else its folder's name."""

    root: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    others: int = field(default=0, init=False, compare=False)
    passed_over: PassedOver = field(
        default_factory=PassedOver, init=False, compare=False, repr=False
    )

    def items(self) -> Iterator[Item]:
        """Give every image, tar by tar; then refuse a tar that is broken, if one was."""
        self.passed_over = PassedOver()
        tars, self.others = files_at(self.root, TAR, self.options, self.passed_over)
        for tar in tars:
            if tar.problem is not None:
                yield tar.unread()
                continue
            found = self._contents(tar)
            self.passed_over.include(found.passed_over)
            self.others += found.others + found.passed_over.total
            yield from _items(tar, found)
            if found.broken:
                raise InputError(
                    f"{tar.path} is broken ({found.broken}); fetch or make it again, or remove it"
                )

    def _contents(self, tar: Found) -> _Contents:
        try:
            with open_uri(tar.path, self.options, block=_BLOCK) as file:
                if file.read(6).startswith(_MAGIC):
                    raise InputError(
                        f"{tar.path} is compressed, so that no image of it can be read alone; "
                        "uncompress it to a plain .tar"
                    )
                file.seek(0)
                return _read(file)
        except OSError as error:
            raise InputError(f"{tar.path} cannot be read ({error})") from error


def _read(file: BinaryIO) -> _Contents:
    found = _Contents()
    try:
        for member in tar_members(file):
            _sort_in(found, file, member)
    except DAMAGE as error:
        found.broken = " ".join(str(error).split()) or type(error).__name__
    return found


def _sort_in(found: _Contents, file: BinaryIO, member: tarfile.TarInfo) -> None:
    if member.isdir():
        return
    name = readable(member.name)
    if hidden := hidden_part(name):
        found.passed_over.add(HIDDEN_FILES, hidden)
    elif is_image(name):
        place, size = member.offset_data, member.size
        found.images.append(_Member(name, place, size, member.mtime, _problem(member)))
    elif member.isreg() and name.lower().endswith(".cls") and member.size <= _LABEL:
        file.seek(member.offset_data)
        text = file.read(member.size).decode("utf-8", "replace").strip()
        found.add_label(_stem(_plain(name)), text or None)
    else:
        found.others += 1


def _problem(member: tarfile.TarInfo) -> str | None:
    """Say why a member cannot be read as an image where it lies, or nothing."""
    if member.issym() or member.islnk():
        return f"it is a link in its tar, to {readable(member.linkname)}; links are not followed"
    if not member.isreg():
        return "it is neither file nor folder in its tar"
    if member.issparse():
        return "it is stored with holes in its tar (sparse)"
    if member.name.startswith("/"):
        return "its name in the tar is absolute"
    if ".." in member.name.split("/"):
        return "its name in the tar leads out of it (..)"
    return None


def _items(tar: Found, found: _Contents) -> Iterator[Item]:
    """Make items of members; of those of one name the last counts, as unpacking would leave it."""
    plain = [_plain(member.name) for member in found.images]
    last = {name: number for number, name in enumerate(plain)}
    taken = set(last)
    for number, (name, member) in enumerate(zip(plain, found.images, strict=True)):
        problem = member.problem
        own = name
        if last[name] != number:
            problem = "another image of this name follows in its tar and replaces it"
            own = _free(name, taken)
        yield Item(
            image_id=f"{tar.name}/{own}",
            path=str(TarMember(member.name, tar.path)),
            size=member.size,
            mtime_ns=_changed(member.mtime, tar.mtime_ns),
            label=found.label_of(tar, name),
            place=member.place,
            problem=problem,
        )


def _free(name: str, taken: set[str]) -> str:
    """Give `name (1)` or the next number that no member has."""
    number = 1
    while f"{name} ({number})" in taken:
        number += 1
    taken.add(f"{name} ({number})")
    return f"{name} ({number})"


def _plain(name: str) -> str:
    """Write a name as unpacking would take it: `./a//b` is `a/b`; what leads out stays as it is."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return ("/" if name.startswith("/") else "") + "/".join(parts)


def _stem(name: str) -> str:
    """Return a name without its last suffix, the dots of its folders left alone."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.rpartition(".")[0]


def _key(name: str) -> str:
    """Give what WebDataset knows a sample by: the name up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _changed(mtime: float, of_tar: int | None) -> int | None:
    """Return the later change, of member or tar, in nanoseconds; impossible times are unknown."""
    known = [time for time in (seconds_to_ns(mtime), of_tar) if time is not None]
    return max(known, default=None)
