"""Select the groups of duplicates that a report shows: the first ones, the kept image first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

SHOWN_GROUPS, SHOWN_GROUP_IMAGES = 100, 20
"""Most groups shown, and most images shown of a group."""


@dataclass(frozen=True)
class GroupImage:
    """One image of a group; `picture` is the number of its thumbnail, None where it has none."""

    image_id: str
    path: str
    keep: bool
    reason: str
    score: float | None
    picture: int | None = None

    @property
    def name(self) -> str:
        """The caption of the picture: the file name."""
        return self.image_id.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class GroupRow:
    """A group of duplicates with the images of it that are shown, and the number of all."""

    number: int
    images: tuple[GroupImage, ...]
    count: int


@dataclass(frozen=True)
class ShownGroups:
    """The groups that a report shows, and the number of all groups."""

    rows: tuple[GroupRow, ...]
    groups: int

    def paths(self) -> list[str]:
        """Return the paths of all shown images, which may repeat."""
        return [image.path for row in self.rows for image in row.images]

    def with_pictures(self, numbers: Mapping[str, int]) -> ShownGroups:
        """Return the groups with the numbers of the thumbnails, by path; missing ones are left out.

        A negative number also stands for a missing one.
        """

        def numbered(image: GroupImage) -> GroupImage:
            number = numbers.get(image.path, -1)
            return replace(image, picture=None if number < 0 else number)

        rows = (replace(row, images=tuple(map(numbered, row.images))) for row in self.rows)
        return replace(self, rows=tuple(rows))


NO_GROUPS = ShownGroups((), 0)


def select_groups(batches: Iterable[pa.RecordBatch], groups: int) -> ShownGroups:
    """Return the first groups of a table GROUPS, of which `groups` is the number of groups.

    Batches are read as far as the last group that is shown.
    """
    images: dict[int, list[GroupImage]] = {}
    counts: dict[int, int] = {}
    for batch in batches:
        first, last = batch["group"][0].as_py(), batch["group"][-1].as_py()
        for number in range(first, min(last, SHOWN_GROUPS) + 1):
            rows = batch.filter(pc.equal(batch["group"], number))
            counts[number] = counts.get(number, 0) + len(rows)
            shown = images.setdefault(number, [])
            shown += [
                GroupImage(row["image_id"], row["path"], row["keep"], row["reason"], row["score"])
                for row in rows.slice(0, SHOWN_GROUP_IMAGES - len(shown)).to_pylist()
            ]
        if last > SHOWN_GROUPS:
            break
    rows = (GroupRow(number, tuple(images[number]), counts[number]) for number in sorted(images))
    return ShownGroups(tuple(rows), groups)
