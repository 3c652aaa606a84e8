"""What may be a match: the options of a ranking that say so, checked before any work."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.config.expansion import Expansion, parse_expansion
from jobs.config.settings import RankSettings
from retrieval.core.errors import UsageError
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.store.reader import Store


@dataclass(frozen=True)
class MayMatch:
    """Which gallery images may be a match of which query, and how queries are expanded."""

    allowed: Callable[[Any], Any] | None  # of a shard's metadata: which rows pass --filter
    bars: str | None  # the column that --exclude-self compares
    least: float  # key that --min-score asks for
    expansion: Expansion | None


def may_match(settings: RankSettings, index: Folder, manifest: Manifest) -> MayMatch:
    """Read the options against an index; `bars` is for queries that are not its own store."""
    import numpy as np

    from retrieval.search.exclusions import SAME_BYTES
    from retrieval.search.query_expansion import check_expansion
    from retrieval.vectors.scoring import keys_of

    metric = manifest.counts["metric"]
    allowed = None
    if settings.filter is not None:
        from retrieval.search.filters import parse_filter, passing

        allowed = functools.partial(passing, parse_filter(settings.filter, _schema(index)))
    expansion = _expansion(settings)
    if expansion is not None:
        check_expansion(expansion.alpha, metric)
        if settings.unique_pairs:
            raise UsageError(
                "--unique-pairs with --expand-queries: the score of an expanded query is not that "
                "of a pair; leave one of them away"
            )
    least = -np.inf
    if settings.min_score is not None:
        least = float(keys_of(np.array([settings.min_score]), metric)[0])
    return MayMatch(allowed, SAME_BYTES if settings.exclude_self else None, least, expansion)


def _expansion(settings: RankSettings) -> Expansion | None:
    if settings.expand_queries is None:
        return None
    try:
        return parse_expansion(settings.expand_queries)
    except ValueError as error:
        raise UsageError(f"--expand-queries: {error}") from error


def _schema(index: Folder) -> Any:
    """Give the columns of the rows of an index."""
    import pyarrow.parquet as pq

    from retrieval.index.shard import rows_path

    with index.open(rows_path(0)) as file:
        return pq.read_schema(file)


def against_itself(queries: Store, index: Manifest) -> bool:
    """Tell whether queries are the very store that an index was made of."""
    return bool(queries.manifest.sha256 == index.counts["embeddings_sha256"])


def for_queries(chosen: MayMatch, queries: Store, index: Manifest) -> MayMatch:
    """Say what makes a query's image the same: its row in its own store, else its bytes."""
    from retrieval.search.exclusions import OWN_ROW

    if chosen.bars is None:
        return chosen
    if against_itself(queries, index):
        return dataclasses.replace(chosen, bars=OWN_ROW)
    first = next(iter(queries.blocks()), None)
    if first is not None and len(first) and first["sha256"].null_count == len(first):
        raise UsageError(
            "--exclude-self: the queries have no checksums to know their own images by; leave it "
            "away, or rank the gallery's own store"
        )
    return chosen
