"""A store that grows, is tried again, is compacted: killed anywhere, run again, the same bytes.

`make test` takes a sample of the points, `make nightly` all of them.
"""

from types import SimpleNamespace

import pytest

from tests.jobs.here import without_ray
from tests.jobs.starts import STARTS
from tests.loops import harm_all, loop_in_bucket, loop_on_disk
from tests.trees import tree

NAMES = ("grown", "mended", "compact")
LOCAL_SAMPLE, S3_SAMPLE = 9, 3
LOCAL_LEAST, S3_LEAST = 300, 100


@pytest.fixture(scope="module", params=NAMES)
def start(request, tmp_path_factory):
    """A finished store, and a run that changes it."""
    with without_ray():
        one = STARTS[request.param](tmp_path_factory.mktemp(request.param))
        before = tree(one.root / "before")
        yield SimpleNamespace(before=before, run=lambda folder: one.run(folder.uri()))


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
