"""Run the stages in the test process without Ray, task after task.

This keeps fault loops and state machines fast; a single stage takes about a second.
"""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from jobs.cluster import actor_pool, tasks
from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings, IndexSettings, RankSettings
from jobs.embedding import fit_projection
from jobs.embedding.embed import embed
from jobs.embedding.prepare_model import PreparedModel
from jobs.indexing import index as indexing
from jobs.indexing.index import build_index
from jobs.ranking.rank import rank
from retrieval.embedding.attempt import FIRST_ATTEMPT
from retrieval.index.workers import InProcessWorkers
from retrieval.models import engines
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.resolve import resolve_bundle


def _stream(cluster, make_work, items, shared, device, item_name, blocks=None):
    work = make_work(shared)
    for item in items:
        yield json.loads(json.dumps(work(item, FIRST_ATTEMPT)))


def _run_tasks(cluster, function, items, *, gpu=False):
    yield from map(function, items)


_networks = {}  # by the digest of the bundle


def _cached_network(bundle, build_network=engines.build_network):
    """Build the network of a bundle once, since building takes a third of a small run."""
    if bundle.digest not in _networks:
        _networks[bundle.digest] = build_network(bundle)
    return copy.deepcopy(_networks[bundle.digest])


@contextmanager
def without_ray():
    """Run all stages in this process, as if on a cluster of two CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "build_network", _cached_network)
        patch.setattr(actor_pool, "stream", _stream)
        patch.setattr(fit_projection, "stream", _stream)
        patch.setattr(tasks, "run_tasks", _run_tasks)
        patch.setattr(indexing, "training_workers", lambda cluster: InProcessWorkers())
        patch.setattr(Cluster, "connect", lambda self: None)
        patch.setattr(Cluster, "connect_while", lambda self, action, _: action())
        patch.setattr(Cluster, "_resource", lambda self, name: {"CPU": 2}.get(name, 0))
        yield


def index_in_process(store: Path | str, output: Path | str, **settings):
    """Run the index stage in this process, and return the manifest."""
    with without_ray():
        return build_index(
            IndexSettings(embeddings=str(store), output=str(output), **settings),
            Cluster("nowhere", 1),
        )


def rank_in_process(index: Path | str, queries: Path | str, output: Path | str, **settings):
    """Run the rank stage in this process, and return the manifest."""
    with without_ray():
        return rank(
            RankSettings(index=str(index), queries=str(queries), output=str(output), **settings),
            Cluster("nowhere", 1),
        )


@cache
def small_model() -> PreparedModel:
    """Return a prepared model that embeds a photo in a millisecond."""
    bundle = resolve_bundle(
        backbone="scratch", weights="random", bundle=None, pooling="avg", normalize=True,
        image_size=32, resize="crop", seed=0,
    )  # fmt: skip
    return PreparedModel(bundle, EnginePlan("torch", "fp32", "cpu", 2))


def embed_in_process(source: Path | str, output: Path | str, **settings):
    """Run the embed stage in this process, and return the manifest."""
    with without_ray():
        return run_embed(source, output, **settings)


def run_embed(source: Path | str, output: Path | str, **settings):
    """Run the embed stage within `without_ray`, which several threads may share."""
    defaults = {"chunk_rows": 3, "max_error_rate": 0.9, "weights": "random", "image_size": 32}
    return embed(
        EmbedSettings(
            input=str(source), output=str(output), backbone="scratch", **{**defaults, **settings}
        ),
        Cluster("nowhere", 1),
        prepared=small_model(),
    ).manifest
