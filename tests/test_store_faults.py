"""Test that writing a store recovers from a fault at any storage operation, on disk and in S3."""

import pytest

from retrieval.storage.local import LocalFolder, RemoteFolder
from tests.fault_loop import FaultLoop, FaultLoopTests, without_retry_delays
from tests.retrieval.storage.s3 import new_prefix, options
from tests.store_pipeline import StorePipeline, draw_mixed_source


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Return a pipeline for a store of eleven images in four chunks, four images in the ledger."""
    return StorePipeline(draw_mixed_source(tmp_path_factory.mktemp("source")))


class TestStoreFaults(FaultLoopTests):
    LOCAL_SAMPLE, S3_SAMPLE = 42, 6
    LOCAL_MIN_POINTS, S3_MIN_POINTS = 500, 300

    @pytest.fixture(scope="class")
    def local_loop(self, pipeline, tmp_path_factory):
        root = tmp_path_factory.mktemp("loop")
        with without_retry_delays():
            yield FaultLoop(lambda name: LocalFolder(str(root / name)), pipeline)

    @pytest.fixture(scope="class")
    def bucket_loop(self, pipeline, s3):
        prefix = new_prefix()
        with without_retry_delays(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("s3fs.S3FileSystem.retries", 1)
            yield FaultLoop(lambda name: RemoteFolder(f"{prefix}/{name}", options(s3)), pipeline)

    def test_all_kinds_of_storage_operations_are_covered(self, local_loop):
        kinds = {(when, operation) for when, operation, _ in local_loop.operations}
        names = ("read", "make folder", "write", "sync", "link", "replace", "delete")
        assert kinds == {(when, name) for when in ("before", "after") for name in names}
        assert len(local_loop.points()) >= self.LOCAL_MIN_POINTS
        assert any("failures/" in path for path in local_loop.expected)
        assert sum("parts/" in path for path in local_loop.expected) >= 3

    def test_files_in_a_bucket_equal_those_on_disk(self, bucket_loop, local_loop):
        assert bucket_loop.expected == local_loop.expected
