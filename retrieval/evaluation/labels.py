"""Ground truth by labels: an image is relevant to a query if both have the same label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.evaluation.ground_truth import UNKNOWN, Grades, QueryRelevance

DISTRACTOR = "distractor"
"""A label that matches nothing: such a query is not judged, such a gallery image is wrong."""

_UNKNOWN = pa.array(["", None], pa.string())
_NOT_JUDGED = pa.array(["", DISTRACTOR, None], pa.string())


@dataclass(frozen=True)
class Labels:
    """Ground truth by the labels in the matches, or by the labels of a file.

    `gallery`, (label, images), counts the gallery images that could be a match. `query_labels` and
    `image_labels`, (image_id, label), replace the labels in the matches. `excluded_pairs`,
    (query_id, image_id, label), are gallery images that could not match that query.
    """

    gallery: pa.Table
    query_labels: pa.Table | None = None
    image_labels: pa.Table | None = None
    excluded_pairs: pa.Table | None = None

    @property
    def levels(self) -> Grades:
        """Return the only relevance grade, 1."""
        return np.ones(1, np.int16)

    def grades(self, matches: pa.Table) -> Grades:
        """Return 1 where both labels are equal, WRONG where not, UNKNOWN where one is missing."""
        queries = _labels(matches, "query_id", "query_label", self.query_labels)
        images = _labels(matches, "image_id", "label", self.image_labels)
        grades = _flags(pc.equal(queries, images)).astype(np.int16)
        grades[_is_in(queries, _NOT_JUDGED) | _is_in(images, _UNKNOWN)] = UNKNOWN
        return grades

    def query_relevance(self, queries: pa.Table) -> QueryRelevance:
        """Return the relevance of queries; those with a label are judged."""
        labels = _labels(queries, "query_id", "query_label", self.query_labels)
        judged = ~_is_in(labels, _NOT_JUDGED)
        images = _look_up(self.gallery["images"], labels, self.gallery["label"])
        counts = pc.fill_null(images, 0).to_numpy() - self._count_excluded(
            queries["query_id"], labels
        )
        return QueryRelevance(judged, np.where(judged, counts, 0)[:, None], labels)

    def _count_excluded(self, query_ids: pa.ChunkedArray, labels: pa.Array) -> NDArray[np.int64]:
        """Count, for each query, the relevant images among its excluded pairs."""
        counts = np.zeros(len(query_ids), np.int64)
        if self.excluded_pairs is None:
            return counts
        position = _combined(
            pc.index_in(self.excluded_pairs["query_id"], value_set=_combined(query_ids))
        )
        excluded_pairs, position = (
            self.excluded_pairs.filter(pc.is_valid(position)),
            position.drop_null(),
        )
        same = pc.equal(
            _labels(excluded_pairs, "image_id", "label", self.image_labels), labels.take(position)
        )
        np.add.at(counts, position.to_numpy()[_flags(same)], 1)
        return counts


def _labels(table: pa.Table, id_column: str, label_column: str, file: pa.Table | None) -> pa.Array:
    """Return the labels in the table, or those that a labels file has for the table's ids."""
    if file is None:
        return _combined(table[label_column])
    return _look_up(file["label"], _combined(table[id_column]), file["image_id"])


def _look_up(values: pa.ChunkedArray, keys: pa.Array, value_keys: pa.ChunkedArray) -> pa.Array:
    """Return the value of each key, null for a key that `value_keys` does not contain.

    Keys repeat (a gallery image occurs in many matches), so each distinct key is looked up once.
    """
    distinct = keys.dictionary_encode()
    position = pc.index_in(distinct.dictionary, value_set=_combined(value_keys))
    return _combined(values).take(position).take(distinct.indices)


def _combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _flags(column: pa.Array) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = pc.fill_null(column, False).to_numpy(zero_copy_only=False)
    return flags


def _is_in(labels: pa.Array, values: pa.Array) -> NDArray[np.bool_]:
    return _flags(pc.is_in(labels, value_set=values))
