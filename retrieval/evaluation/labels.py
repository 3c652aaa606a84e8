"""Truth by labels: an image is relevant to a query if it has the query's label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.evaluation.ground_truth import UNKNOWN, Asked, Grades

DISTRACTOR = "distractor"
"""A label that matches nothing: a query of it is not judged, a gallery image of it is wrong."""

_UNKNOWN = pa.array(["", None], pa.string())
_NOT_JUDGED = pa.array(["", DISTRACTOR, None], pa.string())


@dataclass(frozen=True)
class Labels:
    """Truth by the labels in the matches, or by those of a file.

    `gallery`, (label, images), counts the gallery images that could be a match. `of_queries` and
    `of_images`, (image_id, label), replace the labels in the matches. `barred`, (query_id,
    image_id, label), are gallery images that could not be a match of that one query, as its own.
    """

    gallery: pa.Table
    of_queries: pa.Table | None = None
    of_images: pa.Table | None = None
    barred: pa.Table | None = None

    @property
    def levels(self) -> Grades:
        """Give the one grade there is."""
        return np.ones(1, np.int16)

    def grades(self, matches: pa.Table) -> Grades:
        """Grade rows: 1 where both labels are the same; UNKNOWN where there is none to compare."""
        queries = _labels(matches, "query_id", "query_label", self.of_queries)
        images = _labels(matches, "image_id", "label", self.of_images)
        grades = _flags(pc.equal(queries, images)).astype(np.int16)
        grades[_among(queries, _NOT_JUDGED) | _among(images, _UNKNOWN)] = UNKNOWN
        return grades

    def asked(self, queries: pa.Table) -> Asked:
        """Tell what is known of queries: all that have a label are judged."""
        labels = _labels(queries, "query_id", "query_label", self.of_queries)
        judged = ~_among(labels, _NOT_JUDGED)
        images = _taken(self.gallery["images"], labels, self.gallery["label"])
        counts = pc.fill_null(images, 0).to_numpy() - self._barred(queries["query_id"], labels)
        return Asked(judged, np.where(judged, counts, 0)[:, None], labels)

    def _barred(self, query_ids: pa.ChunkedArray, labels: pa.Array) -> NDArray[np.int64]:
        """Count the relevant images that could not be a match of each query."""
        counts = np.zeros(len(query_ids), np.int64)
        if self.barred is None:
            return counts
        place = _whole(pc.index_in(self.barred["query_id"], value_set=_whole(query_ids)))
        barred, place = self.barred.filter(pc.is_valid(place)), place.drop_null()
        same = pc.equal(_labels(barred, "image_id", "label", self.of_images), labels.take(place))
        np.add.at(counts, place.to_numpy()[_flags(same)], 1)
        return counts


def _labels(table: pa.Table, ids: str, own: str, file: pa.Table | None) -> pa.Array:
    """Give the labels of images: those in the table, or those that a file has for their ids."""
    if file is None:
        return _whole(table[own])
    return _taken(file["label"], _whole(table[ids]), file["image_id"])


def _taken(values: pa.ChunkedArray, keys: pa.Array, known: pa.ChunkedArray) -> pa.Array:
    """Give the value that stands beside each key; null for what is not known.

    Keys repeat, as the images of a gallery do in its matches: each is looked up once.
    """
    distinct = keys.dictionary_encode()
    place = pc.index_in(distinct.dictionary, value_set=_whole(known))
    return _whole(values).take(place).take(distinct.indices)


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _flags(column: pa.Array) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = pc.fill_null(column, False).to_numpy(zero_copy_only=False)
    return flags


def _among(labels: pa.Array, values: pa.Array) -> NDArray[np.bool_]:
    return _flags(pc.is_in(labels, value_set=values))
