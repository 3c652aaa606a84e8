"""The embed stage without Ray: the same plain functions, called one after another in this process.

So that loops over hundreds of kills, and state machines, take minutes.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from jobs import pool, tasks
from jobs.cluster import Cluster
from jobs.embed import embed
from jobs.index import build
from jobs.prepare import Prepared
from jobs.rank import rank
from jobs.settings import EmbedSettings, IndexSettings, RankSettings
from retrieval.model.attempt import FIRST
from retrieval.model.plan import EnginePlan
from retrieval.model.resolve import resolve_bundle


def _stream(where, make, items, shared, device, called):
    work = make(shared)
    for item in items:
        yield json.loads(json.dumps(work(item, FIRST)))


def _tasks(where, function, items, *, gpu=False):
    yield from map(function, items)


@contextmanager
def without_ray():
    """Let the stage's work be done here and now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "stream", _stream)
        patch.setattr(tasks, "tasks", _tasks)
        patch.setattr(Cluster, "gpus", 0)
        yield


def index_here(store: Path | str, output: Path | str, **settings):
    """Run the index stage in this process; gives the manifest."""
    with without_ray():
        return build(
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
def prepared() -> Prepared:
    """A network that embeds a photo in a millisecond."""
    bundle = resolve_bundle(
        backbone="scratch", weights="random", bundle=None, pooling="avg", normalize=True,
        image_size=32, resize="crop", seed=0,
    )  # fmt: skip
    return Prepared(bundle, EnginePlan("torch", "fp32", "cpu", 2))


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
    )
