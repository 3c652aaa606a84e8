"""The stages without Ray: the same plain functions, called one after another in this process.

So that loops over hundreds of kills, and state machines, take minutes, and a test whose point is
not Ray takes a second.
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
from jobs.indexing.index import build_index
from jobs.ranking.rank import rank
from retrieval.embedding.attempt import FIRST_ATTEMPT
from retrieval.models import engines
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.resolve import resolve_bundle


def _stream(where, make, items, shared, device, called):
    work = make(shared)
    for item in items:
        yield json.loads(json.dumps(work(item, FIRST_ATTEMPT)))


def _tasks(where, function, items, *, gpu=False):
    yield from map(function, items)


_traced = {}  # networks by the digest of their bundle


def _network_of(bundle, make=engines.build_network):
    """Trace and fold a network once: a third of a small run otherwise."""
    if bundle.digest not in _traced:
        _traced[bundle.digest] = make(bundle)
    return copy.deepcopy(_traced[bundle.digest])


@contextmanager
def without_ray():
    """Let the work of any stage be done here and now, as if on a cluster of two CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "build_network", _network_of)
        patch.setattr(actor_pool, "stream", _stream)
        patch.setattr(fit_projection, "stream", _stream)
        patch.setattr(tasks, "run_tasks", _tasks)
        patch.setattr(Cluster, "connect", lambda self: None)
        patch.setattr(Cluster, "connect_while", lambda self, action: action())
        patch.setattr(Cluster, "_resource", lambda self, name: {"CPU": 2}.get(name, 0))
        yield


def index_here(store: Path | str, output: Path | str, **settings):
    """Run the index stage in this process; gives the manifest."""
    with without_ray():
        return build_index(
            IndexSettings(embeddings=str(store), output=str(output), **settings),
            Cluster("nowhere", 1),
        )


def rank_here(index: Path | str, queries: Path | str, output: Path | str, **settings):
    """Run the rank stage in this process; gives the manifest."""
    with without_ray():
        return rank(
            RankSettings(index=str(index), queries=str(queries), output=str(output), **settings),
            Cluster("nowhere", 1),
        )


@cache
def prepared() -> PreparedModel:
    """A network that embeds a photo in a millisecond."""
    bundle = resolve_bundle(
        backbone="scratch", weights="random", bundle=None, pooling="avg", normalize=True,
        image_size=32, resize="crop", seed=0,
    )  # fmt: skip
    return PreparedModel(bundle, EnginePlan("torch", "fp32", "cpu", 2))


def embed_here(source: Path | str, output: Path | str, **settings):
    """Run the embed stage in this process; gives the manifest."""
    with without_ray():
        return embed_now(source, output, **settings)


def embed_now(source: Path | str, output: Path | str, **settings):
    """Do the same within `without_ray`, which two threads may share."""
    asked = {"chunk_rows": 3, "max_error_rate": 0.9, "weights": "random", "image_size": 32}
    return embed(
        EmbedSettings(
            input=str(source), output=str(output), backbone="scratch", **{**asked, **settings}
        ),
        Cluster("nowhere", 1),
        prepared=prepared(),
    ).manifest
