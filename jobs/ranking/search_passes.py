"""Search of a ranking on the cluster: one task per shard or query block, in one or two passes.

A second pass reads more lists if a sample of queries shows that the recall is too low.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jobs.cluster import tasks
from jobs.cluster.resources import Cluster
from jobs.cluster.stall_detector import send_heartbeat
from jobs.config.options import Reranking
from jobs.config.settings import RankSettings
from jobs.indexing.index import read_table
from jobs.ranking.match_constraints import MatchConstraints
from jobs.ranking.rerank import makes_new_order, rerank_steps
from jobs.ranking.write_matches import write_eligible_counts, write_matches
from jobs.runtime.progress import print_message, progress
from retrieval.core.records import Certificate
from retrieval.core.schemas import WORK_FOLDER
from retrieval.storage import finished_output
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.store.reader import Store

FIRST = WORK_FOLDER + "first"
"""Folder of the first search, which finds the neighbors that expand the queries."""

_VECTOR_SHARES = 8  # of the memory: one for the fetched vectors of a query block


def search_queries(
    settings: RankSettings,
    cluster: Cluster,
    folder: Folder,
    index_folder: Folder,
    index: Manifest,
    queries: Store,
    constraints: MatchConstraints,
) -> tuple[Certificate, int]:
    """Search all shards for all queries and write the matches.

    Returns the certificate of the reached recall, and the number of queries without a match.
    """
    top_k, reranking = settings.top_k, constraints.reranking
    if top_k > (rows := index.counts["rows"]):
        print_message(
            f"--top-k {top_k} exceeds the size of the gallery: each query gets at most {rows}"
        )
    if makes_new_order(reranking):
        settings = dataclasses.replace(settings, top_k=max(top_k, reranking.count))
    task, extrapolated = _make_task(
        settings, cluster, folder, index_folder, index, queries, constraints
    )
    if reranking is not None and reranking.method == "expand":
        task = _expand_queries(cluster, task, reranking)
    task, certificate = _search_until_certified(settings, cluster, task)
    _fill_incomplete(cluster, task)
    if makes_new_order(reranking):
        for title, step, step_task, count, unit in rerank_steps(task, reranking):
            _run_tasks(cluster, title, step, step_task, count, unit)
    matched = write_matches(cluster, dataclasses.replace(task, top_k=top_k), constraints)
    write_eligible_counts(cluster, task)
    return dataclasses.replace(certificate, extrapolated=extrapolated), queries.rows - matched


def _search_until_certified(
    settings: RankSettings, cluster: Cluster, task: Any
) -> tuple[Any, Certificate]:
    """Search, and test on a growing sample of queries whether the target recall is reached.

    If the recall is too low, or still undecided at the largest sample, search once more in more
    lists. Each interim test (look) uses the files on disk, so that a resumed run repeats
    the same looks. Returns the final task and the certificate.
    """
    from retrieval.index.recall_interval import interval_verdict
    from retrieval.search.recall_check import certify

    passes = 1
    while True:
        _run_pass(cluster, task)
        certificate, wider = certify(task, settings.recall, settings.seed)
        verdict = interval_verdict(certificate.low, certificate.high, settings.recall)
        if verdict == "met" or settings.nprobe is not None:
            break
        measured = (
            f"recall {certificate.recall:.3f} [{certificate.low:.3f}, {certificate.high:.3f}] "
            f"of {certificate.sample} sampled queries"
        )
        if verdict == "undecided" and task.look + 1 < len(task.looks):
            task = dataclasses.replace(task, look=task.look + 1)
            print_message(
                f"{measured} does not decide whether {settings.recall:g} is met: "
                f"sampling {len(task.sampled_queries)}"
            )
        elif passes == 1 and wider != task.probing:
            print_message(f"{measured} does not reach {settings.recall:g}: reading more lists")
            task = dataclasses.replace(task, nprobe=wider.nprobe, gap=wider.gap)
            passes = 2
        else:
            break
    return task, dataclasses.replace(certificate, passes=passes, **_count_read(cluster, task))


def _count_read(cluster: Cluster, task: Any) -> dict[str, Any]:
    """Return how many lists and rows a query read, as fields of the certificate."""
    from retrieval.search.read_counts import add_shards

    def count_shard(number: int) -> Any:
        from retrieval.search.propose import proposal_task
        from retrieval.search.read_counts import add_blocks, read_counts
        from retrieval.search.shard_search import candidates_paths

        searched = task if task.codes else proposal_task(task)
        return add_blocks(
            read_counts(searched.output, path)
            for block_number in range(len(task.query_chunks))
            for path in candidates_paths(searched, number, block_number)
        )

    total = add_shards(list(tasks.run_tasks(cluster, count_shard, task.shards)))
    queries = max(1, total.queries)
    return {
        "lists": total.lists / queries,
        "most_lists": total.most_lists,
        "rows_read": min(1.0, total.rows / queries / max(1, task.manifest.counts["rows"])),
    }


def _make_task(
    settings: RankSettings,
    cluster: Cluster,
    folder: Folder,
    index_folder: Folder,
    index: Manifest,
    queries: Store,
    constraints: MatchConstraints,
) -> tuple[Any, int]:
    """Return the search task, and the largest k of the recall curve if --top-k is larger, or 0."""
    from retrieval.index import recall_curve
    from retrieval.index.probing import Probing
    from retrieval.index.quantized_codes import CANDIDATES_PER_MATCH
    from retrieval.index.recall_interval import are_few_queries, look_sizes
    from retrieval.index.sampling import rows_in_hash_order
    from retrieval.index.shard import RECALL_TABLE
    from retrieval.search.shard_search import SearchTask, queries_per_block

    nlist, k = index.counts["nlist"], settings.top_k
    codes, metric = index.counts["codes"], index.counts["metric"]
    probing, lists, extrapolated = Probing(nlist), float(nlist), 0
    if settings.nprobe is not None:
        probing = Probing(min(settings.nprobe, nlist))
        lists = float(probing.nprobe)
    elif not _is_exhaustive(settings, cluster, index_folder, index, queries, constraints):
        curve = read_table(index_folder, index, RECALL_TABLE)
        probing = recall_curve.choose_probing(curve, k, settings.recall, nlist)
        lists = recall_curve.expected_lists(curve, probing)
        depth = recall_curve.measured_depth(curve)
        extrapolated = depth if k > depth else 0
    looks: list[Any] = []
    if queries.rows and (not probing.reads_all(nlist) or codes is None):
        sizes = look_sizes(queries.rows, lists, nlist)
        if settings.nprobe is not None:  # recall is measured, but no decision depends on it
            sizes = sizes[:1]
        elif are_few_queries(queries.rows):  # exact matches for all, as with lossless codes
            sizes = (queries.rows,)
        sampled = rows_in_hash_order(queries, sizes[-1], settings.seed, "certificate")
        looks = np.split(sampled, sizes[:-1])
    memory = finished_output.read_settings(index_folder)["max_index_memory"]
    reranked = constraints.reranking.count if constraints.reranking else 0
    candidates = max(k, reranked) * (1 if codes else CANDIDATES_PER_MATCH)
    task = SearchTask(
        index_folder, index, codes, metric, queries, folder, probing.nprobe, k, tuple(looks),
        gap=probing.gap,
        heartbeat=send_heartbeat,
        device="cuda" if settings.device != "cpu" and cluster.gpus else "cpu",
        row_filter=constraints.row_filter, exclude_by=constraints.exclude_by,
        min_key=constraints.min_key,
        queries_per_block=min(
            queries_per_block(queries.dimension, candidates, memory),
            max(1, memory // (_VECTOR_SHARES * 4 * queries.dimension * max(1, reranked))),
        ),
        memory=memory,
        temp_dir=settings.temp_dir,
    )  # fmt: skip
    return task, extrapolated


def _is_exhaustive(
    settings: RankSettings,
    cluster: Cluster,
    index_folder: Folder,
    index: Manifest,
    queries: Store,
    constraints: MatchConstraints,
) -> bool:
    """Return whether every query reads every list: exact matches are requested, or cost little."""
    from retrieval.index.plan import PROBE_ALL_ROWS
    from retrieval.index.recall_interval import are_few_queries
    from retrieval.search.match_counts import count_filtered_rows

    counts, row_filter = index.counts, constraints.row_filter
    if counts["probe_all"] or settings.recall == 1 or settings.top_k >= counts["rows"]:
        return True
    if counts["codes"] and are_few_queries(queries.rows):
        return True
    if row_filter is None:
        return False

    def count(number: int) -> int:
        return count_filtered_rows(index_folder, index, row_filter, number)

    rows: int = sum(tasks.run_tasks(cluster, count, range(counts["shards"])))
    return rows <= max(PROBE_ALL_ROWS, settings.top_k)


def _run_pass(cluster: Cluster, task: Any) -> None:
    """Search each shard for each query block; with lossy codes propose candidates and rescore."""
    from retrieval.search import propose, rescore

    if task.codes:
        _search_shards(cluster, task, "rank")
        return
    _search_shards(cluster, propose.proposal_task(task), "propose")
    blocks, shards = len(task.query_chunks), len(task.shards)
    _run_tasks(cluster, "compare", propose.merge_proposals, task, blocks, "blocks")
    _run_tasks(cluster, "rank", rescore.rescore_shard, task, shards, "shards")


def _search_shards(cluster: Cluster, task: Any, title: str) -> None:
    """Search all shards; if there are fewer shards than workers, several tasks share a shard."""
    from retrieval.search import shard_search

    if not task.reads_all_lists:
        blocks = len(task.query_chunks)
        _run_tasks(cluster, "lists", shard_search.write_probed_lists, task, blocks, "blocks")
    workers = int(cluster.gpus / cluster.gpu_share) if task.device == "cuda" else cluster.workers
    shard_search.claim_parts(task, workers)
    shares, shards = shard_search.shares_per_shard(task, workers), len(task.shards)

    def step(task: Any, number: int) -> int:
        return shard_search.search_shard(task, number % shards, number // shards, shares)

    unit = "shards" if shares == 1 else "shares of shards"
    _run_tasks(cluster, title, step, task, shards * shares, unit, gpu=True)


def _expand_queries(cluster: Cluster, task: Any, expansion: Reranking) -> Any:
    """Search with the original queries, expand them, and return the task of the expanded ones."""
    from retrieval.search import neighbor_vectors
    from retrieval.search.shard_search import expanded_queries_path

    assert expansion.alpha is not None  # the method is expand
    blocks, shards = len(task.query_chunks), len(task.shards)
    first = dataclasses.replace(
        task, output=task.output.child(FIRST), top_k=expansion.count, looks=()
    )
    if not all(task.output.exists(expanded_queries_path(number)) for number in range(blocks)):
        _run_pass(cluster, first)
        _run_tasks(cluster, "choose", neighbor_vectors.choose_neighbors, first, blocks, "blocks")
        _run_tasks(
            cluster, "fetch", neighbor_vectors.fetch_neighbor_vectors, first, shards, "shards"
        )
        expand_block = _make_expand_step(task, first, expansion.alpha)
        _run_tasks(cluster, "expand", expand_block, None, blocks, "blocks")
    return dataclasses.replace(task, expanded=task.output)


def _make_expand_step(task: Any, first: Any, alpha: float) -> Callable[[Any, int], int]:
    def expand_block(_: Any, number: int) -> int:
        import pyarrow as pa

        from retrieval.search.neighbor_vectors import iterate_neighborhoods
        from retrieval.search.query_expansion import expand_queries
        from retrieval.search.shard_search import expanded_queries_path
        from retrieval.store.reader import embedding_column

        parts = [np.empty((0, task.queries.dimension), np.float32)]
        neighborhoods = iterate_neighborhoods(first, number)
        parts += [expand_queries(*vectors, alpha, task.metric) for vectors in neighborhoods]
        table = pa.table({"embedding": embedding_column(np.concatenate(parts))})
        task.output.put_new(expanded_queries_path(number), checksummed_parquet(table))
        return number

    return expand_block


def _fill_incomplete(cluster: Cluster, task: Any) -> None:
    """Search all lists for queries with fewer than k candidates, unless --min-score is given."""
    from retrieval.search import fill_matches

    if not task.codes or task.reads_all_lists or task.min_key > -np.inf:
        return
    blocks = range(len(task.query_chunks))
    counts = list(
        tasks.run_tasks(
            cluster, lambda number: fill_matches.find_incomplete_queries(task, number), blocks
        )
    )
    if incomplete := sum(count for _, count in counts):
        print_message(
            f"{incomplete} queries have fewer than {task.top_k} matches in their lists: "
            "searching all lists"
        )
        shards = len(task.shards)
        _run_tasks(cluster, "fill", fill_matches.search_all_lists, task, shards, "shards", gpu=True)


def _run_tasks(
    cluster: Cluster, title: str, step: Callable[[Any, int], int], task: Any, count: int, unit: str,
    *, gpu: bool = False,
) -> None:  # fmt: skip
    def run_step(number: int) -> int:
        return step(task, number)

    gpu = gpu and task.device == "cuda"
    with progress(title, count, unit, cluster) as bar:
        for _ in tasks.run_tasks(cluster, run_step, range(count), gpu=gpu):
            bar.advance(1)
