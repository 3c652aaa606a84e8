"""The passes of a ranking over the cluster: every shard past all queries, once or twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jobs import tasks
from jobs.cluster import Cluster
from jobs.index import read_table
from jobs.progress import progress, say
from jobs.pulse import alive
from jobs.settings import RankSettings
from retrieval.embeddings.store import Store
from retrieval.records import Certificate
from retrieval.storage import commit
from retrieval.storage.files import Folder
from retrieval.storage.finished import Manifest
from retrieval.storage.seal import sealed_parquet


def answer(
    settings: RankSettings,
    where: Cluster,
    folder: Folder,
    index_folder: Folder,
    index: Manifest,
    queries: Store,
) -> Certificate:
    """Stream the shards past the queries, once, or twice where the sample shows it is needed."""
    from retrieval.index import recall
    from retrieval.index.answer import Task
    from retrieval.index.certificate import certify
    from retrieval.index.sampling import sample_of
    from retrieval.index.shards import RECALL_TABLE

    nlist, k = index.counts["nlist"], settings.top_k
    if k > index.counts["rows"]:
        say(f"--top-k {k} is more than the gallery has: each query gets {index.counts['rows']}")
    nprobe = nlist
    if settings.nprobe is not None:
        nprobe = min(settings.nprobe, nlist)
    elif settings.recall < 1 and not index.counts["probe_all"]:
        curve = read_table(index_folder, index, RECALL_TABLE)
        nprobe = recall.choose_nprobe(curve, k, settings.recall, nlist)
    sample = np.empty(0, np.int64)
    codes, metric, shards = (index.counts[name] for name in ("codes", "metric", "shards"))
    if nprobe < nlist or codes is None:
        sample = sample_of(queries, recall.SAMPLE, settings.seed)[1]
    vectors = gallery_vectors(settings, index_folder, index)
    task = Task(
        index_folder, index, codes, metric, queries, folder, nprobe, k, sample, alive, vectors
    )
    _pass(where, task, shards)
    certificate, wider = certify(task, settings.recall, settings.seed)
    if wider > nprobe and settings.nprobe is None:
        say(f"recall {certificate.recall:.3f} is below {settings.recall}: reading {wider} lists")
        task = dataclasses.replace(task, nprobe=wider)
        _pass(where, task, shards)
        again, _ = certify(task, settings.recall, settings.seed)
        certificate = dataclasses.replace(again, passes=2)
    _merge(where, task, shards)
    return certificate


def gallery_vectors(settings: RankSettings, index_folder: Folder, index: Manifest) -> Store | None:
    """Open the store that decides where the codes of an index are not the vectors."""
    from retrieval.index.rescore import open_vectors

    if index.counts["codes"]:
        return None
    return open_vectors(index_folder, index, settings.embeddings)


def _pass(where: Cluster, task: Any, shards: int) -> None:
    """Let every shard answer; codes that are not the vectors propose first."""
    from retrieval.index import answer, propose, rescore

    if task.codes:
        if task.nprobe < int(task.manifest.counts["nlist"]):
            _each(where, "lists", answer.put_lists, task, answer.blocks_of(task.queries), "blocks")
        _each(where, "rank", answer.answer_shard, task, shards, "shards")
        return
    _each(where, "propose", propose.propose, task, shards, "shards")
    blocks = answer.blocks_of(task.queries)
    _each(where, "compare", propose.merge_proposed, task, blocks, "blocks")
    _each(where, "rank", rescore.rescore, task, shards, "shards")


def _each(
    where: Cluster, title: str, step: Callable[[Any, int], int], task: Any, count: int, unit: str
) -> None:
    def do(number: int) -> int:
        return step(task, number)

    with progress(title, count, unit) as bar:
        for _ in tasks.tasks(where, do, range(count)):
            bar.advance(1)


def _merge(where: Cluster, task: Any, shards: int) -> None:
    from retrieval.index.answer import blocks_of

    merge_one = _merger(task, shards)
    for _ in tasks.tasks(where, merge_one, range(blocks_of(task.queries))):
        pass


def _merger(task: Any, shards: int) -> Callable[[int], int]:
    def merge_one(number: int) -> int:
        from retrieval.index.answer import candidates_path, query_block, read_answer
        from retrieval.ranking.merge import matches_of

        paths = [candidates_path(task.nprobe, shard, number) for shard in range(shards)]
        parts = (read_answer(task.matches, path) for path in paths)
        asked = query_block(task.queries, number).drop_columns("embedding")
        table = matches_of(parts, task.top_k, asked, task.metric)
        commit.put_once(task.matches, part_path(number), sealed_parquet(table))
        return number

    return merge_one


def part_path(number: int) -> str:
    """Give the path of one block's matches."""
    return f"matches/part-{number:05d}.parquet"
