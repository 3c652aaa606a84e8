"""Test that building and updating an index recover from a fault at any storage operation.

`make test` takes a sample of the points, `make nightly` all of them.
"""

from types import SimpleNamespace

import pytest

from jobs.cluster.resources import Cluster
from jobs.config.settings import IndexSettings
from jobs.indexing.index import build_index
from retrieval.index import train
from tests.fault_loop import bucket_fault_loop, local_fault_loop, run_fault_points
from tests.file_tree import read_tree
from tests.jobs.embedding.test_store_sync import Source, make_picture
from tests.jobs.in_process import run_embed, without_ray

SCENARIOS = ("new", "two levels", "changed store")
LOCAL_SAMPLE, S3_SAMPLE = 9, 3
LOCAL_MIN_POINTS, S3_MIN_POINTS = 200, 60


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


@pytest.fixture(scope="module", params=SCENARIOS)
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


@pytest.fixture(scope="module")
def local_loop(scenario, tmp_path_factory):
    with local_fault_loop(scenario, tmp_path_factory.mktemp("loop")) as loop:
        yield loop


@pytest.fixture(scope="module")
def bucket_loop(scenario, s3):
    with bucket_fault_loop(scenario, s3) as loop:
        yield loop


def test_sampled_faults_on_disk(local_loop, record_property):
    assert (
        run_fault_points(local_loop, local_loop.points(LOCAL_SAMPLE), record_property)
        == LOCAL_SAMPLE
    )


@pytest.mark.timeout(300)
def test_sampled_faults_in_a_bucket(bucket_loop, record_property):
    assert (
        run_fault_points(bucket_loop, bucket_loop.points(S3_SAMPLE), record_property) == S3_SAMPLE
    )


@pytest.mark.nightly
def test_all_faults_on_disk(local_loop, record_property):
    assert run_fault_points(local_loop, local_loop.points(), record_property) >= LOCAL_MIN_POINTS


@pytest.mark.nightly
def test_all_faults_in_a_bucket(bucket_loop, record_property):
    assert run_fault_points(bucket_loop, bucket_loop.points(), record_property) >= S3_MIN_POINTS
