"""Kill it anywhere, run it again, get the same bytes: on a disk and in a real bucket.

`make test` takes a sample of the points, `make nightly` all of them.
"""

import pytest

from retrieval.storage.local import LocalFolder, RemoteFolder
from tests.flows import StoreFlow, draw_source
from tests.loops import Loop, harm_all, no_waits
from tests.retrieval.storage.s3 import new_prefix, options

LOCAL_SAMPLE, S3_SAMPLE = 42, 6
LOCAL_LEAST, S3_LEAST = 500, 300


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A store of eleven images, four of them in the ledger, in four chunks."""
    return StoreFlow(draw_source(tmp_path_factory.mktemp("source")))


@pytest.fixture(scope="module")
def on_disk(flow, tmp_path_factory):
    root = tmp_path_factory.mktemp("loop")
    with no_waits():
        yield Loop(lambda name: LocalFolder(str(root / name)), flow)


@pytest.fixture(scope="module")
def in_bucket(flow, s3):
    prefix = new_prefix()
    with no_waits(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("s3fs.S3FileSystem.retries", 1)
        yield Loop(lambda name: RemoteFolder(f"{prefix}/{name}", options(s3)), flow)


def test_the_loop_passes_every_kind_of_operation_of_a_disk(on_disk):
    kinds = {(when, operation) for when, operation, _ in on_disk.moments}
    names = ("read", "make folder", "write", "sync", "link", "replace", "delete")
    assert kinds == {(when, name) for when in ("before", "after") for name in names}
    assert len(on_disk.points()) >= LOCAL_LEAST
    assert any("failures/" in path for path in on_disk.unharmed)
    assert sum("parts/" in path for path in on_disk.unharmed) >= 3


def test_a_sample_of_points_on_a_disk(on_disk, record_property):
    points = on_disk.points(LOCAL_SAMPLE)
    assert harm_all(on_disk, points, record_property) == LOCAL_SAMPLE


@pytest.mark.timeout(300)
def test_a_sample_of_points_in_a_bucket(in_bucket, on_disk, record_property):
    assert in_bucket.unharmed == on_disk.unharmed
    assert harm_all(in_bucket, in_bucket.points(S3_SAMPLE), record_property) == S3_SAMPLE


@pytest.mark.nightly
def test_every_point_on_a_disk(on_disk, record_property):
    assert harm_all(on_disk, on_disk.points(), record_property) >= LOCAL_LEAST


@pytest.mark.nightly
def test_every_point_in_a_bucket(in_bucket, record_property):
    assert harm_all(in_bucket, in_bucket.points(), record_property) >= S3_LEAST
