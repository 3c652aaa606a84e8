"""The passes of a ranking over the cluster: every shard past all queries, once or twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jobs.cluster import tasks
from jobs.cluster.heartbeat import alive
from jobs.cluster.resources import Cluster
from jobs.config.expansion import Expansion
from jobs.config.settings import RankSettings
from jobs.indexing.index import read_table
from jobs.ranking.match_constraints import MayMatch
from jobs.ranking.write_matches import put_matches, put_possible
from jobs.runtime.progress import progress, say
from retrieval.core.records import Certificate
from retrieval.core.schemas import WORK
from retrieval.storage import finished_output
from retrieval.storage.checksum import sealed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.store.reader import Store

FIRST = WORK + "first"
"""Where queries are answered that are expanded by what they find."""


def answer(
    settings: RankSettings,
    where: Cluster,
    folder: Folder,
    index_folder: Folder,
    index: Manifest,
    queries: Store,
    may_match: MayMatch,
) -> tuple[Certificate, int]:
    """Stream the shards past the queries, once, or twice where the sample shows it is needed.

    Gives the recall reached, and how many queries found no match at all.
    """
    task, extrapolated = _task(settings, where, folder, index_folder, index, queries, may_match)
    if may_match.expansion is not None:
        task = _expanded(where, task, may_match.expansion)
    task, certificate = _searched(settings, where, task)
    _fill(where, task)
    matched = put_matches(where, task)
    put_possible(where, task)
    return dataclasses.replace(certificate, extrapolated=extrapolated), queries.rows - matched


def _searched(settings: RankSettings, where: Cluster, task: Any) -> tuple[Any, Certificate]:
    """Search, and look at the recall of a growing sample until it is shown to be enough.

    Where it is shown not to be, or nothing is shown when the sample may grow no more, more lists
    are read once. Each look goes on from what lies on disk, so a killed run looks again at the
    same.
    """
    from retrieval.index.recall_interval import verdict_of
    from retrieval.search.recall_check import certify

    passes = 1
    while True:
        _pass(where, task)
        certificate, wider = certify(task, settings.recall, settings.seed)
        verdict = verdict_of(certificate.low, certificate.high, settings.recall)
        if verdict == "met" or settings.nprobe is not None:
            break
        shown = (
            f"recall {certificate.recall:.3f} [{certificate.low:.3f}, {certificate.high:.3f}] "
            f"of {certificate.sample} sampled queries"
        )
        if verdict == "undecided" and task.look + 1 < len(task.looks):
            task = dataclasses.replace(task, look=task.look + 1)
            say(f"{shown} does not decide about {settings.recall:g}: sampling {len(task.sample)}")
        elif passes == 1 and wider > task.nprobe:
            say(f"{shown} does not reach {settings.recall:g}: reading {wider} lists")
            task = dataclasses.replace(task, nprobe=wider)
            passes = 2
        else:
            break
    return task, dataclasses.replace(certificate, passes=passes)


def _task(
    settings: RankSettings,
    where: Cluster,
    folder: Folder,
    index_folder: Folder,
    index: Manifest,
    queries: Store,
    may_match: MayMatch,
) -> tuple[Any, int]:
    """Prepare the search; also return the largest k measured, where more matches are asked for."""
    from retrieval.index import recall_curve
    from retrieval.index.recall_interval import LOOKS, look_sizes
    from retrieval.index.sampling import rows_in_hash_order
    from retrieval.index.shard import RECALL_TABLE
    from retrieval.search.shard_search import Task, block_rows

    nlist, k = index.counts["nlist"], settings.top_k
    codes, metric = index.counts["codes"], index.counts["metric"]
    if k > index.counts["rows"]:
        say(f"--top-k {k} is more than the gallery has: each query gets {index.counts['rows']}")
    nprobe, extrapolated = nlist, 0
    every = index.counts["probe_all"] or settings.recall == 1 or k >= index.counts["rows"]
    if settings.nprobe is not None:
        nprobe = min(settings.nprobe, nlist)
    elif codes and queries.rows <= LOOKS[0]:
        pass  # all would be sampled, that is searched exactly
    elif not every:
        curve = read_table(index_folder, index, RECALL_TABLE)
        nprobe = recall_curve.choose_nprobe(curve, k, settings.recall, nlist)
        depth = recall_curve.measured_depth(curve)
        extrapolated = depth if k > depth else 0
    looks: list[Any] = []
    if queries.rows and (nprobe < nlist or codes is None):
        sizes = look_sizes(queries.rows, nprobe, nlist)
        if settings.nprobe is not None:  # measured, and nothing depends on it
            sizes = sizes[:1]
        sampled = rows_in_hash_order(queries, sizes[-1], settings.seed, "certificate")
        looks = np.split(sampled, sizes[:-1])
    memory = finished_output.read_settings(index_folder)["max_index_memory"]
    neighbours = may_match.expansion.count if may_match.expansion else 0
    task = Task(
        index_folder, index, codes, metric, queries, folder, nprobe, k, tuple(looks), alive,
        vectors=gallery_vectors(settings, index_folder, index),
        product="cuda" if settings.device != "cpu" and where.gpus else "cpu",
        allowed=may_match.allowed, bars=may_match.bars, least=may_match.least,
        block_rows=block_rows(queries.dimension, max(k, neighbours), memory), memory=memory,
        scratch=settings.scratch,
    )  # fmt: skip
    return task, extrapolated


def gallery_vectors(settings: RankSettings, index_folder: Folder, index: Manifest) -> Store | None:
    """Open the store that decides where the codes of an index are not the vectors."""
    from retrieval.search.rescore import open_vectors

    if index.counts["codes"]:
        return None
    return open_vectors(index_folder, index, settings.embeddings)


def _pass(where: Cluster, task: Any) -> None:
    """Let every shard answer; codes that are not the vectors propose first."""
    from retrieval.search import propose, rescore, shard_search

    shards, blocks = len(task.shards), len(task.blocks)
    if task.codes:
        if task.nprobe < task.manifest.counts["nlist"]:
            _each(where, "lists", shard_search.put_lists, task, blocks, "blocks")
        _ask_shards(where, task)
        return
    _each(where, "propose", propose.propose, task, shards, "shards")
    _each(where, "compare", propose.merge_proposed, task, blocks, "blocks")
    _each(where, "rank", rescore.rescore, task, shards, "shards")


def _ask_shards(where: Cluster, task: Any) -> None:
    """Let the shards answer; where they are fewer than workers, several tasks share one."""
    from retrieval.search import shard_search

    places = int(where.gpus / where.gpu_share) if task.product == "cuda" else where.workers
    shares, shards = shard_search.shares_of(task, places), len(task.shards)

    def step(task: Any, number: int) -> int:
        return shard_search.answer_shard(task, number % shards, number // shards, shares)

    unit = "shards" if shares == 1 else "shares of shards"
    _each(where, "rank", step, task, shards * shares, unit, gpu=True)


def _expanded(where: Cluster, task: Any, expansion: Expansion) -> Any:
    """Answer the queries as they are, and give the task that asks their expansions."""
    from retrieval.search import neighbor_vectors
    from retrieval.search.shard_search import expanded_path

    blocks, shards = len(task.blocks), len(task.shards)
    first = dataclasses.replace(
        task, matches=task.matches.child(FIRST), top_k=expansion.count, looks=()
    )
    if not all(task.matches.exists(expanded_path(number)) for number in range(blocks)):
        _pass(where, first)
        _each(where, "choose", neighbor_vectors.choose, first, blocks, "blocks")
        _each(where, "fetch", neighbor_vectors.fetch, first, shards, "shards")
        expand = _expander(task, first, expansion.alpha)
        _each(where, "expand", expand, None, blocks, "blocks")
    return dataclasses.replace(task, expanded=True)


def _expander(task: Any, first: Any, alpha: float) -> Callable[[Any, int], int]:
    def expand_block(_: Any, number: int) -> int:
        import pyarrow as pa

        from retrieval.search.neighbor_vectors import neighbourhoods
        from retrieval.search.query_expansion import expand
        from retrieval.search.shard_search import expanded_path
        from retrieval.store.reader import embedding_column

        parts = [np.empty((0, task.queries.dimension), np.float32)]
        parts += [expand(*found, alpha, task.metric) for found in neighbourhoods(first, number)]
        table = pa.table({"embedding": embedding_column(np.concatenate(parts))})
        task.matches.put_new(expanded_path(number), sealed_parquet(table))
        return number

    return expand_block


def _fill(where: Cluster, task: Any) -> None:
    """Read all lists for queries that lack matches, unless --min-score is why they do."""
    from retrieval.search import fill_matches

    if not task.codes or task.nprobe >= task.manifest.counts["nlist"] or task.least > -np.inf:
        return
    blocks = range(len(task.blocks))
    found = list(tasks.tasks(where, lambda number: fill_matches.find_short(task, number), blocks))
    if short := sum(count for _, count in found):
        say(f"{short} queries have fewer than {task.top_k} matches in their lists: reading all")
        _each(where, "fill", fill_matches.fill_shard, task, len(task.shards), "shards", gpu=True)


def _each(
    where: Cluster, title: str, step: Callable[[Any, int], int], task: Any, count: int, unit: str,
    *, gpu: bool = False,
) -> None:  # fmt: skip
    def do(number: int) -> int:
        return step(task, number)

    gpu = gpu and task.product == "cuda"
    with progress(title, count, unit, where) as bar:
        for _ in tasks.tasks(where, do, range(count), gpu=gpu):
            bar.advance(1)
