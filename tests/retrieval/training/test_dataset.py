"""Tests of the selection of training images, its notes, and its errors."""

import pytest

from retrieval.core.errors import InputError, UsageError
from retrieval.core.records import Item
from retrieval.training.dataset import dataset_digest, select_training_images, similar_names


def item(image_id: str, label: str | None) -> Item:
    return Item(image_id, f"/{image_id}", 1, 1, label)


ITEMS = [item("b/2", "b"), item("a/1", "a"), item("b/1", "b"), item("a/2", "a")]


def test_items_are_sorted_and_excluded_classes_removed():
    items = [*ITEMS, item("c/1", "c"), item("c/2", "c"), item("unlabelled", None)]
    dataset = select_training_images(items, None, ["c"])
    assert [i.image_id for i in dataset.items] == ["a/1", "a/2", "b/1", "b/2"]
    assert dataset.notes == ("4 of 7 images have one of the 2 classes to be trained",)


def test_labels_replace_folder_names():
    labels = {"a/1": "x", "b/1": "x", "b/2": "y", "a/2": "y", "missing": "z"}
    dataset = select_training_images([*ITEMS, item("c/1", "c")], labels, ())
    assert {i.image_id: i.label for i in dataset.items} == {
        k: labels[k] for k in labels if "/" in k
    }


@pytest.mark.parametrize("label", ["", "distractor", None])
def test_unlabelled_images_and_distractors_are_excluded(label):
    items = [*ITEMS, item("x/1", label), item("x/2", label)]
    assert len(select_training_images(items, None, ()).items) == 4


def test_classes_of_single_image_are_excluded_with_note():
    single = [item(f"lone{n}/1", f"lone{n}") for n in range(5)]
    dataset = select_training_images([*ITEMS, *single], None, ())
    assert len(dataset.items) == 4
    assert (
        "5 classes of a single image are left out: lone0, lone1, lone2 and 2 more" in dataset.notes
    )


def test_similar_class_names_are_noted():
    similar_items = [
        item(f"{name}/{n}", name) for name in ("Cat", "cat", "c_at", "dog") for n in "12"
    ]
    notes = select_training_images(similar_items, None, ()).notes
    assert "the labels 'Cat' and 'c_at' and 'cat' are 3 classes and hardly differ" in notes
    assert similar_names(["café", "cafe\u0301", "Big Dog", "big-dog", "x"]) == [
        ["Big Dog", "big-dog"], ["cafe\u0301", "café"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("items", "labels", "exclude_classes", "error", "message"),
    [
        ([], None, (), InputError, "none of the 0 images"),
        ([item("a", None)], None, (), InputError, "into its own folder"),
        (ITEMS, {}, (), InputError, "--labels"),
        (ITEMS, {"a/1": None}, (), InputError, "--labels"),
        (ITEMS[:1] * 2, None, (), InputError, "leaves 1"),
        (ITEMS, None, ("a",), InputError, "leaves 1"),
        (ITEMS, None, ("a", "b"), InputError, "leaves 0"),
        (ITEMS[:3], None, (), InputError, "leaves 1"),
        (ITEMS, None, ("c",), UsageError, "--exclude-classes c is not a class"),
        ([*ITEMS, item("owl/1", "owl")], None, ("owls",), UsageError, "did you mean owl?"),
    ],
)
def test_invalid_selection_raises_single_line_error(items, labels, exclude_classes, error, message):
    with pytest.raises(error) as raised:
        select_training_images(items, labels, exclude_classes)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_digest_changes_with_listing_but_not_with_paths():
    changed = [
        ITEMS[1:],
        [item("b/3", "b"), *ITEMS[1:]],
        [item("b/2", "a"), *ITEMS[1:]],
        [Item("b/2", "/b/2", 2, 1, "b"), *ITEMS[1:]],
        [Item("b/2", "/b/2", 1, None, "b"), *ITEMS[1:]],
    ]
    digests = {dataset_digest(items) for items in (ITEMS, *changed)}
    assert len(digests) == 1 + len(changed)
    moved = [Item(i.image_id, "/moved", i.size, i.mtime_ns, i.label) for i in ITEMS]
    assert dataset_digest(moved) == dataset_digest(ITEMS)
