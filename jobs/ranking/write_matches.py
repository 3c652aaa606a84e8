"""What a ranking puts on disk of the answers: matches, queries without any, what was possible."""

from __future__ import annotations

from typing import Any

from jobs.cluster import tasks
from jobs.cluster.resources import Cluster
from retrieval.storage import transaction
from retrieval.storage.checksum import sealed_parquet


def put_matches(where: Cluster, task: Any) -> int:
    """Put the matches, block by block; gives how many queries have some."""

    def merge_one(number: int) -> int:
        from retrieval.search.fill_matches import all_answers
        from retrieval.search.merge import matches_of, unmatched_of

        asked = task.plain_block(number).drop_columns("embedding")
        table = matches_of(all_answers(task, number), task.top_k, asked, task.metric)
        transaction.put_once(task.matches, part_path(number), sealed_parquet(table))
        unmatched = unmatched_of(asked, table)
        if len(unmatched):
            transaction.put_once(task.matches, failures_path(number + 1), sealed_parquet(unmatched))
        return len(asked) - len(unmatched)

    return sum(tasks.tasks(where, merge_one, range(len(task.blocks))))


def put_possible(where: Cluster, task: Any) -> None:
    """Put how many images could be a match, where options say that not all can."""
    from retrieval.index.label_counts import labels_table
    from retrieval.index.shard import LABELS
    from retrieval.search.match_counts import count_possible

    if task.allowed is None and task.bars is None:
        return

    def count(number: int) -> dict[str, int]:
        return count_possible(task, number)

    counts = tasks.tasks(where, count, task.shards)
    transaction.put_once(task.matches, LABELS, sealed_parquet(labels_table(counts)))


def failures_path(number: int) -> str:
    """Give the path of queries without a match: 0 those that failed, then a block's, from 1."""
    return f"failures/{number:08d}.parquet"


def part_path(number: int) -> str:
    """Give the path of one block's matches."""
    return f"matches/part-{number:05d}.parquet"
