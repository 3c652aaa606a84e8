"""The labelled images that networks are compared on, and their validation."""

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
"""Maximum number of queries; of more images a seeded sample is used."""


@dataclass(frozen=True)
class LabelledDataset:
    """Counts of the labelled images that networks are compared on."""

    source: str
    digest: str
    images: int
    queries: int  # that could be asked
    classes: int
    alone: int  # classes of one image
    unlabelled: int
    limit: int | None

    def sentences(self) -> list[str]:
        """Describe the dataset and which of its images are not queries, one sentence each."""
        said = [f"{self.images:,} images of {self.classes:,} classes in {self.source}"]
        if self.limit is not None:
            said.append(f"--limit {self.limit} takes the first by name, so the first classes alone")
        if self.queries > MAX_QUERIES:
            said.append(
                f"{MAX_QUERIES:,} of {self.queries:,} queries are asked, drawn by their names"
            )
        if self.alone:
            said.append(f"{self.alone:,} classes of one image are not judged")
        if self.unlabelled:
            said.append(
                f"{self.unlabelled:,} images without label, or distractors, can be found but are "
                "no queries"
            )
        return said


def list_labelled_images(settings: EmbedSettings) -> LabelledDataset:
    """List the images and look at their labels before anything is embedded."""
    with tempfile.TemporaryDirectory() as scratch:
        source = open_input(settings, settings.input)
        listed = list_source(settings, source, Path(scratch) / "listing.parquet", None)
        labels = pq.read_table(listed.path, columns=["label"])["label"].combine_chunks()
        known = sha256_of_file(listed.path)
    classes = class_numbers(labels)
    queries = classes[eligible_queries(classes)]
    counts = {int(number) for number in classes} - {NO_CLASS}
    judged = len(set(queries.tolist()))
    if not counts:
        raise InputError(
            f"--data {settings.input} has no labels; lay the images in a folder a class, or name a "
            "file with --labels"
        )
    if len(counts) == 1:
        raise InputError(
            f"--data {settings.input} has one class only, so every answer would be right; add "
            "others" + (" or raise --limit" if settings.limit else "")
        )
    if not judged:
        raise InputError(
            f"--data {settings.input} has no class of two images, so nothing could be found; add "
            "more of each"
        )
    return LabelledDataset(
        settings.input, known, len(labels), len(queries), len(counts), len(counts) - judged,
        int((classes == NO_CLASS).sum()), settings.limit,
    )  # fmt: skip
