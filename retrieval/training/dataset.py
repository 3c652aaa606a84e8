"""Selection and validation of labelled training images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from retrieval.core.errors import InputError, UsageError
from retrieval.core.records import Item
from retrieval.evaluation.labels import DISTRACTOR

_NAMED = 3  # classes named in a sentence


@dataclass(frozen=True)
class TrainingDataset:
    """The images that are trained on, sorted by image_id, and sentences on what is odd."""

    items: tuple[Item, ...]
    notes: tuple[str, ...]


def select_training_images(
    items: Iterable[Item], labels: Mapping[str, str | None] | None, exclude_classes: Collection[str]
) -> TrainingDataset:
    """Return the items that have a class to be trained.

    `labels` (image_id -> class or None) stands instead of the classes that items bring. A class of
    one image is left out, since it can neither be held out nor find itself. Refused: no labels at
    all, fewer than two classes, a class to leave out that is not there.
    """
    found = sorted(items, key=lambda item: item.image_id)
    if labels is not None:
        found = [dataclasses.replace(item, label=labels.get(item.image_id)) for item in found]
    counts = Counter(i.label for i in found if i.label not in (None, "", DISTRACTOR))
    if not counts:
        way = "name them in --labels" if labels is not None else "lay them in a folder a class"
        raise InputError(f"none of the {len(found)} images of --data has a label; {way}")
    for name in sorted(exclude_classes):
        if name not in counts:
            near = get_close_matches(name, [str(one) for one in counts], 3, 0.4)
            near = near or sorted(str(one) for one in counts)[:3]
            raise UsageError(
                f"--exclude-classes {name} is not a class of --data; "
                f"did you mean {', '.join(near)}?"
            )
    wanted = {str(name): count for name, count in counts.items() if name not in exclude_classes}
    kept = {name for name, count in wanted.items() if count > 1}
    if len(kept) < 2:
        raise InputError(
            f"training needs two classes of two images or more and --data leaves {len(kept)}; "
            "add images, or leave out fewer"
        )
    chosen = tuple(item for item in found if item.label in kept)
    return TrainingDataset(chosen, _notes(len(found), chosen, wanted, kept))


def _notes(
    found: int, chosen: Collection[Item], wanted: Mapping[str, int], kept: Collection[str]
) -> tuple[str, ...]:
    notes = [f"{len(chosen)} of {found} images have one of the {len(kept)} classes to be trained"]
    if lone := sorted(name for name in wanted if name not in kept):
        notes.append(f"{len(lone)} classes of a single image are left out: {_format_names(lone)}")
    notes += [
        f"the labels {' and '.join(map(repr, same))} are {len(same)} classes and hardly differ"
        for same in similar_names(kept)
    ]
    return tuple(notes)


def _format_names(names: list[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest


def similar_names(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that differ only in case, space, - or _, or in their coding."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        plain = unicodedata.normalize("NFKC", name).casefold()
        groups["".join(c for c in plain if c not in " -_")].append(name)
    return [same for _, same in sorted(groups.items()) if len(same) > 1]


def dataset_digest(items: Iterable[Item]) -> str:
    """Return the SHA-256 of what is trained from: ids, classes, sizes and times of change."""
    sha = hashlib.sha256()
    for item in items:
        row = (item.image_id, item.label, item.size, item.mtime_ns)
        sha.update(json.dumps(row).encode() + b"\n")
    return sha.hexdigest()
