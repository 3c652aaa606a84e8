"""Test that building and updating an index recover from a fault at any storage operation."""

from types import SimpleNamespace

import pytest

from jobs.cluster.resources import Cluster
from jobs.config.settings import IndexSettings
from jobs.indexing.index import build_index
from retrieval.index import train
from tests.fault_loop import FaultLoopTests
from tests.file_tree import read_tree
from tests.jobs.embedding.test_store_sync import Source, make_picture
from tests.jobs.in_process import run_embed, without_ray


def build(store, output):
    options = {"index_factory": "IVF3,SQfp16", "rows_per_shard": 2}
    build_index(
        IndexSettings(embeddings=str(store), output=output, **options), Cluster("nowhere", 1)
    )


def update_store(source, store):
    """Add, change and delete a photo, and embed again."""
    source.put("f.jpg", make_picture(1))
    source.put("b.jpg", make_picture(0))
    source.delete("d.jpg")
    run_embed(source.root, store)


@pytest.fixture(scope="module")
def scenario(request, tmp_path_factory):
    """Return the existing files of an index and a run that builds or updates it."""
    root = tmp_path_factory.mktemp("index")
    source, store = Source(root / "photos"), root / "store"
    for number, name in enumerate("abcde"):
        source.put(f"{name}.jpg", make_picture(number))
    with without_ray(), pytest.MonkeyPatch.context() as patch:
        run_embed(source.root, store)
        initial_files = {}
        if request.param == "changed store":
            build(store, str(root / "before"))
            update_store(source, store)
            initial_files = read_tree(root / "before")
        if request.param == "two levels":
            patch.setattr(train, "FLAT_LISTS", 1)
        yield SimpleNamespace(
            initial_files=initial_files, run=lambda folder: build(store, folder.uri())
        )


class TestIndexFaults(FaultLoopTests):
    SCENARIOS = ("new", "two levels", "changed store")
    LOCAL_MIN_POINTS, S3_MIN_POINTS = 200, 60
