"""Which photos are trained on, what is said of them before, and what is refused."""

import pytest

from retrieval.core.errors import InputError, UsageError
from retrieval.core.records import Item
from retrieval.training.dataset import dataset_digest, select_training_images, similar_names


def item(image_id: str, label: str | None) -> Item:
    return Item(image_id, f"/{image_id}", 1, 1, label)


FOUR = [item("b/2", "b"), item("a/1", "a"), item("b/1", "b"), item("a/2", "a")]


def test_items_are_sorted_and_those_left_out_are_gone():
    more = [*FOUR, item("c/1", "c"), item("c/2", "c"), item("at the root", None)]
    found = select_training_images(more, None, ["c"])
    assert [i.image_id for i in found.items] == ["a/1", "a/2", "b/1", "b/2"]
    assert found.notes == ("4 of 7 images have one of the 2 classes to be trained",)


def test_labels_stand_instead_of_folders():
    labels = {"a/1": "x", "b/1": "x", "b/2": "y", "a/2": "y", "not there": "z"}
    found = select_training_images([*FOUR, item("c/1", "c")], labels, ())
    assert {i.image_id: i.label for i in found.items} == {k: labels[k] for k in labels if "/" in k}


@pytest.mark.parametrize("nothing", ["", "distractor", None])
def test_what_is_no_class_is_not_trained(nothing):
    more = [*FOUR, item("x/1", nothing), item("x/2", nothing)]
    assert len(select_training_images(more, None, ()).items) == 4


def test_classes_of_one_image_are_left_out_and_said():
    lone = [item(f"lone{n}/1", f"lone{n}") for n in range(5)]
    found = select_training_images([*FOUR, *lone], None, ())
    assert len(found.items) == 4
    assert "5 classes of a single image are left out: lone0, lone1, lone2 and 2 more" in found.notes


def test_labels_that_differ_hardly_are_said():
    twins = [item(f"{name}/{n}", name) for name in ("Cat", "cat", "c_at", "dog") for n in "12"]
    notes = select_training_images(twins, None, ()).notes
    assert "the labels 'Cat' and 'c_at' and 'cat' are 3 classes and hardly differ" in notes
    assert similar_names(["café", "cafe\u0301", "Big Dog", "big-dog", "x"]) == [
        ["Big Dog", "big-dog"], ["cafe\u0301", "café"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("items", "labels", "exclude_classes", "error", "names"),
    [
        ([], None, (), InputError, "none of the 0 images"),
        ([item("a", None)], None, (), InputError, "a folder a class"),
        (FOUR, {}, (), InputError, "--labels"),
        (FOUR, {"a/1": None}, (), InputError, "--labels"),
        (FOUR[:1] * 2, None, (), InputError, "leaves 1"),
        (FOUR, None, ("a",), InputError, "leaves 1"),
        (FOUR, None, ("a", "b"), InputError, "leaves 0"),
        (FOUR[:3], None, (), InputError, "leaves 1"),
        (FOUR, None, ("c",), UsageError, "--exclude-classes c is not a class"),
        ([*FOUR, item("owl/1", "owl")], None, ("owls",), UsageError, "did you mean owl?"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_sentence(
    items, labels, exclude_classes, error, names
):
    with pytest.raises(error) as refused:
        select_training_images(items, labels, exclude_classes)
    assert names in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_digest_tells_any_change_of_a_listing():
    changed = [
        FOUR[1:],
        [item("b/3", "b"), *FOUR[1:]],
        [item("b/2", "a"), *FOUR[1:]],
        [Item("b/2", "/b/2", 2, 1, "b"), *FOUR[1:]],
        [Item("b/2", "/b/2", 1, None, "b"), *FOUR[1:]],
    ]
    digests = {dataset_digest(items) for items in (FOUR, *changed)}
    assert len(digests) == 1 + len(changed)
    elsewhere = [Item(i.image_id, "/elsewhere", i.size, i.mtime_ns, i.label) for i in FOUR]
    assert dataset_digest(elsewhere) == dataset_digest(FOUR)
