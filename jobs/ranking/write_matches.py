"""Writing of the matches per query block, unmatched queries, and counts of eligible images."""

from __future__ import annotations

from typing import Any

from jobs.cluster import tasks
from jobs.cluster.resources import Cluster
from jobs.ranking.match_constraints import MatchConstraints
from jobs.ranking.rerank import makes_new_order
from retrieval.storage import transaction
from retrieval.storage.checksum import checksummed_parquet


def write_matches(cluster: Cluster, task: Any, constraints: MatchConstraints) -> int:
    """Write the matches of all blocks; return the number of queries that have at least one."""
    calibration, min_probability = constraints.calibration, constraints.min_probability
    reranked = makes_new_order(constraints.reranking)

    def merge_block(number: int) -> int:
        from retrieval.evaluation.calibration import add_probabilities
        from retrieval.search.fill_matches import read_final_candidates
        from retrieval.search.merge import rank_candidates, unmatched_queries
        from retrieval.search.reranking.rerank_block import read_reranked_candidates

        queries = task.stored_queries(number).drop_columns("embedding")
        read = read_reranked_candidates if reranked else read_final_candidates
        table = rank_candidates(read(task, number), task.top_k, queries, task.metric)
        if calibration is not None:
            table = add_probabilities(table, calibration, min_probability)
        transaction.put_if_absent(task.output, matches_path(number), checksummed_parquet(table))
        unmatched = unmatched_queries(queries, table)
        if len(unmatched):
            transaction.put_if_absent(
                task.output, failures_path(number + 1), checksummed_parquet(unmatched)
            )
        return len(queries) - len(unmatched)

    return sum(tasks.run_tasks(cluster, merge_block, range(len(task.query_chunks))))


def write_eligible_counts(cluster: Cluster, task: Any) -> None:
    """Write the number of possible matches per label, if options restrict them."""
    from retrieval.index.finalize import build_labels_table
    from retrieval.index.shard import LABELS
    from retrieval.search.match_counts import count_eligible_rows

    if task.row_filter is None and task.exclude_by is None:
        return

    def count(number: int) -> dict[str, int]:
        return count_eligible_rows(task, number)

    counts = tasks.run_tasks(cluster, count, task.shards)
    transaction.put_if_absent(task.output, LABELS, checksummed_parquet(build_labels_table(counts)))


def failures_path(number: int) -> str:
    """Return the path of a failures table: 0 for failed queries, b + 1 for unmatched of block b."""
    return f"failures/{number:08d}.parquet"


def matches_path(number: int) -> str:
    """Return the path of the matches of query block `number`."""
    return f"matches/part-{number:05d}.parquet"
