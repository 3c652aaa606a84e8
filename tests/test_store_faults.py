"""Test that writing a store recovers from a fault at any storage operation, on disk and in S3.

`make test` takes a sample of the points, `make nightly` all of them.
"""

import pytest

from retrieval.storage.local import LocalFolder, RemoteFolder
from tests.fault_loop import FaultLoop, run_fault_points, without_retry_delays
from tests.retrieval.storage.s3 import new_prefix, options
from tests.store_pipeline import StorePipeline, draw_mixed_source

LOCAL_SAMPLE, S3_SAMPLE = 42, 6
LOCAL_MIN_POINTS, S3_MIN_POINTS = 500, 300


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Return a pipeline for a store of eleven images in four chunks, four images in the ledger."""
    return StorePipeline(draw_mixed_source(tmp_path_factory.mktemp("source")))


@pytest.fixture(scope="module")
def local_loop(pipeline, tmp_path_factory):
    root = tmp_path_factory.mktemp("loop")
    with without_retry_delays():
        yield FaultLoop(lambda name: LocalFolder(str(root / name)), pipeline)


@pytest.fixture(scope="module")
def bucket_loop(pipeline, s3):
    prefix = new_prefix()
    with without_retry_delays(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("s3fs.S3FileSystem.retries", 1)
        yield FaultLoop(lambda name: RemoteFolder(f"{prefix}/{name}", options(s3)), pipeline)


def test_all_kinds_of_storage_operations_are_covered(local_loop):
    kinds = {(when, operation) for when, operation, _ in local_loop.operations}
    names = ("read", "make folder", "write", "sync", "link", "replace", "delete")
    assert kinds == {(when, name) for when in ("before", "after") for name in names}
    assert len(local_loop.points()) >= LOCAL_MIN_POINTS
    assert any("failures/" in path for path in local_loop.expected)
    assert sum("parts/" in path for path in local_loop.expected) >= 3


def test_sampled_faults_on_disk(local_loop, record_property):
    points = local_loop.points(LOCAL_SAMPLE)
    assert run_fault_points(local_loop, points, record_property) == LOCAL_SAMPLE


@pytest.mark.timeout(300)
def test_sampled_faults_in_a_bucket(bucket_loop, local_loop, record_property):
    assert bucket_loop.expected == local_loop.expected
    assert (
        run_fault_points(bucket_loop, bucket_loop.points(S3_SAMPLE), record_property) == S3_SAMPLE
    )


@pytest.mark.nightly
def test_all_faults_on_disk(local_loop, record_property):
    assert run_fault_points(local_loop, local_loop.points(), record_property) >= LOCAL_MIN_POINTS


@pytest.mark.nightly
def test_all_faults_in_a_bucket(bucket_loop, record_property):
    assert run_fault_points(bucket_loop, bucket_loop.points(), record_property) >= S3_MIN_POINTS
