"""Test that updates of a store recover from a fault at any storage operation.

`make test` takes a sample of the points, `make nightly` all of them.
"""

from types import SimpleNamespace

import pytest

from tests.fault_loop import bucket_fault_loop, local_fault_loop, run_fault_points
from tests.file_tree import read_tree
from tests.jobs.in_process import without_ray
from tests.jobs.initial_states import INITIAL_STATES

SCENARIOS = ("changed_source", "recovered_source", "compact")
LOCAL_SAMPLE, S3_SAMPLE = 9, 3
LOCAL_MIN_POINTS, S3_MIN_POINTS = 300, 100


@pytest.fixture(scope="module", params=SCENARIOS)
def scenario(request, tmp_path_factory):
    """Return a finished store and a run that changes it."""
    with without_ray():
        state = INITIAL_STATES[request.param](tmp_path_factory.mktemp(request.param))
        initial_files = read_tree(state.root / "before")
        yield SimpleNamespace(
            initial_files=initial_files, run=lambda folder: state.run(folder.uri())
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
