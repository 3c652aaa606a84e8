"""Source of images in tar files: one, or a folder or glob of them, as WebDataset shards.

Only headers and small `.cls` label files are read, and nothing is unpacked: members that would be
harmful to unpack are listed with a problem and recorded in the ledger. Concatenated tars are read
to their last end mark (`tar_members.py`). Duplicate names and labels are resolved at the end of a
tar, so that memory is some 0.5 KB per image of one tar.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from retrieval.core.errors import InputError
from retrieval.core.records import Item
from retrieval.sources.base import Source
from retrieval.sources.container_paths import TAR, TarMember
from retrieval.sources.image_names import is_image, parent_folder_name
from retrieval.sources.tar_members import DAMAGE, tar_members
from retrieval.sources.walk import HIDDEN_FILES, ListedFile, SkippedFiles, find_files, seconds_to_ns
from retrieval.storage.ignored_files import hidden_part
from retrieval.storage.input_files import escape_non_utf8, open_uri

_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
_BLOCK = 1 << 16
"""Bytes of a remote tar fetched at a time: several headers if images are small, and little of the
data if they are large. fsspec's default of 5 MB would read most tars completely."""

_MAX_LABEL_BYTES = 1 << 10
"""Larger `.cls` files are not read as labels."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A tar member with the suffix of an image."""

    name: str  # as written in the tar
    place: int
    size: int
    mtime: float
    problem: str | None


@dataclass
class _Contents:
    """Contents of a tar as far as it could be read; `error` describes why reading stopped."""

    images: list[_Member] = field(default_factory=list)
    labels: dict[str, str | None] = field(default_factory=dict)  # by the stem of the .cls file
    contradictions: set[str] = field(default_factory=set)  # stems with two different labels
    skipped_count: int = 0
    skipped: SkippedFiles = field(default_factory=SkippedFiles)
    error: str | None = None

    def add_label(self, stem: str, label: str | None) -> None:
        if self.labels.setdefault(stem, label) != label:
            self.contradictions.add(stem)

    def label_of(self, tar: ListedFile, name: str) -> str | None:
        """Return the label of an image: from `STEM.cls`, `KEY.cls`, or else its parent folder.

        WebDataset's key ends at the first dot, so that `prod.000.jpg` and `prod.001.jpg` share
        the key `prod`; the stem, which belongs to one image only, takes precedence. Raises
        InputError if two files with different labels apply.
        """
        for stem in (_stem(name), _key(name)):
            if stem in self.contradictions:
                raise InputError(
                    f"{tar.path} holds two different labels for {stem} (two files {stem}.cls); "
                    "keep one of them"
                )
            if stem in self.labels:
                return self.labels[stem]
        return parent_folder_name(name)


@dataclass
class TarSource(Source):
    """Images in tars; labels are from `.cls` files beside them, else the parent folders."""

    root: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    skipped_count: int = field(default=0, init=False, compare=False)
    skipped: SkippedFiles = field(
        default_factory=SkippedFiles, init=False, compare=False, repr=False
    )

    def items(self) -> Iterator[Item]:
        """Iterate over all images, tar by tar; after those of a damaged tar raise InputError."""
        self.skipped = SkippedFiles()
        tars, self.skipped_count = find_files(self.root, TAR, self.options, self.skipped)
        for tar in tars:
            if tar.problem is not None:
                yield tar.unreadable_item()
                continue
            contents = self._contents(tar)
            self.skipped.include(contents.skipped)
            self.skipped_count += contents.skipped_count + contents.skipped.total
            yield from _items(tar, contents)
            if contents.error:
                raise InputError(
                    f"{tar.path} is damaged ({contents.error}); download or recreate it, or "
                    "remove it"
                )

    def _contents(self, tar: ListedFile) -> _Contents:
        try:
            with open_uri(tar.path, self.options, block=_BLOCK) as file:
                if file.read(6).startswith(_COMPRESSED_MAGIC):
                    raise InputError(
                        f"{tar.path} is compressed, so that single images cannot be read from it; "
                        "uncompress it to a plain .tar"
                    )
                file.seek(0)
                return _read_contents(file)
        except OSError as error:
            raise InputError(f"{tar.path} cannot be read ({error})") from error


def _read_contents(file: BinaryIO) -> _Contents:
    contents = _Contents()
    try:
        for member in tar_members(file):
            _add_member(contents, file, member)
    except DAMAGE as error:
        contents.error = " ".join(str(error).split()) or type(error).__name__
    return contents


def _add_member(contents: _Contents, file: BinaryIO, member: tarfile.TarInfo) -> None:
    """Add a member as an image, a label, or another file."""
    if member.isdir():
        return
    name = escape_non_utf8(member.name)
    if hidden := hidden_part(name):
        contents.skipped.add(HIDDEN_FILES, hidden)
    elif is_image(name):
        place, size = member.offset_data, member.size
        contents.images.append(_Member(name, place, size, member.mtime, _problem(member)))
    elif member.isreg() and name.lower().endswith(".cls") and member.size <= _MAX_LABEL_BYTES:
        file.seek(member.offset_data)
        text = file.read(member.size).decode("utf-8", "replace").strip()
        contents.add_label(_stem(_normalise(name)), text or None)
    else:
        contents.skipped_count += 1


def _problem(member: tarfile.TarInfo) -> str | None:
    """Return why a member cannot be read in place, or None."""
    if member.issym() or member.islnk():
        target = escape_non_utf8(member.linkname)
        return f"it is a link in its tar, to {target}; links are not followed"
    if not member.isreg():
        return "it is neither file nor folder in its tar"
    if member.issparse():
        return "it is a sparse file in its tar"
    if member.name.startswith("/"):
        return "its name in the tar is absolute"
    if ".." in member.name.split("/"):
        return "its name in the tar leads out of it (..)"
    return None


def _items(tar: ListedFile, contents: _Contents) -> Iterator[Item]:
    """Iterate over the items of a tar; of members of one name the last counts, as in unpacking."""
    names = [_normalise(member.name) for member in contents.images]
    last_position = {name: number for number, name in enumerate(names)}
    used_names = set(last_position)
    for number, (name, member) in enumerate(zip(names, contents.images, strict=True)):
        problem = member.problem
        unique_name = name
        if last_position[name] != number:
            problem = "another image of this name follows in its tar and replaces it"
            unique_name = _add_free_name(name, used_names)
        yield Item(
            image_id=f"{tar.name}/{unique_name}",
            path=str(TarMember(member.name, tar.path)),
            size=member.size,
            mtime_ns=_latest_ns(member.mtime, tar.mtime_ns),
            label=contents.label_of(tar, name),
            place=member.place,
            problem=problem,
        )


def _add_free_name(name: str, used_names: set[str]) -> str:
    """Return `name (1)`, or with the next free number, and add it to the used names."""
    number = 1
    while f"{name} ({number})" in used_names:
        number += 1
    used_names.add(f"{name} ({number})")
    return f"{name} ({number})"


def _normalise(name: str) -> str:
    """Normalise a member's name: `./a//b` is `a/b`; a leading slash and `..` are kept."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return ("/" if name.startswith("/") else "") + "/".join(parts)


def _stem(name: str) -> str:
    """Return a name without its last suffix; dots in the names of its folders do not count."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.rpartition(".")[0]


def _key(name: str) -> str:
    """Return WebDataset's key of a sample: the name up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _latest_ns(mtime: float, tar_mtime_ns: int | None) -> int | None:
    """Return the later modification time of member and tar in ns; None if neither is valid."""
    times = [time for time in (seconds_to_ns(mtime), tar_mtime_ns) if time is not None]
    return max(times, default=None)
