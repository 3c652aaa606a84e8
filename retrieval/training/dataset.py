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

_NAMED = 3  # most classes named in a note


@dataclass(frozen=True)
class TrainingDataset:
    """The images to train on, sorted by image_id, and notes on excluded or suspicious labels."""

    items: tuple[Item, ...]
    notes: tuple[str, ...]


def select_training_images(
    items: Iterable[Item], labels: Mapping[str, str | None] | None, exclude_classes: Collection[str]
) -> TrainingDataset:
    """Return the items whose class is trained.

    Args:
        items: All items of the source.
        labels: Class by image_id, which replaces the labels of the items; None keeps theirs.
        exclude_classes: Classes that are left out.

    Classes with a single image are left out too, since they can neither be held out nor retrieved.
    Raises InputError where there are no labels or fewer than two classes, UsageError for an unknown
    class in `exclude_classes`.
    """
    listed = sorted(items, key=lambda item: item.image_id)
    if labels is not None:
        listed = [dataclasses.replace(item, label=labels.get(item.image_id)) for item in listed]
    counts = Counter(i.label for i in listed if i.label not in (None, "", DISTRACTOR))
    if not counts:
        remedy = (
            "specify them in --labels"
            if labels is not None
            else "put each class into its own folder"
        )
        raise InputError(f"none of the {len(listed)} images of --data has a label; {remedy}")
    for name in sorted(exclude_classes):
        if name not in counts:
            suggestions = get_close_matches(name, [str(label) for label in counts], 3, 0.4)
            suggestions = suggestions or sorted(str(label) for label in counts)[:3]
            raise UsageError(
                f"--exclude-classes {name} is not a class of --data; "
                f"did you mean {', '.join(suggestions)}?"
            )
    class_sizes = {
        str(name): count for name, count in counts.items() if name not in exclude_classes
    }
    trained_classes = {name for name, count in class_sizes.items() if count > 1}
    if len(trained_classes) < 2:
        raise InputError(
            "training needs two classes of two images or more and --data leaves "
            f"{len(trained_classes)}; add images, or leave out fewer"
        )
    selected = tuple(item for item in listed if item.label in trained_classes)
    return TrainingDataset(selected, _notes(len(listed), selected, class_sizes, trained_classes))


def _notes(
    listed_count: int,
    selected: Collection[Item],
    class_sizes: Mapping[str, int],
    trained_classes: Collection[str],
) -> tuple[str, ...]:
    notes = [
        f"{len(selected)} of {listed_count} images have one of the {len(trained_classes)} "
        "classes to be trained"
    ]
    if lone := sorted(name for name in class_sizes if name not in trained_classes):
        notes.append(f"{len(lone)} classes of a single image are left out: {_format_names(lone)}")
    notes += [
        f"the labels {' and '.join(map(repr, same))} are {len(same)} classes and hardly differ"
        for same in similar_names(trained_classes)
    ]
    return tuple(notes)


def _format_names(names: list[str]) -> str:
    remaining = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + remaining


def similar_names(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that differ only in case, spaces, -, _ or Unicode form."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        plain = unicodedata.normalize("NFKC", name).casefold()
        groups["".join(c for c in plain if c not in " -_")].append(name)
    return [same for _, same in sorted(groups.items()) if len(same) > 1]


def dataset_digest(items: Iterable[Item]) -> str:
    """Return the SHA-256, in hex, of the ids, classes, file sizes and modification times."""
    sha = hashlib.sha256()
    for item in items:
        row = (item.image_id, item.label, item.size, item.mtime_ns)
        sha.update(json.dumps(row).encode() + b"\n")
    return sha.hexdigest()
