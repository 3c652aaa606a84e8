"""Options that restrict which gallery images may match which query, or change their order."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.config.options import Reranking, parse_reranking
from jobs.config.settings import RankSettings, SearchOptions
from retrieval.core.errors import UsageError
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.store.reader import Store

if TYPE_CHECKING:
    from retrieval.core.schemas import Metric
    from retrieval.evaluation.calibration import Calibration
    from retrieval.search.filters import Filter


@dataclass(frozen=True)
class MatchConstraints:
    """Which gallery images may match which query, how matches are re-ranked, and probabilities."""

    row_filter: Filter | None  # the condition of --filter
    exclude_by: str | None  # the column that --exclude-self compares
    min_key: float  # key of --min-score (higher is closer); -inf without it
    reranking: Reranking | None
    calibration: Calibration | None = None  # gives each match a probability
    min_probability: float | None = None  # less likely matches are left out


def read_match_constraints(
    settings: RankSettings, index: Folder, manifest: Manifest
) -> MatchConstraints:
    """Return the constraints of a ranking; raise UsageError if they do not fit the index.

    `exclude_by` assumes that the queries are not the store of the index; see
    `select_exclusion_column`.
    """
    import numpy as np

    from retrieval.search.exclusions import SAME_BYTES
    from retrieval.vectors.scoring import scores_to_keys

    metric = manifest.counts["metric"]
    row_filter = None
    if settings.filter is not None:
        from retrieval.search.filters import parse_filter

        row_filter = parse_filter(settings.filter, _read_schema(index))
    reranking = read_reranking(settings, metric)
    if reranking is not None and settings.unique_pairs:
        raise UsageError(
            "--unique-pairs and --rerank are mutually exclusive: a re-ranked score is not the "
            "score of a pair"
        )
    min_key = -np.inf
    if settings.min_score is not None:
        min_key = float(scores_to_keys(np.array([settings.min_score]), metric)[0])
    return MatchConstraints(
        row_filter, SAME_BYTES if settings.exclude_self else None, min_key, reranking,
        read_requested_calibration(settings), settings.min_probability,
    )  # fmt: skip


def read_requested_calibration(settings: SearchOptions) -> Calibration | None:
    """Return the calibration of --calibration; None without it.

    Raises UsageError if --min-probability is given without it, or --min-score with it, and as
    `read_calibration` does.
    """
    if settings.calibration is None:
        if settings.min_probability is not None:
            raise UsageError(
                "--min-probability needs --calibration, a file that evaluate --calibrate writes"
            )
        return None
    if settings.min_score is not None:
        raise UsageError(
            "--calibration and --min-score are mutually exclusive, since a probability depends on "
            "all matches; use --min-probability"
        )
    from retrieval.evaluation.calibration import read_calibration

    return read_calibration(settings.calibration)


def read_reranking(settings: SearchOptions, metric: Metric) -> Reranking | None:
    """Return the re-ranking of --rerank; None without it.

    Raises UsageError for an unknown method, and for one that does not suit the metric of the index.
    """
    if settings.rerank is None:
        return None
    try:
        reranking = parse_reranking(settings.rerank)
    except ValueError as error:
        raise UsageError(f"--rerank: {error}") from error
    if reranking.alpha is not None:
        from retrieval.search.query_expansion import check_expansion

        check_expansion(reranking.alpha, metric)
    elif metric != "cosine":
        raise UsageError(
            f"--rerank {reranking.method} compares cosines, and the index has the metric {metric}: "
            "build it with --metric cosine, or use --rerank expand"
        )
    return reranking


def _read_schema(index: Folder) -> Any:
    """Return the schema of the row metadata of an index."""
    import pyarrow.parquet as pq

    from retrieval.index.shard import shard_rows_path

    with index.open(shard_rows_path(0)) as file:
        return pq.read_schema(file)


def is_index_store(queries: Store, index: Manifest) -> bool:
    """Return whether the query store is the store that the index was built from."""
    return bool(queries.manifest.sha256 == index.counts["embeddings_sha256"])


def _has_crops(store: Store) -> bool:
    """Return whether a store was made with a box per row."""
    return finished_output.read_settings(store.folder).get("box_columns") is not None


def select_exclusion_column(
    constraints: MatchConstraints, queries: Store, index: Manifest
) -> MatchConstraints:
    """Return the constraints with `exclude_by` set for these queries, if --exclude-self is given.

    Rows are compared if the queries are the store of the index, else checksums of the images. In a
    store of crops checksums are compared too: those of one photo exclude one another. Raises
    UsageError if the queries have no checksums.
    """
    from retrieval.search.exclusions import SAME_ROW

    if constraints.exclude_by is None:
        return constraints
    if is_index_store(queries, index) and not _has_crops(queries):
        return dataclasses.replace(constraints, exclude_by=SAME_ROW)
    first = next(iter(queries.blocks()), None)
    if first is not None and len(first) and first["sha256"].null_count == len(first):
        raise UsageError(
            "--exclude-self needs checksums, and the queries have none: omit it, or rank the store "
            "that the index was built from"
        )
    return constraints
