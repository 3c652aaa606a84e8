"""lookalike rank: queries to ranked matches, with a certificate of the recall reached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from jobs import tasks
from jobs.cluster import Cluster, cluster
from jobs.elsewhere import Given
from jobs.groups import Elsewhere, EngineOptions
from jobs.index import read_table
from jobs.prepare import Prepared
from jobs.progress import progress, say
from jobs.pulse import alive
from jobs.queries import embed_queries, given_store, prepare_queries
from jobs.result import Result
from jobs.runfile import Stopwatch
from jobs.settings import RankSettings, content_of
from retrieval.embeddings.store import Store
from retrieval.errors import BelowBound
from retrieval.storage import commit, finished
from retrieval.storage.files import Folder, open_folder
from retrieval.storage.finished import Manifest
from retrieval.storage.seal import sealed_parquet
from retrieval.tables import FAILURES, Certificate

_FAILURES = "failures/00000000.parquet"


def start(settings: RankSettings) -> Result:
    """Rank queries and say what it came to."""
    with cluster(settings.ray_address, settings.workers) as where:
        manifest = rank(settings, where)
    return summary(settings.output, manifest)


def rank(settings: RankSettings, where: Cluster, *, keep_equal: bool = False) -> Manifest:
    """Make matches, going on with what is there; queries may be images or a store."""
    watch = Stopwatch()
    index_folder = open_folder(settings.index)
    index = finished.read_manifest(index_folder, kind="index")
    folder = open_folder(settings.output)
    given = given_store(settings, index_folder)
    prepared = None if given else prepare_queries(settings, where, folder, index_folder)
    job = _job(settings, index, given, prepared)
    commit.begin(folder, "matches", job, overwrite=settings.overwrite, keep_equal=keep_equal)
    queries = given or embed_queries(
        settings, where, index_folder, prepared, unsettle=lambda: commit.start_over(folder)
    )
    if finished.is_finished(folder):
        return finished.read_manifest(folder, kind="matches")

    def make() -> Manifest:
        certificate = _answer(settings, where, folder, index_folder, index, queries)
        manifest = _finish(folder, index_folder, index, queries, certificate)
        watch.write(folder, settings, queries=queries.rows)
        return manifest

    return commit.unless_overtaken(folder, "matches", make)


def _job(
    settings: RankSettings,
    index: Manifest,
    queries: Store | None,
    prepared: Prepared | Given | None,
) -> dict[str, Any]:
    """Give what shapes matches; an engine is only of meaning where images are embedded."""
    names = {f.name for s in (EngineOptions, Elsewhere) for f in dataclasses.fields(s)}
    content = {k: v for k, v in content_of(settings).items() if k not in names}
    return {
        **content,
        **(prepared.job() if prepared else {}),
        "index": open_folder(settings.index).uri(),
        "index_sha256": index.sha256,
        "queries": open_folder(settings.queries).uri(),
        "queries_sha256": queries.manifest.sha256 if queries else None,
    }


def _answer(
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
    if nprobe < nlist:
        sample = sample_of(queries, recall.SAMPLE, settings.seed)[1]
    codes, metric = index.counts["codes"], index.counts["metric"]
    task = Task(index_folder, index, codes, metric, queries, folder, nprobe, k, sample, alive)
    _pass(where, task, index.counts["shards"])
    certificate, wider = certify(task, settings.recall, settings.seed)
    if wider > nprobe and settings.nprobe is None:
        say(f"recall {certificate.recall:.3f} is below {settings.recall}: reading {wider} lists")
        task = dataclasses.replace(task, nprobe=wider)
        _pass(where, task, index.counts["shards"])
        again, _ = certify(task, settings.recall, settings.seed)
        certificate = dataclasses.replace(again, passes=2)
    _merge(where, task, index.counts["shards"])
    return certificate


def _pass(where: Cluster, task: Any, shards: int) -> None:
    def answer(number: int) -> int:
        from retrieval.index.answer import answer_shard

        return answer_shard(task, number)

    with progress("rank", shards, "shards") as bar:
        for _ in tasks.tasks(where, answer, range(shards)):
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
        parts = [read_answer(task.matches, path) for path in paths]
        asked = query_block(task.queries, number).drop_columns("embedding")
        table = matches_of(parts, task.top_k, asked, task.metric)
        commit.put_once(task.matches, part_path(number), sealed_parquet(table))
        return number

    return merge_one


def part_path(number: int) -> str:
    """Give the path of one block's matches."""
    return f"matches/part-{number:05d}.parquet"


def _finish(
    folder: Folder,
    index_folder: Folder,
    index: Manifest,
    queries: Store,
    certificate: Certificate,
) -> Manifest:
    """Put the failures of the queries and the labels of the gallery, then the manifest."""
    from retrieval.index.shards import LABELS

    failed = pa.concat_tables([FAILURES.schema.empty_table(), *queries.failures()])
    if len(failed):
        commit.put_once(folder, _FAILURES, sealed_parquet(failed.combine_chunks()))
    labels = read_table(index_folder, index, LABELS)
    commit.put_once(folder, LABELS, sealed_parquet(labels))
    counts = {
        "queries": queries.rows,
        "failures": len(failed),
        "gallery": index.counts["rows"],
        "metric": index.counts["metric"],
        "certificate": dataclasses.asdict(certificate),
    }
    return commit.finish(folder, "matches", counts)


def summary(output: str, manifest: Manifest) -> Result:
    """Say which recall was reached; exit 5 where it is below what was asked for."""
    counts = manifest.counts
    certificate = Certificate(**counts["certificate"])
    lines = (
        f"{counts['queries']} queries ranked against {counts['gallery']} gallery images, "
        f"{counts['failures']} queries failed: {output}",
        certificate.sentence(),
    )
    settings = finished.read_settings(open_folder(output))
    gated = settings["nprobe"] is None
    code = BelowBound.exit_code if gated and certificate.recall < certificate.target else 0
    values = {key: value for key, value in counts.items() if key != "certificate"}
    for key, value in dataclasses.asdict(certificate).items():
        values[f"recall_{key}" if key in ("target", "low", "high", "sample") else key] = value
    return Result({"output": output, **values}, lines, code)
