"""Validation and counts of the labelled images that networks are compared on."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from jobs.config.settings import EmbedSettings
from jobs.embedding.listing import list_source, open_input
from retrieval.core.errors import InputError
from retrieval.evaluation.leave_one_out import NO_CLASS, class_numbers, eligible_queries
from retrieval.storage.local import sha256_of_file

MAX_QUERIES = 5000
"""Maximum number of queries; from more images a seeded sample is drawn."""


@dataclass(frozen=True)
class LabelledDataset:
    """Counts of the labelled images that networks are compared on."""

    source: str
    digest: str
    images: int
    queries: int  # images of classes with at least two images
    classes: int
    single_image_classes: int
    unlabelled: int
    limit: int | None

    def sentences(self) -> list[str]:
        """Describe the dataset and which of its images are not queries, one sentence each."""
        lines = [f"{self.images:,} images of {self.classes:,} classes in {self.source}"]
        if self.limit is not None:
            lines.append(
                f"--limit {self.limit} keeps the first images by name, so only some classes"
            )
        if self.queries > MAX_QUERIES:
            lines.append(
                f"{MAX_QUERIES:,} of {self.queries:,} queries are used, sampled by their image_id"
            )
        if self.single_image_classes:
            lines.append(f"{self.single_image_classes:,} classes of one image are not evaluated")
        if self.unlabelled:
            lines.append(
                f"{self.unlabelled:,} images without label, or distractors, are ranked but are not "
                "queries"
            )
        return lines


def list_labelled_images(settings: EmbedSettings) -> LabelledDataset:
    """List the images and validate their labels, before anything is embedded.

    Raises InputError if there are no labels, one class only, or no class of two images.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = open_input(settings, settings.input)
        listed = list_source(settings, source, Path(scratch) / "listing.parquet", None)
        labels = pq.read_table(listed.path, columns=["label"])["label"].combine_chunks()
        digest = sha256_of_file(listed.path)
    classes = class_numbers(labels)
    queries = classes[eligible_queries(classes)]
    class_set = {int(number) for number in classes} - {NO_CLASS}
    evaluated_classes = len(set(queries.tolist()))
    if not class_set:
        raise InputError(
            f"--data {settings.input} has no labels; put the images into one folder per class, or "
            "specify a file with --labels"
        )
    if len(class_set) == 1:
        raise InputError(
            f"--data {settings.input} has one class only, so every match would be right; add "
            "others" + (" or raise --limit" if settings.limit else "")
        )
    if not evaluated_classes:
        raise InputError(
            f"--data {settings.input} has no class of two images, so no match would be right; add "
            "more of each"
        )
    return LabelledDataset(
        settings.input, digest, len(labels), len(queries), len(class_set),
        len(class_set) - evaluated_classes,
        int((classes == NO_CLASS).sum()), settings.limit,
    )  # fmt: skip
