"""An index made anew, around two levels of centroids, or brought up to a store that grew: killed
anywhere, run again, the same bytes.

`make test` takes a sample of the points, `make nightly` all of them.
"""

from types import SimpleNamespace

import pytest

from jobs.cluster.resources import Cluster
from jobs.config.settings import IndexSettings
from jobs.indexing.index import build_index
from retrieval.index import train
from tests.jobs.embedding.test_store_sync import Source, picture
from tests.jobs.here import embed_now, without_ray
from tests.loops import harm_all, loop_in_bucket, loop_on_disk
from tests.trees import tree

NAMES = ("anew", "two levels", "grown")
LOCAL_SAMPLE, S3_SAMPLE = 9, 3
LOCAL_LEAST, S3_LEAST = 200, 60


def index(store, output):
    asked = {"index_factory": "IVF3,SQfp16", "rows_per_shard": 2}
    build_index(IndexSettings(embeddings=str(store), output=output, **asked), Cluster("nowhere", 1))


def grow(source, store):
    """Change a store after it was indexed: a photo more, one changed, one gone."""
    source.put("f.jpg", picture(1))
    source.put("b.jpg", picture(0))
    source.delete("d.jpg")
    embed_now(source.root, store)


@pytest.fixture(scope="module", params=NAMES)
def start(request, tmp_path_factory):
    """A finished store, and what is there of its index."""
    root = tmp_path_factory.mktemp("index")
    source, store = Source(root / "photos"), root / "store"
    for number, name in enumerate("abcde"):
        source.put(f"{name}.jpg", picture(number))
    with without_ray(), pytest.MonkeyPatch.context() as patch:
        embed_now(source.root, store)
        before = {}
        if request.param == "grown":
            index(store, str(root / "before"))
            grow(source, store)
            before = tree(root / "before")
        if request.param == "two levels":
            patch.setattr(train, "FLAT_LISTS", 1)
        yield SimpleNamespace(before=before, run=lambda folder: index(store, folder.uri()))


@pytest.fixture(scope="module")
def on_disk(start, tmp_path_factory):
    with loop_on_disk(start, tmp_path_factory.mktemp("loop")) as loop:
        yield loop


@pytest.fixture(scope="module")
def in_bucket(start, s3):
    with loop_in_bucket(start, s3) as loop:
        yield loop


def test_a_sample_of_points_on_a_disk(on_disk, record_property):
    assert harm_all(on_disk, on_disk.points(LOCAL_SAMPLE), record_property) == LOCAL_SAMPLE


@pytest.mark.timeout(300)
def test_a_sample_of_points_in_a_bucket(in_bucket, record_property):
    assert harm_all(in_bucket, in_bucket.points(S3_SAMPLE), record_property) == S3_SAMPLE


@pytest.mark.nightly
def test_every_point_on_a_disk(on_disk, record_property):
    assert harm_all(on_disk, on_disk.points(), record_property) >= LOCAL_LEAST


@pytest.mark.nightly
def test_every_point_in_a_bucket(in_bucket, record_property):
    assert harm_all(in_bucket, in_bucket.points(), record_property) >= S3_LEAST
